"""The kernels of residual addition and normalisation, run step by step, equal the plain operations."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ostrack_jax import sharding
from ostrack_jax.models import fused_norm, self_attention
from ostrack_jax.models.fused_norm import Branch
from ostrack_jax.models.ostrack import OSTrack


def _plain(tokens, branch, scale, bias, dtype):
  tokens = fused_norm.add(tokens, branch)
  norm = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, use_fast_variance=False)
  return tokens, norm.apply({"params": {"scale": scale, "bias": bias}}, tokens).astype(dtype)


def _arrays(shape, dtype, has_branch=True, shifts=None):
  batch, _, width = shape
  keys = jax.random.split(jax.random.key(0), 7)
  tokens, product, *weights = (jax.random.normal(key, shape).astype(dtype) for key in keys[:4])
  shift = jax.random.normal(keys[4], (shifts or batch, 1, width))
  scale, bias = (jax.random.normal(key, (width,)) for key in keys[5:])
  branch = Branch(product, shift) if has_branch else None
  return (tokens, branch, scale, 1 + bias), weights


def _gradients_and_results(norm, arrays, weights, dtype):
  # Not the sum itself, in which much cancels that was rounded.
  def total(*args):
    results = norm(*args, dtype)
    parts = [jnp.sum(a.astype(jnp.float32) * w) for a, w in zip(results, weights)]
    return parts[0] + parts[1], results

  weights = [weight.astype(jnp.float32) for weight in weights]
  return jax.jit(jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True))(*arrays)


def _close(got, want, tolerance):
  def equal(path, a, b):
    assert (a.shape, a.dtype) == (b.shape, b.dtype), path
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), err_msg=str(path))

  jax.tree_util.tree_map_with_path(equal, got, want)


@pytest.mark.parametrize("has_branch", [True, False])
@pytest.mark.parametrize("count", [1, 5, 37])
@pytest.mark.parametrize(("dtype", "width"), [("float32", 48), ("bfloat16", 96)])
def test_kernels_equal_flax_and_its_gradients(dtype, width, count, has_branch, monkeypatch):
  # 19 blocks of rows, the last of 1 row, in 4 and 3 chunks, the last not full.
  monkeypatch.setattr(fused_norm, "_FORWARD_PROGRAMS", 8)
  monkeypatch.setattr(fused_norm, "_BACKWARD_PROGRAMS", 6)
  dtype = jnp.dtype(dtype)
  arrays, weights = _arrays((2, count, width), dtype, has_branch)
  ours = functools.partial(fused_norm.residual_norm, interpret=True)
  got = _gradients_and_results(ours, arrays, weights, dtype)
  want = _gradients_and_results(_plain, arrays, weights, dtype)
  # GPUs may skip roundings to bfloat16 in between.
  _close(got, want, 3e-6 if dtype == jnp.float32 else 2**-6)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="compiled kernels need CUDA")
@pytest.mark.parametrize("has_branch", [True, False])
@pytest.mark.parametrize(("count", "width"), [(320, 768), (153, 768), (153, 384), (37, 48)])
def test_compiled_kernels_equal_flax(count, width, has_branch):
  assert fused_norm.suits_batches(16, jnp.bfloat16)
  arrays, weights = _arrays((16, count, width), jnp.bfloat16, has_branch)
  got = _gradients_and_results(fused_norm.residual_norm, arrays, weights, jnp.bfloat16)
  _close(got, _gradients_and_results(_plain, arrays, weights, jnp.bfloat16), 2**-7)


def test_a_shift_may_be_shared_by_all_samples():
  arrays, weights = _arrays((3, 5, 48), jnp.float32, shifts=1)
  ours = functools.partial(fused_norm.residual_norm, interpret=True)
  got = _gradients_and_results(ours, arrays, weights, jnp.float32)
  _close(got, _gradients_and_results(_plain, arrays, weights, jnp.float32), 3e-6)


def test_the_plain_layer_is_that_of_flax():
  (tokens, branch, scale, bias), _ = _arrays((2, 5, 48), jnp.float32)
  variables = {"params": {"scale": scale, "bias": bias}}
  layer, theirs = fused_norm.ResidualNorm(jnp.dtype("float32")), nn.LayerNorm(epsilon=1e-6)
  assert jax.tree.map(jnp.shape, layer.init(jax.random.key(0), tokens)) == jax.tree.map(
    jnp.shape, variables
  )
  added, normed = layer.apply(variables, tokens, branch)
  np.testing.assert_array_equal(added, tokens + (branch.product + branch.shift))
  np.testing.assert_array_equal(normed, theirs.apply(variables, added))


def test_scaled_values_and_bias_scale_the_attention():
  tokens = jax.random.normal(jax.random.key(0), (3, 7, 16))
  valid = jnp.arange(7)[None, :] < jnp.array([7, 5, 3])[:, None]
  scale = jnp.array([0.0, 1.0, 1.25])[:, None, None]
  layer = self_attention.Attention(16, 2, jnp.dtype("float32"))
  variables = layer.init(jax.random.key(1), tokens)
  variables["params"]["proj"]["bias"] = jnp.arange(16.0)
  plain, rows = layer.apply(variables, tokens, (2,), valid)
  scaled, same_rows = layer.apply(variables, tokens, (2,), valid, scale)
  np.testing.assert_allclose(
    scaled.product + scaled.shift, (plain.product + plain.shift) * scale, rtol=1e-5, atol=1e-5
  )
  np.testing.assert_array_equal(rows, same_rows)


def _force(monkeypatch):
  kernels = functools.partial(fused_norm.residual_norm, interpret=True)
  monkeypatch.setattr(fused_norm, "residual_norm", kernels)
  monkeypatch.setattr(fused_norm, "suits_batches", lambda batch, dtype: True)


def _gradients(model, keep_counts=None):
  images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
  args = (images[:, :32, :32], images)
  shapes = jax.eval_shape(model.init, jax.random.key(0), *args)
  draw = np.random.default_rng(0)
  variables = jax.tree.map(lambda x: np.float32(draw.normal(0, 0.2, x.shape)), shapes)

  def total(params):
    output, _ = model.apply(
      {**variables, "params": params},
      *args,
      keep_counts=keep_counts,
      train=True,
      rngs={"drop_path": jax.random.key(2)},
      mutable=["batch_stats"],
    )
    score = jnp.square(output.score_map).sum() + jnp.square(output.offset_map).mean()
    return score + 0.01 * jnp.square(output.features).mean()

  lowered = jax.jit(jax.value_and_grad(total)).lower(variables["params"])
  quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
  return lowered.compile(compiler_options=quickly)(variables["params"])


@pytest.mark.parametrize(
  ("dtype", "rematerialise", "tolerance"),
  [("float32", False, 1e-4), ("bfloat16", False, 0.1), ("float32", True, 1e-4)],
)
def test_the_network_has_the_same_gradients(dtype, rematerialise, tolerance, monkeypatch):
  model = OSTrack(
    variant="custom",
    width=16,
    depth=2,
    num_heads=2,
    template_size=32,
    search_size=64,
    head_channels=8,
    elimination_layers=(0,),
    keep_ratios=(0.7,),
    drop_path_rate=0.3,
    dtype=dtype,
    rematerialise=rematerialise,
  )
  counts = jnp.array([9]) if rematerialise else None
  want = _gradients(model, counts)
  _force(monkeypatch)
  value, got = _gradients(model, counts)
  np.testing.assert_allclose(value, want[0], rtol=tolerance)
  norm = lambda tree: np.sqrt(sum(float(jnp.square(x).sum()) for x in jax.tree.leaves(tree)))  # noqa: E731
  difference = jax.tree.map(jnp.subtract, got["backbone"], want[1]["backbone"])
  assert norm(difference) <= tolerance * norm(want[1]["backbone"])


def test_devices_keep_their_samples_to_themselves(four_devices):
  arrays, weights = _arrays((8, 5, 48), jnp.float32)
  ours = functools.partial(fused_norm.residual_norm, interpret=True)
  want = _gradients_and_results(ours, arrays, weights, jnp.float32)
  mesh = sharding.make_mesh(four_devices)
  by_sample = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  tokens, branch, *parameters = arrays
  placed = (
    *jax.device_put((tokens, branch), by_sample),
    *jax.device_put(parameters, sharding.replicated(mesh)),
  )

  def run(arrays, weights):
    return _gradients_and_results(ours, arrays, weights, jnp.float32)

  compiled = jax.jit(run).lower(placed, jax.device_put(weights, by_sample)).compile()
  _close(compiled(placed, jax.device_put(weights, by_sample)), want, 3e-6)
  text = compiled.as_text()
  assert "all-reduce" in text and "all-gather" not in text and "all-to-all" not in text


def test_no_kernel_where_it_cannot_run():
  assert not fused_norm.suits_batches(128, jnp.float32)
  assert not fused_norm.suits_batches(1, jnp.bfloat16)
  if jax.default_backend() == "cpu":
    assert not fused_norm.suits_batches(128, jnp.bfloat16)
