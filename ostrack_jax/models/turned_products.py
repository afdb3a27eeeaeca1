"""A product of thousands of rows on Hopper GPUs, by a kernel that overlaps the end of one tile with the next.

On every processor one program goes through its tiles with three groups of warps. One sends operands ahead; the other
two multiply in turns, so that one has the matrix units while the other finishes and stores its tile. What
finishing is, an ending says: see batched_products.
"""

import functools
from typing import Any, NamedTuple, Protocol

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from ostrack_jax.models import attention

_GROUPS, _PROCESSORS = "groups", "processors"
_MULTIPLYING = 2
# For each thread, of the 512 that a processor has for a thread of four warps.
_REGISTERS, _FEW_REGISTERS = 232, 40
# Of a tile, and of what is summed over in one step.
ROWS = 128
_INPUTS = 64
# Rows that lie together in a processor's memory.
EIGHT = 8
# Columns that are finished and stored at once: with as many of two bytes a row fills what is stored together.
RUN = 64
_SWIZZLE = 128
# Columns of a tile by preference, and how many steps' operands fit beside the results: the fastest of seven on an H200.
_STAGES = {192: 4, 128: 5, 64: 6}


class Order(NamedTuple):
  """In which order tiles follow each other: along this axis, in runs of so many, there and back along the other."""

  minor: int
  run: int


class Plan(NamedTuple):
  """A product [rows, inputs] x [inputs, outputs], and what becomes of it.

  Attributes:
    rows, inputs, outputs: at least ROWS rows, and a multiple of EIGHT.
    start: where this layer's shifts begin.
    gelu: whether it ends with one.
    parts: arrays that the outputs are parted into.
    columns: of a tile.
    order: of the tiles.
    processors: that share them.
    interprets: whether no device runs this.
  """

  rows: int
  inputs: int
  outputs: int
  start: int
  gelu: bool
  parts: int
  columns: int
  order: Order
  processors: int
  interprets: bool

  @property
  def tiles(self) -> tuple[int, int]:
    return pl.cdiv(self.rows, ROWS), self.outputs // self.columns

  @property
  def steps(self) -> int:
    return self.inputs // _INPUTS

  @property
  def stages(self) -> int:
    return _STAGES[self.columns]

  @property
  def slots(self) -> int:
    """Runs of columns that a group can have on their way at once."""
    return min(2, self.columns // RUN)

  def share(self) -> Any:
    """Return how many tiles are this processor's."""
    down, across = self.tiles
    last = down * across - 1 - lax.axis_index(_PROCESSORS)
    return lax.div(last, self.processors) + 1

  def place(self, number) -> tuple[Any, Any]:
    """Return the first row of this processor's tile of that number, and which of a row's tiles it is.

    Where tiles do not divide the rows, the last overlaps the one before: what both find there is the same.
    """
    number = lax.axis_index(_PROCESSORS) + number * self.processors
    down, across = plgpu.planar_snake(number, self.tiles, self.order.minor, self.order.run)
    return jnp.minimum(down * ROWS, self.rows - ROWS), across

  def load(self, ref, at, layout) -> Any:
    """Load what is laid out as the product, or as its rows or columns."""
    if self.interprets:
      return ref[at]
    # Of rows and columns each thread wants a few.
    return plgpu.load(ref, at, layout=layout, optimized=layout == plgpu.Layout.WGMMA)


class Shared(NamedTuple):
  """What the groups of a program share.

  Attributes:
    x, kernels: operands of `stages` steps.
    results: runs of columns of each multiplying group, on their way to the memory, or before that from there.
    arrived: for each group and stage, once its operands are there.
    freed: for each stage, once they are not needed any more.
    turns: for each group, once the matrix units are its own.
    fetched: for each run of results, once what it is added to is there; None where nothing is.
  """

  x: Any
  kernels: Any
  results: Any
  arrived: Any
  freed: Any
  turns: Any
  fetched: Any


def _shared(plan: Plan, dtype, fetches: bool) -> Shared:
  stages, runs = plan.stages, _MULTIPLYING * plan.slots
  lanes = _SWIZZLE // jnp.dtype(dtype).itemsize

  def memory(*shape: int):
    transforms = (plgpu.TilingTransform((8, lanes)), plgpu.SwizzleTransform(_SWIZZLE))
    return plgpu.SMEM(shape, dtype, transforms=transforms)

  return Shared(
    x=memory(stages, ROWS, _INPUTS),
    kernels=memory(stages, _INPUTS, plan.columns),
    results=memory(runs, ROWS, RUN),
    arrived=plgpu.Barrier(num_arrivals=2, num_barriers=_MULTIPLYING * stages),
    freed=plgpu.Barrier(num_barriers=stages),
    turns=plgpu.Barrier(num_barriers=_MULTIPLYING),
    fetched=plgpu.Barrier(num_barriers=runs) if fetches else None,
  )


def _send(plan: Plan, shared: Shared, layer, x_ref, kernels_ref) -> None:
  """Send the operands of all tiles, as soon as there is room."""
  plgpu.set_max_registers(_FEW_REGISTERS, action="decrease")
  count, steps, stages = plan.share(), plan.steps, plan.stages

  @pl.loop(0, count)
  def _(number):
    row, column = plan.place(number)
    group = lax.rem(number, jnp.int32(_MULTIPLYING))

    @pl.loop(0, steps)
    def _(step):
      stage = lax.rem(number * steps + step, jnp.int32(stages))

      @pl.when(number * steps + step >= stages)
      def _():
        plgpu.barrier_wait(shared.freed.at[stage])

      arrived = shared.arrived.at[group * stages + stage]
      inputs = pl.ds(step * _INPUTS, _INPUTS)
      plgpu.copy_gmem_to_smem(x_ref.at[pl.ds(row, ROWS), inputs], shared.x.at[stage], arrived)
      kernel = kernels_ref.at[layer, inputs, pl.ds(column * plan.columns, plan.columns)]
      plgpu.copy_gmem_to_smem(kernel, shared.kernels.at[stage], arrived)

  def hear(number):
    @pl.when(number < count * steps)
    def _():
      plgpu.barrier_wait(shared.freed.at[lax.rem(first + number, jnp.int32(stages))])

  # What is freed last is waited for, too: a barrier must not end with news that nobody heard.
  first = jnp.maximum(count * steps - stages, 0)
  for number in range(stages):
    hear(number)


def _multiplied(plan: Plan, shared: Shared, group, number, count):
  """Return the product of one tile [ROWS, columns] float32, and let the other group go on with the next."""
  steps, stages = plan.steps, plan.stages

  def freed(step):
    return shared.freed.at[lax.rem(number * steps + step, jnp.int32(stages))]

  @pl.when(number > 0)
  def _():
    plgpu.barrier_wait(shared.turns.at[group])

  def multiply(product_ref):
    @pl.loop(0, steps)
    def _(step):
      stage = lax.rem(number * steps + step, jnp.int32(stages))
      plgpu.barrier_wait(shared.arrived.at[group * stages + stage])
      plgpu.wgmma(product_ref, shared.x.at[stage], shared.kernels.at[stage])
      # All but this step's are done, so what the one before read is free.
      plgpu.wgmma_wait(1)

      @pl.when(step > 0)
      def _():
        plgpu.barrier_arrive(freed(step - 1))

    @pl.when(number + 1 < count)
    def _():
      plgpu.barrier_arrive(shared.turns.at[1 - group])

    return product_ref[...]

  product = pl.run_scoped(multiply, plgpu.ACC((ROWS, plan.columns), jnp.float32))
  plgpu.barrier_arrive(freed(steps - 1))
  return product


class Ending(Protocol):
  """What follows the product of a tile. Made in the kernel, of (plan, shared, the layer's shifts, other refs).

  Attributes:
    NAME: of the kernel.
    FETCHES: whether results are fetched before they are added to.
  """

  NAME: str
  FETCHES: bool

  def before(self, group, row, column) -> None:
    """Start what can be on its way while the tile is multiplied."""

  def finish(self, product, group, row, column) -> None:
    """Finish and store a tile's product [ROWS, columns] float32."""


def _kernel(layer_ref, x_ref, kernels_ref, shifts_ref, *refs, plan: Plan, ending) -> None:
  def run(shared: Shared) -> None:
    group, layer = lax.axis_index(_GROUPS), layer_ref[0]

    @pl.when(group < _MULTIPLYING)
    def _():
      plgpu.set_max_registers(_REGISTERS, action="increase")
      count, end = plan.share(), ending(plan, shared, shifts_ref.at[layer], refs)

      @pl.loop(0, lax.div(count - group + 1, _MULTIPLYING))
      def _(turn):
        number = _MULTIPLYING * turn + group
        row, column = plan.place(number)
        end.before(group, row, column)
        end.finish(_multiplied(plan, shared, group, number, count), group, row, column)

      plgpu.wait_smem_to_gmem(0)

    @pl.when(group == _MULTIPLYING)
    def _():
      _send(plan, shared, layer, x_ref, kernels_ref)

  shared = _shared(plan, x_ref.dtype, fetches=ending.FETCHES)
  pl.run_scoped(run, shared, collective_axes=_GROUPS)


def _interpreter():
  """Return what has pallas run a kernel's steps as plain operations."""
  if hasattr(plgpu, "InterpretGPUParams"):
    return plgpu.InterpretGPUParams()
  # Of jax 0.10, which has it, but not there.
  from jax._src.pallas.mosaic_gpu.interpret import params

  return params.InterpretGPUParams()


def tile_columns(outputs: int) -> int:
  return next(columns for columns in _STAGES if outputs % columns == 0)


def call(arrays, ending: type[Ending], results, **plan):
  """Run the kernel on [1] the layer, x [rows, inputs], all layers' kernels and shifts, and what its ending reads."""
  rows, inputs = arrays[1].shape
  whole = Plan(rows=rows, inputs=inputs, processors=0, **plan)
  down, across = whole.tiles
  # Two have several tiles each in tests.
  processors = min(2 if whole.interprets else attention.processors(), down * across)
  whole = whole._replace(processors=processors)
  return plgpu.kernel(
    functools.partial(_kernel, plan=whole, ending=ending),
    out_type=results,
    grid=(processors,),
    grid_names=(_PROCESSORS,),
    num_threads=_MULTIPLYING + 1,
    thread_name=_GROUPS,
    interpret=_interpreter() if whole.interprets else None,
    kernel_name=ending.NAME,
  )(*arrays)
