"""OSTrack: template and search region in, score map and box out."""

from typing import cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from ostrack_jax.models import (
  candidates,
  checks,
  folded_head,
  head,
  other_heads,
  stark,
  swintrack,
  vit,
)

_IMAGE_MEAN = (0.485, 0.456, 0.406)
_IMAGE_STD = (0.229, 0.224, 0.225)


class OSTrackOutput(flax.struct.PyTreeNode):
  """What the network says of a pair.

  Attributes:
    score_map: [b, F, F, 1] float32 after the clamped sigmoid; None with another head than `center`.
    size_map: [b, F, F, 2] width and height as shares of the search crop, after the clamped sigmoid; likewise.
    offset_map: [b, F, F, 2] x and y offsets in cells, raw; likewise.
    boxes_cxcywh: [b, 4] in the unit square of the crop, decoded at the raw score map's maximum where there is one.
    scores: [b] maximum of the raw score map, or what other_heads has instead.
    features: [b, Nz + Nx, d] the backbone's template tokens, then search tokens with zeros where eliminated.
    removed: a [b, k] int32 array per stage: search-grid cells eliminated there; with `keep_counts`
      padded with -1.
    attention: per layer asked for, [b, heads, t, Nz + Nx] float32 attention rows of the t chosen
      template tokens (all of them with `ground_truth_box`), search columns on the grid, zero where a candidate had already left.
    inner_features: per layer asked for, tokens as features has them, behind the block's attention; not normalised, and
      with the candidates that the block itself eliminates.
  """

  score_map: jax.Array | None
  size_map: jax.Array | None
  offset_map: jax.Array | None
  boxes_cxcywh: jax.Array
  scores: jax.Array
  features: jax.Array
  removed: tuple[jax.Array, ...]
  attention: tuple[jax.Array, ...]
  inner_features: tuple[jax.Array, ...] = ()

  def boxes_near(self, window) -> jax.Array:
    """Return [b, 4] cxcywh at the maximum of the score map weighted by window [F, F].

    Without a score map there is nothing to weigh: boxes_cxcywh.
    """
    if self.score_map is None:
      return self.boxes_cxcywh
    weighted = self.score_map * window[None, :, :, None]
    return head.decode_boxes(weighted, self.size_map, self.offset_map)


class OSTrack(nn.Module):
  """One-stream tracker, Ye et al. 2022, and the two-stream trackers that the paper aligns with it (Table 5).

  Attributes:
    variant: `ti`, `s`, `b`, `l`, or `custom` with width, depth and num_heads given.
    width, depth, num_heads: override the variant's.
    template_size, search_size: pixels, multiples of 16.
    head_channels: channels of the head's first convolution, a multiple of 8.
    elimination_layers: blocks (from 0) that eliminate candidates after their attention.
    keep_ratios: share of search tokens that each of those keeps.
    template_tokens: whose attention ranks candidates; one of candidates.TEMPLATE_TOKENS.
    drop_path_rate: of the last block; earlier blocks have less, linearly.
    score_bias: initial bias of the score branch; see head.CenterHead.
    relation: where template and search region meet: `one_stream`, in the backbone; or, the backbone run on
      each by itself, in what `stark` or `swintrack` puts behind it (stark.Stark, swintrack.SwinTrack).
    relation_layers: of those two's encoder (and STARK's decoder); None for the paper's 6 and 4.
    head: `center`, the paper's; or `corner` or `mlp`, which have no score map (see other_heads).
    identity_embeddings: add a learnt vector to all template tokens and another to all search tokens.
    relative_positions: add to attention logits, head by head, a learnt bias of the offset between two
      tokens, told apart by their images; a table a block, as the official code declares; see relative_positions.
    dtype: compute type, `float32`, `bfloat16` or, not for training, `float16`; parameters stay float32.
    rematerialise: in training keep what enters the halves of blocks alone, and compute the rest anew in
      the backward pass: much less memory for a third more arithmetic. Changes no number. What relates two
      streams keeps its own.
  """

  variant: str = "b"
  width: int | None = None
  depth: int | None = None
  num_heads: int | None = None
  template_size: int = 128
  search_size: int = 256
  head_channels: int = 256
  elimination_layers: tuple[int, ...] = (3, 6, 9)
  keep_ratios: tuple[float, ...] = (0.7, 0.7, 0.7)
  template_tokens: str = "centre_point"
  drop_path_rate: float = 0.1
  score_bias: float | None = None
  relation: str = "one_stream"
  relation_layers: int | None = None
  head: str = "center"
  identity_embeddings: bool = False
  relative_positions: bool = False
  dtype: str = "float32"
  rematerialise: bool = False

  def __post_init__(self):
    # ConfigDict and JSON give lists; linen needs hashable fields.
    self.elimination_layers = tuple(self.elimination_layers)
    self.keep_ratios = tuple(self.keep_ratios)
    checks.check_fields(self)
    super().__post_init__()

  def dimensions(self) -> dict[str, int]:
    """Return width, depth and num_heads, with the variant's where no override is given."""
    given = {"width": self.width, "depth": self.depth, "num_heads": self.num_heads}
    overrides = {name: value for name, value in given.items() if value is not None}
    return {**vit.VARIANTS.get(self.variant, {}), **overrides}

  @property
  def is_two_stream(self) -> bool:
    """Whether the backbone sees template and search region apart."""
    return self.relation != "one_stream"

  @property
  def fusion_layers(self) -> int:
    """Encoder layers between a two-stream backbone and the head; 0 for one_stream."""
    return self.relation_layers or checks.RELATIONS[self.relation]

  @property
  def head_inputs(self) -> int:
    """Channels that the head sees."""
    return stark.CHANNELS if self.relation == "stark" else self.dimensions()["width"]

  @property
  def search_grid(self) -> int:
    """Cells per side of the score map."""
    return self.search_size // candidates.PATCH_SIZE

  def stage_counts(self, keep_ratios: tuple[float, ...] | None = None) -> tuple[int, ...]:
    """Return the search tokens left after each stage, at these ratios or the model's own."""
    ratios = self.keep_ratios if keep_ratios is None else keep_ratios
    return candidates.stage_counts(self.search_grid**2, ratios)

  def setup(self):
    dtype = jnp.dtype(self.dtype)
    sizes = self.dimensions()
    self.backbone = vit.Backbone(
      width=sizes["width"],
      depth=sizes["depth"],
      num_heads=sizes["num_heads"],
      template_size=self.template_size,
      search_size=self.search_size,
      elimination_layers=self.elimination_layers,
      keep_ratios=self.keep_ratios,
      template_tokens=self.template_tokens,
      drop_path_rate=self.drop_path_rate,
      identity_embeddings=self.identity_embeddings,
      relative_positions=self.relative_positions,
      dtype=dtype,
      rematerialise=self.rematerialise,
    )
    if self.is_two_stream:
      sizes = (self.fusion_layers, self.template_size // candidates.PATCH_SIZE, self.search_grid)
      if self.relation == "stark":
        self.fusion = stark.Stark(*sizes, dtype)
      else:
        self.fusion = swintrack.SwinTrack(*sizes, self.drop_path_rate, dtype)
    if self.head == "center":
      self.box_head = head.CenterHead(self.head_channels, dtype, self.score_bias)
    elif self.head == "corner":
      self.box_head = other_heads.CornerHead(self.head_channels, dtype)
    else:
      self.box_head = other_heads.MlpHead(dtype)

  def encode_template(self, template, train: bool = False) -> jax.Array:
    """Return a template's features [b, Nz, width], for two-stream trackers to be computed once a track.

    template: as for __call__.
    """
    dtype = jnp.dtype(self.dtype)
    return self.backbone.encode(template.astype(dtype), self.backbone.pos_embed_z, train=train)

  def __call__(
    self,
    template,
    search,
    *,
    template_mask=None,
    keep_counts=None,
    attention_layers=(),
    feature_layers=(),
    train: bool = False,
    batch_norm_groups: int = 1,
    batch_norm_shards: int = 1,
    head_folded=None,
    blocks_folded=None,
    encoded_template=None,
  ) -> OSTrackOutput:
    """Locate the template's target in the search region.

    Args:
      template: [b, template_size, template_size, 3] normalised RGB; see normalise_images.
      search: [b, search_size, search_size, 3] likewise.
      template_mask: [b, Nz] bool, template tokens on the target; needed by, and only by,
        template_tokens `ground_truth_box` (candidates.template_mask_from_boxes makes it).
      keep_counts: traced int32 [stages], how many candidates count after each stage, at most the
        static capacity that keep_ratios gives; the rest is masked. For training schedules.
      attention_layers: blocks whose template attention is returned, in the order of the blocks.
      feature_layers: blocks whose tokens are returned, likewise.
      train: use batch statistics and drop path (rng `drop_path`); `batch_stats` must be mutable.
      batch_norm_groups: equal parts of the batch that BatchNorm normalises apart, in training.
      batch_norm_shards: equal runs of the batch that lie on different devices, in training. The devices
        then tell each other BatchNorm's statistics in few words; numbers change by rounding alone.
      head_folded: what folded_head.fold makes of the head's variables, which are then not looked at.
      blocks_folded: what fused_blocks.fold makes of the backbone's, likewise but for position tables; not in
        training nor with keep_counts. With it a folded head runs by fused_head's kernels for one sample.
      encoded_template: of encode_template, in place of template, which is then None; two-stream alone.

    Returns:
      OSTrackOutput.

    Raises:
      ValueError: a shape does not fit the model, template_mask is missing or not expected, or the batch does
        not divide as BatchNorm is to see it.
    """
    checks.check_call(
      self,
      template,
      search,
      template_mask=template_mask,
      keep_counts=keep_counts,
      attention_layers=attention_layers,
      feature_layers=feature_layers,
      batch_norm_groups=batch_norm_groups,
      batch_norm_shards=batch_norm_shards,
      blocks_folded=blocks_folded,
      encoded_template=encoded_template,
    )
    dtype = jnp.dtype(self.dtype)
    removed, attention, inner = (), (), ()
    grid = self.search_grid
    if self.is_two_stream:
      if encoded_template is None:
        encoded_template = self.encode_template(template, train)
      positions = self.backbone.pos_embed_x
      encoded_search = self.backbone.encode(search.astype(dtype), positions, train=train)
      features = jnp.concatenate([encoded_template, encoded_search], axis=1)
      related = self.fusion(encoded_template, encoded_search, train)
    else:
      features, removed, attention, inner = self.backbone(
        template.astype(dtype),
        search.astype(dtype),
        template_mask=template_mask,
        keep_counts=keep_counts,
        attention_layers=tuple(attention_layers),
        feature_layers=tuple(feature_layers),
        train=train,
        blocks_folded=blocks_folded,
      )
      related = features[:, -grid * grid :]
    search_features = related.reshape(search.shape[0], grid, grid, -1).astype(dtype)
    score_map, size_map, offset_map = None, None, None
    if head_folded is not None:
      found = folded_head.apply(head_folded, search_features, blocks_folded is not None)
    else:
      found = self.box_head(search_features, train, batch_norm_groups, batch_norm_shards)
    found = cast(tuple[jax.Array, ...], found)
    if self.head == "center":
      score_map, size_map, offset_map = found
      boxes_cxcywh, scores = head.decode_boxes(*found), score_map.max(axis=(1, 2, 3))
    else:
      boxes_cxcywh, scores = found
    return OSTrackOutput(
      score_map=score_map,
      size_map=size_map,
      offset_map=offset_map,
      boxes_cxcywh=boxes_cxcywh,
      scores=scores,
      features=features,
      removed=removed,
      attention=attention,
      inner_features=inner,
    )


def normalise_images(images, brightness=None) -> jax.Array:
  """Turn uint8 RGB [b, h, w, 3] into the network's input.

  Args:
    images: [b, h, w, 3] uint8.
    brightness: [b] factors applied before the clamp to [0, 1], or None.

  Returns:
    [b, h, w, 3] float32, ImageNet mean and deviation removed. Black padding becomes -mean / deviation.
  """
  images = jnp.asarray(images).astype(jnp.float32)
  if brightness is None:
    images = images / 255.0
  else:
    images = jnp.clip(images * brightness[:, None, None, None] / 255.0, 0.0, 1.0)
  mean = jnp.asarray(_IMAGE_MEAN, jnp.float32)[None, None, None, :]
  std = jnp.asarray(_IMAGE_STD, jnp.float32)[None, None, None, :]
  return (images - mean) / std
