"""COCO 2017: one target an instance that is not a crowd, found without reading the json again."""

import json

import numpy as np
import pytest

from data_pipelines import preparation, sources
from data_pipelines.builders.coco import Coco2017


def edit(root, change):
  path = root / "annotations/instances_train2017.json"
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


def test_instances_without_the_crowd_are_targets_of_their_image(coco_root, open_raw, read_all):
  first, second = read_all(open_raw(Coco2017, coco_root))
  assert first.frames == (coco_root / "train2017/000000000009.jpg",)
  assert [t.name for t in first.targets] == ["000000000009_31", "000000000009_32"]
  assert [t.name for t in second.targets] == ["000000000012_700"]
  np.testing.assert_array_equal(second.targets[0].boxes_xywh, [[1.5, 2.25, 20, 10]])


def test_a_box_without_height_is_not_visible(coco_root, open_raw, read_all):
  targets = read_all(open_raw(Coco2017, coco_root))[0].targets
  assert [bool(t.visible[0]) for t in targets] == [False, True]
  assert not targets[0].boxes_xywh.any()


def test_validation_is_a_split_of_its_own(coco_root, open_raw, read_all):
  (sequence,) = read_all(open_raw(Coco2017, coco_root), "validation")
  assert sequence.targets[0].name == "000000000005_31"


def test_images_may_lie_in_a_folder_of_images(coco_root, open_raw, read_all):
  (coco_root / "images").mkdir()
  (coco_root / "train2017").rename(coco_root / "images/train2017")
  sequence = read_all(open_raw(Coco2017, coco_root))[0]
  assert sequence.frames == (coco_root / "images/train2017/000000000009.jpg",)


def test_a_worker_needs_no_json(coco_root, open_raw):
  builder = open_raw(Coco2017, coco_root)
  keys = builder.list_sequences("train")
  (coco_root / "annotations/instances_train2017.json").unlink()
  assert len(builder.read_sequence("train", keys[0]).targets) == 2


def test_missing_images_are_counted_and_named(coco_root, open_raw):
  (coco_root / "train2017/000000000009.jpg").unlink()
  with pytest.raises(
    FileNotFoundError, match=r"1 of 2 annotated images .*: 000000000009\.jpg; .*--allow_missing"
  ):
    open_raw(Coco2017, coco_root).list_sequences("train")
  assert len(open_raw(Coco2017, coco_root, allow_missing=True).list_sequences("train")) == 1


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 4]),
      "annotation 700 has the box",
    ),
    (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "annotation 700 has the box"),
    (lambda c: c["annotations"][0].update(image_id=77), "annotation 700 is of image 77"),
    (lambda c: c["annotations"][0].update(id=31), "two annotations have the id 31"),
    (lambda c: c.pop("images"), "not in COCO's instance format"),
    (lambda c: c["annotations"][0].pop("bbox"), "not in COCO's instance format"),
  ],
)
def test_what_is_wrong_with_the_annotations_is_named(coco_root, open_raw, change, message):
  edit(coco_root, change)
  with pytest.raises(ValueError, match=rf"instances_train2017\.json.*{message}"):
    open_raw(Coco2017, coco_root).list_sequences("train")


@pytest.mark.parametrize(
  ("lost", "message"),
  [
    ("annotations/instances_train2017.json", r"no annotation file .*instances_train2017\.json"),
    ("train2017", "no folder train2017 nor images/train2017"),
  ],
)
def test_what_is_not_there_is_named(coco_root, open_raw, lost, message):
  (coco_root / lost).rename(coco_root / "elsewhere")
  with pytest.raises(FileNotFoundError, match=message):
    open_raw(Coco2017, coco_root).list_sequences("train")


def test_prepared_images_are_no_video_and_stored_once(coco_root, tmp_path):
  directory = preparation.prepare_folder(Coco2017, coco_root, tmp_path / "data")
  source = sources.FrameSource(directory)
  assert not source.is_video
  assert [*source.index.names] == ["000000000009_31", "000000000009_32", "000000000012_700"]
  raw = (coco_root / "train2017/000000000009.jpg").read_bytes()
  assert source.jpeg(0) == source.jpeg(1) == raw
  assert source.index.records[0] == source.index.records[1]


@pytest.mark.parametrize(
  ("split", "part", "images", "instances"),
  [("train", "train2017", 49, 465), ("validation", "val2017", 48, 377)],
)
def test_real_images(reference_dir, open_raw, read_all, split, part, images, instances):
  root = reference_dir / "data/detection/tiny_coco/tiny_coco"
  sequences = read_all(open_raw(Coco2017, root), split)
  targets = {t.name: t for s in sequences for t in s.targets}
  # 852 boxes in both splits, ten of them of crowds.
  assert (len(sequences), len(targets)) == (images, instances)
  content = json.loads((root / f"annotations/instances_{part}.json").read_text())
  singles = [a for a in content["annotations"] if not a["iscrowd"]]
  for item in singles:
    target = targets[f"{item['image_id']:012d}_{item['id']}"]
    np.testing.assert_array_equal(target.boxes_xywh, [item["bbox"]])
  assert all(t.visible.all() for t in targets.values())
