"""Training on pairs whose search region does not show the target."""

import functools
import types

import jax
import numpy as np
import optax
import pytest
from small_run import MODEL, make_batch

from ostrack_jax import sharding
from ostrack_jax.training import losses
from ostrack_jax.training import step as step_lib
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
    _MODEL, _OPTIMIZER, losses.LossWeights(), batch_norm_shards=devices
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


def _loss(arrays):
  maps = types.SimpleNamespace(score_map=arrays["score_map"], boxes_cxcywh=arrays["boxes_cxcywh"])
  return losses.total_loss(maps, arrays["target_xywh"], losses.LossWeights(), arrays["present"])


def test_one_device_equals_several_that_hold_different_numbers_of_targets():
  if len(jax.devices()) < 2:
    pytest.skip(f"this test compares 1 and 2 devices; here are {len(jax.devices())}")
  rng = np.random.default_rng(0)
  arrays = {
    "score_map": rng.uniform(0.1, 0.9, (4, 8, 8, 1)).astype(np.float32),
    "boxes_cxcywh": rng.uniform(0.2, 0.6, (4, 4)).astype(np.float32),
    "target_xywh": rng.uniform(0.2, 0.4, (4, 4)).astype(np.float32),
    "present": np.array([True, True, False, True]),
  }
  found = []
  for devices in (1, 2):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    gradients = jax.grad(lambda given, rest: _loss(given | rest), has_aux=True)
    rest = {name: arrays[name] for name in ("target_xywh", "present")}
    given = {name: arrays[name] for name in ("score_map", "boxes_cxcywh")}
    placed = (sharding.put_batch(mesh, part) for part in (given, rest))
    found.append(jax.device_get(jax.jit(gradients)(*placed)))
  assert {"peak", "peak_absent", "iou"} < found[0][1].keys()
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *found)
  # What is absent pulls no box.
  assert not found[1][0]["boxes_cxcywh"][2].any() and found[1][0]["boxes_cxcywh"][0].any()


def test_without_any_target_the_score_map_empties():
  params, metrics = _steps(1, [False] * 4, 40)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
  peaks = [row["peak_absent"] for row in metrics]
  assert peaks[-1] < 0.5 * peaks[0], peaks
  assert all(row["iou"] == row["giou"] == row["l1"] == row["peak"] == 0 for row in metrics)
