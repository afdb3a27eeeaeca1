"""The backbone's own layers equal what they stand for."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ostrack_jax.models import attention, vit


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gelu_and_its_gradient_are_exact(dtype):
  x = jnp.linspace(-9, 9, 1001).astype(dtype)
  for ours, theirs in (
    (vit.exact_gelu(x), nn.gelu(x.astype(jnp.float32), approximate=False)),
    (
      jax.vmap(jax.grad(vit.exact_gelu))(x),
      jax.vmap(jax.grad(lambda v: nn.gelu(v, approximate=False)))(x.astype(jnp.float32)),
    ),
  ):
    assert ours.dtype == dtype
    tolerance = 1e-6 if dtype == jnp.float32 else 2**-8
    np.testing.assert_allclose(np.asarray(ours, np.float32), theirs, rtol=tolerance, atol=1e-6)


def test_the_patch_projection_is_a_convolution():
  images = jax.random.normal(jax.random.key(0), (2, 48, 64, 3))
  ours = vit.PatchProjection(8, jnp.dtype("float32"))
  conv = nn.Conv(8, (16, 16), strides=(16, 16), padding="VALID")
  variables = conv.init(jax.random.key(1), images)
  variables["params"]["bias"] = jnp.arange(8.0)
  assert jax.tree.map(jnp.shape, ours.init(jax.random.key(1), images)) == jax.tree.map(
    jnp.shape, variables
  )
  np.testing.assert_allclose(
    ours.apply(variables, images),
    conv.apply(variables, images).reshape(2, 12, 8),
    atol=1e-5,
  )


def test_a_scaled_mlp_scales_each_sample():
  x = jax.random.normal(jax.random.key(0), (3, 5, 4))
  layer = vit.Mlp(4, jnp.dtype("float32"))
  variables = layer.init(jax.random.key(1), x)
  variables["params"]["fc2"]["bias"] = jnp.arange(4.0)
  scale = jnp.array([0.0, 1.0, 1.25])[:, None, None]
  plain, scaled = layer.apply(variables, x), layer.apply(variables, x, scale)
  np.testing.assert_allclose(
    scaled.product + scaled.shift, (plain.product + plain.shift) * scale, rtol=1e-5, atol=1e-6
  )


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="fused attention needs CUDA")
@pytest.mark.parametrize("count", [153, 320])
@pytest.mark.parametrize("is_masked", [False, True])
def test_fused_attention_equals_the_plain_one(count, is_masked):
  keys = jax.random.split(jax.random.key(0), 3)
  q, k, v = (jax.random.normal(key, (8, count, 4, 64), jnp.bfloat16) for key in keys)
  valid = jnp.broadcast_to(jnp.arange(count) < count - 20, (8, count)) if is_masked else None
  used = count - 20 if is_masked else count

  def total(fn, *args):
    return jnp.square(fn(*args)[:, :used].astype(jnp.float32)).sum()

  def plain(q, k, v):
    mask = None if valid is None else valid[:, None, None, :]
    return jax.nn.dot_product_attention(q, k, v, mask=mask)

  def fused(q, k, v):
    return attention.attend(q, k, v, valid)

  assert attention.is_fused(8, jnp.bfloat16, 64)
  got, want = jax.jit(fused)(q, k, v), plain(q, k, v)
  assert jnp.isfinite(got).all()
  np.testing.assert_allclose(
    np.asarray(got[:, :used], np.float32), np.asarray(want[:, :used], np.float32), atol=0.02
  )
  for a, b in zip(
    jax.jit(jax.grad(lambda *x: total(fused, *x), argnums=(0, 1, 2)))(q, k, v),
    jax.grad(lambda *x: total(plain, *x), argnums=(0, 1, 2))(q, k, v),
  ):
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    assert np.isfinite(a).all() and not a[:, used:].any()
    assert np.abs(a - b).max() <= 0.03 * np.abs(b).max()


def test_no_fused_attention_where_it_cannot_run():
  assert not attention.is_fused(8, jnp.float32, 64)
  assert not attention.is_fused(1, jnp.bfloat16, 64)
  if jax.default_backend() == "cpu":
    assert not attention.is_fused(128, jnp.bfloat16, 64)
