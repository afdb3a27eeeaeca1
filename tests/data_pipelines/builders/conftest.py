"""Miniature raw trees, faithful to the published layouts, and a way to read them."""

import json
import pathlib

import cv2
import numpy as np
import pytest

from data_pipelines.builders import frame_records

FRAME_WH = (64, 48)


def _boxes(count, seed=0):
  """Boxes with four decimals that move a little, [count, 4]."""
  rng = np.random.default_rng(seed)
  return np.round(np.cumsum(rng.normal(0, 0.5, (count, 4)), axis=0) + np.array([10, 8, 20, 16]), 4)


def _rows(boxes):
  return "".join(",".join(f"{v:.4f}" for v in box) + "\n" for box in boxes)


@pytest.fixture
def write_frames():
  """A function that writes frames: (folder, count, first=1, pattern="{:08d}.jpg", wh=FRAME_WH)."""

  def write(folder: pathlib.Path, count, first=1, pattern="{:08d}.jpg", wh=FRAME_WH):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
      frame = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), wh)
      cv2.imwrite(str(folder / pattern.format(first + i)), frame)

  return write


@pytest.fixture
def open_raw(tmp_path):
  """A function that opens a builder on a raw folder: (class, root, allow_missing=False)."""

  def open_(builder_class, root, allow_missing=False):
    config = frame_records.RawDataConfig(name="mini", root=str(root), allow_missing=allow_missing)
    return frame_records.open_builder(builder_class, config, tmp_path / "unused")

  return open_


@pytest.fixture
def read_all():
  """A function that reads a split from end to end: (builder, split) -> list of RawSequence."""
  return lambda builder, split="train": [
    builder.read_sequence(split, json.loads(json.dumps(key)))
    for key in builder.list_sequences(split)
  ]


@pytest.fixture
def lasot_root(tmp_path, write_frames):
  """LaSOT: three training videos and one test video; marks in one comma row, one without a newline.

  airplane-10 is under its class, bear-1 directly in the root; of airplane-10's five frames the second is
  fully occluded, the third out of view, the fourth 0,0,0,0.
  """
  root = tmp_path / "LaSOTBenchmark"
  for name, folder, seed in (
    ("airplane-10", "airplane/airplane-10", 1),
    ("zebra-1", "zebra/zebra-1", 2),
    ("bear-1", "bear-1", 3),
    ("airplane-1", "airplane/airplane-1", 4),
  ):
    video = root / folder
    write_frames(video / "img", 5)
    boxes = np.rint(_boxes(5, seed)).astype(int)
    if name == "airplane-10":
      boxes[3] = 0
    (video / "groundtruth.txt").write_text("\n".join(",".join(map(str, b)) for b in boxes) + "\n")
    first = name == "airplane-10"
    (video / "full_occlusion.txt").write_text("0,1,0,0,0" if first else "0,0,0,0,0\n")
    (video / "out_of_view.txt").write_text("0,0,1,0,0" if first else "0,0,0,0,0")
    (video / "nlp.txt").write_text(f"a {name} in the middle")
  return root


@pytest.fixture
def got10k_root(tmp_path, write_frames):
  """GOT-10k: training videos 1, 2 and 10, one of validation; labels one number a line.

  Of video 1's six frames the second is absent, the third has cover 0, the fourth no width.
  """
  root = tmp_path / "GOT-10k"
  for part, names in {
    "train": [f"GOT-10k_Train_{i:06d}" for i in (1, 2, 10)],
    "val": ["GOT-10k_Val_000001"],
  }.items():
    for seed, name in enumerate(names):
      video = root / part / name
      write_frames(video, 6)
      boxes = _boxes(6, seed)
      absence, cover = [0] * 6, [8] * 6
      if name == "GOT-10k_Train_000001":
        boxes[3, 2] = 0
        absence[1], cover[2] = 1, 0
      (video / "groundtruth.txt").write_text(_rows(boxes))
      (video / "absence.label").write_text("".join(f"{v}\n" for v in absence))
      (video / "cover.label").write_text("".join(f"{v}\n" for v in cover))
      (video / "cut_by_image.label").write_text("0\n" * 6)
      (video / "meta_info.ini").write_text(
        "[METAINFO]\nurl: https://example.org\nbegin: 00:00:01\nend: 00:00:02\nanno_fps: 10Hz\n"
        f"object_class: bear\nmotion_class: walking\nmajor_class: animal\nroot_class: animal\n"
        f"motion_adverb: slowly\nresolution: {FRAME_WH}\n"
      )
    (root / part / "list.txt").write_text("\n".join(names) + "\n")
  return root


TRACKINGNET_NAMES = ("-0y7A0GDVY8_3", "--8shIp3t0I_0", "zzljeIZDjM8_0")


@pytest.fixture
def trackingnet_root(tmp_path, write_frames):
  """TrackingNet: two videos in TRAIN_0, one in TRAIN_11, twelve frames each; frames count from 0."""
  root = tmp_path / "TrackingNet"
  for chunk in range(12):
    for part in ("anno", "frames", "zips"):
      (root / f"TRAIN_{chunk}" / part).mkdir(parents=True)
  for seed, (chunk, name) in enumerate(zip((0, 0, 11), TRACKINGNET_NAMES)):
    boxes = _boxes(12, seed)
    if seed == 0:
      boxes[4, 3] = 0
    (root / f"TRAIN_{chunk}" / "anno" / f"{name}.txt").write_text(_rows(boxes))
    write_frames(root / f"TRAIN_{chunk}" / "frames" / name, 12, first=0, pattern="{:d}.jpg")
  return root


def _annotation(identity, image, box, crowd=0):
  return {
    "id": identity,
    "image_id": image,
    "bbox": box,
    "iscrowd": crowd,
    "category_id": 1,
    "area": box[2] * box[3],
    "segmentation": {"counts": [1], "size": [1, 1]} if crowd else [[0, 0, 1, 1, 1, 0]],
  }


@pytest.fixture
def coco_root(tmp_path, write_frames):
  """COCO 2017: training images 9 and 12 with two and one instances, a crowd and one without width.

  Image 30 has no annotation; the json does not list images in the order of their names.
  """
  root = tmp_path / "coco"
  for part, images in {"train": (9, 12, 30), "val": (5,)}.items():
    for image in images:
      write_frames(root / f"{part}2017", 1, first=image, pattern="{:012d}.jpg")
    annotations = {
      "train": [
        _annotation(700, 12, [1.5, 2.25, 20.0, 10.0]),
        _annotation(900100, 9, [3, 4, 5, 6], crowd=1),
        _annotation(31, 9, [30.01, 20.0, 8.5, 0.0]),
        _annotation(32, 9, [10.0, 11.0, 12.5, 13.5]),
      ],
      "val": [_annotation(31, 5, [1.0, 2.0, 3.0, 4.0])],
    }[part]
    content = {
      "info": {"year": 2017},
      "licenses": [],
      "categories": [{"id": 1, "name": "person", "supercategory": "person"}],
      "images": [
        {"id": i, "file_name": f"{i:012d}.jpg", "width": 64, "height": 48} for i in reversed(images)
      ],
      "annotations": annotations,
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(content))
    (root / "annotations" / f"captions_{part}2017.json").write_text("{}")
  return root
