"""What STARK-S puts between a two-stream backbone and the head: encoder, decoder, one target query.

Follows STARK, Yan et al. 2021, Sec. 3.1, as its repository has it (github.com/researchmm/Stark, commit
4071d9b, lib/models/stark/stark_s.py and transformer.py): a projection to 256 channels, six encoder and six
decoder layers that normalise behind each residual sum, 8 heads, 2048 hidden units, ReLU, dropout 0.1,
sine positions added to queries and keys alone. Departures: the head is OSTrack's, as OSTrack's paper aligns
it, instead of corners; and padding outside the frame is seen, black as OSTrack sees it, where STARK masks it.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ostrack_jax.models.head import torch_bias_init

CHANNELS = 256
HIDDEN = 2048
NUM_HEADS = 8
LAYERS = 6
_DROPOUT = 0.1
_EPSILON = 1e-5

_xavier = nn.initializers.xavier_uniform()


def sine_positions(grid: int) -> np.ndarray:
  """Return the sine positions of a grid's cells, row by row, [grid^2, CHANNELS] float32.

  The first half of the channels stands for the row, the second for the column; within each, sine and cosine
  take turns, at wavelengths from 2 pi to 10000 times that. Cells are counted from 1 and the last is 2 pi.
  """
  half = CHANNELS // 2
  angle = 2 * math.pi * np.arange(1, grid + 1) / (grid + 1e-6)
  wavelength = 10000.0 ** (2 * (np.arange(half) // 2) / half)
  phase = angle[:, None] / wavelength[None, :]
  axis = np.where(np.arange(half) % 2 == 0, np.sin(phase), np.cos(phase))
  rows, columns = np.repeat(axis, grid, axis=0), np.tile(axis, (grid, 1))
  return np.concatenate([rows, columns], axis=1).astype(np.float32)


class Projections(nn.Module):
  """The projections of queries, keys and values, in one kernel [c, 3 c] as PyTorch keeps them."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, queries, keys, values):
    kernel = self.param("kernel", _xavier, (CHANNELS, 3 * CHANNELS)).astype(self.dtype)
    bias = self.param("bias", nn.initializers.zeros, (3 * CHANNELS,)).astype(self.dtype)
    return [
      x @ kernel[:, start : start + CHANNELS] + bias[None, None, start : start + CHANNELS]
      for x, start in ((queries, 0), (keys, CHANNELS), (values, 2 * CHANNELS))
    ]


class MultiHeadAttention(nn.Module):
  """Attention with dropout of its weights, as PyTorch's."""

  dtype: jnp.dtype

  def setup(self):
    self.in_proj = Projections(self.dtype)
    self.out_proj = nn.Dense(CHANNELS, dtype=self.dtype, kernel_init=_xavier)
    self.dropout = nn.Dropout(_DROPOUT, rng_collection="drop_path")

  def __call__(self, queries, keys, values, train: bool):
    """Attend: queries [b, m, c], keys and values [b, n, c], to [b, m, c]."""
    queries, keys, values = (
      x.reshape(*x.shape[:2], NUM_HEADS, -1) for x in self.in_proj(queries, keys, values)
    )
    scale = queries.shape[-1] ** -0.5
    logits = jnp.einsum("bmhc,bnhc->bhmn", queries, keys, preferred_element_type=jnp.float32)
    weights = self.dropout(jax.nn.softmax(logits * scale, axis=-1), deterministic=not train)
    mixed = jnp.einsum("bhmn,bnhc->bmhc", weights.astype(self.dtype), values)
    return self.out_proj(mixed.reshape(*mixed.shape[:2], CHANNELS))


class _Layer(nn.Module):
  """What encoder and decoder layers share: feed-forward, and dropout in front of each residual sum."""

  dtype: jnp.dtype

  def setup(self):
    self.self_attn = MultiHeadAttention(self.dtype)
    self.linear1 = self._linear(CHANNELS, HIDDEN)
    self.linear2 = self._linear(HIDDEN, CHANNELS)
    self.norm1, self.norm2 = self._norm(), self._norm()
    self.dropout = nn.Dropout(_DROPOUT, rng_collection="drop_path")

  def _linear(self, inputs: int, features: int) -> nn.Dense:
    return nn.Dense(
      features, dtype=self.dtype, kernel_init=_xavier, bias_init=torch_bias_init(inputs)
    )

  def _norm(self) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=_EPSILON, dtype=self.dtype)

  def _plus(self, x, branch, train: bool):
    return x + self.dropout(branch, deterministic=not train)

  def _fed_forward(self, x, train: bool):
    hidden = self.dropout(nn.relu(self.linear1(x)), deterministic=not train)
    return self._plus(x, self.linear2(hidden), train)


class EncoderLayer(_Layer):
  """Self-attention over template and search tokens, then a feed-forward net."""

  def __call__(self, tokens, positions, train: bool):
    """Map tokens [b, n, c]; positions [1, n, c]."""
    placed = tokens + positions
    tokens = self.norm1(self._plus(tokens, self.self_attn(placed, placed, tokens, train), train))
    return self.norm2(self._fed_forward(tokens, train))


class DecoderLayer(_Layer):
  """Self-attention of the target query, attention to the encoder's tokens, then a feed-forward net."""

  def setup(self):
    super().setup()
    self.multihead_attn = MultiHeadAttention(self.dtype)
    self.norm3 = self._norm()

  def __call__(self, target, query, tokens, positions, train: bool):
    """Map the target [b, 1, c]; query [1, 1, c] is its position, tokens [b, n, c] the encoder's."""
    placed = target + query
    target = self.norm1(self._plus(target, self.self_attn(placed, placed, target, train), train))
    mixed = self.multihead_attn(target + query, tokens + positions, tokens, train)
    target = self.norm2(self._plus(target, mixed, train))
    return self.norm3(self._fed_forward(target, train))


class Stark(nn.Module):
  """Relate search tokens to template tokens.

  Attributes:
    layers: of the encoder, and of the decoder.
    template_grid, search_grid: tokens per side.
    dtype: compute type.
  """

  layers: int
  template_grid: int
  search_grid: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, template, search, train: bool):
    """Map template [b, Nz, d] and search [b, Nx, d] to [b, Nx, CHANNELS], the head's input.

    The decoder's output weighs each search token of the encoder by their product.
    """
    bound = torch_bias_init(template.shape[-1])
    project = nn.Dense(
      CHANNELS, dtype=self.dtype, kernel_init=bound, bias_init=bound, name="bottleneck"
    )
    tokens = project(jnp.concatenate([template, search], axis=1))
    grids = (self.template_grid, self.search_grid)
    positions = np.concatenate([sine_positions(grid) for grid in grids])[None]
    positions = jnp.asarray(positions, self.dtype)
    for number in range(self.layers):
      tokens = EncoderLayer(self.dtype, name=f"encoder_{number}")(tokens, positions, train)
    query = self.param("query_embed", nn.initializers.normal(1.0), (1, CHANNELS))
    query = query[None].astype(self.dtype)
    target = jnp.zeros((tokens.shape[0], 1, CHANNELS), self.dtype)
    for number in range(self.layers):
      layer = DecoderLayer(self.dtype, name=f"decoder_{number}")
      target = layer(target, query, tokens, positions, train)
    target = nn.LayerNorm(epsilon=_EPSILON, dtype=self.dtype, name="decoder_norm")(target)
    tokens = tokens[:, -search.shape[1] :]
    return tokens * jnp.einsum("bnc,bmc->bnm", tokens, target)
