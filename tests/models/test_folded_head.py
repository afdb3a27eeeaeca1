"""The folded head gives the maps of CenterHead with running statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ostrack_jax.models import attention, folded_head, fused_head
from ostrack_jax.models.head import BRANCHES, CenterHead

_CHANNELS, _WIDTH, _GRID = 16, 24, 5


def _variables(dtype="float32", channels=_CHANNELS):
  """Return the head and variables of which none is 0 or 1, so that a forgotten one shows."""
  head = CenterHead(channels, jnp.dtype(dtype))
  shapes = jax.eval_shape(
    lambda: head.init(jax.random.key(0), jnp.zeros((1, _GRID, _GRID, _WIDTH)), False)
  )
  rng = np.random.default_rng(0)

  def draw(path, shape):
    positive = path[-1].key in ("var", "scale")
    deviation = 0.5 if len(shape.shape) < 2 else 1.7 * np.prod(shape.shape[:-1]) ** -0.5
    values = rng.normal(scale=deviation, size=shape.shape)
    return np.asarray(np.exp(values) if positive else values, np.float32)

  return head, jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.mark.parametrize("layer_of", ["_multiply", "_convolve"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-6), ("bfloat16", 0.03)])
def test_maps_equal_those_of_the_head(layer_of, dtype, tolerance, monkeypatch):
  head, variables = _variables(dtype)
  chosen = getattr(folded_head, layer_of)
  for name in ("_multiply", "_convolve"):
    monkeypatch.setattr(folded_head, name, chosen)
  features = np.random.default_rng(1).normal(size=(3, _GRID, _GRID, _WIDTH)).astype(np.float32)
  want = head.apply(variables, features, False)
  folded = folded_head.fold(variables["params"], variables["batch_stats"], jnp.dtype(dtype))
  got = folded_head.apply(folded, features)
  assert [one.shape[-1] for one in got] == [BRANCHES[name] for name in ("ctr", "size", "offset")]
  for ours, theirs in zip(got, want, strict=True):
    assert ours.dtype == jnp.float32
    assert np.ptp(theirs) > 0.1
    np.testing.assert_allclose(ours, theirs, atol=tolerance * np.ptp(theirs))


def test_batches_on_a_gpu_are_convolved(monkeypatch):
  monkeypatch.setattr(attention, "suits_batches", lambda batch, dtype: batch >= 8)
  calls = []
  for name in ("_multiply", "_convolve"):
    real = getattr(folded_head, name)
    monkeypatch.setattr(
      folded_head, name, lambda *a, name=name, real=real: calls.append(name) or real(*a)
    )
  _, variables = _variables()
  folded = folded_head.fold(variables["params"], variables["batch_stats"], np.float32)
  folded_head.apply(folded, jnp.zeros((7, _GRID, _GRID, _WIDTH)))
  folded_head.apply(folded, jnp.zeros((8, _GRID, _GRID, _WIDTH)))
  assert calls == ["_multiply"] * 4 + ["_convolve"] * 4


@pytest.mark.parametrize(
  ("inputs", "outputs", "groups", "grid"), [(16, 32, 3, 5), (64, 96, 1, 16), (48, 16, 2, 6)]
)
def test_a_convolution_in_one_kernel(inputs, outputs, groups, grid):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(grid, grid, groups, inputs)).astype(np.float32)
  kernel = rng.normal(size=(groups, 3, 3, inputs, outputs)).astype(np.float32)
  bias = rng.normal(size=(groups, outputs)).astype(np.float32)
  want = np.zeros((grid, grid, groups, outputs)) + bias
  padded = np.pad(x, ((1, 1), (1, 1), (0, 0), (0, 0)))
  for row in range(3):
    for column in range(3):
      near = padded[row : row + grid, column : column + grid]
      want += np.einsum("hwgi,gio->hwgo", near, kernel[:, row, column])
  found = fused_head.convolved(
    jnp.asarray(x.reshape(grid * grid, -1)),
    kernel.reshape(groups, -1, outputs),
    np.pad(bias, ((0, 0), (7, 5)), constant_values=1e3),
    7,
    interpret=True,
  )
  want = np.maximum(want, 0).reshape(found.shape)
  assert (want == 0).mean() > 0.2
  np.testing.assert_allclose(found, want, atol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-6), ("bfloat16", 0.03)])
def test_maps_by_one_kernel_a_layer(dtype, tolerance, monkeypatch):
  head, variables = _variables(dtype, channels=128)
  # Small, lest all scores be 1.
  features = 0.2 * np.random.default_rng(1).normal(size=(1, _GRID, _GRID, _WIDTH))
  want = head.apply(variables, features, False)
  folded = folded_head.fold(variables["params"], variables["batch_stats"], jnp.dtype(dtype))
  calls, real = [], fused_head.convolved
  monkeypatch.setattr(
    fused_head, "convolved", lambda *a, **options: calls.append(1) or real(*a, **options)
  )
  got = folded_head.apply(folded, features, is_fused=True)
  assert len(calls) == 3
  for ours, theirs in zip(got, want, strict=True):
    assert np.ptp(theirs) > 0.1
    np.testing.assert_allclose(ours, theirs, atol=tolerance * np.ptp(theirs))


def test_a_head_too_narrow_for_kernels_goes_without():
  head, variables = _variables()
  features = np.random.default_rng(1).normal(size=(1, _GRID, _GRID, _WIDTH)).astype(np.float32)
  folded = folded_head.fold(variables["params"], variables["batch_stats"], np.float32)
  got = folded_head.apply(folded, features, is_fused=True)
  for ours, theirs in zip(got, head.apply(variables, features, False), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=5e-6 * np.ptp(theirs))


def test_what_is_no_number_stays_none():
  x = jnp.full((64, 16), jnp.nan, jnp.float16)
  kernel, biases = jnp.ones((1, 144, 16), jnp.float16), jnp.zeros((1, 16))
  run = functools.partial(fused_head.convolved, start=0, interpret=False)
  lowered = jax.jit(run).trace(x, kernel, biases).lower(lowering_platforms=("cuda",))
  # A GPU's maximum of NaN and 0 is 0.
  assert "triton" in lowered.as_text() and "maxnum" not in lowered.as_text()
  assert np.isnan(fused_head.convolved(x, kernel, biases, 0, interpret=True)).all()


@pytest.mark.skipif(not attention.is_hopper(), reason="needs a Hopper GPU")
@pytest.mark.parametrize(
  ("inputs", "outputs", "grid"), [(256, 128, 16), (128, 64, 24), (64, 32, 5)]
)
def test_the_compiled_convolution_is_the_same(inputs, outputs, grid):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(grid * grid, 3 * inputs)), jnp.float16)
  kernel = jnp.asarray(rng.normal(size=(3, 9 * inputs, outputs)) / inputs**0.5, jnp.float16)
  biases = jnp.asarray(rng.normal(size=(3, outputs + 8)), jnp.float32)
  found, want = (
    fused_head.convolved(x, kernel, biases, 8, interpret=interpret) for interpret in (False, True)
  )
  np.testing.assert_allclose(found, want, atol=0.02)
  spoilt = x.at[0].set(jnp.nan)
  near = np.isnan(fused_head.convolved(spoilt, kernel, biases, 8, interpret=False)).any(axis=1)
  assert set(np.flatnonzero(near)) == {0, 1, grid, grid + 1}
