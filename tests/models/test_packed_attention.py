"""Attention as one kernel, run step by step, equals the plain operations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_network import make_images, make_model

from ostrack_jax import sharding
from ostrack_jax.models import attention, packed_attention, self_attention
from ostrack_jax.models.packed_attention import Packed


def _packed(batch, count, num_heads, size, dtype=jnp.float32) -> Packed:
  keys = jax.random.split(jax.random.key(0), 2)
  width = 3 * num_heads * size
  product = jax.random.normal(keys[0], (batch, count, width)).astype(dtype)
  return Packed(product, jax.random.normal(keys[1], (1, 1, width)))


def _by_hand(packed: Packed, num_heads: int) -> np.ndarray:
  shift = 0 if packed.shift is None else np.asarray(packed.shift, np.float64)
  product = np.asarray(packed.product, np.float64) + shift
  batch, count, width = product.shape
  size = width // (3 * num_heads)
  parts = product.reshape(batch, count, 3, num_heads, size)
  mixed = np.zeros((batch, count, num_heads, size))
  for sample in range(batch):
    for head in range(num_heads):
      queries, keys, values = parts[sample, :, :, head].transpose(1, 0, 2)
      weights = np.exp(queries @ keys.T / np.sqrt(size))
      mixed[sample, :, head] = weights / weights.sum(axis=1, keepdims=True) @ values
  return mixed.reshape(batch, count, -1)


@pytest.mark.parametrize(("count", "has_shift"), [(1, True), (32, True), (150, True), (150, False)])
def test_the_kernel_equals_attention_by_hand(count, has_shift):
  packed = _packed(2, count, 2, 16)
  if not has_shift:
    packed = packed._replace(shift=None)
  found = jax.jit(functools.partial(packed_attention.attend_packed, 2, True))(packed)
  np.testing.assert_allclose(found, _by_hand(packed, 2), atol=2e-6)


def _looks_by_hand(product, row: int, num_heads: int) -> np.ndarray:
  _, count, width = product.shape
  size = width // (3 * num_heads)
  parts = np.asarray(product, np.float64).reshape(count, 3, num_heads, size)
  logits = np.einsum("hd,nhd->hn", parts[row, 0], parts[:, 1]) / np.sqrt(size)
  weights = np.exp(logits)
  return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("count", [64, 71, 150])
def test_where_a_token_looks_comes_along(count):
  product = _packed(1, count, 3, 32).product
  found = packed_attention.attend_and_look(product, 2, 3, interpret=True)
  np.testing.assert_allclose(found[0], _by_hand(Packed(product, None), 3), atol=2e-6)
  assert found[1].shape == (1, 3, 1, count)
  np.testing.assert_allclose(found[1][0, :, 0], _looks_by_hand(product, 2, 3), rtol=2e-5)


def test_heads_that_cannot_be_looked_through_are_refused():
  with pytest.raises(ValueError, match="heads of 8 columns"):
    packed_attention.attend_and_look(jnp.zeros((1, 5, 72)), 0, 3, interpret=True)


@pytest.mark.skipif(not attention.is_hopper(), reason="needs a Hopper GPU")
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("count", [190, 320, 427, 720])
def test_compiled_it_looks_and_attends_alike(count, dtype):
  product = _packed(1, count, 12, 64, dtype).product
  mixed, looks = packed_attention.attend_and_look(product, 27, 12, interpret=False)
  alone = packed_attention.attend_packed(12, False, Packed(product, None))
  np.testing.assert_array_equal(mixed, alone)
  np.testing.assert_allclose(looks[0, :, 0], _looks_by_hand(product, 27, 12), rtol=1e-4, atol=1e-7)


def test_gradients_are_those_of_the_plain_operations():
  packed = _packed(2, 5, 2, 16)
  weights = jax.random.normal(jax.random.key(1), (2, 5, 32))

  def plain(packed):
    mixed = jax.nn.dot_product_attention(*packed_attention.split_heads(packed, 2))
    return (mixed.reshape(2, 5, -1) * weights).sum()

  def ours(packed):
    return (packed_attention.attend_packed(2, True, packed) * weights).sum()

  got, want = jax.jit(jax.grad(ours))(packed), jax.jit(jax.grad(plain))(packed)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)


def test_devices_keep_the_samples_that_they_have(four_devices):
  packed = _packed(4, 9, 2, 16)
  want = packed_attention.attend_packed(2, True, packed)
  mesh = sharding.make_mesh(four_devices)
  placed = Packed(
    sharding.put_batch(mesh, {"product": packed.product})["product"],
    jax.device_put(packed.shift, sharding.replicated(mesh)),
  )
  compiled = (
    jax.jit(functools.partial(packed_attention.attend_packed, 2, True)).lower(placed).compile()
  )
  found = compiled(placed)
  np.testing.assert_allclose(found, want, atol=1e-6)
  assert found.sharding.spec[0] == placed.product.sharding.spec[0]
  assert "all-gather" not in compiled.as_text()


def test_the_network_is_the_same_with_the_kernel(monkeypatch):
  model, images = make_model(width=32, depth=2), make_images()
  shapes = jax.eval_shape(model.init, jax.random.key(0), *images)
  draw = np.random.default_rng(0)
  variables = jax.tree.map(lambda x: np.float32(draw.normal(0, 0.2, x.shape)), shapes)
  want = jax.jit(model.apply)(variables, *images)
  calls = []

  def attend(num_heads, interpret, packed):
    calls.append(packed.product.shape)
    return packed_attention.attend_packed(num_heads, True, packed)

  class Kernels:
    Packed = Packed
    split_heads = staticmethod(packed_attention.split_heads)
    suits = staticmethod(lambda batch, dtype, head_size: (batch, head_size) == (2, 16))
    attend_packed = staticmethod(attend)

  monkeypatch.setattr(self_attention, "packed_attention", Kernels)
  found = jax.jit(model.apply)(variables, *images)
  assert calls == [(2, 20, 96), (2, 12, 96)]
  for got, expected in ((found.score_map, want.score_map), (found.size_map, want.size_map)):
    np.testing.assert_allclose(got, expected, atol=1e-5)
  np.testing.assert_array_equal(found.removed[0], want.removed[0])


def test_the_kernel_runs_on_cuda_alone_for_few_samples_in_half_precision(monkeypatch):
  monkeypatch.setattr(attention, "_capability", lambda: 8.0)
  assert packed_attention.suits(1, jnp.bfloat16, 64)
  assert not packed_attention.suits(8, jnp.bfloat16, 64)
  assert not packed_attention.suits(1, jnp.float32, 64)
  assert not packed_attention.suits(1, jnp.bfloat16, 48)
  # As with cuDNN's; larger heads were never run.
  assert not packed_attention.suits(1, jnp.bfloat16, 256)
  monkeypatch.setattr(attention, "_capability", lambda: 7.5)
  assert not packed_attention.suits(1, jnp.bfloat16, 64)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="compiled kernels need CUDA")
@pytest.mark.parametrize(
  ("count", "num_heads", "has_shift"),
  [(320, 12, True), (153, 12, False), (427, 12, False), (548, 12, False), (720, 6, True)],
)
def test_the_compiled_kernel_equals_the_plain_operations(count, num_heads, has_shift):
  packed = _packed(1, count, num_heads, 64, jnp.bfloat16)
  if not has_shift:
    packed = packed._replace(shift=None)
  found = jax.jit(functools.partial(packed_attention.attend_packed, num_heads, False))(packed)
  # The plain operations in bfloat16 are as far from this.
  np.testing.assert_allclose(
    np.asarray(found, np.float32), _by_hand(packed, num_heads), rtol=2**-7, atol=2**-6
  )
