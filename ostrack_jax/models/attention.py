"""Softmax attention, fused where the device can."""

import functools

import jax
import jax.numpy as jnp

# Below this many samples cuDNN's kernels take longer to start than they save.
_SMALLEST_FUSED_BATCH = 8
# Keys that cuDNN's backward kernel takes at a time on Hopper.
_KEY_TILE = 128


@functools.cache
def _capability() -> float:
  """Return the compute capability of the default device, 0 for one that is not NVIDIA's."""
  device = jax.devices()[0]
  if device.platform != "gpu" or "cuda" not in device.client.platform_version.lower():
    return 0.0
  return float(device.compute_capability)


def has_kernels(dtype) -> bool:
  """Return whether fused kernels can run: on CUDA from Ampere on, in half precision; other GPUs lack them."""
  return _capability() >= 8.0 and dtype in (jnp.bfloat16, jnp.float16)


def is_hopper() -> bool:
  """Return whether the default device is an H100, an H200 or another of that kind."""
  return 9.0 <= _capability() < 10.0


def processors() -> int:
  """Return how many processors the default GPU has."""
  return jax.devices()[0].core_count


def suits_batches(batch: int, dtype) -> bool:
  """Return whether kernels can run, and those should that are made for batches."""
  return has_kernels(dtype) and batch >= _SMALLEST_FUSED_BATCH


def is_fused(batch: int, dtype, head_size: int) -> bool:
  """Return whether attention runs as one cuDNN kernel."""
  return suits_batches(batch, dtype) and head_size % 8 == 0 and head_size <= 128


def centred(keys) -> jax.Array:
  """Return keys [b, n, h, d] less their mean over tokens, which no softmax over them can tell.

  With these the logits of a query have mean 0, so their log-sum-exp is at least log n.
  """
  mean = keys.mean(axis=1, keepdims=True, dtype=jnp.float32)
  return (keys.astype(jnp.float32) - mean).astype(keys.dtype)


def attend(queries, keys, values, key_valid=None, bias=None) -> jax.Array:
  """Attend, scaled by 1 / sqrt(d).

  Args:
    queries, keys, values: [b, n, h, d].
    key_valid: [b, n] bool, a run of true and then false: tokens that nobody may attend to. None for all valid.
    bias: [b or 1, h, n, n] float32 added to the scaled logits, or None. Never fused.

  Returns:
    [b, n, h, d]; rows of invalid tokens hold anything finite.
  """
  batch, size = queries.shape[0], queries.shape[-1]
  if bias is not None or not is_fused(batch, queries.dtype, size):
    mask = None if key_valid is None else key_valid[:, None, None, :]
    if queries.dtype == jnp.float16 and jax.default_backend() == "cpu":
      # jax refuses products of float16 with float32 sums on CPUs.
      wide = (x.astype(jnp.float32) for x in (queries, keys, values))
      mixed = jax.nn.dot_product_attention(*wide, bias=bias, mask=mask)
      return mixed.astype(jnp.float16)
    return jax.nn.dot_product_attention(queries, keys, values, bias=bias, mask=mask)
  if key_valid is None:
    return _fused_unmasked(queries, keys, values)
  return _fused_even(queries, keys, values, key_valid.sum(axis=1, dtype=jnp.int32))


def _fused_even(queries, keys, values, lengths):
  """Attend with an even number of tokens, since cuDNN's backward pass refuses others."""
  count = queries.shape[1]
  padding = ((0, 0), (0, count % 2), (0, 0), (0, 0))
  if count % 2:
    queries, keys, values = (jnp.pad(x, padding) for x in (queries, keys, values))
  return _fused(queries, keys, values, lengths)[:, :count]


def _fused(queries, keys, values, lengths=None):
  return jax.nn.dot_product_attention(
    queries,
    keys,
    values,
    query_seq_lengths=lengths,
    key_value_seq_lengths=lengths,
    implementation="cudnn",
  )


@jax.custom_vjp
def _fused_unmasked(queries, keys, values):
  """Attend to all tokens; where gradients are wanted, in a form that cuDNN's backward pass takes.

  That is with an even number of tokens, and with centred keys where half a tile of them is left over. Gradients are
  those of plain keys: all keys' sum to 0, so none passes the mean. With half a tile left over cuDNN's kernel on Hopper
  takes exp(-lse) for keys that are not there; below a log-sum-exp of -88 that overflows,
  and the queries' gradients are NaN (pytorch issue 196678, which saw it with a mask; whether it needs one is not known).
  """
  return _fused(queries, keys, values)


def _forward_of_unmasked(queries, keys, values):
  batch, count = queries.shape[:2]
  if (count + count % 2) % _KEY_TILE == _KEY_TILE // 2:
    keys = centred(keys)
  if count % 2:
    lengths = jnp.full((batch,), count, jnp.int32)
    return jax.vjp(lambda q, k, v: _fused_even(q, k, v, lengths), queries, keys, values)
  return jax.vjp(_fused, queries, keys, values)


_fused_unmasked.defvjp(_forward_of_unmasked, lambda backward, gradient: backward(gradient))
