"""The folded head gives the maps of CenterHead with running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ostrack_jax.models import folded_head
from ostrack_jax.models.head import BRANCHES, CenterHead

_CHANNELS, _WIDTH, _GRID = 16, 24, 5


def _variables(dtype="float32"):
  """Return the head and variables of which none is 0 or 1, so that a forgotten one shows."""
  head = CenterHead(_CHANNELS, jnp.dtype(dtype))
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
  monkeypatch.setattr(folded_head, "suits_batches", lambda batch, dtype: batch >= 8)
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
