"""What SwinTrack puts between a two-stream backbone and the head: concatenation-based encoder and decoder.

Follows SwinTrack, Lin et al. 2021, Sec. 3, as its repository has it (github.com/LitingLin/SwinTrack, commit
21e017f, models/methods/SwinTrack): blocks that normalise in front, 8 heads, biased projections, four times as
many hidden units, GELU; in the decoder search tokens attend to everything; positions enter attention
logits alone, untied from content, as products of learnt positions and as a table of offsets. One set of them
serves all encoder blocks, another the decoder. Both products are divided by sqrt(head size), as in the code;
the paper writes sqrt(2 head size). Departures: the backbone's width, so no projection in front; OSTrack's head
instead of classes and boxes per token, as OSTrack's paper aligns it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ostrack_jax.models.relative_positions import offset_index

NUM_HEADS = 8
# SwinTrack-Tiny's; its base model has 8.
LAYERS = 4
_EPSILON = 1e-5

_init = nn.initializers.truncated_normal(stddev=0.02)


class Positions(nn.Module):
  """Learnt positions of one image's tokens as queries and keys: [n, h, c] each, or only the keys."""

  grid: int
  width: int
  with_queries: bool

  @nn.compact
  def __call__(self):
    rows = self.param("h_pos", _init, (self.grid, self.width))
    columns = self.param("w_pos", _init, (self.grid, self.width))
    places = (rows[:, None] + columns[None]).reshape(-1, self.width)
    places = nn.LayerNorm(epsilon=_EPSILON, name="norm")(places)
    names = ("pos_q_linear", "pos_k_linear") if self.with_queries else ("pos_k_linear",)
    return [
      nn.Dense(self.width, kernel_init=_init, name=name)(places).reshape(
        -1, NUM_HEADS, self.width // NUM_HEADS
      )
      for name in names
    ]


class PositionBias(nn.Module):
  """What positions add to attention logits: [1, h, m, n] float32.

  Attributes:
    search_only: queries are search tokens alone, as in the decoder.
  """

  template_grid: int
  search_grid: int
  width: int
  search_only: bool

  @nn.compact
  def __call__(self):
    z = Positions(self.template_grid, self.width, not self.search_only, name="z_untied_pos_enc")()
    x = Positions(self.search_grid, self.width, True, name="x_untied_pos_enc")()
    queries = x[0] if self.search_only else jnp.concatenate([z[0], x[0]])
    keys = jnp.concatenate([z[-1], x[-1]])
    scale = queries.shape[-1] ** -0.5
    untied = jnp.einsum("mhc,nhc->hmn", queries * scale, keys)
    index, count = offset_index(self.template_grid, self.search_grid, self.search_only)
    table = self.param("rpe_bias_table", _init, (NUM_HEADS, count))
    return (untied + table[:, index])[None]


class Mlp(nn.Module):
  """Two linear layers with an exact GELU between."""

  width: int
  dtype: jnp.dtype

  def setup(self):
    self.fc1 = nn.Dense(4 * self.width, dtype=self.dtype, kernel_init=_init)
    self.fc2 = nn.Dense(self.width, dtype=self.dtype, kernel_init=_init)

  def __call__(self, x):
    return self.fc2(nn.gelu(self.fc1(x), approximate=False))


class Block(nn.Module):
  """Pre-norm attention and MLP; of all tokens to all of them, or of search tokens to all.

  Attributes:
    is_decoder: the latter, with norms of queries and of keys and values apart.
    drop_path_rate: share of samples that lose a branch in training.
  """

  width: int
  is_decoder: bool
  drop_path_rate: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, queries, tokens, bias, train: bool):
    """Map queries [b, m, d] given tokens [b, n, d], which an encoder block attends to as queries too."""

    def norm(name):
      return nn.LayerNorm(epsilon=_EPSILON, dtype=self.dtype, name=name)

    def linear(name, features):
      return nn.Dense(features, dtype=self.dtype, kernel_init=_init, name=name)

    drop = nn.Dropout(self.drop_path_rate, (1, 2), not train, rng_collection="drop_path")
    if self.is_decoder:
      q = linear("q", self.width)(norm("norm1_q")(queries))
      packed = linear("kv", 2 * self.width)(norm("norm1_kv")(tokens))
      k, v = jnp.split(packed, 2, axis=-1)
    else:
      q, k, v = jnp.split(linear("qkv", 3 * self.width)(norm("norm1")(queries)), 3, axis=-1)
    q, k, v = (x.reshape(*x.shape[:2], NUM_HEADS, -1) for x in (q, k, v))
    mixed = jax.nn.dot_product_attention(q, k, v, bias=bias).reshape(queries.shape)
    queries = queries + drop(linear("proj", self.width)(mixed))
    return queries + drop(Mlp(self.width, self.dtype, name="mlp")(norm("norm2")(queries)))


class SwinTrack(nn.Module):
  """Relate search tokens to template tokens.

  Attributes:
    layers: of the encoder; the decoder has one.
    template_grid, search_grid: tokens per side.
    drop_path_rate: of the decoder block; the encoder's have less, linearly from 0.
    dtype: compute type.
  """

  layers: int
  template_grid: int
  search_grid: int
  drop_path_rate: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, template, search, train: bool):
    """Map template [b, Nz, d] and search [b, Nx, d] to [b, Nx, d], the head's input."""
    width, count = template.shape[-1], template.shape[1]
    grids = (self.template_grid, self.search_grid, width)
    rates = np.linspace(0, self.drop_path_rate, self.layers + 1).tolist()
    tokens = jnp.concatenate([template, search], axis=1)
    bias = PositionBias(*grids, search_only=False, name="encoder_positions")()
    for number, rate in enumerate(rates[:-1]):
      block = Block(width, False, rate, self.dtype, name=f"encoder_{number}")
      tokens = block(tokens, tokens, bias, train)
    bias = PositionBias(*grids, search_only=True, name="decoder_positions")()
    block = Block(width, True, rates[-1], self.dtype, name="decoder_0")
    search = block(tokens[:, count:], tokens, bias, train)
    return nn.LayerNorm(epsilon=_EPSILON, dtype=self.dtype, name="out_norm")(search)
