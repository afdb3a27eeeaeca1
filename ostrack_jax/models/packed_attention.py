"""Self-attention of a few samples as one kernel, straight from the product that packs queries, keys and values.

For a single image, XLA takes four kernels: one adds the bias and splits the pack, two multiply, one is the
softmax between them. Each takes longer to start than to compute.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ostrack_jax.models import attention
from ostrack_jax.models.fused_norm import Branch, by_sample

# Tokens that a program answers, and that it looks at in one step; powers of two.
_QUERIES = 32
_KEYS = 128
_WARPS = 4
_STAGES = 2


def suits(batch: int, dtype, head_size: int) -> bool:
  """Return whether this kernel can and should run: where kernels can, on fewer samples than cuDNN's want."""
  return (
    attention.has_kernels(dtype)
    and not attention.suits_batches(batch, dtype)
    and 16 <= head_size <= 128
    and head_size == pl.next_power_of_2(head_size)
  )


def split_heads(packed: Branch, num_heads: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Return queries, keys and values [b, n, h, d] of what packs them: product [b, n, 3 h d], shift [1, 1, 3 h d]."""
  product, shift = packed
  batch, count, width = product.shape
  added = product + shift.astype(product.dtype)
  added = added.reshape(batch, count, 3, num_heads, width // (3 * num_heads))
  return added[:, :, 0], added[:, :, 1], added[:, :, 2]


def _plain(num_heads: int, packed: Branch):
  mixed = jax.nn.dot_product_attention(*split_heads(packed, num_heads))
  return mixed.reshape(*packed.product.shape[:2], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend_packed(num_heads: int, interpret: bool, packed: Branch) -> jax.Array:
  """Attend, scaled by 1 / sqrt(d), every token to all of its sample.

  Args:
    num_heads: h; d a power of two, from 16 to 128.
    interpret: run the kernel's steps as plain operations, on any device; for tests.
    packed: queries, keys and values of every head: product [b, n, 3 h d], shift [1, 1, 3 h d] float32.

  Returns:
    [b, n, h d]. Gradients are those of the plain operations.
  """
  return _call(num_heads, interpret)(packed.product, packed.shift.reshape(-1))[0]


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


def _kernel(product_ref, bias_ref, mixed_ref, *, num_heads: int):
  count, packed_width = product_ref.shape
  size = packed_width // (3 * num_heads)
  head = pl.program_id(1)
  rows = pl.program_id(2) * _QUERIES + jnp.arange(_QUERIES, dtype=jnp.int32)
  lanes = jnp.arange(size, dtype=jnp.int32)

  def load(part: int, tokens):
    columns = (part * num_heads + head) * size + lanes
    at = product_ref.at[tokens[:, None], columns[None, :]]
    values = triton.load(at, mask=(tokens < count)[:, None], other=0.0)
    shift = triton.load(bias_ref.at[columns]).astype(values.dtype)
    return values + shift[None, :]

  queries = load(0, rows)

  def look(step, so_far):
    mixed, total, largest = so_far
    tokens = step * _KEYS + jnp.arange(_KEYS, dtype=jnp.int32)
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
  mixed, total, _ = jax.lax.fori_loop(0, pl.cdiv(count, _KEYS), look, start)
  at = mixed_ref.at[rows[:, None], (head * size + lanes)[None, :]]
  mixed = (mixed / total[:, None]).astype(mixed_ref.dtype)
  triton.store(at, mixed, mask=(rows < count)[:, None])


@functools.cache
def _call(num_heads: int, interpret: bool):
  """Return the function from (product, bias) to what was mixed; every device has its samples."""

  def call(product, bias):
    batch, count, packed_width = product.shape
    width = packed_width // 3
    mixed = pl.pallas_call(
      functools.partial(_kernel, num_heads=num_heads),
      grid=(batch, num_heads, pl.cdiv(count, _QUERIES)),
      in_specs=[
        pl.BlockSpec((None, count, packed_width), lambda sample, head, block: (sample, 0, 0)),
        pl.BlockSpec((packed_width,), lambda sample, head, block: (0,)),
      ],
      out_specs=pl.BlockSpec((None, count, width), lambda sample, head, block: (sample, 0, 0)),
      out_shape=jax.ShapeDtypeStruct((batch, count, width), product.dtype),
      compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=_STAGES),
      interpret=interpret,
      name="packed_attention",
    )(product, bias)
    return (mixed,)

  return by_sample(call, ("b n e", "e"), ("b n d",))
