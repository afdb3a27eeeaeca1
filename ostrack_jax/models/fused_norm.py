"""Residual addition and layer normalisation, as one kernel each way where the device can.

The residual stream travels with what its last branch adds still apart from it. So the kernel adds the
branch, its bias and its drop path while it normalises, and the backward kernel finds the gradients of
all of them in one reading, where XLA reads the tokens once for each.
"""

import functools
import re
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.pallas import triton
from jax.sharding import NamedSharding, PartitionSpec

from ostrack_jax.models.attention import suits_batches
from ostrack_jax.models.fused_products import RowSums

_EPSILON = 1e-6
# Rows that a program holds in registers at a time; a power of two.
_ROWS = 2
# About as many programs as an H100 holds at once: 8 and 4, by their registers, on each of 132 processors.
_FORWARD_PROGRAMS = 1024
_BACKWARD_PROGRAMS = 512


class Branch(NamedTuple):
  """What a branch adds to the residual stream, product + shift, before it is added.

  Attributes:
    product: [b, n, d] in the stream's type.
    shift: [b, 1, d] or [1, 1, d] float32, the same for all tokens of a sample.
  """

  product: jax.Array
  shift: jax.Array


def add(tokens, branch: Branch | RowSums | None) -> jax.Array:
  """Return tokens [b, n, d] with the branch added in float32, rounded once; RowSums say that nothing is left to add."""
  if not isinstance(branch, Branch):
    return tokens
  added = branch.product.astype(jnp.float32) + branch.shift
  return (tokens.astype(jnp.float32) + added).astype(tokens.dtype)


def settle(tokens, branch: Branch | RowSums | None) -> tuple[jax.Array, RowSums | None]:
  """Return tokens as add does, and what is known of them then: their sums, if these were given."""
  return add(tokens, branch), branch if isinstance(branch, RowSums) else None


class ResidualNorm(nn.Module):
  """Layer normalisation (epsilon 1e-6, in float32) of tokens to which a branch is yet to be added."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, tokens, branch: Branch | None = None):
    """Return (tokens with the branch added, the same normalised in the layer's type)."""
    width = tokens.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (width,))
    bias = self.param("bias", nn.initializers.zeros, (width,))
    return _add_and_normalise(tokens, branch, scale, bias, self.dtype)


def _add_and_normalise(tokens, branch: Branch | None, scale, bias, dtype):
  """Add the branch and normalise, as residual_norm, in whichever way suits the batch and the device."""
  if suits_batches(tokens.shape[0], tokens.dtype):
    return residual_norm(tokens, branch, scale, bias, dtype)
  tokens = add(tokens, branch)
  wide = tokens.astype(jnp.float32)
  mean = wide.mean(axis=-1, keepdims=True)
  variance = jnp.square(wide).mean(axis=-1, keepdims=True) - jnp.square(mean)
  factor = jax.lax.rsqrt(jnp.maximum(0.0, variance) + _EPSILON) * scale[None, None, :]
  normed = (wide - mean) * factor + bias[None, None, :]
  return tokens, normed.astype(dtype)


def residual_norm(tokens, branch: Branch | None, scale, bias, dtype, *, interpret: bool = False):
  """Add the branch and normalise, in one kernel.

  Args:
    tokens: [b, n, d].
    branch: what is added first, or None.
    scale, bias: [d] float32.
    dtype: of the normalised tokens.
    interpret: run the kernel's steps as plain operations, on any device; for tests.

  Returns:
    ([b, n, d] as tokens, [b, n, d] of dtype).
  """
  if branch is not None:
    batch, _, width = tokens.shape
    branch = Branch(branch.product, jnp.broadcast_to(branch.shift, (batch, 1, width)))
  how = (branch is not None, jnp.dtype(dtype), interpret)
  return _residual_norm(how, tokens, branch, scale, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _residual_norm(how, tokens, branch, scale, bias):
  return _forward(how, tokens, branch, scale, bias)[0]


def _forward(how, tokens, branch, scale, bias):
  call = _forward_call(*how)
  if branch is None:
    normed, mean, rstd = call(tokens, scale, bias)
  else:
    tokens, normed, mean, rstd = call(tokens, *branch, scale, bias)
  return (tokens, normed), (tokens, mean, rstd, scale)


def _backward(how, kept, gradients):
  has_branch, _, interpret = how
  into, shift, scale, bias = _backward_call(interpret)(*gradients, *kept)
  branch = Branch(into, shift[:, None, :]) if has_branch else None
  return into, branch, scale.sum(axis=0), bias.sum(axis=0)


_residual_norm.defvjp(_forward, _backward)


class _Tile(NamedTuple):
  """A few rows of one sample, in columns up to the next power of two, as Triton wants them."""

  rows: jax.Array
  columns: jax.Array
  count: int
  width: int

  def _inside(self):
    return (self.rows < self.count)[:, None] & (self.columns < self.width)[None, :]

  def load(self, ref):
    """Load [rows, columns] of a ref [n, d] as float32, zero outside."""
    at = ref.at[self.rows[:, None], self.columns[None, :]]
    return triton.load(at, mask=self._inside(), other=0.0).astype(jnp.float32)

  def store(self, ref, values):
    at = ref.at[self.rows[:, None], self.columns[None, :]]
    triton.store(at, values.astype(ref.dtype), mask=self._inside())

  def load_rows(self, ref):
    """Load [rows, 1] of a ref [n], zero outside."""
    return triton.load(ref.at[self.rows], mask=self.rows < self.count, other=0.0)[:, None]

  def store_rows(self, ref, values):
    triton.store(ref.at[self.rows], values, mask=self.rows < self.count)


def _columns(width: int):
  columns = jnp.arange(pl.next_power_of_2(width), dtype=jnp.int32)
  return columns, columns < width


def _load_vector(ref):
  """Load a ref [d] as float32 [1, columns], zero outside."""
  columns, inside = _columns(ref.shape[0])
  return triton.load(ref.at[columns], mask=inside, other=0.0).astype(jnp.float32)[None, :]


def _tile(ref, number) -> _Tile:
  """Return a block of rows of a ref [n, d]."""
  rows = number * _ROWS + jnp.arange(_ROWS, dtype=jnp.int32)
  return _Tile(rows, _columns(ref.shape[1])[0], *ref.shape)


def _forward_kernel(*refs, has_branch: bool, blocks: int):
  if has_branch:
    tokens_ref, product_ref, shift_ref, scale_ref, bias_ref, stream_ref, *results = refs
    shift = _load_vector(shift_ref)
  else:
    tokens_ref, scale_ref, bias_ref, *results = refs
  normed_ref, mean_ref, rstd_ref = results
  scale, bias = _load_vector(scale_ref), _load_vector(bias_ref)
  width = tokens_ref.shape[1]
  inside = _columns(width)[1][None, :]
  first = pl.program_id(1) * blocks

  def normalise(number, _):
    tile = _tile(tokens_ref, first + number)
    x = tile.load(tokens_ref)
    if has_branch:
      x = (x + (tile.load(product_ref) + shift)).astype(stream_ref.dtype)
      tile.store(stream_ref, x)
      x = x.astype(jnp.float32)
    mean = x.sum(axis=1) / width
    centred = jnp.where(inside, x - mean[:, None], 0.0)
    rstd = jax.lax.rsqrt((centred * centred).sum(axis=1) / width + _EPSILON)
    tile.store(normed_ref, centred * rstd[:, None] * scale + bias)
    tile.store_rows(mean_ref, mean)
    tile.store_rows(rstd_ref, rstd)
    return 0

  jax.lax.fori_loop(0, blocks, normalise, 0)


def _backward_kernel(*refs, blocks: int):
  from_stream_ref, from_normed_ref, stream_ref, mean_ref, rstd_ref, scale_ref = refs[:6]
  into_ref, *sum_refs = refs[6:]
  scale = _load_vector(scale_ref)
  width = stream_ref.shape[1]
  columns, inside = _columns(width)
  first = pl.program_id(1) * blocks

  def differentiate(number, sums):
    tile = _tile(stream_ref, first + number)
    rstd = tile.load_rows(rstd_ref)
    normal = (tile.load(stream_ref) - tile.load_rows(mean_ref)) * rstd
    gradient, into = tile.load(from_normed_ref), tile.load(from_stream_ref)
    scaled = gradient * scale
    shared = scaled.sum(axis=1)[:, None] / width
    along = (scaled * normal).sum(axis=1)[:, None] / width
    # Outside the tile all of these are zero in rows; in columns they are never stored.
    into += (scaled - shared - normal * along) * rstd
    tile.store(into_ref, into)
    terms = (into, gradient * normal, gradient)
    return tuple(total + term.sum(axis=0) for total, term in zip(sums, terms))

  zeros = jnp.zeros(columns.shape, jnp.float32)
  sums = jax.lax.fori_loop(0, blocks, differentiate, (zeros, zeros, zeros))
  for ref, total in zip(sum_refs, sums):
    triton.store(ref.at[columns], total, mask=inside)


def _chunks(batch: int, count: int, programs: int) -> tuple[int, int]:
  """Return how many chunks of rows a sample has, and how many blocks of rows a chunk."""
  blocks = pl.cdiv(count, _ROWS)
  each = pl.cdiv(blocks, min(blocks, pl.cdiv(programs, batch)))
  return pl.cdiv(blocks, each), each


# Of one sample: its tokens, a number for each of them, a vector; and a parameter, shared by all.
_BLOCKS = {
  "b n d": lambda n, d: pl.BlockSpec((None, n, d), lambda sample, chunk: (sample, 0, 0)),
  "b n": lambda n, d: pl.BlockSpec((None, n), lambda sample, chunk: (sample, 0)),
  "b u d": lambda n, d: pl.BlockSpec((None, None, d), lambda sample, chunk: (sample, 0, 0)),
  "b c d": lambda n, d: pl.BlockSpec((None, None, d), lambda sample, chunk: (sample, chunk, 0)),
  "d": lambda n, d: pl.BlockSpec((d,), lambda sample, chunk: (0,)),
}


def _kernel_call(kernel, name, shape, chunks, operands, results, dtypes, interpret):
  """Return the kernel as a function over (batch, chunks) programs, its arrays named by their axes."""
  batch, count, width = shape
  sizes = {"b": batch, "n": count, "c": chunks, "d": width}
  # So that a warp's 32 threads hold 8 columns each, and sums of columns stay within a thread.
  warps = min(max(pl.next_power_of_2(width) // 256, 1), 8)
  return pl.pallas_call(
    kernel,
    grid=(batch, chunks),
    in_specs=[_BLOCKS[axes](count, width) for axes in operands],
    out_specs=[_BLOCKS[axes](count, width) for axes in results],
    out_shape=[
      jax.ShapeDtypeStruct(tuple(sizes[axis] for axis in axes.split()), dtype)
      for axes, dtype in zip(results, dtypes, strict=True)
    ],
    # Names Triton: left to itself, pallas may choose another compiler.
    compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
    interpret=interpret,
    name=name,
  )


# A name, or several of an axis that runs over all of them.
_AXIS = re.compile(r"\([^)]*\)|\w+")


def by_sample(call, operands, results):
  """Let every device run `call` on the samples it has; what has no axis b is whole on each.

  Args:
    call: a function of arrays, the first of which says how samples lie.
    operands, results: names of their axes, as "b n d"; "(b n)" for one that runs over samples and what they have.
  """

  def placed(mesh, shapes, names):
    spec = shapes[0].sharding.spec
    samples = spec[0] if len(spec) else None
    return tuple(
      NamedSharding(
        mesh, PartitionSpec(*(samples if "b" in axis else None for axis in _AXIS.findall(axes)))
      )
      for axes in names
    )

  partitioned = custom_partitioning(call)
  partitioned.def_partition(
    partition=lambda mesh, shapes, _: (
      mesh,
      call,
      placed(mesh, shapes, results),
      placed(mesh, shapes, operands),
    ),
    infer_sharding_from_operands=lambda mesh, shapes, _: placed(mesh, shapes, results),
    sharding_rule=f"{', '.join(operands)} -> {', '.join(results)}",
  )
  return partitioned


@functools.cache
def _forward_call(has_branch: bool, dtype, interpret: bool):
  """Return the function from (tokens, [product, shift,] scale, bias) to ([stream,] normed, mean,
  rstd)."""
  operands = ("b n d", "b n d", "b u d", "d", "d") if has_branch else ("b n d", "d", "d")
  results = ("b n d",) * (1 + has_branch) + ("b n", "b n")

  def call(tokens, *rest):
    batch, count, _ = tokens.shape
    chunks, blocks = _chunks(batch, count, _FORWARD_PROGRAMS)
    kernel = functools.partial(_forward_kernel, has_branch=has_branch, blocks=blocks)
    dtypes = (tokens.dtype,) * has_branch + (dtype, jnp.float32, jnp.float32)
    name = "residual_norm" if has_branch else "norm"
    return tuple(
      _kernel_call(kernel, name, tokens.shape, chunks, operands, results, dtypes, interpret)(
        tokens, *rest
      )
    )

  return by_sample(call, operands, results)


@functools.cache
def _backward_call(interpret: bool):
  """Return the function from gradients of (tokens, normed) and (tokens, mean, rstd, scale) to
  gradients of the tokens [b, n, d] and each sample's of shift, scale and bias, [b, d] float32."""
  operands = ("b n d", "b n d", "b n d", "b n", "b n", "d")

  def call(*arrays):
    tokens = arrays[2]
    batch, count, _ = tokens.shape
    chunks, blocks = _chunks(batch, count, _BACKWARD_PROGRAMS)
    kernel = functools.partial(_backward_kernel, blocks=blocks)
    results = ("b n d", "b c d", "b c d", "b c d")
    dtypes = (tokens.dtype, jnp.float32, jnp.float32, jnp.float32)
    into, *sums = _kernel_call(
      kernel, "norm_backward", tokens.shape, chunks, operands, results, dtypes, interpret
    )(*arrays)
    return into, *(total.sum(axis=1) for total in sums)

  return by_sample(call, operands, ("b n d", "b d", "b d", "b d"))
