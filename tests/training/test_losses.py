"""Focal, GIoU and L1 losses against the official code's numbers and by hand."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ostrack_jax.training import losses, targets


@pytest.fixture
def expected(golden):
  return np.load(golden("losses.npz"))


def test_focal_loss_equals_the_official_one(expected):
  got = losses.focal_loss(expected["score_pred"], expected["score_target"])
  np.testing.assert_allclose(got, expected["focal"], rtol=1e-6)


def test_focal_loss_without_a_positive_equals_the_official_one(expected):
  got = losses.focal_loss(expected["score_pred"], expected["score_target_without_positive"])
  np.testing.assert_allclose(got, expected["focal_without_positive"], rtol=1e-6)


def test_focal_loss_by_hand():
  got = losses.focal_loss(jnp.array([0.8, 0.3, 0.4]), jnp.array([1.0, 0.5, 0.0]))
  want = -(0.2**2 * np.log(0.8) + 0.5**4 * 0.3**2 * np.log(0.7) + 0.4**2 * np.log(0.6))
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_box_losses_equal_the_official_ones(expected):
  giou, l1, iou = losses.box_losses(
    jnp.asarray(expected["pred_cxcywh"]), jnp.asarray(expected["gt_xywh"])
  )
  np.testing.assert_allclose(giou, expected["giou_loss"], rtol=1e-6)
  np.testing.assert_allclose(l1, expected["l1"], rtol=1e-6)
  np.testing.assert_allclose(iou, expected["iou"], rtol=1e-5, atol=1e-7)


def test_giou_loss_of_the_documented_pairs():
  predicted = jnp.array([[0.3, 0.35, 0.4, 0.5], [0.3, 0.3, 0.2, 0.2]])
  target = jnp.array([[0.2, 0.1, 0.4, 0.4], [0.6, 0.6, 0.3, 0.3]])
  np.testing.assert_allclose(losses.box_losses(predicted, target)[0], 1.137347, rtol=1e-5)


def test_target_corners_are_clamped_to_the_crop_but_predictions_are_not():
  box = jnp.array([[-0.2, 0.0, 0.4, 1.0]])
  _, l1, iou = losses.box_losses(jnp.array([[0.0, 0.5, 0.4, 1.0]]), box)
  np.testing.assert_allclose(l1, 0.2 / 4, rtol=1e-6)
  np.testing.assert_allclose(iou, [0.5], rtol=1e-6)


def _output(count, seed=0):
  rng = np.random.default_rng(seed)
  return types.SimpleNamespace(
    score_map=jnp.asarray(rng.uniform(0.1, 0.9, (count, 4, 4, 1)), jnp.float32),
    boxes_cxcywh=jnp.asarray(rng.uniform(0.3, 0.6, (count, 4)), jnp.float32),
  )


_TARGETS = np.float32([[0.2, 0.3, 0.3, 0.4], [0.5, 0.1, 0.2, 0.2], [0.1, 0.1, 0.4, 0.4]])
_WEIGHTS = losses.LossWeights()


def test_of_absent_targets_the_whole_map_is_negative_and_no_box_counts():
  output, present = _output(3), np.array([True, False, True])
  loss, parts = losses.total_loss(output, _TARGETS, _WEIGHTS, present)
  scores = np.asarray(output.score_map[..., 0])
  shown = types.SimpleNamespace(
    score_map=output.score_map[::2], boxes_cxcywh=output.boxes_cxcywh[::2]
  )
  _, want = losses.total_loss(shown, _TARGETS[::2], _WEIGHTS)
  for name in ("giou", "l1", "iou"):
    np.testing.assert_allclose(parts[name], want[name], rtol=1e-6, err_msg=name)
  # Two positives in the batch divide what all three maps lose.
  assert (np.asarray(targets.score_map_targets(_TARGETS[::2], 4)) == 1).sum() == 2
  negative = -(scores[1] ** 2 * np.log(1 - scores[1])).sum()
  np.testing.assert_allclose(parts["focal"], want["focal"] + negative / 2, rtol=1e-6)
  np.testing.assert_allclose(loss, parts["focal"] + 2 * parts["giou"] + 5 * parts["l1"], rtol=1e-6)
  np.testing.assert_allclose(parts["peak"], scores[::2].max(axis=(1, 2)).mean(), rtol=1e-6)
  np.testing.assert_allclose(parts["peak_absent"], scores[1].max(), rtol=1e-6)


def test_the_label_of_an_absent_target_changes_nothing_nor_does_its_box_learn():
  output, present = _output(3), np.array([True, False, True])
  moved = _TARGETS.copy()
  moved[1] = 0.7, 0.7, 0.1, 0.2

  def loss(boxes_cxcywh, targets_xywh):
    seen = types.SimpleNamespace(score_map=output.score_map, boxes_cxcywh=boxes_cxcywh)
    return losses.total_loss(seen, targets_xywh, _WEIGHTS, present)[0]

  value, gradient = jax.value_and_grad(loss)(output.boxes_cxcywh, _TARGETS)
  assert value == loss(output.boxes_cxcywh, moved)
  assert (np.asarray(gradient)[1] == 0).all() and (np.asarray(gradient)[::2] != 0).any(axis=1).all()


@pytest.mark.parametrize("has_score_map", [True, False])
def test_all_present_equals_not_saying_so(has_score_map):
  output = _output(3)
  if not has_score_map:
    output.score_map = None
  loss, parts = losses.total_loss(output, _TARGETS, _WEIGHTS, np.ones(3, bool))
  want, plain = losses.total_loss(output, _TARGETS, _WEIGHTS)
  np.testing.assert_allclose(loss, want, rtol=1e-6)
  for name, value in plain.items():
    np.testing.assert_allclose(parts[name], value, rtol=1e-6, err_msg=name)
  added = {"peak", "peak_absent"} if has_score_map else set()
  assert parts.keys() == plain.keys() | added


def test_a_batch_without_any_target_has_finite_numbers():
  output = _output(3)
  loss, parts = losses.total_loss(output, _TARGETS, _WEIGHTS, np.zeros(3, bool))
  scores = np.asarray(output.score_map)
  np.testing.assert_allclose(loss, -(scores**2 * np.log(1 - scores)).sum(), rtol=1e-6)
  assert parts["giou"] == parts["l1"] == parts["iou"] == parts["peak"] == 0
