"""Augmentation against a plain implementation of the official order on whole frames."""

import dataclasses
import math

import cv2
import numpy as np
import pytest

from data_pipelines import augmentation, stored_crop
from data_pipelines.augmentation import AugmentationSettings
from data_pipelines.sources import StoredFrame
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
CROPS = ("template", "search")


def random_frame(rng, height=90, width=120):
  """Smooth noise: neighbouring pixels differ by some ten levels."""
  small = rng.integers(0, 256, (height // 6, width // 6, 3), dtype=np.uint8)
  return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def make_pair(rng, template, box_t, search, box_s, settings, previous=None):
  frames = [
    frame if isinstance(frame, StoredFrame) else StoredFrame.from_image(frame)
    for frame in (template, search)
  ]
  return augmentation.make_pair(rng, frames[0], box_t, frames[1], box_s, settings, previous)


def as_the_network_sees(pair, name):
  """Apply what make_pair leaves to the device, but for brightness."""
  image = pair[name]
  if pair["grey"]:
    image = np.dstack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)] * 3)
  return image[:, ::-1] if pair[f"{name}_flip"] else image


def plain_cut(frame, box, around, factor, size):
  """Crop, mask and label, spelled out."""
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
  # Columns of the crop that mix in the outermost columns of the frame or the black beyond.
  taps = x1 + (np.arange(size) + 0.5) / scale - 0.5
  taps = np.floor(taps)[:, None] + (0, 1)
  at_border = ((taps <= 0) | (taps >= width - 1)).any(axis=1) & (
    (taps > -2) & (taps < width + 1)
  ).any(axis=1)
  image = cv2.resize(square, (size, size))
  return image, np.concatenate([centre - extent / 2, extent]), at_border


def plain_jitter(rng, box, centre_jitter, scale_jitter, mirrored):
  size = box[2:] * np.exp(rng.normal(size=2) * scale_jitter)
  offset = centre_jitter * math.sqrt(size[0] * size[1]) * (rng.uniform(size=2) - 0.5)
  # The same picture seen in a mirror: what was drawn to the right lies to the left.
  centre = box[:2] + box[2:] / 2 + offset * ((-1, 1) if mirrored else (1, 1))
  return np.concatenate([centre - size / 2, size])


def plain_pair(rng, frames, boxes, settings):
  """REFERENCE order: grey and flip on whole frames, jitter, crop, brightness, second flip.

  Returns the joint flip, and for each crop image, label, brightness and the columns at the border.
  """
  boxes = [np.float64(box) for box in boxes]
  grey = rng.random() < settings.grey_probability
  joint = rng.random() < settings.joint_flip_probability
  if grey:
    frames = [np.dstack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY)] * 3) for f in frames]
  if joint:
    frames = [np.ascontiguousarray(np.fliplr(f)) for f in frames]
    flipped = []
    for frame, (x, y, w, h) in zip(frames, boxes):
      corners = [frame.shape[1] - 1 - x, frame.shape[1] - 1 - (x + w)]
      flipped.append(np.array([min(corners), y, max(corners) - min(corners), h]))
    boxes = flipped
  crops = []
  for name, frame, box in zip(CROPS, frames, boxes):
    jitters = (getattr(settings, f"{name}_{what}_jitter") for what in ("centre", "scale"))
    around = plain_jitter(rng, box, *jitters, joint)
    size = getattr(settings, f"{name}_size")
    cut = plain_cut(frame, box, around, getattr(settings, f"{name}_factor"), size)
    if cut is None:
      return joint, None
    image, label, at_border = cut
    brightness = rng.uniform(1 - settings.brightness, 1 + settings.brightness)
    if rng.random() < settings.separate_flip_probability:
      image, at_border = image[:, ::-1], at_border[::-1]
      label[0] = 1 - label[0] - label[2]
    crops.append((image, label, brightness, at_border))
  return joint, crops


@pytest.mark.parametrize("whole_boxes", [False, True])
def test_pairs_equal_the_plain_implementation_on_whole_frames(whole_boxes):
  data = np.random.default_rng(0)
  joints, compared, rejected, borders = 0, 0, 0, 0
  for seed in range(200):
    frames = random_frame(data), random_frame(data)
    boxes = [
      np.concatenate([data.uniform(0, 80, 2), data.uniform(5, 40, 2)]).round(
        0 if whole_boxes else 9
      )
      for _ in range(2)
    ]
    got = make_pair(np.random.default_rng(seed), frames[0], boxes[0], frames[1], boxes[1], SETTINGS)
    joint, expected = plain_pair(np.random.default_rng(seed), frames, boxes, SETTINGS)
    if not joint:
      assert (got is None) == (expected is None)
    if got is None or expected is None:
      rejected += 1
      continue
    joints += joint
    for name, (image, label, brightness, at_border) in zip(CROPS, expected):
      np.testing.assert_allclose(got[f"{name}_box_xywh"], label, atol=1e-6)
      np.testing.assert_allclose(got[f"{name}_brightness"], brightness, rtol=1e-6)
      ours = as_the_network_sees(got, name)
      if not joint and not got["grey"]:
        np.testing.assert_array_equal(ours, image)
        continue
      # Behind the crop, a flip meets OpenCV's rounding the other way round, grey rounds once more, and the
      # black line at the frame's border (one pixel of it) lies at the other side.
      difference = np.abs(ours.astype(int) - image)[:, ~at_border]
      assert difference.max(initial=0) <= (2 if got["grey"] else 1), (seed, name)
      compared += difference.size
      borders += at_border.sum()
  assert joints > 60 and compared > 3_000_000 and rejected < 20 and borders > 100


def test_a_box_maps_into_the_crop_where_its_pixels_land():
  checked = 0
  for seed in range(40):
    rng = np.random.default_rng(seed)
    frame = np.zeros((120, 160, 3), np.uint8)
    x, y, w, h = (
      rng.integers(30, 70),
      rng.integers(30, 60),
      rng.integers(14, 30),
      rng.integers(14, 30),
    )
    frame[y : y + h, x : x + w] = 255
    half_pixel = seed % 2 == 0
    settings = dataclasses.replace(SETTINGS, half_pixel_labels=half_pixel)
    pair = make_pair(rng, frame, [x, y, w, h], frame, [x, y, w, h], settings)
    assert pair is not None
    for name, size in (("template", 64), ("search", 128)):
      lit = as_the_network_sees(pair, name)[..., 0] > 127
      columns, rows = np.flatnonzero(lit.any(axis=0)), np.flatnonzero(lit.any(axis=1))
      x1, y1, bw, bh = pair[f"{name}_box_xywh"] * size
      if min(x1, y1) < 2 or max(x1 + bw, y1 + bh) > size - 2:
        continue
      # Crop pixels: half by the threshold. Frame pixels: half by the crop's rounded corner. With official
      # labels also half a crop pixel, and one frame pixel by the joint flip; `bw / w` turns frame into crop.
      tolerance = 1.5 * bw / w + 1 if half_pixel else 0.5 * bw / w + 0.51
      np.testing.assert_allclose(
        [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1],
        [x1, y1, x1 + bw, y1 + bh],
        atol=tolerance,
      )
      checked += 1
  assert checked > 50


def test_without_variation_the_label_is_the_hand_computed_one():
  frame = np.zeros((60, 80, 3), np.uint8)
  box = [30, 20, 16, 9]
  pair = make_pair(np.random.default_rng(0), frame, box, frame, box, PLAIN)
  assert pair is not None
  # Side ceil(12 * 2) = 24 px onto 64: centre (64 - 1) / 2, size 16 and 9 times 64 / 24.
  np.testing.assert_allclose(
    pair["template_box_xywh"] * 64, [31.5 - 64 / 3, 31.5 - 12, 128 / 3, 24], rtol=1e-6
  )
  assert pair["template_brightness"] == 1.0 and pair["search_brightness"] == 1.0
  assert not pair["grey"] and not pair["template_flip"] and not pair["search_flip"]


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
  for boxes, is_rejected in (
    ((inside, outside), True),
    ((outside, inside), True),
    ((inside, inside), False),
  ):
    pair = make_pair(np.random.default_rng(0), frame, boxes[0], frame, boxes[1], PLAIN)
    assert (pair is None) == is_rejected


def test_validity_is_judged_by_the_full_frame_and_not_by_what_is_stored():
  frame = random_frame(np.random.default_rng(0), 180, 240)
  stored = StoredFrame(frame[60:140, 90:170], (90, 60, 170, 140), (240, 180))
  box = [120, 90, 20, 20]
  pair = make_pair(np.random.default_rng(0), stored, box, stored, box, PLAIN)
  whole = make_pair(np.random.default_rng(0), frame, box, frame, box, PLAIN)
  assert pair is not None and whole is not None
  for name in whole:
    np.testing.assert_array_equal(pair[name], whole[name])


def test_a_crop_that_lacks_more_of_its_frame_than_allowed_is_rejected():
  frame = random_frame(np.random.default_rng(0), 180, 240)
  # The search crop covers x from 90 to 170, of which the columns from 160 on are not stored: an eighth.
  stored = StoredFrame(frame[:, :160], (0, 0, 160, 180), (240, 180))
  box = [120, 90, 20, 20]
  missing = stored_crop.missing_share(stored, crop.crop_window(box, 4.0))
  np.testing.assert_allclose(missing, 1 / 8)
  for share, is_rejected in ((0.05, True), (0.12, True), (0.13, False)):
    settings = dataclasses.replace(PLAIN, max_missing_share=share)
    pair = make_pair(np.random.default_rng(0), stored, box, stored, box, settings)
    assert (pair is None) == is_rejected


def test_validation_keeps_jitter_and_drops_separate_flip_and_brightness():
  settings = SETTINGS.for_validation()
  assert (settings.separate_flip_probability, settings.brightness) == (0.0, 0.0)
  assert settings.search_centre_jitter == SETTINGS.search_centre_jitter
  assert settings.joint_flip_probability == SETTINGS.joint_flip_probability


def test_the_search_region_can_be_cut_at_the_previous_box():
  frame = random_frame(np.random.default_rng(0))
  settings = dataclasses.replace(PLAIN, search_centre_from="previous_box")
  box, previous = np.array([50, 40, 20, 20]), np.array([44, 37, 20, 20])
  pair = make_pair(np.random.default_rng(0), frame, box, frame, box, settings, previous)
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
    make_pair(np.random.default_rng(0), frame, box, frame, box, settings)


@pytest.mark.parametrize(
  "wrong",
  [
    {"search_centre_from": "nowhere"},
    {"template_size": 50},
    {"grey_probability": 1.5},
    {"max_missing_share": -0.1},
  ],
)
def test_wrong_settings_are_refused(wrong):
  with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
    AugmentationSettings(**wrong)
