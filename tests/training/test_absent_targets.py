"""Training on pairs whose search region does not show the target."""

import functools

import jax
import numpy as np
import optax
import pytest
from small_run import MODEL, make_batch

from ostrack_jax import sharding
from ostrack_jax.training import step as step_lib
from ostrack_jax.training.losses import LossWeights
from ostrack_jax.training.state import create_state, init_variables

_MODEL = MODEL.clone(depth=1, elimination_layers=(), keep_ratios=(), drop_path_rate=0.0)
# Adam would scale up the rounding noise of the smallest gradients.
_OPTIMIZER = optax.sgd(3e-3)


@functools.cache
def _state():
  return create_state(init_variables(_MODEL, 0), _OPTIMIZER, seed=1)


@functools.cache
def _compiled(devices):
  """Return a mesh and the compiled step on it."""
  mesh = sharding.make_mesh(jax.devices()[:devices])
  train_step = step_lib.make_train_step(
    _MODEL, _OPTIMIZER, LossWeights(), batch_norm_shards=devices
  )
  return mesh, jax.jit(train_step, out_shardings=sharding.replicated(mesh))


def _steps(devices, present, count, seed=0):
  """Return the state after so many steps on one batch, and each step's metrics."""
  mesh, compiled = _compiled(devices)
  state = jax.device_put(_state(), sharding.replicated(mesh))
  batch = sharding.put_batch(mesh, make_batch(seed) | {"present": np.asarray(present)})
  metrics = []
  for _ in range(count):
    state, step_metrics = compiled(state, batch)
    metrics.append(jax.device_get(step_metrics))
  return jax.device_get(state.params), metrics


def test_one_device_equals_several_that_hold_different_numbers_of_targets():
  if len(jax.devices()) < 2:
    pytest.skip(f"this test compares 1 and 2 devices; here are {len(jax.devices())}")
  (one, first), (two, second) = (_steps(n, [True, True, False, True], 1) for n in (1, 2))
  assert first[0].keys() == second[0].keys() > {"peak", "peak_absent", "iou"}
  for name, value in first[0].items():
    np.testing.assert_allclose(second[0][name], value, rtol=1e-4, err_msg=name)

  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=5e-6), one, two)


def test_without_any_target_the_score_map_empties():
  params, metrics = _steps(1, [False] * 4, 40)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
  peaks = [row["peak_absent"] for row in metrics]
  assert peaks[-1] < 0.5 * peaks[0], peaks
  assert all(row["iou"] == row["giou"] == row["l1"] == row["peak"] == 0 for row in metrics)
