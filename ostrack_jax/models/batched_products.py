"""Products of a batch's tokens with a layer's kernel on Hopper GPUs, and all that XLA would do in passes of its own.

The same as fused_products, for thousands of tokens: there the memory is the limit, not the start of kernels, and each
pass that only adds, normalises, activates or parts reads and writes everything once more. Here that is done to
what a product still holds in registers; see turned_products for the product.
"""

import functools

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from ostrack_jax.models import turned_products
from ostrack_jax.models.fused_norm import by_sample
from ostrack_jax.models.fused_products import EPSILON, Layers, RowSums
from ostrack_jax.models.turned_products import EIGHT, ROWS, RUN, Order, Plan, Shared, tile_columns

# The fastest of four on an H200.
_NORMED_ORDER, _ADDED_ORDER = Order(0, 16), Order(1, 8)

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


class _Normed:
  """What follows a product behind a normalisation: division by the deviation, shift, GELU, parting."""

  NAME, FETCHES = "normed", False

  def __init__(self, plan: Plan, shared: Shared, shifts_ref, refs):
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
    plan, rows = self._plan, pl.ds(row, ROWS)
    mean, square = (self._mean(ref, rows) for ref in (self._sums, self._squares))
    factor = lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + EPSILON)
    for run in range(plan.columns // RUN):
      first = column * plan.columns + run * RUN
      found = product[:, run * RUN : (run + 1) * RUN]
      found *= lax.broadcast_in_dim(factor, (ROWS, RUN), [0])
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
        out = out_ref.at[rows, pl.ds(first - part * width, RUN)]
        plgpu.copy_smem_to_gmem(slot, out, commit_group=False)

    for part, out_ref in enumerate(self._outs):
      store(part, out_ref)
    plgpu.commit_smem_to_gmem_group()


class _Added:
  """What follows a product that ends a branch: shift, the residual stream, and what is known of its rows."""

  NAME, FETCHES = "added", True

  def __init__(self, plan: Plan, shared: Shared, shifts_ref, refs):
    self._plan, self._shared, self._shifts = plan, shared, shifts_ref
    self._stream, self._out, self._sums, self._squares = refs

  def _part(self, ref, row, column, run: int):
    return ref.at[pl.ds(row, ROWS), pl.ds(column * self._plan.columns + run * RUN, RUN)]

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
    plan, runs = self._plan, self._plan.columns // RUN
    sums = squares = 0.0
    for run in range(runs):
      number = self._slot(group, run)
      slot = self._shared.results.at[number]
      found = product[:, run * RUN : (run + 1) * RUN]
      found += _shift(plan, self._shifts, column * plan.columns + run * RUN)
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
    self._sums.at[column][pl.ds(row, ROWS)] = sums
    self._squares.at[column][pl.ds(row, ROWS)] = squares


def _shift(plan: Plan, shifts_ref, first):
  """Return the shifts of a run of columns, [ROWS, RUN]."""
  shift = plan.load(shifts_ref, pl.ds(plan.start + first, RUN), plgpu.Layout.WGMMA.reduce(0))
  return lax.broadcast_in_dim(shift, (ROWS, RUN), [1])


def _filled(x, axis: int):
  """Return x with zeros behind its rows, up to as many as the kernel takes: a tile's, and eights."""
  rows = x.shape[axis]
  missing = max(ROWS, EIGHT * pl.cdiv(rows, EIGHT)) - rows
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
    found = turned_products.call(
      (layer, x, kernels, shifts, *(_filled(one, 1) for one in sums)),
      _Normed,
      [part] * parts,
      outputs=outputs,
      start=start,
      gelu=gelu,
      parts=parts,
      columns=tile_columns(outputs // parts),
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
    rows, columns = batch * count, tile_columns(width)
    x, before = (_filled(one.reshape(rows, -1), 0) for one in (x, stream))
    parts = jax.ShapeDtypeStruct((width // columns, len(x)), jnp.float32)
    added, *sums = turned_products.call(
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
