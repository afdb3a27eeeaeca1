"""Products of a few hundred tokens with a layer's kernel, and all that XLA would do in kernels of its own around them.

Between the products of a block, XLA adds the residual, sums its squares, normalises, adds biases and takes the GELU,
each in a kernel that takes longer to start than to compute. Here the product that ends a branch adds it, and
sums what it writes; and the product behind a normalisation divides by the deviation that those sums give.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

EPSILON = 1e-6


class Tile(NamedTuple):
  """What a program computes, and how; all but the stages powers of two.

  Attributes:
    rows, columns: of the result.
    inputs: summed over in one step.
    warps: of a program.
    stages: steps whose operands are on their way at once; what hides the memory's latency.
  """

  rows: int
  columns: int
  inputs: int
  warps: int
  stages: int


# Of an H200, and of an H100 with SXM.
_PROCESSORS = 132
# By what surrounds the product, in the order of preference: the fastest of some twenty each, at 153 to 720 rows on an H200.
_TILES = {
  "normed": (Tile(64, 128, 64, 4, 4), Tile(128, 128, 64, 4, 4)),
  "normed_gelu": (Tile(64, 128, 128, 8, 4), Tile(64, 128, 64, 8, 3)),
  "added": (Tile(64, 32, 128, 4, 6), Tile(64, 64, 128, 4, 6), Tile(64, 128, 128, 4, 4)),
}
# Divides all widths that are allowed.
_ANY_TILE = Tile(64, 64, 64, 4, 4)


class Layers(NamedTuple):
  """A linear layer of each block.

  Attributes:
    kernels: [layers, k, e].
    shifts: [layers, at least start + e] float32, of several linear layers one after another.
    start: where this one's begin.
  """

  kernels: jax.Array
  shifts: jax.Array
  start: int


class RowSums(NamedTuple):
  """What is known of tokens, for their normalisation.

  Attributes:
    sums, squares: [parts, rows] float32: of each row, its sum over runs of columns, and that of its squares.
  """

  sums: jax.Array
  squares: jax.Array


def row_sums(tokens) -> RowSums:
  """Return the sums of tokens [b, n, d], in one part."""
  wide = tokens.reshape(1, -1, tokens.shape[-1]).astype(jnp.float32)
  return RowSums(wide.sum(axis=2), jnp.square(wide).sum(axis=2))


def _erf(x):
  """Return the error function, to 1.5e-7 (Abramowitz and Stegun 1964, 7.1.26): Triton's is not to be had here."""
  size = jnp.abs(x)
  t = 1 / (1 + 0.3275911 * size)
  series = t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))
  series = t * (0.254829592 + t * (-0.284496736 + series))
  value = 1 - series * jnp.exp(-size * size)
  return jnp.where(x < 0, -value, value)


def row_mean(sums_ref, rows, count: int, mask=True):
  """Return the mean over `count` columns of some rows, of their sums [parts, n]; in kernels. 0 where masked."""
  parts = sums_ref.shape[0]
  part = jnp.arange(pl.next_power_of_2(parts), dtype=jnp.int32)[:, None]
  at = sums_ref.at[part, rows[None, :]]
  return triton.load(at, mask=(part < parts) & mask, other=0.0).sum(axis=0) / count


class _Place:
  """Where a program's part of the result lies."""

  def __init__(self, tile: Tile, count: int):
    self.tile = tile
    self.columns = pl.program_id(1) * tile.columns + jnp.arange(tile.columns, dtype=jnp.int32)
    self._stored = pl.program_id(0) * tile.rows + jnp.arange(tile.rows, dtype=jnp.int32)
    is_whole = count % tile.rows == 0
    self._inside = None if is_whole else self._stored < count
    # In place of rows that are not there others are read, each once: one row for all of them takes a fifth longer.
    self.rows = self._stored if is_whole else jax.lax.rem(self._stored, count)

  def product(self, x_ref, kernel_ref):
    """Multiply x [n, k] with a kernel [k, e] into float32."""
    lanes = jnp.arange(self.tile.inputs, dtype=jnp.int32)

    # Whatever else reads an operand here races with the matrix units on Hopper: in some tiles of a sum
    # over x beside the product, both were wrong.
    def step(number, so_far):
      inputs = number * self.tile.inputs + lanes
      x = triton.load(x_ref.at[self.rows[:, None], inputs[None, :]])
      kernel = triton.load(kernel_ref.at[inputs[:, None], self.columns[None, :]])
      along = (((1,), (0,)), ((), ()))
      return so_far + jax.lax.dot_general(x, kernel, along, preferred_element_type=jnp.float32)

    zeros = jnp.zeros((self.tile.rows, self.tile.columns), jnp.float32)
    return jax.lax.fori_loop(0, x_ref.shape[1] // self.tile.inputs, step, zeros)

  def load(self, ref):
    return triton.load(ref.at[self.rows[:, None], self.columns[None, :]]).astype(jnp.float32)

  def store(self, ref, values):
    at = ref.at[self._stored[:, None], self.columns[None, :]]
    triton.store(at, values, mask=None if self._inside is None else self._inside[:, None])

  def mean(self, sums_ref, count: int):
    """Return the mean over `count` columns of each row, of its sums [parts, n]."""
    return row_mean(sums_ref, self.rows, count)

  def store_sums(self, ref, values):
    at = ref.at[pl.program_id(1), self._stored]
    triton.store(at, values.sum(axis=1), mask=self._inside)


def _normed_kernel(
  x_ref,
  sums_ref,
  squares_ref,
  kernel_ref,
  shift_ref,
  out_ref,
  *,
  tile: Tile,
  start: int,
  gelu: bool,
):
  place = _Place(tile, x_ref.shape[0])
  product = place.product(x_ref, kernel_ref)
  mean, square = (place.mean(ref, x_ref.shape[1]) for ref in (sums_ref, squares_ref))
  variance = jnp.maximum(square - mean * mean, 0.0)
  found = product * jax.lax.rsqrt(variance + EPSILON)[:, None]
  found += triton.load(shift_ref.at[start + place.columns])[None, :]
  if gelu:
    found = 0.5 * found * (1 + _erf(found * math.sqrt(0.5)))
  place.store(out_ref, found.astype(out_ref.dtype))


def _added_kernel(
  x_ref,
  kernel_ref,
  shift_ref,
  stream_ref,
  out_ref,
  sums_ref,
  squares_ref,
  *,
  tile: Tile,
  start: int,
):
  place = _Place(tile, x_ref.shape[0])
  found = place.product(x_ref, kernel_ref)
  found += triton.load(shift_ref.at[start + place.columns])[None, :]
  found = (place.load(stream_ref) + found).astype(out_ref.dtype)
  place.store(out_ref, found)
  wide = found.astype(jnp.float32)
  place.store_sums(sums_ref, wide)
  place.store_sums(squares_ref, wide * wide)


def _call(kernel, name: str, tile: Tile, x, outputs: int, specs, results, interpret: bool):
  """Return the kernel as a function; specs and results are of what it reads beside x and writes."""
  rows = x.shape[0]
  return pl.pallas_call(
    kernel,
    grid=(pl.cdiv(rows, tile.rows), outputs // tile.columns),
    in_specs=[whole(x.shape), *specs],
    out_specs=[whole(result.shape) for result in results],
    out_shape=results,
    # Names Triton: left to itself, pallas may choose another compiler.
    compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
    interpret=interpret,
    name=name,
  )


def whole(shape) -> pl.BlockSpec:
  """Return the spec of an array that every program sees all of."""
  return pl.BlockSpec(shape, lambda *_: (0,) * len(shape))


def _of_layer(layers: Layers, layer: int) -> list[pl.BlockSpec]:
  """Return the specs of one layer's kernel and shifts: read where they lie, not copied."""
  kernel, shifts = layers.kernels.shape[1:], layers.shifts.shape[1:]
  return [
    pl.BlockSpec((None, *kernel), lambda *_: (layer, 0, 0)),
    pl.BlockSpec((None, *shifts), lambda *_: (layer, 0)),
  ]


def normed_product(
  tokens, sums: RowSums, layers: Layers, layer: int, *, gelu: bool, interpret: bool
):
  """Normalise tokens and put them through a block's linear layer.

  Args:
    tokens: [b, n, d].
    sums: of these tokens.
    layers: with kernels of tokens' type, in which each column sums to zero: then nothing is left of a token's mean.
    layer: which of them.
    gelu: whether the exact GELU follows.
    interpret: run the kernel's steps as plain operations, on any device; for tests.

  Returns:
    [b, n, e] of tokens' type.
  """
  batch, count, width = tokens.shape
  x = tokens.reshape(batch * count, width)
  outputs = layers.kernels.shape[2]
  kind = "normed_gelu" if gelu else "normed"
  tile = _tile(kind, batch * count, width, outputs)
  (found,) = _call(
    functools.partial(_normed_kernel, tile=tile, start=layers.start, gelu=gelu),
    kind,
    tile,
    x,
    outputs,
    [*(whole(part.shape) for part in sums), *_of_layer(layers, layer)],
    [jax.ShapeDtypeStruct((batch * count, outputs), tokens.dtype)],
    interpret,
  )(x, *sums, layers.kernels, layers.shifts)
  return found.reshape(batch, count, outputs)


def added_product(stream, x, layers: Layers, layer: int, *, interpret: bool):
  """Put x through a block's linear layer and add it to the residual stream.

  Args:
    stream: [b, n, e].
    x: [b, n, k] of its type, as are the kernels.
    layers, layer, interpret: as for normed_product.

  Returns:
    (the new stream, its RowSums).
  """
  batch, count, width = stream.shape
  x = x.reshape(batch * count, -1)
  tile = _tile("added", batch * count, x.shape[1], width)
  parts = jax.ShapeDtypeStruct((width // tile.columns, batch * count), jnp.float32)
  added, *sums = _call(
    functools.partial(_added_kernel, tile=tile, start=layers.start),
    "added",
    tile,
    x,
    width,
    [*_of_layer(layers, layer), whole((batch * count, width))],
    [jax.ShapeDtypeStruct((batch * count, width), stream.dtype), parts, parts],
    interpret,
  )(x, layers.kernels, layers.shifts, stream.reshape(batch * count, width))
  return added.reshape(stream.shape), RowSums(*sums)


def _tile(kind: str, rows: int, inputs: int, outputs: int) -> Tile:
  """Return how to divide a product among programs: by the first of its tiles with which all run at once, else by the last.

  A program waits for the memory more than it computes: few rows want small tiles, so that all processors wait.
  """
  fitting = [tile for tile in _TILES[kind] if outputs % tile.columns == 0] or [_ANY_TILE]
  for tile in fitting:
    if pl.cdiv(rows, tile.rows) * (outputs // tile.columns) <= _PROCESSORS:
      break
  return tile if inputs % tile.inputs == 0 else tile._replace(inputs=_ANY_TILE.inputs)
