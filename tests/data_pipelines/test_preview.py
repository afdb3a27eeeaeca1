"""The preview shows what the network gets, with labels where the target is."""

import cv2
import numpy as np
import pytest

from data_pipelines import contact_sheet, preparation, preview
from data_pipelines.augmentation import AugmentationSettings
from data_pipelines.builders.frame_records import RawDataConfig
from data_pipelines.builders.sequence_folder import SequenceFolder
from data_pipelines.sources import FrameSource

FRAMES, WIDTH, HEIGHT = 24, 640, 480


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> FrameSource:
  """A prepared video: an orange rectangle wanders over dark ground, away from the borders."""
  root = tmp_path_factory.mktemp("squares")
  folder = root / "raw" / "walk"
  folder.mkdir(parents=True)
  boxes = []
  for i in range(FRAMES):
    x, y, w, h = 200 + 6 * i, 240 - 4 * i, 96, 64
    frame = np.full((HEIGHT, WIDTH, 3), 20, np.uint8)
    frame[y : y + h, x : x + w] = (255, 180, 90)
    cv2.imwrite(str(folder / f"{i:04d}.png"), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    boxes.append(f"{x},{y},{w},{h}")
  (folder / "groundtruth.txt").write_text("\n".join(boxes))
  config = RawDataConfig(name="squares", root=str(root / "raw"))
  return FrameSource(preparation.prepare(SequenceFolder, config, root / "data"))


def make_batch(**changes):
  """One pair, the left half of each crop bright; nothing is done to it."""
  template, search = np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 64, 64, 3), np.uint8)
  template[:, :, :16] = search[:, :, :32] = (200, 100, 50)
  batch = {
    "template": template,
    "search": search,
    "grey": np.array([False]),
    "template_flip": np.array([False]),
    "search_flip": np.array([False]),
    "template_brightness": np.ones(1, np.float32),
    "search_brightness": np.ones(1, np.float32),
    "template_box_xywh": np.array([[0, 0, 0.5, 1]], np.float32),
    "search_box_xywh": np.array([[0.25, 0.5, 0.25, 0.125]], np.float32),
  }
  return batch | changes


def test_without_changes_the_crops_are_as_they_come_and_labels_in_pixels():
  batch = make_batch()
  pair = preview.see_pair(batch, 0)
  np.testing.assert_array_equal(pair.template, batch["template"][0])
  np.testing.assert_array_equal(pair.search, batch["search"][0])
  assert pair.template_box_xywh.tolist() == [0, 0, 16, 32]
  assert pair.search_box_xywh.tolist() == [16, 32, 16, 8]


def test_each_flip_mirrors_its_own_crop():
  pair = preview.see_pair(make_batch(search_flip=np.array([True])), 0)
  assert pair.template[0, 0, 0] == 200 and pair.template[0, -1, 0] == 0
  assert pair.search[0, 0, 0] == 0 and pair.search[0, -1, 0] == 200
  assert pair.words == ("brightness 1.00", "flipped, brightness 1.00")


def test_grey_and_brightness_are_those_of_opencv_and_numpy():
  changes = {"grey": np.array([True]), "search_brightness": np.array([1.2], np.float32)}
  pair = preview.see_pair(make_batch(**changes), 0)
  grey = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
  assert pair.template[0, 0].tolist() == [grey] * 3
  assert pair.search[0, 0].tolist() == [round(1.2 * grey)] * 3
  assert pair.words[1] == "grey, brightness 1.20"


def test_bright_pixels_stay_in_range():
  pair = preview.see_pair(make_batch(search_brightness=np.array([1.9], np.float32)), 0)
  assert pair.search[0, 0].tolist() == [255, 190, 95]


def test_it_is_what_the_device_does():
  from ostrack_jax.models.ostrack import normalise_images
  from ostrack_jax.training.augmentation import prepare_images

  rng = np.random.default_rng(0)
  batch = make_batch(
    template=rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8),
    search=rng.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8),
    grey=np.array([False, True, False, True]),
    template_flip=np.array([False, True, True, False]),
    search_flip=np.array([False, False, True, True]),
    template_brightness=rng.uniform(0.8, 1.2, 4).astype(np.float32),
    search_brightness=rng.uniform(0.8, 1.2, 4).astype(np.float32),
    template_box_xywh=np.zeros((4, 4), np.float32),
    search_box_xywh=np.zeros((4, 4), np.float32),
  )
  template, search = prepare_images(batch)
  # A grey level, normalised with the smallest deviation, 0.224; and half a level of rounding.
  tolerance = 1.5 / 255 / 0.224
  for i in range(4):
    pair = preview.see_pair(batch, i)
    for seen, given in ((pair.template, template[i]), (pair.search, search[i])):
      np.testing.assert_allclose(normalise_images(seen[None])[0], given, atol=tolerance)


@pytest.mark.parametrize("half_pixel_labels", [True, False])
@pytest.mark.parametrize("joint_flip_probability", [0.0, 1.0])
@pytest.mark.parametrize("separate_flip_probability", [0.0, 1.0])
def test_labels_lie_on_the_target_under_every_flip(
  squares, joint_flip_probability, separate_flip_probability, half_pixel_labels
):
  settings = AugmentationSettings(
    joint_flip_probability=joint_flip_probability,
    separate_flip_probability=separate_flip_probability,
    half_pixel_labels=half_pixel_labels,
    # Narrower than the official one, so that the target is never cut.
    search_centre_jitter=1.5,
  )
  pairs = preview.sample_pairs([(squares, 1.0)], settings, 12, seed=1)
  flips = (joint_flip_probability + separate_flip_probability) % 2 > 0
  assert {("flipped" in words) for pair in pairs for words in pair.words} == {flips}
  for pair in pairs:
    for image, box_xywh in (
      (pair.template, pair.template_box_xywh),
      (pair.search, pair.search_box_xywh),
    ):
      rows, columns = np.nonzero(image.max(axis=-1) > 110)
      extent = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
      corners = np.concatenate([box_xywh[:2], box_xywh[:2] + box_xywh[2:]])
      # A frame pixel is about one of the crop. The official labels are one off where the frame was
      # mirrored and half a one else; the crop's corner is rounded, and so are the pixels counted here.
      np.testing.assert_allclose(corners, extent, atol=3.0 if half_pixel_labels else 1.5)


def test_the_sheet_shows_every_pair_with_its_box(squares, tmp_path):
  settings = preview.settings("256")
  path = tmp_path / "pairs.png"
  preview.write_preview(path, [(squares, 1.0)], settings, pairs=6, seed=3)
  sheet = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
  (pair, *_) = pairs = preview.sample_pairs([(squares, 1.0)], settings, 6, seed=3)
  tile = preview.draw_pair(pair)
  assert tile.shape[1] == 128 + 4 + 256
  np.testing.assert_array_equal(sheet[: tile.shape[0], : tile.shape[1]], tile)
  for box, left in ((pair.template_box_xywh, 0), (pair.search_box_xywh, 132)):
    x, y = np.rint(box[:2]).astype(int)
    assert tile[y, left + x].tolist() == [240, 228, 66]
  assert sheet.shape[0] >= 2 * tile.shape[0] and len(pairs) == 6


def test_the_same_seed_gives_the_same_sheet(squares, tmp_path):
  contents = []
  for seed in (0, 0, 1):
    preview.write_preview(
      tmp_path / "a.png", [(squares, 1.0)], AugmentationSettings(), pairs=2, seed=seed
    )
    contents.append((tmp_path / "a.png").read_bytes())
  assert contents[0] == contents[1] != contents[2]


def test_presets_are_the_official_numbers():
  assert preview.settings("256") == AugmentationSettings()
  large = preview.settings("384")
  assert (large.template_size, large.search_size, large.template_factor, large.search_factor) == (
    (192, 384, 2.0, 5.0)
  )
  assert (large.search_centre_jitter, large.search_scale_jitter) == (4.5, 0.5)
  assert preview.settings("256", search_size=320).search_size == 320


def test_wishes_that_cannot_be_met_are_refused(squares, tmp_path):
  with pytest.raises(ValueError, match="ask for at least 1"):
    preview.write_preview(tmp_path / "a.png", [(squares, 1.0)], AugmentationSettings(), pairs=0)
  with pytest.raises(ValueError, match=r"use \.png or \.jpg"):
    preview.write_preview(tmp_path / "a.doc", [(squares, 1.0)], AugmentationSettings(), pairs=1)
  with pytest.raises(ValueError, match="multiple of 16"):
    preview.settings("256", search_size=250)


def test_captions_stay_within_the_picture():
  image = np.zeros((20, 60, 3), np.uint8)
  result = contact_sheet.captioned(image, ["a caption far too long for this", "ünïcode"])
  assert result.shape == (53, 60, 3)
  assert (result[:20] == 0).all() and (result[20:, -1] == 255).all()
  assert (result[20:].min(axis=(1, 2)) < 128).any()
