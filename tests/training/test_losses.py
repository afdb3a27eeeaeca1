"""Focal, GIoU and L1 losses against the official code's numbers and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from ostrack_jax.training import losses


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
