"""Self-attention of a few samples as one kernel, straight from the product that packs queries, keys and values.

For a single image, XLA takes four kernels: one adds the bias and splits the pack, two multiply, one is the
softmax between them. Each takes longer to start than to compute.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ostrack_jax.models import attention
from ostrack_jax.models.fused_norm import by_sample

# Tokens that a program answers; a power of two.
_QUERIES = 64
_WARPS = 4
# Of a head's columns, in one step of looking.
_LANES = 16
# Keys in a step, a power of two, and steps that are on their way: of nine on an H200 the fastest at 720 tokens, and near
# it at 548 and 320.
_KEYS, _STAGES = 64, 3


def suits(batch: int, dtype, head_size: int) -> bool:
  """Return whether this kernel can and should run: where kernels can, on fewer samples than cuDNN's want."""
  return (
    attention.has_kernels(dtype)
    and not attention.suits_batches(batch, dtype)
    and 16 <= head_size <= 128
    and head_size == pl.next_power_of_2(head_size)
  )


class Packed(NamedTuple):
  """Queries, keys and values of every head, product + shift.

  Attributes:
    product: [b, n, 3 h d].
    shift: [1, 1, 3 h d] float32; None where it was added.
  """

  product: jax.Array
  shift: jax.Array | None


def split_heads(packed: Packed, num_heads: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Return queries, keys and values, [b, n, h, d] each."""
  product, shift = packed
  batch, count, width = product.shape
  added = product if shift is None else product + shift.astype(product.dtype)
  added = added.reshape(batch, count, 3, num_heads, width // (3 * num_heads))
  return added[:, :, 0], added[:, :, 1], added[:, :, 2]


def _plain(num_heads: int, packed: Packed):
  mixed = jax.nn.dot_product_attention(*split_heads(packed, num_heads))
  return mixed.reshape(*packed.product.shape[:2], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend_packed(num_heads: int, interpret: bool, packed: Packed) -> jax.Array:
  """Attend, scaled by 1 / sqrt(d), every token to all of its sample.

  Args:
    num_heads: h; d a power of two, from 16 to 128.
    interpret: run the kernel's steps as plain operations, on any device; for tests.
    packed: of all heads.

  Returns:
    [b, n, h d]. Gradients are those of the plain operations.
  """
  shift = () if packed.shift is None else (packed.shift.reshape(-1),)
  return _call(num_heads, interpret, bool(shift))(packed.product, *shift)[0]


def _forward(num_heads, interpret, packed):
  return attend_packed(num_heads, interpret, packed), packed


def _backward(num_heads, interpret, packed, gradient):
  del interpret
  return jax.vjp(functools.partial(_plain, num_heads), packed)[1](gradient)


attend_packed.defvjp(_forward, _backward)


def _product(left, right, axis: int):
  """Multiply matrices into float32, along the last axis of the left one and the given of the right one."""
  along = (((1,), (axis,)), ((), ()))
  return jax.lax.dot_general(left, right, along, preferred_element_type=jnp.float32)


def _kernel(product_ref, *refs, num_heads: int):
  *shift_refs, mixed_ref = refs
  place = pl.program_id(1), pl.program_id(2)
  _attend(product_ref, shift_refs, mixed_ref, place, num_heads)


def _attend(product_ref, shift_refs, mixed_ref, place, num_heads: int):
  """Answer a block of tokens by one head; place is (head, block)."""
  count, packed_width = product_ref.shape
  size = packed_width // (3 * num_heads)
  head, block = place
  rows = block * _QUERIES + jnp.arange(_QUERIES, dtype=jnp.int32)
  lanes = jnp.arange(size, dtype=jnp.int32)

  def load(part: int, tokens):
    columns = (part * num_heads + head) * size + lanes
    at = product_ref.at[tokens[:, None], columns[None, :]]
    values = triton.load(at, mask=(tokens < count)[:, None], other=0.0)
    for shift_ref in shift_refs:
      values += triton.load(shift_ref.at[columns]).astype(values.dtype)[None, :]
    return values

  queries = load(0, rows)
  # To the base 2, of which the device has powers.
  scale = math.log2(math.e) / math.sqrt(size)

  def look(step, so_far):
    mixed, total, largest = so_far
    tokens = step * _KEYS + jnp.arange(_KEYS, dtype=jnp.int32)
    products = _product(queries, load(1, tokens), 1)
    products = jnp.where((tokens < count)[None, :], products, -jnp.inf)
    new_largest = jnp.maximum(largest, products.max(axis=1) * scale)
    shrink = jnp.exp2(largest - new_largest)
    weights = jnp.exp2(products * scale - new_largest[:, None])
    values = load(2, tokens)
    mixed = mixed * shrink[:, None] + _product(weights.astype(values.dtype), values, 0)
    return mixed, total * shrink + weights.sum(axis=1), new_largest

  start = (
    jnp.zeros((_QUERIES, size), jnp.float32),
    jnp.zeros((_QUERIES,), jnp.float32),
    jnp.full((_QUERIES,), -jnp.inf, jnp.float32),
  )
  mixed, total, _ = jax.lax.fori_loop(0, pl.cdiv(count, _KEYS), look, start)
  at = mixed_ref.at[rows[:, None], (head * size + lanes)[None, :]]
  mixed = (mixed / total[:, None]).astype(mixed_ref.dtype)
  triton.store(at, mixed, mask=(rows < count)[:, None])


def _look(product_ref, looks_ref, head, row: int, num_heads: int):
  """Write where a token looks by one head, [n]."""
  count, packed_width = product_ref.shape
  size = packed_width // (3 * num_heads)
  tokens = jnp.arange(pl.next_power_of_2(count), dtype=jnp.int32)
  inside = tokens < count

  def step(number, so_far):
    lanes = head * size + number * _LANES + jnp.arange(_LANES, dtype=jnp.int32)
    query = triton.load(product_ref.at[row, lanes]).astype(jnp.float32)
    at = product_ref.at[tokens[:, None], (num_heads * size + lanes)[None, :]]
    keys = triton.load(at, mask=inside[:, None], other=0.0).astype(jnp.float32)
    return so_far + (keys * query[None, :]).sum(axis=1)

  zeros = jnp.zeros(tokens.shape, jnp.float32)
  logits = jax.lax.fori_loop(0, size // _LANES, step, zeros) * (1 / math.sqrt(size))
  logits = jnp.where(inside, logits, -jnp.inf)
  weights = jnp.exp(logits - logits.max())
  triton.store(looks_ref.at[head, tokens], weights / weights.sum(), mask=inside)


def _attend_and_look_kernel(product_ref, mixed_ref, looks_ref, *, row: int, num_heads: int):
  # One program a head more than attention has.
  head, block = pl.program_id(1), pl.program_id(2)
  is_looking = block == pl.cdiv(product_ref.shape[0], _QUERIES)

  @pl.when(is_looking)
  def _():
    _look(product_ref, looks_ref, head, row, num_heads)

  @pl.when(jnp.logical_not(is_looking))
  def _():
    _attend(product_ref, (), mixed_ref, (head, block), num_heads)


def attend_and_look(product, row: int, num_heads: int, *, interpret: bool):
  """Attend as attend_packed does, and say where one of the tokens looks.

  Args:
    product: [1, n, 3 h d] queries, keys and values of every head; d a power of two, from 16 to 128.
    row: which token.
    interpret: as for attend_packed.

  Returns:
    ([1, n, h d], [1, h, 1, n] float32 as candidates.template_attention).

  Raises:
    ValueError: d is no multiple of 16.
  """
  _, count, packed_width = product.shape
  width = packed_width // 3
  if width // num_heads % _LANES:
    raise ValueError(
      f"heads of {width // num_heads} columns: {_LANES} are looked through at a time"
    )
  mixed, looks = pl.pallas_call(
    functools.partial(_attend_and_look_kernel, row=row, num_heads=num_heads),
    grid=(1, num_heads, pl.cdiv(count, _QUERIES) + 1),
    in_specs=[pl.BlockSpec((None, count, packed_width), lambda *_: (0, 0, 0))],
    out_specs=[
      pl.BlockSpec((None, count, width), lambda *_: (0, 0, 0)),
      pl.BlockSpec((num_heads, count), lambda *_: (0, 0)),
    ],
    out_shape=[
      jax.ShapeDtypeStruct((1, count, width), product.dtype),
      jax.ShapeDtypeStruct((num_heads, count), jnp.float32),
    ],
    compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=_STAGES),
    interpret=interpret,
    name="attend_and_look",
  )(product)
  return mixed, looks[None, :, None]


@functools.cache
def _call(num_heads: int, interpret: bool, has_shift: bool):
  """Return the function from (product, [shift]) to what was mixed; every device has its samples."""

  def call(product, *shift):
    batch, count, packed_width = product.shape
    width = packed_width // 3
    mixed = pl.pallas_call(
      functools.partial(_kernel, num_heads=num_heads),
      grid=(batch, num_heads, pl.cdiv(count, _QUERIES)),
      in_specs=[
        pl.BlockSpec((None, count, packed_width), lambda sample, head, block: (sample, 0, 0)),
        *([pl.BlockSpec((packed_width,), lambda sample, head, block: (0,))] * has_shift),
      ],
      out_specs=pl.BlockSpec((None, count, width), lambda sample, head, block: (sample, 0, 0)),
      out_shape=jax.ShapeDtypeStruct((batch, count, width), product.dtype),
      compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=_STAGES),
      interpret=interpret,
      name="packed_attention",
    )(product, *shift)
    return (mixed,)

  return by_sample(call, ("b n e", "e")[: 1 + has_shift], ("b n d",))
