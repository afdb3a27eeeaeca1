"""Detection folders: COCO json and YOLO text in the layouts that people use, boxes in pixels."""

import json
import shutil

import cv2
import numpy as np
import pytest

from data_pipelines import preparation, sources
from data_pipelines.builders.detection_folder import DetectionFolder, image_wh

LABEL = "3 0.5 0.5 0.25 0.5\n0 0.125 0.25 0.25 0.5\n"
# Of 64 x 48 pixels.
BOXES = [[24, 12, 16, 24], [0, 0, 16, 24]]


@pytest.fixture
def write_yolo(tmp_path, write_frames):
  """A function that writes one image and its label: (image, label, text=LABEL)."""

  def write(image, label, text=LABEL):
    path = tmp_path / image
    write_frames(path.parent, 1, 0, path.name)
    (tmp_path / label).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / label).write_text(text)
    return tmp_path

  return write


@pytest.mark.parametrize(
  ("image", "label"),
  [
    ("images/a.jpg", "labels/a.txt"),
    ("images/train2017/a.jpg", "labels/train2017/a.txt"),
    ("images/deep/er/a.png", "labels/deep/er/a.txt"),
    ("train/images/a.jpg", "train/labels/a.txt"),
    ("images/train/a.jpg", "object_detection/labels/train/a.txt"),
    ("a.jpg", "a.txt"),
    ("train/a.jpeg", "train/a.txt"),
  ],
)
def test_yolo_layouts(write_yolo, open_raw, read_all, image, label):
  root = write_yolo(image, label)
  (root / "classes.txt").write_text("person\ncar\n")
  (sequence,) = read_all(open_raw(DetectionFolder, root))
  assert sequence.frames == (root / image,)
  np.testing.assert_allclose(np.concatenate([t.boxes_xywh for t in sequence.targets]), BOXES)
  assert len({t.name for t in sequence.targets}) == 2


@pytest.mark.parametrize(
  ("train", "val"),
  [
    ("images/train2017", "images/val2017"),
    ("train/images", "valid/images"),
    ("train", "validation"),
  ],
)
def test_folders_named_after_splits_are_those_splits(write_yolo, open_raw, train, val):
  for folder, name in ((train, "valley"), (val, "train_at_night"), ("images/test", "c")):
    root = write_yolo(f"{folder}/{name}.jpg", f"{folder.replace('images', 'labels')}/{name}.txt")
  builder = open_raw(DetectionFolder, root)
  for split, folder, name in (("train", train, "valley"), ("validation", val, "train_at_night")):
    assert [key[1] for key in builder.list_sequences(split)] == [f"{folder}/{name}.jpg"]


def test_without_named_folders_all_is_for_training(write_yolo, open_raw):
  root = write_yolo("images/validation_1.jpg", "labels/validation_1.txt")
  assert len(open_raw(DetectionFolder, root).list_sequences("train")) == 1
  with pytest.raises(FileNotFoundError, match="no boxes for split validation"):
    open_raw(DetectionFolder, root).list_sequences("validation")


def test_an_outline_gives_its_extent(write_yolo, open_raw, read_all):
  root = write_yolo("a.jpg", "a.txt", "0 0.25 0.5 0.75 0.25 0.5 1\n")
  (target,) = read_all(open_raw(DetectionFolder, root))[0].targets
  np.testing.assert_allclose(target.boxes_xywh, [[16, 12, 32, 36]])


def test_a_box_without_size_is_not_visible(write_yolo, open_raw, read_all):
  root = write_yolo("a.jpg", "a.txt", "0 0.5 0.5 0 0.5\n")
  assert not read_all(open_raw(DetectionFolder, root))[0].targets[0].visible


def test_images_without_boxes_and_labels_without_images_are_left_out(write_yolo, open_raw, caplog):
  write_yolo("images/a.jpg", "labels/a.txt")
  write_yolo("images/b.jpg", "labels/b.txt", "\n")
  root = write_yolo("images/c.jpg", "labels/lonely.txt")
  with caplog.at_level("WARNING"):
    keys = open_raw(DetectionFolder, root).list_sequences("train")
  assert [key[1] for key in keys] == ["images/a.jpg"]
  assert "1 label files" in caplog.text and "labels/lonely.txt" in caplog.text


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("0 0.5 0.5 0.1", "4 columns; expected class cx cy w h"),
    ("0 0.5 0.5 0.1 0.1 0.9", "6 columns"),
    ("0 0.5 x 0.1 0.1", "is not a row of numbers"),
    ("0 320 240 64 48", "shares of the image's sides"),
    ("0 0.5 nan 0.1 0.1", "shares of the image's sides"),
  ],
)
def test_a_bad_row_is_named_with_its_line(write_yolo, open_raw, line, message):
  root = write_yolo("images/a.jpg", "labels/a.txt", f"{LABEL}{line}\n")
  with pytest.raises(ValueError, match=rf"labels/a\.txt, line 3: .*{message}"):
    open_raw(DetectionFolder, root).list_sequences("train")


def test_labels_that_may_be_in_two_places_are_refused(write_yolo, open_raw):
  write_yolo("images/a.jpg", "one/labels/a.txt")
  root = write_yolo("images/a.jpg", "two/labels/a.txt")
  with pytest.raises(ValueError, match=r"no labels folder beside it.* 2: one/labels, two/labels"):
    open_raw(DetectionFolder, root).list_sequences("train")


def test_two_images_of_one_name_are_refused(write_yolo, open_raw):
  write_yolo("images/a.jpg", "labels/a.txt")
  root = write_yolo("images/a.png", "labels/a.txt")
  with pytest.raises(ValueError, match=r"images/a\.jpg and images/a\.png .* same name"):
    open_raw(DetectionFolder, root).list_sequences("train")


def test_an_image_that_cannot_be_read_is_named(write_yolo, open_raw, read_all):
  root = write_yolo("images/a.jpg", "labels/a.txt")
  (root / "images/a.jpg").write_bytes(b"no image")
  with pytest.raises(ValueError, match=r"images/a\.jpg: it is no image"):
    read_all(open_raw(DetectionFolder, root))


@pytest.mark.parametrize(
  ("annotation", "images"),
  [
    ("annotations/instances_train2017.json", "train2017"),
    ("annotations/instances_train2017.json", "images/train2017"),
    ("annotations.json", "."),
    ("annotations.json", "images"),
    ("train/_annotations.coco.json", "train"),
  ],
)
def test_json_layouts(coco_root, tmp_path, open_raw, read_all, annotation, images):
  root = tmp_path / "own"
  (root / annotation).parent.mkdir(parents=True)
  shutil.copy(coco_root / "annotations/instances_train2017.json", root / annotation)
  (root / "captions_train2017.json").write_text("[]")
  shutil.copytree(coco_root / "train2017", root / images, dirs_exist_ok=True)
  sequences = read_all(open_raw(DetectionFolder, root))
  assert [len(s.targets) for s in sequences] == [2, 1]
  np.testing.assert_array_equal(sequences[1].targets[0].boxes_xywh, [[1.5, 2.25, 20, 10]])


def test_a_json_is_chosen_by_its_split(coco_root, open_raw):
  builder = open_raw(DetectionFolder, coco_root)
  assert len(builder.list_sequences("train")) == 2
  assert len(builder.list_sequences("validation")) == 1


def test_two_json_files_of_one_split_are_refused(coco_root, open_raw):
  folder = coco_root / "annotations"
  shutil.copy(folder / "instances_train2017.json", folder / "my_train.json")
  with pytest.raises(ValueError, match=r"2 annotation files for split train: .*my_train"):
    open_raw(DetectionFolder, coco_root).list_sequences("train")


def test_images_that_a_json_names_and_that_are_not_there_are_counted(coco_root, open_raw):
  (coco_root / "train2017/000000000012.jpg").unlink()
  with pytest.raises(FileNotFoundError, match=r"1 of 2 images .*: 000000000012\.jpg;"):
    open_raw(DetectionFolder, coco_root).list_sequences("train")


def turned(jpeg: bytes, orientation: int) -> bytes:
  """Put an Exif orientation into a JPEG file."""
  tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + b"\0\0\0\0\0\0"
  content = b"Exif\0\0" + tiff
  return jpeg[:2] + b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content + jpeg[2:]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_sizes_are_those_of_the_image_as_opencv_turns_it(tmp_path, orientation, suffix):
  _, encoded = cv2.imencode(suffix, np.zeros((48, 64, 3), np.uint8))
  data = encoded.tobytes()
  path = tmp_path / f"a{suffix}"
  path.write_bytes(turned(data, orientation) if suffix == ".jpg" else data)
  height, width = cv2.imread(str(path)).shape[:2]
  assert image_wh(path) == (width, height)
  assert (height > width) == (suffix == ".jpg" and orientation > 4)


def test_prepared_images_are_no_video(write_yolo, tmp_path):
  root = write_yolo("images/a.jpg", "labels/a.txt")
  directory = preparation.prepare_folder(DetectionFolder, root, tmp_path / "data", "mine")
  source = sources.FrameSource(directory)
  assert not source.is_video and source.jpeg(0) == (root / "images/a.jpg").read_bytes()
  np.testing.assert_array_equal(source.index.boxes_xywh, BOXES)


def test_real_yolo_images(reference_dir, open_raw, read_all):
  root = reference_dir / "data/detection/coco128_yolo"
  sequences = read_all(open_raw(DetectionFolder, root))
  # 128 images, of which two have no label; 941 rows, of which 12 have no image.
  assert len(sequences) == 126 and sum(len(s.targets) for s in sequences) == 929
  image = cv2.imread(str(sequences[5].frames[0]))
  name = sequences[5].frames[0].stem
  rows = np.loadtxt(root / f"object_detection/labels/train2017/{name}.txt", ndmin=2)[:, 1:]
  size = np.tile(image.shape[1::-1], 2)
  boxes = np.concatenate([t.boxes_xywh for t in sequences[5].targets])
  np.testing.assert_allclose(boxes[:, :2] + boxes[:, 2:] / 2, rows[:, :2] * size[:2])
  np.testing.assert_allclose(boxes[:, 2:], rows[:, 2:] * size[2:])
  assert (boxes[:, 2:] > 0).all()


def test_real_images_with_a_json(reference_dir, open_raw):
  root = reference_dir / "data/detection/tiny_coco/tiny_coco"
  builder = open_raw(DetectionFolder, root)
  counts = [sum(len(k[2]) for k in builder.list_sequences(s)) for s in ("train", "validation")]
  content = [
    json.loads((root / f"annotations/instances_{part}2017.json").read_text())["annotations"]
    for part in ("train", "val")
  ]
  assert counts == [sum(not a["iscrowd"] for a in items) for items in content] == [465, 377]
