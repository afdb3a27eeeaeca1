"""Crops cut on the device are those cut on the host."""

import jax.numpy as jnp
import numpy as np
import pytest

from ostrack_jax import crop
from ostrack_jax.tracking import device_crop

_FRAME = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
_BOXES = {
  "inside": (70, 60, 20, 15),
  "fractions": (70.3, 60.7, 21.4, 15.9),
  "as large as the crop": (70, 55, 16, 16),
  "left and above": (-5.5, 3, 30, 40),
  "right and below": (180, 130, 40, 30),
  "the last row and column": (168, 118, 16, 16),
  "larger than the frame": (-40, -30, 280, 210),
  "all but outside": (198, 148, 10, 10),
  "tiny": (100, 100, 1, 1),
  "thin": (20, 20, 160, 2),
}


@pytest.mark.parametrize("output_size", [64, 96, 256, 384])
@pytest.mark.parametrize("factor", [4.0, 5.0])
@pytest.mark.parametrize("name", _BOXES)
def test_pixels_equal_opencvs(name, factor, output_size):
  box = np.array(_BOXES[name])
  want, resize_factor = crop.crop_square(_FRAME, box, factor, output_size)
  got, side = device_crop.crop_square(_FRAME, jnp.float32(box), factor, output_size)
  np.testing.assert_array_equal(got, want)
  assert float(side) == pytest.approx(output_size / resize_factor)


def test_pixels_equal_opencvs_for_random_boxes():
  rng = np.random.default_rng(1)
  different = 0
  for _ in range(200):
    # Eighths, so that float32 and float64 agree on every sum.
    box = np.round(np.r_[rng.uniform(-30, 190, 2), rng.uniform(4, 120, 2)] * 8) / 8
    want, resize_factor = crop.crop_square(_FRAME, box, 4.0, 64)
    got, side = device_crop.crop_square(_FRAME, jnp.float32(box), 4.0, 64)
    different += round(64 / resize_factor) != int(side)
    if round(64 / resize_factor) == int(side):
      np.testing.assert_array_equal(got, want)
  assert different <= 1


def test_large_squares_need_no_more_than_32_bits():
  frame = np.full((700, 900, 3), 255, np.uint8)
  box = np.array([-1500.0, -1400.0, 4000.0, 4000.0])
  want, _ = crop.crop_square(frame, box, 4.0, 256)
  got, _ = device_crop.crop_square(frame, jnp.float32(box), 4.0, 256)
  np.testing.assert_array_equal(got, want)
