"""What context records of videos store for templates alone."""

import math

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines import context, jpeg, pipeline, preparation, sources, stored_crop
from data_pipelines.augmentation import AugmentationSettings
from data_pipelines.builders.detection_folder import DetectionFolder
from data_pipelines.builders.masks import MaskSequences
from data_pipelines.sampling import SamplingSettings
from ostrack_jax import crop

# Boxes of two targets in every frame, x, y, w, h.
BOXES = {1: (300, 200, 40, 30), 2: (60, 90, 24, 26)}
LENGTH = 6


@pytest.fixture(scope="module")
def two_targets(tmp_path_factory):
  """A prepared video with two targets, and its frames."""
  root = tmp_path_factory.mktemp("davis")
  images, masks = root / "JPEGImages/480p/dogs", root / "Annotations/480p/dogs"
  images.mkdir(parents=True)
  masks.mkdir(parents=True)
  rng = np.random.default_rng(0)
  for i in range(LENGTH):
    small = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    cv2.imwrite(str(images / f"{i:05d}.jpg"), cv2.resize(small, (640, 480)))
    mask = np.zeros((480, 640), np.uint8)
    for number, (x, y, w, h) in BOXES.items():
      mask[y : y + h, x : x + w] = number
    cv2.imwrite(str(masks / f"{i:05d}.png"), mask)
  directory = preparation.prepare_folder(
    MaskSequences, root, tmp_path_factory.mktemp("data"), "two", storage=context.PRESETS[256]
  )
  frames = [jpeg.decode((images / f"{i:05d}.jpg").read_bytes()) for i in range(LENGTH)]
  return directory, frames


def test_what_is_stored_by_hand():
  settings = context.PRESETS[256]
  region = context.plan_region([[1000, 1000, 20, 20]], (4000, 3000), settings)
  template = context.plan_template([1000, 1000, 20, 20], (4000, 3000), settings, region)
  assert template == context.Region((988, 988, 1032, 1032), (44, 44))
  # A target of 400 px is shrunk to what the search size can show of it.
  whole = context.Region((0, 0, 4000, 3000), (4000, 3000))
  large = context.plan_template([1000, 1000, 400, 400], (4000, 3000), settings, whole)
  side = math.ceil((800 + 4) * 1.6 * 64 / 400)
  assert large == context.Region((798, 798, 1602, 1602), (side, side))


def test_where_it_saves_little_nothing_is_stored():
  region = context.Region((0, 0, 64, 48), (64, 48))
  assert context.plan_template([10, 10, 30, 30], (64, 48), context.PRESETS[256], region) is None


def test_every_target_has_its_own_template(two_targets):
  directory, frames = two_targets
  source = sources.FrameSource(directory)
  assert source.index.target_numbers.tolist() == [0, 1]
  for number, box in enumerate(BOXES.values()):
    for frame in range(LENGTH):
      stored = source.stored_template(number * LENGTH + frame)
      x, y, w, h = box
      side, centre = math.sqrt(w * h), (x + w / 2, y + h / 2)
      low = [math.floor(c - side - 2) for c in centre]
      high = [math.ceil(c + side + 2) for c in centre]
      assert stored.region_xyxy == (*low, *high) and stored.frame_wh == (640, 480)
      window = crop.crop_window(box, 2.0)
      got = stored_crop.cut(stored, window, 128)
      want = stored_crop.cut(sources.StoredFrame.from_image(frames[frame]), window, 128)
      assert stored_crop.missing_share(stored, window) == 0
      assert np.abs(got.astype(int) - want).mean() < 2


@pytest.mark.parametrize("size", [256, 384])
def test_real_templates_differ_by_under_two_levels(reference_dir, size):
  settings = context.PRESETS[size]
  folder = reference_dir / "data/sequences/TinyTLP/CarChase2"
  rows = np.loadtxt(folder / "groundtruth_rect.txt", delimiter=",")
  whole = context.Region((0, 0, 1280, 720), (1280, 720))
  for number in range(0, 400, 40):
    frame = jpeg.decode((folder / f"img/{number + 1:05d}.jpg").read_bytes())
    box = rows[number, 1:5]
    region = context.plan_template(box, (1280, 720), settings, whole)
    image = jpeg.decode(jpeg.encode(context.cut_region(frame, region), settings.jpeg_quality))
    stored = sources.StoredFrame(image, region.xyxy, (1280, 720))
    window = crop.crop_window(box, settings.template_factor)
    got = stored_crop.cut(stored, window, settings.template_size)
    full = sources.StoredFrame.from_image(frame)
    want = stored_crop.cut(full, window, settings.template_size)
    assert stored_crop.missing_share(stored, window) == 0
    assert np.abs(got.astype(int) - want).mean() < 2


def test_tfds_reads_them(two_targets):
  directory, _ = two_targets
  record = tfds.builder_from_directory(directory).as_data_source("train")[3]
  source = sources.FrameSource(directory)
  assert record["template_targets"].tolist() == [0, 1]
  for number, template in enumerate(record["templates"]):
    stored = source.stored_template(number * LENGTH + 3)
    np.testing.assert_array_equal(template, stored.image)
    np.testing.assert_array_equal(record["template_regions_xyxy"][number], stored.region_xyxy)


def pairs_of(directory, **options):
  settings = pipeline.PipelineSettings(
    sampling=SamplingSettings(min_length=2), augmentation=AugmentationSettings(**options)
  )
  source = sources.FrameSource(directory)
  read = []
  source.stored_template = lambda position: (
    read.append(position) or sources.FrameSource.stored_template(source, position)
  )
  batches = pipeline.train_pipeline(
    [(source, 1.0)], settings, batch_size=8, seed=0, num_threads=0, num_workers=0
  )
  return next(batches), read


def test_the_pipeline_takes_templates_from_them(two_targets, monkeypatch):
  directory, _ = two_targets
  batch, read = pairs_of(directory)
  assert len(read) >= 8
  monkeypatch.setattr(context.ContextSettings, "holds_templates_of", lambda *_: False)
  whole, none = pairs_of(directory)
  assert not none
  np.testing.assert_array_equal(batch["search"], whole["search"])
  np.testing.assert_array_equal(batch["template_box_xywh"], whole["template_box_xywh"])
  # Coded twice, apart from each other: alike but for that.
  assert np.abs(batch["template"].astype(int) - whole["template"]).mean() < 2


def test_templates_that_reach_further_come_from_the_whole_record(two_targets):
  directory, _ = two_targets
  for wider in ({"template_centre_jitter": 1.0}, {"template_factor": 3.0}, {"template_size": 144}):
    _, read = pairs_of(directory, **wider)
    assert not read


def test_a_damaged_template_is_named(two_targets, monkeypatch):
  source = sources.FrameSource(two_targets[0])
  encoded = source.read_template(LENGTH + 3)
  assert encoded != source.read(LENGTH + 3)
  monkeypatch.setattr(source, "read_template", lambda _: encoded._replace(jpeg=b"no image"))
  with pytest.raises(sources.DamagedRecordError, match=r"record 3 .*sequence dogs/2, frame 3"):
    source.stored_template(LENGTH + 3)


def test_still_images_and_whole_frames_store_none(tmp_path, two_targets, source):
  (tmp_path / "images/train").mkdir(parents=True)
  (tmp_path / "labels/train").mkdir(parents=True)
  image = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
  cv2.imwrite(str(tmp_path / "images/train/a.jpg"), image)
  (tmp_path / "labels/train/a.txt").write_text("0 0.5 0.5 0.05 0.05\n")
  directory = preparation.prepare_folder(
    DetectionFolder, tmp_path, tmp_path / "data", "one", storage=context.PRESETS[256]
  )
  for without in (sources.FrameSource(directory), source):
    assert without.read_template(0) == without.read(0)
