import math

import cv2
import numpy as np
import pytest

from ostrack_jax import crop


def _ramp_image():
  values = np.arange(60 * 80 * 3) % 251
  return values.reshape(60, 80, 3).astype(np.uint8)


# box, factor, output size, crop side, corner, mean of the resized crop: run with the official code.
_OFFICIAL = [
  ([30, 20, 16, 9], 2, 32, 24, (26, 12), 127.096354),
  ([70, 50, 10, 10], 4, 64, 40, (55, 35), 43.927165),
  ([0, 0, 20, 20], 4, 64, 80, (-30, -30), 47.474365),
  ([29.5, 20.5, 15, 15], 2, 32, 30, (22, 13), 137.694661),
  ([40, 10, 40, 40], 1, 40, 40, (40, 10), 124.634375),
]


@pytest.mark.parametrize(("box", "factor", "size", "side", "corner", "mean"), _OFFICIAL)
def test_crop_gives_the_official_window_and_pixels(box, factor, size, side, corner, mean):
  window = crop.crop_window(box, factor)
  assert (window.x1, window.y1, window.side) == (*corner, side)
  pixels, resize_factor = crop.crop_square(_ramp_image(), box, factor, size)
  assert pixels.shape == (size, size, 3) and pixels.dtype == np.uint8
  assert resize_factor == size / side
  np.testing.assert_allclose(pixels.mean(), mean, atol=5e-7)


def test_window_rounds_half_to_even():
  # Left edges 22.5 and 13.5 become 22 and 14.
  window = crop.crop_window([30, 21, 15, 15], 2)
  assert (window.x1, window.y1) == (22, 14)


def _crop_by_loops(image, window):
  """An oracle without slices; the last row and column are black in crops that reach them."""
  height, width = image.shape[:2]
  right = width if window.x1 + window.side < width else width - 1
  bottom = height if window.y1 + window.side < height else height - 1
  square = np.zeros((window.side, window.side, 3), np.uint8)
  for i in range(window.side):
    for j in range(window.side):
      y, x = window.y1 + i, window.x1 + j
      if 0 <= y < bottom and 0 <= x < right:
        square[i, j] = image[y, x]
  return square


def test_unresized_crops_equal_a_pixel_by_pixel_look_up():
  rng = np.random.default_rng(0)
  image = rng.integers(1, 256, (40, 50, 3), dtype=np.uint8)
  for _ in range(60):
    box = np.concatenate([rng.uniform(-15, 50, 2), rng.uniform(1, 16, 2)])
    window = crop.crop_window(box, 2)
    pixels, resize_factor = crop.crop_square(image, box, 2, window.side)
    expected = _crop_by_loops(image, window)
    np.testing.assert_array_equal(pixels, expected)
    assert resize_factor == 1
    mask = crop.crop_padding_mask(window, 40, 50)
    np.testing.assert_array_equal(mask, (expected == 0).all(axis=2))


def test_resizing_is_opencv_bilinear_on_bytes():
  image = np.random.default_rng(1).integers(0, 256, (90, 90, 3), dtype=np.uint8)
  pixels, _ = crop.crop_square(image, [30, 30, 20, 20], 2, 64)
  expected = cv2.resize(image[20:60, 20:60], (64, 64), interpolation=cv2.INTER_LINEAR)
  np.testing.assert_array_equal(pixels, expected)


def test_crops_are_bit_identical_to_the_official_ones(golden):
  with np.load(golden("crops.npz")) as recorded:
    image = recorded["image_u8"]
    for i, box in enumerate(recorded["boxes_xywh_px"]):
      factor, size = float(recorded["area_factor"][i]), int(recorded["output_size"][i])
      pixels, resize_factor = crop.crop_square(image, box, factor, size)
      np.testing.assert_array_equal(pixels, recorded[f"crop_{i:03d}"], err_msg=f"box {box}")
      assert resize_factor == recorded["resize_factor"][i]
      mask = crop.crop_padding_mask(crop.crop_window(box, factor), *image.shape[:2])
      resized = cv2.resize(mask.astype(np.float64), (size, size)) > 0
      np.testing.assert_array_equal(resized, recorded[f"padmask_{i:03d}"], err_msg=f"box {box}")


def test_box_far_outside_the_frame_gives_a_black_crop():
  pixels, _ = crop.crop_square(_ramp_image(), [500, 500, 10, 10], 2, 32)
  assert pixels.shape == (32, 32, 3) and not pixels.any()
  pixels, _ = crop.crop_square(_ramp_image(), [-500, 20, 10, 10], 2, 32)
  assert pixels.shape == (32, 32, 3) and not pixels.any()


@pytest.mark.parametrize(
  "box", [[0, 0, 0, 5], [0, 0, -4, -4], [0, 0, 5, math.nan], [math.inf, 0, 5, 5]]
)
def test_boxes_without_a_crop_are_refused(box):
  with pytest.raises(ValueError, match="finite numbers and positive width"):
    crop.crop_window(box, 2)


def test_box_in_crop_gives_the_official_example():
  found = crop.box_in_crop([30, 20, 16, 9], [28, 19, 20, 12], 2, 64)
  np.testing.assert_allclose(found, [0.2421875, 0.3359375, 0.5, 0.28125], rtol=0, atol=1e-12)


def _box_in_frame(box_norm, around, resize_factor, size):
  """The inverse of box_in_crop, from its definition."""
  centre = (box_norm[:2] + box_norm[2:] / 2) * size - (size - 1) / 2
  extent = box_norm[2:] * size / resize_factor
  middle = np.array(around[:2]) + np.array(around[2:]) / 2 + centre / resize_factor
  return np.concatenate([middle - extent / 2, extent])


def test_box_in_crop_can_be_undone():
  rng = np.random.default_rng(2)
  for _ in range(50):
    box = np.concatenate([rng.uniform(-50, 400, 2), rng.uniform(1, 200, 2)])
    around = np.concatenate([rng.uniform(-50, 400, 2), rng.uniform(1, 200, 2)])
    resize_factor = rng.uniform(0.2, 6)
    mapped = crop.box_in_crop(box, around, resize_factor, 256)
    np.testing.assert_allclose(_box_in_frame(mapped, around, resize_factor, 256), box, atol=1e-9)


def test_pixels_and_boxes_move_into_the_crop_alike():
  # A bright rectangle is cropped around a displaced box, found again by its brightness, and lies
  # where box_in_crop says: within the rounding of the window (half a frame pixel) and the label's
  # half crop pixel.
  rng = np.random.default_rng(3)
  for _ in range(30):
    x, y, w, h = (int(v) for v in rng.integers((60, 60, 12, 12), (140, 120, 40, 40)))
    image = np.zeros((220, 260, 3), np.uint8)
    image[y : y + h, x : x + w] = 255
    around = np.array([x, y, w, h]) + rng.uniform(-6, 6, 4)
    pixels, resize_factor = crop.crop_square(image, around, 4, 256)
    mapped = crop.box_in_crop([x, y, w, h], around, resize_factor, 256) * 256
    weight = pixels[..., 0].astype(np.float64)
    ramp = np.arange(256) + 0.5
    centre = np.array([weight.sum(0) @ ramp, weight.sum(1) @ ramp]) / weight.sum()
    extent = np.array([weight.max(0).sum(), weight.max(1).sum()]) / 255
    tolerance = 0.5 * resize_factor + 0.5 + 1e-6
    np.testing.assert_allclose(mapped[:2] + mapped[2:] / 2, centre, atol=tolerance)
    np.testing.assert_allclose(mapped[2:], extent, atol=0.35)


@pytest.mark.parametrize("box", [[30, 20, 16, 9], [70, 50, 10, 10], [500, 500, 10, 10]])
def test_a_crop_is_written_where_it_is_wanted(box):
  want, factor = crop.crop_square(_ramp_image(), box, 4, 32)
  room = np.full((2, 32, 32, 3), 9, np.uint8)
  found, same_factor = crop.crop_square(_ramp_image(), box, 4, 32, out=room[1])
  assert np.shares_memory(found, room) and same_factor == factor
  np.testing.assert_array_equal(room[1], want)
  assert (room[0] == 9).all()
