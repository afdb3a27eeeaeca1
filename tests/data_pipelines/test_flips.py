"""The joint flip behind the crop against the official order, and the labels of flipped crops."""

import numpy as np
import pytest

from data_pipelines import augmentation
from ostrack_jax import crop


def test_a_jointly_flipped_crop_is_cut_where_the_official_order_cuts_it():
  rng = np.random.default_rng(0)
  apart = []
  for _ in range(500):
    width, factor = int(rng.integers(90, 140)), float(rng.choice([2.0, 4.0, 5.0]))
    # Whole and half pixels too, where rounding to even falls to different sides in a mirror.
    box = np.concatenate([rng.uniform(0, 80, 2), rng.uniform(5, 40, 2)]).round(int(rng.integers(3)))
    official = crop.crop_window(official_flip(box, width), factor)
    ours = {
      half_pixel: crop.crop_window(
        augmentation.box_to_cut_around(box, factor, width, True, half_pixel), factor
      )
      for half_pixel in (True, False)
    }
    assert {(w.y1, w.side) for w in ours.values()} == {(official.y1, official.side)}
    assert width - ours[True].x1 - ours[True].side == official.x1
    apart.append(width - ours[False].x1 - ours[False].side - official.x1)
  # Without the official pixel, mirrored exactly: one pixel further, give or take the rounding.
  assert set(apart) <= {0, 1, 2} and np.mean(np.array(apart) == 1) > 0.6


def official_flip(box, width):
  """The official map of a box into the mirrored frame."""
  return np.array([width - 1 - box[0] - box[2], *box[1:]])


def test_without_a_joint_flip_the_box_is_cut_around_as_it_is():
  box = np.array([30.3, 20.1, 16.7, 9.2])
  np.testing.assert_array_equal(augmentation.box_to_cut_around(box, 4.0, 99, False, True), box)


# The box's centre lies 6 frame pixels to the right of the crop's, at 2 crop pixels each, of 64.
@pytest.mark.parametrize(
  ("half_pixel", "joint", "own", "centre_x"),
  [
    (True, False, False, (31.5 + 12) / 64),
    (True, True, False, (31.5 - 12) / 64),
    (True, False, True, 1 - (31.5 + 12) / 64),
    (True, True, True, 1 - (31.5 - 12) / 64),
    (False, False, False, (32 + 12) / 64),
    (False, True, False, (32 - 12) / 64),
    (False, False, True, (32 - 12) / 64),
    (False, True, True, (32 + 12) / 64),
  ],
)
def test_label_hand_values(half_pixel, joint, own, centre_x):
  in_crop = crop.box_in_crop(
    np.array([36, 20, 10, 8]), np.array([30, 20, 10, 8]), 2.0, 64, half_pixel
  )
  found = augmentation.label(
    in_crop,
    64,
    is_joint_flip=joint,
    is_own_flip=own,
    half_pixel=half_pixel,
  )
  assert found.dtype == np.float32
  centre_y = (31.5 if half_pixel else 32) / 64
  expected = [centre_x - 10 / 64, centre_y - 8 / 64, 20 / 64, 16 / 64]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
