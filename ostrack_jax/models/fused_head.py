"""The smaller 3 x 3 convolutions of the folded head for one sample on Hopper GPUs: one kernel a layer.

Each gathers the neighbours while it multiplies, and adds the bias and cuts off what is negative while it stores. XLA
takes three kernels for that, of which one copies every cell nine times. Of the first layer, whose product is
large, cuBLAS makes up for it.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ostrack_jax.models.fused_products import Tile, whole

# The least that the matrix units take.
_SMALLEST = 16
# By the least inputs of a group: of some ten each the fastest, or nearly, at 256 and 576 cells on an H200.
_TILES = (
  (256, Tile(64, 32, 128, 4, 4)),
  (128, Tile(32, 32, 128, 4, 4)),
  (_SMALLEST, Tile(16, 32, 64, 4, 4)),
)


def suits(kernel) -> bool:
  """Return whether convolved takes a kernel [g, 9 i, o]."""
  inputs, outputs = kernel.shape[1] // 9, kernel.shape[2]
  return inputs % _SMALLEST == 0 and outputs % _SMALLEST == 0


def _divided(number, by: int):
  """Return quotient and rest of what is not negative; // and % have no kernel for it."""
  return jax.lax.div(number, by), jax.lax.rem(number, by)


def _kernel(x_ref, kernel_ref, biases_ref, out_ref, *, tile: Tile, grid: int, start: int):
  inputs, outputs = kernel_ref.shape[0] // 9, kernel_ref.shape[1]
  group = pl.program_id(1)
  rows = pl.program_id(0) * tile.rows + jnp.arange(tile.rows, dtype=jnp.int32)
  columns = pl.program_id(2) * tile.columns + jnp.arange(tile.columns, dtype=jnp.int32)
  lanes = jnp.arange(tile.inputs, dtype=jnp.int32)
  steps = inputs // tile.inputs
  row, column = _divided(rows, grid)

  def step(number, so_far):
    neighbour, part = _divided(number, steps)
    down, right = (offset - 1 for offset in _divided(neighbour, 3))
    is_inside = (row + down >= 0) & (row + down < grid)
    is_inside &= (column + right >= 0) & (column + right < grid)
    channels = group * inputs + part * tile.inputs + lanes
    at = x_ref.at[(rows + down * grid + right)[:, None], channels[None, :]]
    x = triton.load(at, mask=is_inside[:, None], other=0.0)
    kernel = triton.load(kernel_ref.at[(number * tile.inputs + lanes)[:, None], columns[None, :]])
    along = (((1,), (0,)), ((), ()))
    return so_far + jax.lax.dot_general(x, kernel, along, preferred_element_type=jnp.float32)

  found = jnp.zeros((tile.rows, tile.columns), jnp.float32)
  found = jax.lax.fori_loop(0, 9 * steps, step, found)
  found += triton.load(biases_ref.at[start + columns])[None, :]
  # A maximum takes the 0 where the other is NaN: a network that has gone wrong would find a box.
  found = jnp.where(found < 0, 0.0, found)
  at = out_ref.at[rows[:, None], (group * outputs + columns)[None, :]]
  triton.store(at, found.astype(out_ref.dtype), mask=(rows < out_ref.shape[0])[:, None])


def convolved(x, kernel, biases, start: int, *, interpret: bool, tile: Tile | None = None):
  """Convolve groups of channels each by its own kernel, add the bias, and cut off what is negative.

  Args:
    x: [F F, g i] cells, row by row, and the channels of one group after another.
    kernel: [g, 9 i, o] of x's type, its inputs ordered by row, column and channel, which suits.
    biases: [g, at least start + o] float32, of several layers one after another: each cut out of them would be
      a kernel more.
    start: where this one's begin.
    interpret: run the kernel's steps as plain operations, on any device; for tests.
    tile: None for the fastest known.

  Returns:
    [F F, g o] of x's type; outside of the grid there are zeros.
  """
  cells = len(x)
  groups, nine_inputs, outputs = kernel.shape
  tile = tile or _tile(nine_inputs // 9, outputs)
  return pl.pallas_call(
    functools.partial(_kernel, tile=tile, grid=round(cells**0.5), start=start),
    grid=(pl.cdiv(cells, tile.rows), groups, outputs // tile.columns),
    in_specs=[
      whole(x.shape),
      pl.BlockSpec((None, nine_inputs, outputs), lambda row, group, column: (group, 0, 0)),
      pl.BlockSpec((None, biases.shape[1]), lambda row, group, column: (group, 0)),
    ],
    out_specs=whole((cells, groups * outputs)),
    out_shape=jax.ShapeDtypeStruct((cells, groups * outputs), x.dtype),
    compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
    interpret=interpret,
    name="convolved",
  )(x, kernel, biases)


def _tile(inputs: int, outputs: int) -> Tile:
  tile = next(tile for least, tile in _TILES if inputs >= least)
  return tile._replace(
    columns=_divisor(outputs, tile.columns), inputs=_divisor(inputs, tile.inputs)
  )


def _divisor(count: int, largest: int) -> int:
  """Return the largest power of two, up to `largest`, that divides count."""
  return min(largest, count & -count)
