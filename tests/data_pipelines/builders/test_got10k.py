"""GOT-10k: the order of list.txt, the labels that hide a target, and folders that users make."""

import os

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines import preparation, sources, splits
from data_pipelines.builders.got10k import Got10k

FIRST = "GOT-10k_Train_000001"


def test_both_parts_are_read_in_the_order_of_the_list(got10k_root, open_raw, read_all):
  builder = open_raw(Got10k, got10k_root, allow_missing=True)
  names = [f"GOT-10k_Train_{i:06d}" for i in (1, 2, 10)]
  assert [s.name for s in read_all(builder)] == names
  assert [s.name for s in read_all(builder, "val")] == ["GOT-10k_Val_000001"]


def test_absence_no_cover_and_no_width_hide_the_target(got10k_root, open_raw, read_all):
  (target,) = read_all(open_raw(Got10k, got10k_root, allow_missing=True))[0].targets
  np.testing.assert_array_equal(target.visible, [True, False, False, False, True, True])


def test_boxes_and_frames_are_those_of_the_files(got10k_root, open_raw):
  name = "GOT-10k_Train_000010"
  sequence = open_raw(Got10k, got10k_root).read_sequence("train", name)
  folder = got10k_root / "train" / name
  np.testing.assert_array_equal(
    sequence.targets[0].boxes_xywh, np.loadtxt(folder / "groundtruth.txt", delimiter=",")
  )
  assert sequence.frames[0] == folder / "00000001.jpg" and len(sequence.frames) == 6


def test_a_folder_without_labels_has_nothing_hidden(got10k_root, open_raw):
  folder = got10k_root / "train" / FIRST
  for name in ("absence.label", "cover.label"):
    (folder / name).unlink()
  (target,) = open_raw(Got10k, got10k_root).read_sequence("train", FIRST).targets
  np.testing.assert_array_equal(target.visible, [True, True, True, False, True, True])


@pytest.mark.parametrize("lost", ["absence.label", "cover.label"])
def test_one_label_without_the_other_is_refused(got10k_root, open_raw, lost):
  (got10k_root / "train" / FIRST / lost).unlink()
  with pytest.raises(FileNotFoundError, match=rf"{FIRST}: no file .*{lost}"):
    open_raw(Got10k, got10k_root).read_sequence("train", FIRST)


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (
      lambda v: (v / "cover.label").write_text("8\n" * 7),
      r"000001: 7 marks in .*cover\.label but 6",
    ),
    (lambda v: (v / "00000006.jpg").unlink(), r"000001: 6 boxes .* 5 frames .*00000006\.jpg is mi"),
    (lambda v: (v / "absence.label").write_text("0\nx\n"), r"absence\.label, line 2: 'x'"),
  ],
)
def test_what_is_wrong_with_a_video_is_named(got10k_root, open_raw, damage, message):
  damage(got10k_root / "train" / FIRST)
  with pytest.raises(ValueError, match=message):
    open_raw(Got10k, got10k_root).read_sequence("train", FIRST)


def test_missing_videos_are_counted_and_named(got10k_root, open_raw):
  with pytest.raises(
    FileNotFoundError, match=r"9332 of 9335 .*GOT-10k_Train_000003, .*--allow_missing"
  ):
    open_raw(Got10k, got10k_root).list_sequences("train")


def test_a_listed_video_that_is_not_there_is_missing(got10k_root, open_raw):
  path = got10k_root / "train/list.txt"
  path.write_text("own_video\n" + path.read_text())
  with pytest.raises(FileNotFoundError, match=r"9333 of 9336 .*missing: own_video, "):
    open_raw(Got10k, got10k_root).list_sequences("train")
  keys = open_raw(Got10k, got10k_root, allow_missing=True).list_sequences("train")
  assert keys[0] == FIRST and len(keys) == 3


def test_a_part_without_a_list_is_named(got10k_root, open_raw):
  (got10k_root / "val/list.txt").unlink()
  with pytest.raises(FileNotFoundError, match=r"no file .*val/list\.txt"):
    open_raw(Got10k, got10k_root, allow_missing=True).list_sequences("val")


def test_a_video_listed_twice_is_refused(got10k_root, open_raw):
  with open(got10k_root / "train/list.txt", "a") as file:
    file.write(f"{FIRST}\n")
  with pytest.raises(ValueError, match=rf"names {FIRST} more than once"):
    open_raw(Got10k, got10k_root, allow_missing=True).list_sequences("train")


@pytest.fixture
def complete_root(got10k_root, monkeypatch):
  """The validation part, complete: two videos."""
  monkeypatch.setitem(splits.GOT10K_COUNTS, "val", 2)
  folder = got10k_root / "val"
  (folder / "GOT-10k_Val_000002").symlink_to(folder / "GOT-10k_Val_000001")
  return got10k_root


def test_a_complete_list_needs_no_permission(complete_root, open_raw):
  (complete_root / "val/list.txt").write_text("GOT-10k_Val_000001\nGOT-10k_Val_000002")
  names = open_raw(Got10k, complete_root).list_sequences("val")
  assert names == ["GOT-10k_Val_000001", "GOT-10k_Val_000002"]


def test_a_complete_list_in_another_order_is_refused(complete_root, open_raw):
  (complete_root / "val/list.txt").write_text("GOT-10k_Val_000002\nGOT-10k_Val_000001\n")
  with pytest.raises(ValueError, match=r"list\.txt is not in natural order.* cannot be applied"):
    open_raw(Got10k, complete_root).list_sequences("val")


def test_a_prepared_split_is_read_by_tfds_and_by_its_name(got10k_root, tmp_path):
  directory = preparation.prepare_folder(Got10k, got10k_root, tmp_path / "data", allow_missing=True)
  raw = (got10k_root / "train" / FIRST / "00000002.jpg").read_bytes()
  record = tfds.builder_from_directory(os.fspath(directory)).as_data_source("train")[1]
  assert (record["sequence"], record["frame"]) == (FIRST.encode(), 1)
  assert not record["visible"].any()
  source = sources.FrameSource(directory, "train")
  assert source.jpeg(1) == raw
  np.testing.assert_array_equal(record["jpeg"], source.frame(1))
  assert len(sources.FrameSource(directory, "val").index.names) == 1
