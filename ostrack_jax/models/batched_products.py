"""Products of a batch's tokens with a layer's kernel on Hopper GPUs, and all that XLA would do in passes of its own.

The same as fused_products, for thousands of tokens: there the memory is the limit, not the start of kernels, and each
pass that only adds, normalises, activates or parts reads and writes everything once more. Here that is done to
what a product still holds in registers.

On every processor one program goes through its tiles with three groups of warps. One sends operands ahead; the other
two multiply in turns, so that one has the matrix units while the other finishes and stores its tile.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from ostrack_jax.models import attention
from ostrack_jax.models.fused_norm import by_sample
from ostrack_jax.models.fused_products import EPSILON, Layers, RowSums

_GROUPS, _PROCESSORS = "groups", "processors"
_MULTIPLYING = 2
# For each thread, of the 512 that a processor has for a thread of four warps.
_REGISTERS, _FEW_REGISTERS = 232, 40
# Of a tile, and of what is summed over in one step.
_ROWS = 128
_INPUTS = 64
# Rows that lie together in a processor's memory.
_EIGHT = 8
# Columns that are finished and stored at once: with as many of two bytes a row fills what is stored together.
_RUN = 64
_SWIZZLE = 128
# Columns of a tile by preference, and how many steps' operands fit beside the results: the fastest of seven on an H200.
_STAGES = {192: 4, 128: 5, 64: 6}


class _Order(NamedTuple):
  """In which order tiles follow each other: along this axis, in runs of so many, there and back along the other."""

  minor: int
  run: int


_NORMED_ORDER, _ADDED_ORDER = _Order(0, 16), _Order(1, 8)


# x (1/2 + x times a polynomial in x squared, between 0 and 1) is x's GELU: for the least absolute error, and so
# that it stays cut off far out. With one coefficient less it is 2.5e-4.
_GELU = (
  0.3988020896,
  -0.06615562014,
  0.009695164701,
  -0.001071390793,
  8.711827949e-05,
  -5.006215775e-06,
  1.902259049e-07,
  -4.249035968e-09,
  4.197472155e-11,
)


def gelu(x) -> jax.Array:
  """Return the exact GELU of float32 to 4e-5, and NaN of NaN: three quarters of erf's steps, which show."""
  square = x * x
  series = square * _GELU[-1] + _GELU[-2]
  for coefficient in _GELU[-3::-1]:
    series = series * square + coefficient
  return x * jnp.minimum(jnp.maximum(x * series + 0.5, 0.0), 1.0)


class _Plan(NamedTuple):
  """A product [rows, inputs] x [inputs, outputs], and what becomes of it.

  Attributes:
    rows, inputs, outputs: rows as of _filled.
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
  order: _Order
  processors: int
  interprets: bool

  @property
  def tiles(self) -> tuple[int, int]:
    return pl.cdiv(self.rows, _ROWS), self.outputs // self.columns

  @property
  def steps(self) -> int:
    return self.inputs // _INPUTS

  @property
  def stages(self) -> int:
    return _STAGES[self.columns]

  @property
  def slots(self) -> int:
    """Runs of columns that a group can have on their way at once."""
    return min(2, self.columns // _RUN)

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
    return jnp.minimum(down * _ROWS, self.rows - _ROWS), across

  def load(self, ref, at, layout) -> Any:
    """Load what is laid out as the product, or as its rows or columns."""
    if self.interprets:
      return ref[at]
    # Of rows and columns each thread wants a few.
    return plgpu.load(ref, at, layout=layout, optimized=layout == plgpu.Layout.WGMMA)


class _Shared(NamedTuple):
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


def _shared(plan: _Plan, dtype, adds: bool) -> _Shared:
  stages, runs = plan.stages, _MULTIPLYING * plan.slots
  lanes = _SWIZZLE // jnp.dtype(dtype).itemsize

  def memory(*shape: int):
    transforms = (plgpu.TilingTransform((8, lanes)), plgpu.SwizzleTransform(_SWIZZLE))
    return plgpu.SMEM(shape, dtype, transforms=transforms)

  return _Shared(
    x=memory(stages, _ROWS, _INPUTS),
    kernels=memory(stages, _INPUTS, plan.columns),
    results=memory(runs, _ROWS, _RUN),
    arrived=plgpu.Barrier(num_arrivals=2, num_barriers=_MULTIPLYING * stages),
    freed=plgpu.Barrier(num_barriers=stages),
    turns=plgpu.Barrier(num_barriers=_MULTIPLYING),
    fetched=plgpu.Barrier(num_barriers=runs) if adds else None,
  )


def _send(plan: _Plan, shared: _Shared, layer, x_ref, kernels_ref) -> None:
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
      plgpu.copy_gmem_to_smem(x_ref.at[pl.ds(row, _ROWS), inputs], shared.x.at[stage], arrived)
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


def _multiplied(plan: _Plan, shared: _Shared, group, number, count):
  """Return the product of one tile [_ROWS, columns] float32, and let the other group go on with the next."""
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

  product = pl.run_scoped(multiply, plgpu.ACC((_ROWS, plan.columns), jnp.float32))
  plgpu.barrier_arrive(freed(steps - 1))
  return product


class _Normed:
  """What follows a product behind a normalisation: division by the deviation, shift, GELU, parting."""

  def __init__(self, plan: _Plan, shared: _Shared, shifts_ref, refs):
    self._plan, self._shared, self._shifts = plan, shared, shifts_ref
    self._sums, self._squares, *self._outs = refs

  def before(self, group, row, column) -> None:
    """Start what can be on its way while the tile is multiplied."""

  def _mean(self, ref, rows):
    layout = plgpu.Layout.WGMMA.reduce(1)
    total = self._plan.load(ref.at[0], rows, layout)
    for part in range(1, ref.shape[0]):
      total += self._plan.load(ref.at[part], rows, layout)
    return total * (1 / self._plan.inputs)

  def finish(self, product, group, row, column) -> None:
    """Finish and store a tile's product."""
    plan, rows = self._plan, pl.ds(row, _ROWS)
    mean, square = (self._mean(ref, rows) for ref in (self._sums, self._squares))
    factor = lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + EPSILON)
    for run in range(plan.columns // _RUN):
      first = column * plan.columns + run * _RUN
      found = product[:, run * _RUN : (run + 1) * _RUN]
      found *= lax.broadcast_in_dim(factor, (_ROWS, _RUN), [0])
      found += _shift(plan, self._shifts, first)
      if plan.gelu:
        found = gelu(found)
      slot = self._shared.results.at[group * plan.slots + run % plan.slots]
      # The last tile's runs may have ended in any slot.
      plgpu.wait_smem_to_gmem(plan.slots - 1 if run else 0, wait_read_only=True)
      slot[...] = found.astype(slot.dtype)
      plgpu.commit_smem()
      self._store(slot, rows, first)

  def _store(self, slot, rows, first) -> None:
    """Send a run of columns from a slot to the part that it belongs to."""
    width = self._plan.outputs // self._plan.parts

    def store(part: int, out_ref) -> None:
      @pl.when(lax.div(first, jnp.int32(width)) == part)
      def _():
        out = out_ref.at[rows, pl.ds(first - part * width, _RUN)]
        plgpu.copy_smem_to_gmem(slot, out, commit_group=False)

    for part, out_ref in enumerate(self._outs):
      store(part, out_ref)
    plgpu.commit_smem_to_gmem_group()


class _Added:
  """What follows a product that ends a branch: shift, the residual stream, and what is known of its rows."""

  def __init__(self, plan: _Plan, shared: _Shared, shifts_ref, refs):
    self._plan, self._shared, self._shifts = plan, shared, shifts_ref
    self._stream, self._out, self._sums, self._squares = refs

  def _part(self, ref, row, column, run: int):
    return ref.at[pl.ds(row, _ROWS), pl.ds(column * self._plan.columns + run * _RUN, _RUN)]

  def _slot(self, group, run: int):
    return group * self._plan.slots + run % self._plan.slots

  def _fetch(self, group, row, column, run: int) -> None:
    slot = self._slot(group, run)
    stream = self._part(self._stream, row, column, run)
    plgpu.copy_gmem_to_smem(stream, self._shared.results.at[slot], self._shared.fetched.at[slot])

  def before(self, group, row, column) -> None:
    """Start what can be on its way while the tile is multiplied."""
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    for run in range(self._plan.slots):
      self._fetch(group, row, column, run)

  def finish(self, product, group, row, column) -> None:
    """Finish and store a tile's product."""
    plan, runs = self._plan, self._plan.columns // _RUN
    sums = squares = 0.0
    for run in range(runs):
      number = self._slot(group, run)
      slot = self._shared.results.at[number]
      found = product[:, run * _RUN : (run + 1) * _RUN]
      found += _shift(plan, self._shifts, column * plan.columns + run * _RUN)
      plgpu.barrier_wait(self._shared.fetched.at[number])
      stream = plan.load(slot, (), plgpu.Layout.WGMMA).astype(jnp.float32)
      found = (stream + found).astype(slot.dtype)
      slot[...] = found
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(slot, self._part(self._out, row, column, run))
      wide = found.astype(jnp.float32)
      sums, squares = sums + wide.sum(axis=1), squares + (wide * wide).sum(axis=1)
      if run + plan.slots < runs:
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        self._fetch(group, row, column, run + plan.slots)
    self._sums.at[column][pl.ds(row, _ROWS)] = sums
    self._squares.at[column][pl.ds(row, _ROWS)] = squares


def _shift(plan: _Plan, shifts_ref, first):
  """Return the shifts of a run of columns, [_ROWS, _RUN]."""
  shift = plan.load(shifts_ref, pl.ds(plan.start + first, _RUN), plgpu.Layout.WGMMA.reduce(0))
  return lax.broadcast_in_dim(shift, (_ROWS, _RUN), [1])


def _kernel(layer_ref, x_ref, kernels_ref, shifts_ref, *refs, plan: _Plan, ending) -> None:
  def run(shared: _Shared) -> None:
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

  shared = _shared(plan, x_ref.dtype, adds=ending is _Added)
  pl.run_scoped(run, shared, collective_axes=_GROUPS)


def _interpreter():
  """Return what has pallas run a kernel's steps as plain operations."""
  if hasattr(plgpu, "InterpretGPUParams"):
    return plgpu.InterpretGPUParams()
  # Of jax 0.10, which has it, but not there.
  from jax._src.pallas.mosaic_gpu.interpret import params

  return params.InterpretGPUParams()


def _tile_columns(outputs: int) -> int:
  return next(columns for columns in _STAGES if outputs % columns == 0)


def _call(arrays, ending, results, **plan):
  """Run the kernel on [1] the layer, x [rows, inputs], all layers' kernels and shifts, and what its ending reads."""
  rows, inputs = arrays[1].shape
  whole = _Plan(rows=rows, inputs=inputs, processors=0, **plan)
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
    kernel_name="normed" if ending is _Normed else "added",
  )(*arrays)


def _filled(x, axis: int):
  """Return x with zeros behind its rows, up to as many as the kernel takes: a tile's, and eights."""
  rows = x.shape[axis]
  missing = max(_ROWS, _EIGHT * pl.cdiv(rows, _EIGHT)) - rows
  padding = [(0, missing if number == axis else 0) for number in range(x.ndim)]
  return jnp.pad(x, padding) if missing else x


def _on_each_device(call, operands, results, interpret: bool):
  # What interprets a kernel talks with the host in order, which no part of a program can on its own.
  return call if interpret else jax.jit(by_sample(call, operands, results))


def _as_array(layer: int) -> jax.Array:
  # Not a part of the kernel: what is made once serves all layers, and making it takes half a second.
  return jnp.full(1, layer, jnp.int32)


@functools.cache
def _normed_call(start: int, gelu: bool, parts: int, interpret: bool):
  """Return the function from (tokens, layer, kernels, shifts, sums, squares) to parts of the outputs."""

  def call(tokens, layer, kernels, shifts, *sums):
    batch, count, width = tokens.shape
    rows, outputs = batch * count, kernels.shape[2]
    x = _filled(tokens.reshape(rows, width), 0)
    part = jax.ShapeDtypeStruct((len(x), outputs // parts), tokens.dtype)
    found = _call(
      (layer, x, kernels, shifts, *(_filled(one, 1) for one in sums)),
      _Normed,
      [part] * parts,
      outputs=outputs,
      start=start,
      gelu=gelu,
      parts=parts,
      columns=_tile_columns(outputs // parts),
      order=_NORMED_ORDER,
      interprets=interpret,
    )
    return tuple(one[:rows].reshape(batch, count, -1) for one in found)

  operands = ("b n d", "i", "l d e", "l s", "p (b n)", "p (b n)")
  results = tuple(f"b n {name}" for name in "eqv"[:parts])
  return _on_each_device(call, operands, results, interpret)


def normed_product(
  tokens, sums: RowSums, layers: Layers, layer: int, *, gelu: bool, parts: int, interpret: bool
) -> tuple[jax.Array, ...]:
  """Normalise tokens and put them through a block's linear layer.

  Args:
    tokens: [b, n, d], d a multiple of 64.
    sums: of these tokens.
    layers: with kernels of tokens' type, in which each column sums to zero: then nothing is left of a token's mean.
    layer: which of them.
    gelu: whether a GELU follows, as gelu.
    parts: how many arrays the outputs are parted into, 1 or 3, each of a multiple of 64.
    interpret: run the kernel's steps as plain operations, on any device; for tests.

  Returns:
    parts of the e outputs, [b, n, e / parts] of tokens' type.
  """
  call = _normed_call(layers.start, gelu, parts, interpret)
  return call(tokens, _as_array(layer), layers.kernels, layers.shifts, *sums)


@functools.cache
def _added_call(start: int, interpret: bool):
  """Return the function from (stream, x, layer, kernels, shifts) to the new stream and its sums."""

  def call(stream, x, layer, kernels, shifts):
    batch, count, width = stream.shape
    rows, columns = batch * count, _tile_columns(width)
    x, before = (_filled(one.reshape(rows, -1), 0) for one in (x, stream))
    parts = jax.ShapeDtypeStruct((width // columns, len(x)), jnp.float32)
    added, *sums = _call(
      (layer, x, kernels, shifts, before),
      _Added,
      [jax.ShapeDtypeStruct(before.shape, before.dtype), parts, parts],
      outputs=width,
      start=start,
      gelu=False,
      parts=1,
      columns=columns,
      order=_ADDED_ORDER,
      interprets=interpret,
    )
    return added[:rows].reshape(stream.shape), *(one[:, :rows] for one in sums)

  operands = ("b n e", "b n k", "i", "l k e", "l s")
  return _on_each_device(call, operands, ("b n e", "p (b n)", "p (b n)"), interpret)


def added_product(stream, x, layers: Layers, layer: int, *, interpret: bool):
  """Put x through a block's linear layer and add it to the residual stream.

  Args:
    stream: [b, n, e], e a multiple of 64.
    x: [b, n, k] of its type, as are the kernels; k a multiple of 64.
    layers, layer, interpret: as for normed_product.

  Returns:
    (the new stream, its RowSums).
  """
  call = _added_call(layers.start, interpret)
  added, *sums = call(stream, x, _as_array(layer), layers.kernels, layers.shifts)
  return added, RowSums(*sums)
