"""Augmentation against a plain implementation of the official order on whole frames."""

import dataclasses
import math

import cv2
import numpy as np
import pytest

from data_pipelines import augmentation
from data_pipelines.augmentation import AugmentationSettings
from ostrack_jax import crop

SETTINGS = AugmentationSettings(template_size=64, search_size=128)
PLAIN = dataclasses.replace(
  SETTINGS,
  search_centre_jitter=0.0,
  search_scale_jitter=0.0,
  grey_probability=0.0,
  joint_flip_probability=0.0,
  separate_flip_probability=0.0,
  brightness=0.0,
)


def random_frame(rng, height=90, width=120):
  return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def plain_cut(rng, frame, box, around, factor, size, settings):
  """Crop, mask, label, brightness and second flip, spelled out."""
  height, width = frame.shape[:2]
  x, y, w, h = (float(v) for v in around)
  side = math.ceil(math.sqrt(w * h) * factor)
  x1, y1 = round(x + 0.5 * w - 0.5 * side), round(y + 0.5 * h - 0.5 * side)
  left, top = max(0, -x1), max(0, -y1)
  right, bottom = max(x1 + side - width + 1, 0), max(y1 + side - height + 1, 0)
  square = np.zeros((side, side, 3), np.uint8)
  mask = np.ones((side, side))
  if left + right < side and top + bottom < side:
    inner = frame[y1 + top : y1 + side - bottom, x1 + left : x1 + side - right]
    square[top : side - bottom, left : side - right] = inner
    mask[top : side - bottom, left : side - right] = 0
  if cv2.resize(mask, (size, size)).astype(bool)[::16, ::16].all():
    return None
  scale = size / side
  centre = (
    (size - 1) / 2 + (box[:2] + box[2:] / 2 - np.array([x + w / 2, y + h / 2])) * scale
  ) / size
  extent = box[2:] * scale / size
  label = np.concatenate([centre - extent / 2, extent])
  image = cv2.resize(square, (size, size))
  brightness = rng.uniform(1 - settings.brightness, 1 + settings.brightness)
  if rng.random() < settings.separate_flip_probability:
    image = image[:, ::-1]
    label[0] = 1 - label[0] - label[2]
  return image, brightness, label


def plain_jitter(rng, box, centre_jitter, scale_jitter):
  size = box[2:] * np.exp(rng.normal(size=2) * scale_jitter)
  offset = centre_jitter * math.sqrt(size[0] * size[1])
  centre = box[:2] + box[2:] / 2 + offset * (rng.uniform(size=2) - 0.5)
  return np.concatenate([centre - size / 2, size])


def plain_pair(rng, template, template_box, search, search_box, settings):
  """REFERENCE order: grey and flip on whole frames, jitter, crop, brightness, second flip."""
  frames, boxes = [template, search], [np.float64(template_box), np.float64(search_box)]
  if rng.random() < settings.grey_probability:
    frames = [np.dstack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY)] * 3) for f in frames]
  if rng.random() < settings.joint_flip_probability:
    frames = [np.ascontiguousarray(np.fliplr(f)) for f in frames]
    flipped = []
    for frame, (x, y, w, h) in zip(frames, boxes):
      corners = [frame.shape[1] - 1 - x, frame.shape[1] - 1 - (x + w)]
      flipped.append(np.array([min(corners), y, max(corners) - min(corners), h]))
    boxes = flipped
  jitters = (
    (settings.template_centre_jitter, settings.template_scale_jitter),
    (settings.search_centre_jitter, settings.search_scale_jitter),
  )
  around = [plain_jitter(rng, box, *jitter) for box, jitter in zip(boxes, jitters)]
  cuts = [
    plain_cut(
      rng,
      frames[0],
      boxes[0],
      around[0],
      settings.template_factor,
      settings.template_size,
      settings,
    ),
    plain_cut(
      rng, frames[1], boxes[1], around[1], settings.search_factor, settings.search_size, settings
    ),
  ]
  return None if None in [type(c) if c is None else 0 for c in cuts] else cuts


def test_pairs_equal_the_plain_implementation_on_whole_frames():
  data = np.random.default_rng(0)
  greys = 0
  settings = dataclasses.replace(SETTINGS, grey_probability=0.2)
  for seed in range(150):
    template, search = random_frame(data), random_frame(data)
    box_t = np.concatenate([data.uniform(0, 80, 2), data.uniform(5, 40, 2)])
    box_s = np.concatenate([data.uniform(0, 80, 2), data.uniform(5, 40, 2)])
    got = augmentation.make_pair(
      np.random.default_rng(seed), template, box_t, search, box_s, settings
    )
    expected = plain_pair(np.random.default_rng(seed), template, box_t, search, box_s, settings)
    assert (got is None) == (expected is None)
    if got is None or expected is None:
      continue
    for name, (image, brightness, label) in zip(("template", "search"), expected):
      np.testing.assert_array_equal(got[name], image)
      np.testing.assert_allclose(got[f"{name}_brightness"], brightness, rtol=1e-6)
      np.testing.assert_allclose(got[f"{name}_box_xywh"], label, atol=1e-6)
    greys += int((got["search"][..., 0] == got["search"][..., 1]).all())
  assert 10 < greys < 60


def test_a_box_maps_into_the_crop_where_its_pixels_land():
  for seed in range(30):
    rng = np.random.default_rng(seed)
    frame = np.zeros((120, 160, 3), np.uint8)
    x, y, w, h = (
      rng.integers(30, 70),
      rng.integers(30, 60),
      rng.integers(14, 30),
      rng.integers(14, 30),
    )
    frame[y : y + h, x : x + w] = 255
    pair = augmentation.make_pair(rng, frame, [x, y, w, h], frame, [x, y, w, h], SETTINGS)
    assert pair is not None
    for name, size in (("template", 64), ("search", 128)):
      lit = pair[name][..., 0] > 127
      columns, rows = np.flatnonzero(lit.any(axis=0)), np.flatnonzero(lit.any(axis=1))
      x1, y1, bw, bh = pair[f"{name}_box_xywh"] * size
      if min(x1, y1) < 2 or max(x1 + bw, y1 + bh) > size - 2:
        continue
      # Frame pixels: one by the joint flip, half by the crop's rounded corner. Crop pixels: half by
      # design, half by the threshold. `bw / w` turns the former into the latter.
      tolerance = 1.5 * bw / w + 1
      np.testing.assert_allclose(
        [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1],
        [x1, y1, x1 + bw, y1 + bh],
        atol=tolerance,
      )


def test_without_variation_the_label_is_the_hand_computed_one():
  frame = np.zeros((60, 80, 3), np.uint8)
  pair = augmentation.make_pair(
    np.random.default_rng(0), frame, [30, 20, 16, 9], frame, [30, 20, 16, 9], PLAIN
  )
  assert pair is not None
  # Side ceil(12 * 2) = 24 px onto 64: centre (64 - 1) / 2, size 16 and 9 times 64 / 24.
  np.testing.assert_allclose(
    pair["template_box_xywh"] * 64, [31.5 - 64 / 3, 31.5 - 12, 128 / 3, 24], rtol=1e-6
  )
  assert pair["template_brightness"] == 1.0 and pair["search_brightness"] == 1.0


def test_a_flipped_box_is_one_pixel_off_as_in_the_official_code():
  np.testing.assert_array_equal(
    augmentation.flip_box(np.array([30, 20, 16, 9]), 80), [33, 20, 16, 9]
  )


class FixedRandom:
  """Gives chosen numbers in place of a generator's."""

  def standard_normal(self, size):
    return np.array([1.0, -2.0])

  def random(self, size):
    return np.array([0.75, 0.0])


def test_jitter_hand_value():
  # 16 e^.5 x 9 e^-1; centre (38, 24.5) + (.25, -.5) * 3 * sqrt(w h).
  w, h = 16 * math.exp(0.5), 9 * math.exp(-1)
  root = math.sqrt(w * h)
  expected = [38 + 0.75 * root - w / 2, 24.5 - 1.5 * root - h / 2, w, h]
  box = augmentation.jitter_box(FixedRandom(), np.array([30, 20, 16, 9]), 3.0, 0.5)  # pyrefly: ignore
  np.testing.assert_allclose(box, expected, rtol=1e-12)


def test_no_jitter_leaves_a_box_alone():
  box = np.array([30.5, 20.25, 16, 9])
  np.testing.assert_array_equal(augmentation.jitter_box(np.random.default_rng(0), box, 0, 0), box)


def test_jitter_has_the_stated_distribution():
  rng = np.random.default_rng(0)
  boxes = np.array(
    [augmentation.jitter_box(rng, np.array([0, 0, 20, 20]), 3.0, 0.25) for _ in range(10_000)]
  )
  logs = np.log(boxes[:, 2:] / 20)
  assert abs(logs.mean()) < 0.01 and abs(logs.std() - 0.25) < 0.01
  shift = (boxes[:, :2] + boxes[:, 2:] / 2 - 10) / np.sqrt(boxes[:, 2:].prod(axis=1, keepdims=True))
  assert abs(shift).max() <= 1.5
  assert abs(shift.std() - 3 / math.sqrt(12)) < 0.02


@pytest.mark.parametrize("size", [64, 128, 256])
def test_validity_equals_the_two_dimensional_definition(size):
  rng = np.random.default_rng(size)
  outcomes = []
  for _ in range(300):
    window = crop.CropWindow(
      x1=int(rng.integers(-60, 50)), y1=int(rng.integers(-60, 40)), side=int(rng.integers(1, 70))
    )
    mask = crop.crop_padding_mask(window, 40, 50) if _in_sight(window, 40, 50) else np.ones((1, 1))
    expected = not cv2.resize(mask.astype(float), (size, size)).astype(bool)[::16, ::16].all()
    assert augmentation.shows_frame(window, 40, 50, size) == expected, window
    outcomes.append(expected)
  assert 0.1 < np.mean(outcomes) < 0.9


def _in_sight(window, height, width):
  left, top, right, bottom = window.padding(height, width)
  return left + right < window.side and top + bottom < window.side


def test_a_crop_of_padding_alone_is_rejected():
  frame = random_frame(np.random.default_rng(0))
  inside, outside = [40, 40, 20, 20], [400, 40, 20, 20]
  assert (
    augmentation.make_pair(np.random.default_rng(0), frame, inside, frame, outside, PLAIN) is None
  )
  assert (
    augmentation.make_pair(np.random.default_rng(0), frame, outside, frame, inside, PLAIN) is None
  )
  assert augmentation.make_pair(np.random.default_rng(0), frame, inside, frame, inside, PLAIN)


def test_flips_and_brightness_have_their_rates():
  frame = np.zeros((60, 80, 3), np.uint8)
  frame[:, 40:] = 255
  box = [30, 20, 20, 20]
  settings = dataclasses.replace(PLAIN, separate_flip_probability=0.5, brightness=0.2)
  pairs = [
    augmentation.make_pair(np.random.default_rng(i), frame, box, frame, box, settings)
    for i in range(600)
  ]
  flipped = np.array(
    [[p["template"][32, 0, 0] == 255, p["search"][64, 40, 0] == 255] for p in pairs]
  )
  # Independent halves: each within 4 sigma of 1/2, and they agree half of the time.
  np.testing.assert_allclose(flipped.mean(axis=0), 0.5, atol=0.085)
  assert abs((flipped[:, 0] == flipped[:, 1]).mean() - 0.5) < 0.085
  brightness = np.array([p["search_brightness"] for p in pairs])
  assert 0.8 <= brightness.min() < 0.81 and 1.19 < brightness.max() <= 1.2


def test_validation_keeps_jitter_and_drops_separate_flip_and_brightness():
  settings = SETTINGS.for_validation()
  assert (settings.separate_flip_probability, settings.brightness) == (0.0, 0.0)
  assert settings.search_centre_jitter == SETTINGS.search_centre_jitter
  assert settings.joint_flip_probability == SETTINGS.joint_flip_probability


def test_the_search_region_can_be_cut_at_the_previous_box():
  frame = random_frame(np.random.default_rng(0))
  settings = dataclasses.replace(PLAIN, search_centre_from="previous_box")
  box, previous = np.array([50, 40, 20, 20]), np.array([44, 37, 20, 20])
  pair = augmentation.make_pair(
    np.random.default_rng(0), frame, box, frame, box, settings, previous
  )
  assert pair is not None
  expected, factor = crop.crop_square(frame, previous, 4.0, 128)
  np.testing.assert_array_equal(pair["search"], expected)
  np.testing.assert_allclose(
    pair["search_box_xywh"], crop.box_in_crop(box, previous, factor, 128), rtol=1e-6
  )


def test_a_missing_previous_box_is_refused():
  frame = random_frame(np.random.default_rng(0))
  settings = dataclasses.replace(PLAIN, search_centre_from="previous_box")
  box = [50, 40, 20, 20]
  with pytest.raises(ValueError, match="previous_box_xywh"):
    augmentation.make_pair(np.random.default_rng(0), frame, box, frame, box, settings)


@pytest.mark.parametrize("wrong", [{"search_centre_from": "nowhere"}, {"template_size": 50}])
def test_wrong_settings_are_refused(wrong):
  with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
    AugmentationSettings(**wrong)
