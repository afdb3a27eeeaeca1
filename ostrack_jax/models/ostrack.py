"""OSTrack: template and search region in, score map and box out."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from ostrack_jax.models import candidates, folded_head, head, stark, swintrack, vit

_IMAGE_MEAN = (0.485, 0.456, 0.406)
_IMAGE_STD = (0.229, 0.224, 0.225)
DTYPES = ("float32", "bfloat16")


class OSTrackOutput(flax.struct.PyTreeNode):
  """What the network says of a pair.

  Attributes:
    score_map: [b, F, F, 1] float32 after the clamped sigmoid.
    size_map: [b, F, F, 2] width and height as shares of the search crop, after the clamped sigmoid.
    offset_map: [b, F, F, 2] x and y offsets in cells, raw.
    boxes_cxcywh: [b, 4] decoded at the raw score map's maximum, in the unit square of the crop.
    features: [b, Nz + Nx, d] the backbone's template tokens, then search tokens with zeros where eliminated.
    removed: a [b, k] int32 array per stage: search-grid cells eliminated there; with `keep_counts`
      padded with -1.
    attention: per layer asked for, [b, heads, t, Nz + Nx] float32 attention rows of the t chosen
      template tokens (all of them with `ground_truth_box`), search columns on the grid, zero where a candidate had already left.
  """

  score_map: jax.Array
  size_map: jax.Array
  offset_map: jax.Array
  boxes_cxcywh: jax.Array
  features: jax.Array
  removed: tuple[jax.Array, ...]
  attention: tuple[jax.Array, ...]


# With the layers of their encoders, as in the paper.
RELATIONS = {"one_stream": 0, "stark": stark.LAYERS, "swintrack": swintrack.LAYERS}


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
    dtype: compute type, `float32` or `bfloat16`; parameters stay float32.
    rematerialise: in training keep what enters the halves of blocks alone, and compute the rest anew in
      the backward pass: much less memory for a third more arithmetic. Changes no number.
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
  dtype: str = "float32"
  rematerialise: bool = False

  def __post_init__(self):
    # ConfigDict and JSON give lists; linen needs hashable fields.
    self.elimination_layers = tuple(self.elimination_layers)
    self.keep_ratios = tuple(self.keep_ratios)
    self._check()
    super().__post_init__()

  def _check(self):
    if self.variant not in (*vit.VARIANTS, "custom"):
      raise ValueError(
        f"variant {self.variant!r} is unknown; choose one of {', '.join(vit.VARIANTS)} or custom"
      )
    sizes = self.dimensions()
    if len(sizes) < 3:
      raise ValueError(f"variant custom needs width, depth and num_heads; got {sizes}")
    if any(not isinstance(size, int) or size < 1 for size in sizes.values()):
      raise ValueError(f"width, depth and num_heads must be positive whole numbers, got {sizes}")
    if sizes["width"] % sizes["num_heads"]:
      raise ValueError(f"width {sizes['width']} is not divisible by num_heads {sizes['num_heads']}")
    for name in ("template_size", "search_size"):
      size = getattr(self, name)
      if not isinstance(size, int) or size < 16 or size % 16:
        raise ValueError(f"{name} {size} must be a positive multiple of the patch size 16")
    if not 0 <= self.drop_path_rate < 1:
      raise ValueError(f"drop_path_rate {self.drop_path_rate} must lie in [0, 1)")
    if self.head_channels < 8 or self.head_channels % 8:
      raise ValueError(f"head_channels {self.head_channels} must be a positive multiple of 8")
    if len(self.elimination_layers) != len(self.keep_ratios):
      raise ValueError(
        f"{len(self.elimination_layers)} elimination_layers {self.elimination_layers} need as many "
        f"keep_ratios, got {self.keep_ratios}"
      )
    if sorted(set(self.elimination_layers)) != list(self.elimination_layers):
      raise ValueError(f"elimination_layers {self.elimination_layers} must be increasing")
    if any(not 0 <= layer < sizes["depth"] for layer in self.elimination_layers):
      raise ValueError(
        f"elimination_layers {self.elimination_layers} must lie in 0..{sizes['depth'] - 1}"
      )
    if any(not 0 < ratio <= 1 for ratio in self.keep_ratios):
      raise ValueError(f"keep_ratios {self.keep_ratios} must lie in (0, 1]")
    if self.template_tokens not in candidates.TEMPLATE_TOKENS:
      raise ValueError(
        f"template_tokens {self.template_tokens!r} is unknown; choose one of {', '.join(candidates.TEMPLATE_TOKENS)}"
      )
    if self.relation not in RELATIONS:
      raise ValueError(
        f"relation {self.relation!r} is unknown; choose one of {', '.join(RELATIONS)}"
      )
    if self.is_two_stream and self.elimination_layers:
      raise ValueError(
        f"relation {self.relation!r} has no candidates to eliminate; set elimination_layers and keep_ratios to ()"
      )
    if self.relation_layers is not None and (not self.is_two_stream or self.relation_layers < 1):
      raise ValueError(
        f"relation_layers {self.relation_layers} must be positive, and None with relation one_stream"
      )
    if self.relation == "swintrack" and sizes["width"] % swintrack.NUM_HEADS:
      raise ValueError(
        f"width {sizes['width']} is not divisible by swintrack's {swintrack.NUM_HEADS} heads"
      )
    if self.dtype not in DTYPES:
      raise ValueError(f"dtype {self.dtype!r} is not supported; choose one of {', '.join(DTYPES)}")

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
    return self.relation_layers or RELATIONS[self.relation]

  @property
  def head_inputs(self) -> int:
    """Channels that the head sees."""
    return stark.CHANNELS if self.relation == "stark" else self.dimensions()["width"]

  @property
  def search_grid(self) -> int:
    """Cells per side of the score map."""
    return self.search_size // candidates.PATCH_SIZE

  def stage_counts(self, keep_ratio: float | None = None) -> tuple[int, ...]:
    """Return the search tokens left after each stage; `keep_ratio` replaces every stage's ratio."""
    ratios = self.keep_ratios if keep_ratio is None else (keep_ratio,) * len(self.keep_ratios)
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
      dtype=dtype,
      rematerialise=self.rematerialise,
    )
    if self.is_two_stream:
      sizes = (self.fusion_layers, self.template_size // candidates.PATCH_SIZE, self.search_grid)
      if self.relation == "stark":
        self.fusion = stark.Stark(*sizes, dtype)
      else:
        self.fusion = swintrack.SwinTrack(*sizes, self.drop_path_rate, dtype)
    self.box_head = head.CenterHead(self.head_channels, dtype, self.score_bias)

  def _check_images(self, name: str, images, size: int, batch: int) -> None:
    if images.ndim != 4 or images.shape[1:] != (size, size, 3):
      raise ValueError(f"{name} has shape {images.shape}; this model takes [b, {size}, {size}, 3]")
    if not jnp.issubdtype(images.dtype, jnp.floating):
      raise ValueError(f"{name} is {images.dtype}; give normalised floats (see normalise_images)")
    if images.shape[0] != batch:
      raise ValueError(f"{images.shape[0]} templates and {batch} search regions must be as many")

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
    train: bool = False,
    batch_norm_groups: int = 1,
    batch_norm_shards: int = 1,
    head_folded=None,
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
      train: use batch statistics and drop path (rng `drop_path`); `batch_stats` must be mutable.
      batch_norm_groups: equal parts of the batch that BatchNorm normalises apart, in training.
      batch_norm_shards: equal runs of the batch that lie on different devices, in training. The devices
        then tell each other BatchNorm's statistics in few words; numbers change by rounding alone.
      head_folded: what folded_head.fold makes of the head's variables, which are then not looked at.
      encoded_template: of encode_template, in place of template, which is then None; two-stream alone.

    Returns:
      OSTrackOutput.

    Raises:
      ValueError: a shape does not fit the model, template_mask is missing or not expected, or the batch
        does not divide as BatchNorm is to see it.
    """
    batch, grid = search.shape[0], self.template_size // candidates.PATCH_SIZE
    self._check_images("search", search, self.search_size, batch)
    if encoded_template is None:
      self._check_images("template", template, self.template_size, batch)
    elif not self.is_two_stream or encoded_template.shape[:2] != (batch, grid * grid):
      raise ValueError(
        f"encoded_template has shape {encoded_template.shape}; expected [{batch}, {grid * grid}, width] "
        f"and relation stark or swintrack, which is {self.relation!r}"
      )
    if (template_mask is not None) != (self.template_tokens == "ground_truth_box"):
      state = "missing" if template_mask is None else "not used"
      raise ValueError(f"template_mask is {state} with template_tokens {self.template_tokens!r}")
    if template_mask is not None and template_mask.shape != (batch, grid * grid):
      raise ValueError(
        f"template_mask has shape {template_mask.shape}; expected {(batch, grid * grid)}"
      )
    stages = len(self.keep_ratios)
    if keep_counts is not None and jnp.shape(keep_counts) != (stages,):
      raise ValueError(
        f"keep_counts has shape {jnp.shape(keep_counts)}; this model takes [{stages}]"
      )
    if batch_norm_groups < 1 or batch % batch_norm_groups:
      raise ValueError(
        f"batch_norm_groups {batch_norm_groups} must divide the batch, which has {batch} pairs"
      )
    if batch_norm_shards < 1 or batch % batch_norm_shards:
      raise ValueError(
        f"batch_norm_shards {batch_norm_shards} must divide the batch, which has {batch} pairs; give "
        "the number of devices that it lies on"
      )
    if batch_norm_groups % batch_norm_shards and batch_norm_shards % batch_norm_groups:
      raise ValueError(
        f"batch_norm_groups {batch_norm_groups} and batch_norm_shards {batch_norm_shards}: one must be "
        f"a multiple of the other; choose groups that divide {batch_norm_shards}, or multiples of it"
      )
    depth = self.dimensions()["depth"]
    if any(not 0 <= layer < depth for layer in attention_layers):
      raise ValueError(f"attention_layers {tuple(attention_layers)} must lie in 0..{depth - 1}")
    if self.is_two_stream and (keep_counts is not None or attention_layers):
      raise ValueError(
        f"relation {self.relation!r} has no attention of template tokens over the search region, "
        "so neither keep_counts nor attention_layers; leave them away"
      )
    dtype = jnp.dtype(self.dtype)
    removed, attention = (), ()
    grid = self.search_grid
    if self.is_two_stream:
      if encoded_template is None:
        encoded_template = self.encode_template(template, train)
      positions = self.backbone.pos_embed_x
      encoded_search = self.backbone.encode(search.astype(dtype), positions, train=train)
      features = jnp.concatenate([encoded_template, encoded_search], axis=1)
      related = self.fusion(encoded_template, encoded_search, train)
    else:
      features, removed, attention = self.backbone(
        template.astype(dtype),
        search.astype(dtype),
        template_mask=template_mask,
        keep_counts=keep_counts,
        attention_layers=tuple(attention_layers),
        train=train,
      )
      related = features[:, -grid * grid :]
    search_features = related.reshape(batch, grid, grid, -1)
    if head_folded is None:
      maps = self.box_head(
        search_features.astype(dtype), train, batch_norm_groups, batch_norm_shards
      )
    else:
      maps = folded_head.apply(head_folded, search_features)
    score_map, size_map, offset_map = maps
    return OSTrackOutput(
      score_map=score_map,
      size_map=size_map,
      offset_map=offset_map,
      boxes_cxcywh=head.decode_boxes(score_map, size_map, offset_map),
      features=features,
      removed=removed,
      attention=attention,
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
