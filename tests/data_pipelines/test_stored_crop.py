"""A crop of what is stored is the crop of the full frame."""

import cv2
import numpy as np
import pytest

from data_pipelines import context, jpeg, sources, stored_crop
from data_pipelines.augmentation import jitter_box
from ostrack_jax import crop


def make_frame(width=320, height=200, seed=0):
  small = np.random.default_rng(seed).integers(0, 256, (25, 40, 3), dtype=np.uint8)
  return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def store(frame, boxes_xywh, settings, lossless=True):
  height, width = frame.shape[:2]
  region = context.plan_region(boxes_xywh, (width, height), settings)
  image = np.ascontiguousarray(context.cut_region(frame, region))
  if not lossless:
    image = jpeg.decode(jpeg.encode(image, settings.jpeg_quality))
  return sources.StoredFrame(image, region.xyxy, (width, height))


SMALL = context.ContextSettings(template_size=32, search_size=64)


@pytest.mark.parametrize(
  "box",
  [(100, 80, 20, 30), (0, 0, 60, 40), (290, 180, 30, 20), (-30, 50, 90, 70), (10, 5, 300, 190)],
)
def test_a_full_frame_gives_the_official_crop(box):
  frame = make_frame()
  for factor, size in ((2.0, 32), (4.0, 64), (4.0, 128)):
    want, resize_factor = crop.crop_square(frame, box, factor, size)
    window = crop.crop_window(box, factor)
    stored = sources.StoredFrame.from_image(frame)
    np.testing.assert_array_equal(stored_crop.cut(stored, window, size), want)
    assert size / window.side == resize_factor
    assert stored_crop.missing_share(stored, window) == 0


@pytest.mark.parametrize("box", [(100.3, 80.2, 12, 9), (5, 3, 14, 11), (301, 188, 13, 12)])
def test_a_region_at_full_resolution_gives_the_same_bits(box):
  frame = make_frame()
  stored = store(frame, [box], SMALL)
  assert not stored.is_whole and stored.is_full_resolution
  rng = np.random.default_rng(0)
  for _ in range(50):
    around = jitter_box(rng, np.array(box), 3.0, 0.25)
    want, _ = crop.crop_square(frame, around, 4.0, 64)
    window = crop.crop_window(around, 4.0)
    got = stored_crop.cut(stored, window, 64)
    if stored_crop.missing_share(stored, window) == 0:
      np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("box", [(300, 200, 250, 260), (0, 0, 240, 220), (700, 350, 300, 240)])
def test_a_shrunk_region_has_the_same_geometry(box):
  # A ramp is what bilinear reading gives back exactly at any resolution, so position is all that counts.
  x, y = np.meshgrid(np.arange(960), np.arange(540))
  frame = np.stack([9 + x / 4, 9 + y / 3, 9 + (x + y) / 8], -1).round().astype(np.uint8)
  stored = store(frame, [box], SMALL)
  assert stored.image.shape[1] < 600
  rng = np.random.default_rng(0)
  for _ in range(40):
    around = jitter_box(rng, np.array(box), 3.0, 0.25)
    want, _ = crop.crop_square(frame, around, 4.0, 64)
    window = crop.crop_window(around, 4.0)
    got = stored_crop.cut(stored, window, 64)
    assert stored_crop.missing_share(stored, window) < 0.02
    # Black padding begins in the same row and column, and what is shown is in its place.
    np.testing.assert_array_equal((got == 0).all(-1), (want == 0).all(-1))
    difference = np.abs(got.astype(int) - want)
    assert difference.max() <= 6 and difference.mean() < 0.6


def test_half_padded_pixels_are_as_dark_as_officially():
  frame = np.full((200, 320, 3), 200, np.uint8)
  stored = store(frame, [(250, 120, 70, 80)], SMALL)
  assert not stored.is_full_resolution
  around = np.array([262.0, 133.0, 23.0, 31.0])
  want, _ = crop.crop_square(frame, around, 4.0, 256)
  got = stored_crop.cut(stored, crop.crop_window(around, 4.0), 256)
  assert len(np.unique(want)) > 2
  assert np.abs(got.astype(int) - want).max() <= 2


def test_what_is_not_stored_is_measured_and_repeats_the_edge():
  frame = make_frame()
  stored = sources.StoredFrame(frame[50:150, 100:200], (100, 50, 200, 150), (320, 200))
  window = crop.CropWindow(x1=175, y1=75, side=50)
  image = stored_crop.cut(stored, window, 50)
  assert stored_crop.missing_share(stored, window) == pytest.approx(0.5)
  np.testing.assert_array_equal(image[:, 30], image[:, 40])


def test_a_crop_beyond_the_frame_is_black():
  frame = sources.StoredFrame.from_image(make_frame())
  window = crop.CropWindow(x1=890, y1=40, side=40)
  assert not stored_crop.cut(frame, window, 32).any()
  assert stored_crop.missing_share(frame, window) == 0


@pytest.mark.parametrize("size", [256, 384])
def test_real_crops_from_context_records_differ_by_under_two_levels(reference_dir, size):
  settings = context.PRESETS[size]
  folder = reference_dir / "data/sequences/TinyTLP/CarChase2"
  rows = np.loadtxt(folder / "groundtruth_rect.txt", delimiter=",")
  rng = np.random.default_rng(0)
  differences = []
  for number in range(0, 400, 40):
    frame = jpeg.decode((folder / f"img/{number + 1:05d}.jpg").read_bytes())
    box = rows[number, 1:5]
    stored = store(frame, [box], settings, lossless=False)
    for kind in ("template", "search", "search"):
      centre, scale = (getattr(settings, f"{kind}_{j}_jitter") for j in ("centre", "scale"))
      around = jitter_box(rng, box, centre, scale)
      factor, side = getattr(settings, f"{kind}_factor"), getattr(settings, f"{kind}_size")
      want, _ = crop.crop_square(frame, around, factor, side)
      window = crop.crop_window(around, factor)
      got = stored_crop.cut(stored, window, side)
      assert stored_crop.missing_share(stored, window) < 0.05
      differences.append(np.abs(got.astype(int) - want).mean())
  assert max(differences) < 2
