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
# More tokens than these, of which 190 to 320 and 720 were tried, are faster in fewer and larger steps.
_FEW = 512


class _Steps(NamedTuple):
  """How a program goes through the keys: so many in a step, a power of two, with so many steps on their way."""

  keys: int
  stages: int


def _steps(count: int) -> _Steps:
  return _Steps(64, 3) if count <= _FEW else _Steps(128, 2)


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
  count, packed_width = product_ref.shape
  keys = _steps(count).keys
  size = packed_width // (3 * num_heads)
  head = pl.program_id(1)
  rows = pl.program_id(2) * _QUERIES + jnp.arange(_QUERIES, dtype=jnp.int32)
  lanes = jnp.arange(size, dtype=jnp.int32)

  def load(part: int, tokens):
    columns = (part * num_heads + head) * size + lanes
    at = product_ref.at[tokens[:, None], columns[None, :]]
    values = triton.load(at, mask=(tokens < count)[:, None], other=0.0)
    for shift_ref in shift_refs:
      values += triton.load(shift_ref.at[columns]).astype(values.dtype)[None, :]
    return values

  queries = load(0, rows)

  def look(step, so_far):
    mixed, total, largest = so_far
    tokens = step * keys + jnp.arange(keys, dtype=jnp.int32)
    logits = _product(queries, load(1, tokens), 1) * (1 / math.sqrt(size))
    logits = jnp.where((tokens < count)[None, :], logits, -jnp.inf)
    new_largest = jnp.maximum(largest, logits.max(axis=1))
    shrink = jnp.exp(largest - new_largest)
    weights = jnp.exp(logits - new_largest[:, None])
    values = load(2, tokens)
    mixed = mixed * shrink[:, None] + _product(weights.astype(values.dtype), values, 0)
    return mixed, total * shrink + weights.sum(axis=1), new_largest

  start = (
    jnp.zeros((_QUERIES, size), jnp.float32),
    jnp.zeros((_QUERIES,), jnp.float32),
    jnp.full((_QUERIES,), -jnp.inf, jnp.float32),
  )
  mixed, total, _ = jax.lax.fori_loop(0, pl.cdiv(count, keys), look, start)
  at = mixed_ref.at[rows[:, None], (head * size + lanes)[None, :]]
  mixed = (mixed / total[:, None]).astype(mixed_ref.dtype)
  triton.store(at, mixed, mask=(rows < count)[:, None])


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
      compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=_steps(count).stages),
      interpret=interpret,
      name="packed_attention",
    )(product, *shift)
    return (mixed,)

  return by_sample(call, ("b n e", "e")[: 1 + has_shift], ("b n d",))
