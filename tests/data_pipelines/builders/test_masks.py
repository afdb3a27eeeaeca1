"""Masks: boxes by extent, one target a colour, and frames that go with them."""

import cv2
import numpy as np
import pytest

from data_pipelines import preparation, sources
from data_pipelines.builders.masks import MaskSequences

# DAVIS's palette as OpenCV reads it, blue first: objects 1, 2 and 4.
RED, GREEN, BLUE = (0, 0, 128), (0, 128, 0), (128, 0, 0)
WHITE = (255, 255, 255)


@pytest.fixture
def write_video(tmp_path, write_frames):
  """A function that writes a video: (name, one {colour: (x1, y1, x2, y2)} a frame, resolution)."""

  def write(name, masks, resolution="480p", wh=(64, 48)):
    write_frames(tmp_path / "JPEGImages" / resolution / name, len(masks), 0, "{:05d}.jpg")
    folder = tmp_path / "Annotations" / resolution / name
    folder.mkdir(parents=True)
    for i, objects in enumerate(masks):
      mask = np.zeros((wh[1], wh[0], 3), np.uint8)
      for colour, (x1, y1, x2, y2) in objects.items():
        mask[y1:y2, x1:x2] = colour
      cv2.imwrite(str(folder / f"{i:05d}.png"), mask)
    return tmp_path

  return write


def test_a_box_is_the_extent_of_the_mask(write_video, open_raw, read_all):
  root = write_video("bear", [{WHITE: (3, 4, 13, 24)}, {WHITE: (63, 47, 64, 48)}])
  (sequence,) = read_all(open_raw(MaskSequences, root))
  (target,) = sequence.targets
  assert (sequence.name, target.name) == ("bear", "bear")
  np.testing.assert_array_equal(target.boxes_xywh, [[3, 4, 10, 20], [63, 47, 1, 1]])
  assert [path.name for path in sequence.frames] == ["00000.jpg", "00001.jpg"]


def test_an_empty_mask_hides_the_target(write_video, open_raw, read_all):
  root = write_video("bear", [{WHITE: (3, 4, 13, 24)}, {}])
  (target,) = read_all(open_raw(MaskSequences, root))[0].targets
  np.testing.assert_array_equal(target.visible, [True, False])
  assert not target.boxes_xywh[1].any()


def test_every_colour_is_a_target_in_the_order_of_the_palette(write_video, open_raw, read_all):
  root = write_video(
    "dogs",
    [{BLUE: (0, 0, 5, 5), RED: (20, 20, 30, 30)}, {RED: (21, 20, 31, 30), GREEN: (1, 2, 3, 4)}],
  )
  targets = read_all(open_raw(MaskSequences, root))[0].targets
  assert [t.name for t in targets] == ["dogs/1", "dogs/2", "dogs/3"]
  np.testing.assert_array_equal(targets[0].boxes_xywh, [[20, 20, 10, 10], [21, 20, 10, 10]])
  assert [t.visible.tolist() for t in targets[1:]] == [[False, True], [True, False]]


def test_palette_and_grey_numbers_name_the_same_objects(tmp_path, write_frames, open_raw, read_all):
  numbers = np.zeros((48, 64), np.uint8)
  numbers[2:6, 3:9] = 1
  numbers[30:40, 10:20] = 2
  palette = np.array([(0, 0, 0), RED, GREEN], np.uint8)
  for name, mask in (("grey", numbers), ("palette", palette[numbers])):
    write_frames(tmp_path / "JPEGImages/480p" / name, 1, 0, "{:05d}.jpg")
    (tmp_path / "Annotations/480p" / name).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "Annotations/480p" / name / "00000.png"), mask)
  for sequence in read_all(open_raw(MaskSequences, tmp_path)):
    boxes = [t.boxes_xywh[0].tolist() for t in sequence.targets]
    assert boxes == [[3, 2, 6, 4], [10, 30, 10, 10]]


@pytest.mark.parametrize("resolutions", [("480p",), ("",), ("1080p",), ("1080p", "480p")])
def test_layouts(write_video, open_raw, read_all, resolutions):
  for x, resolution in enumerate(resolutions):
    root = write_video("bear", [{WHITE: (x, 0, 9, 9)}], resolution)
  (sequence,) = read_all(open_raw(MaskSequences, root))
  # 480p is the last of those given.
  assert sequence.targets[0].boxes_xywh[0, 0] == len(resolutions) - 1


def test_two_resolutions_without_480p_are_refused(write_video, open_raw):
  for resolution in ("1080p", "Full-Resolution"):
    root = write_video("bear", [{WHITE: (0, 0, 9, 9)}], resolution)
  with pytest.raises(ValueError, match=r"2 resolutions \(1080p, Full-Resolution\)"):
    open_raw(MaskSequences, root).list_sequences("train")


def break_mask(root):
  (root / "Annotations/480p/bear/00001.png").write_bytes(b"no image")


def blend(root):
  mask = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) % 256
  cv2.imwrite(str(root / "Annotations/480p/bear/00000.png"), mask.astype(np.uint8))


def enlarge(root):
  cv2.imwrite(str(root / "Annotations/480p/bear/00000.png"), np.ones((96, 128), np.uint8))


def empty(root):
  for path in (root / "Annotations/480p/bear").iterdir():
    cv2.imwrite(str(path), np.zeros((48, 64), np.uint8))


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (break_mask, r"cannot read mask .*bear/00001\.png"),
    (
      lambda r: (r / "Annotations/480p/bear/00001.png").unlink(),
      r"bear: 2 frames but 1 .*\(00001 is",
    ),
    (
      lambda r: (r / "JPEGImages/480p/bear/00000.jpg").unlink(),
      r"bear: 1 frames but 2 .*\(00000 is",
    ),
    (blend, "bear: over 100 colours"),
    (enlarge, r"bear: .*00000\.jpg has \(64, 48\) pixels but its mask \(128, 96\)"),
    (empty, "bear: no object in any mask"),
  ],
)
def test_what_is_wrong_with_a_video_is_named(write_video, open_raw, damage, message):
  root = write_video("bear", [{WHITE: (0, 0, 9, 9)}] * 2)
  damage(root)
  with pytest.raises(ValueError, match=message):
    open_raw(MaskSequences, root).read_sequence("train", "480p/bear")


def test_masks_without_frames_are_missing(write_video, open_raw):
  for name in ("bear", "camel"):
    root = write_video(name, [{WHITE: (0, 0, 9, 9)}])
  (root / "JPEGImages/480p/camel").rename(root / "elsewhere")
  with pytest.raises(FileNotFoundError, match=r"1 of 2 .*missing: camel;.*--allow_missing"):
    open_raw(MaskSequences, root).list_sequences("train")
  assert open_raw(MaskSequences, root, allow_missing=True).list_sequences("train") == ["480p/bear"]


@pytest.mark.parametrize("made", ["", "Annotations", "Annotations/480p"])
def test_a_folder_without_masks_is_refused(tmp_path, open_raw, made):
  (tmp_path / made).mkdir(parents=True, exist_ok=True)
  with pytest.raises(FileNotFoundError, match="Annotations"):
    open_raw(MaskSequences, tmp_path).list_sequences("train")


def test_objects_of_one_video_share_its_records(write_video, tmp_path):
  root = write_video("dogs", [{RED: (0, 0, 9, 9), GREEN: (20, 20, 40, 30)}] * 3)
  directory = preparation.prepare_folder(MaskSequences, root, tmp_path / "data", "mine")
  source = sources.FrameSource(directory)
  assert [*source.index.names] == ["dogs/1", "dogs/2"]
  np.testing.assert_array_equal(source.index.records, [0, 1, 2, 0, 1, 2])


def test_real_videos(reference_dir, open_raw):
  root = reference_dir / "data/sequences/DAVIS2016"
  builder = open_raw(MaskSequences, root)
  keys = builder.list_sequences("train")
  assert len(keys) == 8 and "480p/scooter-black" in keys
  for key in ("480p/scooter-black", "480p/libby"):
    (target,) = builder.read_sequence("train", key).targets
    assert target.name == key[5:]
    for i in (0, len(target.visible) - 1):
      mask = cv2.imread(str(root / "Annotations" / key / f"{i:05d}.png"), cv2.IMREAD_UNCHANGED)
      y, x = np.nonzero(mask)
      expected = [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
      np.testing.assert_array_equal(target.boxes_xywh[i], expected)
