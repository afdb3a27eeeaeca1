"""The backbone: a plain ViT over template and search tokens together, or, in two streams, over each alone.

Follows OSTrack, Ye et al. 2022, Sec. 3.1, and the released weights: no class token, no segment
embedding unless asked for, exact (erf) GELU, LayerNorm epsilon 1e-6, final norm before eliminated cells are restored.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ostrack_jax.models import candidates as candidates_lib
from ostrack_jax.models import fused_blocks, fused_norm
from ostrack_jax.models.candidates import PATCH_SIZE, Candidates
from ostrack_jax.models.fused_blocks import FusedBlock
from ostrack_jax.models.fused_norm import Branch, ResidualNorm
from ostrack_jax.models.fused_products import RowSums
from ostrack_jax.models.relative_positions import offset_index, offsets_left
from ostrack_jax.models.row_major import row_major
from ostrack_jax.models.self_attention import Attention, BranchEnd, linear_init, scaled

VARIANTS = {
  "ti": dict(width=192, depth=12, num_heads=3),
  "s": dict(width=384, depth=12, num_heads=6),
  "b": dict(width=768, depth=12, num_heads=12),
  "l": dict(width=1024, depth=24, num_heads=16),
}


def image_patches(images, dtype) -> jax.Array:
  """Return [b, HW/256, 768] of [b, H, W, 3]: patches row by row, each by row, column and channel."""
  side = PATCH_SIZE
  batch, height, width, channels = images.shape
  patches = images.reshape(batch, height // side, side, width // side, side, channels)
  patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, side * side * channels)
  return patches.astype(dtype)


class PatchProjection(nn.Module):
  """A convolution whose stride is its kernel, as one matrix product: cuDNN takes four times as long."""

  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, images):
    shape = (PATCH_SIZE, PATCH_SIZE, images.shape[3], self.width)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    bias = self.param("bias", nn.initializers.zeros, (self.width,))
    kernel = kernel.astype(self.dtype).reshape(-1, self.width)
    patches = image_patches(images, self.dtype)
    tokens = patches @ kernel + bias.astype(self.dtype)[None, None, :]
    return row_major(tokens)


class PatchEmbed(nn.Module):
  """Project 16 x 16 patches to tokens: [b, H, W, 3] to [b, HW/256, width], row-major."""

  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, images):
    return PatchProjection(self.width, self.dtype, name="proj")(images)


@jax.custom_vjp
def exact_gelu(x):
  """Return x times the normal distribution function, exactly (erf); computed in float32.

  The gradient keeps x alone and computes the rest anew: left to itself it keeps three arrays of this size,
  the largest of the network, and reading them takes a tenth of a training step.
  """
  return _gelu(x)


def _gelu(x):
  wide = x.astype(jnp.float32)
  return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def _gelu_forward(x):
  return _gelu(x), x


def _gelu_backward(x, gradient):
  wide = x.astype(jnp.float32)
  below = 0.5 * (1 + jax.lax.erf(wide * math.sqrt(0.5)))
  density = jnp.exp(-0.5 * jnp.square(wide)) / math.sqrt(2 * math.pi)
  return (((below + wide * density) * gradient.astype(jnp.float32)).astype(x.dtype),)


exact_gelu.defvjp(_gelu_forward, _gelu_backward)


class Mlp(nn.Module):
  """Two linear layers with an exact GELU between."""

  width: int
  dtype: jnp.dtype

  def setup(self):
    self.fc1 = nn.Dense(4 * self.width, dtype=self.dtype, kernel_init=linear_init)
    self.fc2 = BranchEnd(self.width, self.dtype)

  def __call__(self, tokens, scale=None) -> Branch:
    """Map [b, n, width] to the same; scale [b, 1, 1] float32 multiplies each sample's result."""
    # Scaled here, along with the activation, it costs no pass of its own.
    return self.fc2(scaled(exact_gelu(self.fc1(tokens)), scale), scale)


class Block(nn.Module):
  """Pre-norm transformer block in two halves, so that candidates can leave in between.

  Each half adds the branch before it and leaves its own to be added, by the norm of the next half.
  """

  width: int
  num_heads: int
  dtype: jnp.dtype
  offsets: int = 0

  def setup(self):
    self.norm1 = ResidualNorm(self.dtype)
    self.attn = Attention(self.width, self.num_heads, self.dtype, self.offsets)
    self.norm2 = ResidualNorm(self.dtype)
    self.mlp = Mlp(self.width, self.dtype)

  def attend(self, tokens, branch, *, rows, key_valid, scale=None, offset_index=None):
    """Return tokens, the attention branch, and the attention rows asked for; scale as Mlp's."""
    tokens, normed = self.norm1(tokens, branch)
    return tokens, *self.attn(normed, rows, key_valid, scale, offset_index)

  def feed_forward(self, tokens, branch, *, scale=None):
    """Return tokens and the MLP's branch; scale as Mlp's."""
    tokens, normed = self.norm2(tokens, branch)
    return tokens, self.mlp(normed, scale)


# Both halves are computed anew in the backward pass where memory counts more than time.
_HALVES = ("attend", "feed_forward")


class Backbone(nn.Module):
  """ViT over [template; search] tokens with candidate elimination."""

  width: int
  depth: int
  num_heads: int
  template_size: int
  search_size: int
  elimination_layers: tuple[int, ...]
  keep_ratios: tuple[float, ...]
  template_tokens: str
  drop_path_rate: float
  identity_embeddings: bool
  relative_positions: bool
  dtype: jnp.dtype
  rematerialise: bool = False

  def setup(self):
    self.patch_embed = PatchEmbed(self.width, self.dtype)
    table = nn.initializers.truncated_normal(stddev=0.02)
    self.pos_embed_z = self.param(
      "pos_embed_z", table, (1, (self.template_size // PATCH_SIZE) ** 2, self.width)
    )
    self.pos_embed_x = self.param(
      "pos_embed_x", table, (1, (self.search_size // PATCH_SIZE) ** 2, self.width)
    )
    if self.identity_embeddings:
      self.template_segment_pos_embed, self.search_segment_pos_embed = (
        self.param(f"{image}_segment_pos_embed", table, (1, 1, self.width))
        for image in ("template", "search")
      )
    count = 0
    if self.relative_positions:
      grids = (self.template_size // PATCH_SIZE, self.search_size // PATCH_SIZE)
      self.offsets, count = offset_index(*grids, search_only=False)
    block = nn.remat(Block, methods=_HALVES) if self.rematerialise else Block
    self.blocks = [block(self.width, self.num_heads, self.dtype, count) for _ in range(self.depth)]
    self.norm = ResidualNorm(self.dtype)

  def _drop_path(self, batch: int, train: bool) -> list[tuple]:
    """Return per block what scales its attention and its MLP: [b, 1, 1] float32, 0 for samples that lose the
    branch, else 1 / share kept; None where nothing is dropped. Drawn at once: each draw costs several kernels."""
    if not (train and self.drop_path_rate):
      return [(None, None)] * self.depth
    rates = self.drop_path_rate * jnp.arange(self.depth) / max(self.depth - 1, 1)
    keep = (1 - rates)[:, None, None, None, None]
    shape = (self.depth, 2, batch, 1, 1)
    survives = jax.random.bernoulli(self.make_rng("drop_path"), keep, shape)
    scales = jnp.where(survives, 1 / keep, 0.0).astype(jnp.float32)
    return [(scales[layer, 0], scales[layer, 1]) for layer in range(self.depth)]

  def encode(self, images, positions, *, train: bool):
    """Encode images by themselves, as two-stream trackers do.

    Args:
      images: [b, H, W, 3] normalised RGB.
      positions: pos_embed_z or pos_embed_x, as images are templates or search regions.

    Returns:
      [b, n, width], behind the final norm.
    """
    tokens = self.patch_embed(images) + positions.astype(self.dtype)
    branch = None
    for block, scales in zip(self.blocks, self._drop_path(tokens.shape[0], train)):
      tokens, branch, _ = block.attend(tokens, branch, rows=None, key_valid=None, scale=scales[0])
      if self.rematerialise:
        tokens, branch = fused_norm.add(tokens, branch), None
      tokens, branch = block.feed_forward(tokens, branch, scale=scales[1])
      if self.rematerialise:
        tokens, branch = fused_norm.add(tokens, branch), None
    return self.norm(tokens, branch)[1]

  def _embed(self, template, search):
    """Return tokens [b, Nz + Nx, width] of both images, template first."""
    z = self.patch_embed(template) + self.pos_embed_z.astype(self.dtype)
    x = self.patch_embed(search) + self.pos_embed_x.astype(self.dtype)
    if self.identity_embeddings:
      z = z + self.template_segment_pos_embed.astype(self.dtype)
      x = x + self.search_segment_pos_embed.astype(self.dtype)
    return jnp.concatenate([z, x], axis=1)

  def __call__(
    self,
    template,
    search,
    *,
    template_mask,
    keep_counts,
    attention_layers,
    feature_layers,
    train: bool,
    blocks_folded=None,
  ):
    """Return (features [b, Nz+Nx, width], removed, attention, inner features); see OSTrack.__call__."""
    blocks: list[Any] = self.blocks
    # What is left pending is a Branch to be added or, of fused blocks, the sums of the tokens.
    branch: Any = None
    num_z, num_x = (
      image.shape[1] * image.shape[2] // PATCH_SIZE**2 for image in (template, search)
    )
    if blocks_folded is None:
      tokens = self._embed(template, search)
    else:
      blocks = [FusedBlock(blocks_folded, layer, self.num_heads) for layer in range(self.depth)]
      patches = [image_patches(image, self.dtype) for image in (template, search)]
      tokens, branch = fused_blocks.embed(blocks_folded, jnp.concatenate(patches, axis=1))
    capacities = candidates_lib.stage_counts(num_x, self.keep_ratios)
    chosen = candidates_lib.template_token_indices(
      self.template_tokens, self.template_size // PATCH_SIZE
    )
    rows = tuple(range(num_z)) if chosen is None else chosen

    index = jnp.broadcast_to(jnp.arange(num_x, dtype=jnp.int32)[None, :], (tokens.shape[0], num_x))
    alive = Candidates(index=index, valid=None)
    offsets = self.offsets[None] if self.relative_positions else None
    removed, attention, inner = [], [], []
    drop_path = self._drop_path(tokens.shape[0], train)
    for layer, (block, scales) in enumerate(zip(blocks, drop_path)):
      stage = self.elimination_layers.index(layer) if layer in self.elimination_layers else None
      eliminates = stage is not None and (
        keep_counts is not None or capacities[stage] < alive.index.shape[1]
      )
      wanted = eliminates or layer in attention_layers
      key_valid = None
      if alive.valid is not None:
        key_valid = jnp.concatenate([jnp.ones((tokens.shape[0], num_z), bool), alive.valid], axis=1)
      tokens, branch, looks = block.attend(
        tokens,
        branch,
        rows=rows if wanted else None,
        key_valid=key_valid,
        scale=scales[0],
        offset_index=offsets,
      )
      if eliminates or self.rematerialise or layer in feature_layers:
        tokens, branch = fused_norm.settle(tokens, branch)
      if layer in feature_layers:
        inner.append(candidates_lib.on_grid(tokens, alive, num_x))
      if layer in attention_layers:
        attention.append(candidates_lib.attention_on_grid(looks, alive, num_z, num_x))
      if eliminates and looks is not None:
        # Only fused blocks know the sums.
        if isinstance(branch, RowSums) and keep_counts is None and block.can_eliminate(looks):
          kept = block.eliminate(tokens, branch, looks, alive.index, capacities[stage])
          tokens, branch, dropped = kept.tokens, kept.sums, kept.removed
          alive = Candidates(index=kept.index, valid=None)
        else:
          scores = candidates_lib.candidate_scores(
            looks[..., num_z:], template_mask if chosen is None else None
          )
          keep_count = None if keep_counts is None else keep_counts[stage]
          tokens, alive, dropped = candidates_lib.eliminate(
            tokens, alive, scores, capacities[stage], keep_count
          )
          branch = None
        removed.append(dropped)
        if self.relative_positions:
          offsets = offsets_left(self.offsets, num_z, alive.index)
        # For inspection: which grid cell each token behind this layer stands for.
        self.sow("intermediates", f"kept_{stage}", alive.index)
      elif stage is not None:
        removed.append(jnp.zeros((tokens.shape[0], 0), jnp.int32))
      tokens, branch = block.feed_forward(tokens, branch, scale=scales[1])
      if self.rematerialise:
        tokens, branch = fused_norm.add(tokens, branch), None

    if blocks_folded is not None:
      features = fused_blocks.finish(blocks_folded, tokens, branch, alive, num_x)
    else:
      features = candidates_lib.on_grid(self.norm(tokens, branch)[1], alive, num_x)
    return features, tuple(removed), tuple(attention), tuple(inner)
