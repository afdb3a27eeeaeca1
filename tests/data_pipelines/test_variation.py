"""Variations beyond the official ones: what they do to pixels and boxes."""

import dataclasses
import math

import cv2
import numpy as np
import pytest

from data_pipelines import augmentation, stored_crop, variation
from data_pipelines.augmentation import AugmentationSettings, Distractor
from data_pipelines.sources import StoredFrame
from ostrack_jax import crop

FIXED = AugmentationSettings(
  template_size=64,
  search_size=128,
  search_centre_jitter=0.0,
  search_scale_jitter=0.0,
  grey_probability=0.0,
  joint_flip_probability=0.0,
  separate_flip_probability=0.0,
  half_pixel_labels=False,
)


def _turn(degrees):
  angle = math.radians(degrees)
  return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def _frame(height=200, width=300, seed=0):
  small = np.random.default_rng(seed).integers(1, 256, (height // 10, width // 10, 3), np.uint8)
  return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def test_warp_keeps_areas_and_angles_within_bounds():
  for seed in range(50):
    warp = variation.draw_warp(np.random.default_rng(seed), 30.0, 0.2)
    assert np.linalg.det(warp) == pytest.approx(1)
    # Where the x axis goes: turned, and stretched along itself.
    assert abs(math.degrees(math.atan2(warp[1, 0], warp[0, 0]))) <= 30
  np.testing.assert_allclose(variation.draw_warp(np.random.default_rng(0), 0.0, 0.0), np.eye(2))


def test_warped_box_hand_values():
  box = np.array([10.0, 20.0, 40.0, 30.0])
  np.testing.assert_allclose(variation.warp_box(box, np.eye(2)), box)
  np.testing.assert_allclose(variation.warp_box(box, np.diag([2, 0.5])), [-10, 27.5, 80, 15])
  np.testing.assert_allclose(variation.warp_box(box, _turn(90)), [15, 15, 30, 40])
  # An ellipse of semi-axes 20 and 15 at 45 degrees: half extents sqrt((400 + 225) / 2).
  half = math.sqrt(312.5)
  np.testing.assert_allclose(
    variation.warp_box(box, _turn(45)), [30 - half, 35 - half, 2 * half, 2 * half]
  )


def test_unwarped_cut_is_the_plain_cut():
  stored = StoredFrame.from_image(_frame())
  box = np.array([130.0, 80.0, 30.0, 24.0])
  window = crop.crop_window(box, 4.0)
  plain = stored_crop.cut(stored, window, 128)
  found = stored_crop.cut_warped(stored, window, 128, np.eye(2), np.array([10.0, 90.0]))
  # Positions are rounded to 1/32 of a pixel.
  assert np.abs(found.astype(int) - plain).max() <= 4


def test_warped_cut_turns_about_the_point():
  stored = StoredFrame.from_image(_frame())
  window = crop.CropWindow(x1=86, y1=36, side=128)
  quarter = stored_crop.cut_warped(stored, window, 128, _turn(90), np.array([64.0, 64.0]))
  # x to y: the crop turned clockwise, as images have it.
  expected = np.rot90(stored.image[36:164, 86:214], k=-1)
  np.testing.assert_array_equal(quarter, expected)


def test_warped_cut_of_a_shrunk_region_shows_the_same():
  frame = cv2.GaussianBlur(_frame(), (0, 0), 4)
  whole = StoredFrame.from_image(frame)
  region = (60, 20, 260, 180)
  part = cv2.resize(frame[20:180, 60:260], (100, 80), interpolation=cv2.INTER_AREA)
  shrunk = StoredFrame(part, region, whole.frame_wh)
  window = crop.CropWindow(x1=110, y1=60, side=80)
  warp, centre = _turn(20) @ np.diag([1.2, 1 / 1.2]), np.array([70.0, 50.0])
  a, b = (stored_crop.cut_warped(s, window, 128, warp, centre) for s in (whole, shrunk))
  assert np.abs(a.astype(int) - b).mean() < 1


def test_label_follows_the_warped_target():
  """A bright disc stays inside its label's box, and touches all four sides."""
  frame = np.full((200, 300, 3), 40, np.uint8)
  cv2.ellipse(frame, (150, 100), (30, 15), 0, 0, 360, (250, 250, 250), -1, cv2.LINE_AA)
  stored, box = StoredFrame.from_image(frame), np.array([120.0, 85.0, 60.0, 30.0])
  settings = dataclasses.replace(
    FIXED, rotation_degrees=180.0, aspect_jitter=0.3, search_centre_jitter=2.0, brightness=0.0
  )
  for seed in range(20):
    pair = augmentation.make_pair(np.random.default_rng(seed), stored, box, stored, box, settings)
    rows, columns = np.nonzero(pair["search"][..., 0] > 145)
    x, y, w, h = 128 * pair["search_box_xywh"]
    edges = [columns.min() - x, rows.min() - y, x + w - columns.max() - 1, y + h - rows.max() - 1]
    # A target beside the crop's border is cut off there.
    inside = [x > 0, y > 0, x + w < 128, y + h < 128]
    np.testing.assert_allclose(np.array(edges)[inside], 0, atol=1.6)


def test_colours_stay_in_range_and_black_stays_black():
  image = _frame()
  image[:50] = 0
  found = variation.vary_colours(np.random.default_rng(0), image, 0.4)
  assert (found[:50] == 0).all()
  assert np.abs(found[50:].astype(int) - image[50:]).mean() > 3
  np.testing.assert_array_equal(variation.vary_colours(np.random.default_rng(0), image, 0.0), image)


def test_grey_stays_grey_but_for_the_gains():
  image = np.full((8, 8, 3), 100, np.uint8)
  found = variation.vary_colours(np.random.default_rng(1), image, 0.2)[0, 0].astype(float)
  # Contrast moves 100 by at most 0.2 * 28, gains by 10 %.
  assert (np.abs(found - 100) <= 5.6 + 10.6 + 1).all()


def test_blur_lowers_contrast_between_neighbours_and_keeps_the_mean():
  image = np.random.default_rng(0).integers(0, 256, (120, 120, 3), np.uint8)
  changes = []
  for seed in range(20):
    found = variation.blur(np.random.default_rng(seed), image)
    assert found.shape == image.shape
    assert abs(float(found.mean()) - float(image.mean())) < 3
    steps = [np.abs(np.diff(x.astype(int), axis=0)).mean() for x in (found, image)]
    changes.append(steps[0] / steps[1])
  assert min(changes) < 0.5
  assert max(changes) <= 1.01


def _red(height=100, width=100):
  image = np.zeros((height, width, 3), np.uint8)
  image[..., 0] = 255
  return StoredFrame.from_image(image)


def test_distractor_leaves_the_target_visible():
  target = np.array([40.0, 40.0, 40.0, 30.0])
  pasted = 0
  for seed in range(60):
    image = np.full((128, 128, 3), 90, np.uint8)
    done = variation.paste_distractor(
      np.random.default_rng(seed), image, target, _red(), np.array([20.0, 10.0, 50.0, 60.0])
    )
    changed = (image != 90).any(axis=2)
    assert changed.any() == done
    pasted += done
    assert changed[40:70, 40:80].mean() <= 0.3 + 0.02
    # What was pasted is red, and nothing else turned up.
    assert (image[changed][:, 0] >= 90).all()
    assert (image[changed][:, 1:] <= 90).all()
  assert pasted > 40


def test_distractor_of_nothing_is_not_pasted():
  image = np.full((128, 128, 3), 90, np.uint8)
  target = np.array([40.0, 40.0, 40.0, 30.0])
  for box in ([98.0, 10.0, 50.0, 60.0], [20.0, 20.0, 4.0, 50.0], [-80.0, 0.0, 50.0, 50.0]):
    assert not variation.paste_distractor(
      np.random.default_rng(0), image, target, _red(), np.array(box)
    )
  assert (image == 90).all()


def test_variations_off_leave_the_official_pair():
  """The official draws do not depend on whether there are others to make."""
  stored, box = StoredFrame.from_image(_frame()), np.array([120.0, 85.0, 60.0, 30.0])
  plain = AugmentationSettings(template_size=64, search_size=128)
  varied = dataclasses.replace(
    plain,
    rotation_degrees=20.0,
    aspect_jitter=0.2,
    colour_jitter=0.3,
    blur_probability=1.0,
  )
  pairs = [
    augmentation.make_pair(np.random.default_rng(3), stored, box, stored, box, settings)
    for settings in (plain, varied.for_validation(), varied)
  ]
  np.testing.assert_array_equal(pairs[0]["search"], pairs[1]["search"])
  assert (pairs[0]["template"] != pairs[2]["template"]).any()
  assert (pairs[0]["search"] != pairs[2]["search"]).any()


def test_distractor_goes_into_the_search_region_alone():
  stored, box = StoredFrame.from_image(_frame()), np.array([120.0, 85.0, 60.0, 30.0])
  distractor = Distractor(_red(), np.array([20.0, 10.0, 50.0, 60.0]))
  pairs = [
    augmentation.make_pair(
      np.random.default_rng(5), stored, box, stored, box, FIXED, distractor=one
    )
    for one in (None, distractor)
  ]
  np.testing.assert_array_equal(pairs[0]["template"], pairs[1]["template"])
  assert (pairs[0]["search"] != pairs[1]["search"]).any(axis=2).mean() > 0.01
  np.testing.assert_array_equal(pairs[0]["search_box_xywh"], pairs[1]["search_box_xywh"])


@pytest.mark.parametrize(
  "change",
  [
    {"rotation_degrees": 181.0},
    {"aspect_jitter": -0.1},
    {"colour_jitter": 1.5},
    {"blur_probability": 2.0},
    {"distractor_probability": -1.0},
  ],
)
def test_settings_out_of_range(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    AugmentationSettings(**change)
