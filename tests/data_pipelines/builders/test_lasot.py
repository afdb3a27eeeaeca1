"""LaSOT: where its videos lie, what hides a target, and errors that name the file."""

import numpy as np
import pytest

from data_pipelines import splits
from data_pipelines.builders.lasot import Lasot


def test_training_and_test_videos_are_told_apart_by_name(lasot_root, open_raw, read_all):
  builder = open_raw(Lasot, lasot_root, allow_missing=True)
  assert [s.name for s in read_all(builder)] == ["airplane-10", "bear-1", "zebra-1"]
  assert [s.name for s in read_all(builder, "test")] == ["airplane-1"]


def test_either_mark_or_a_box_without_size_hides_the_target(lasot_root, open_raw, read_all):
  (target,) = read_all(open_raw(Lasot, lasot_root, allow_missing=True))[0].targets
  np.testing.assert_array_equal(target.visible, [True, False, False, False, True])
  assert not target.boxes_xywh[1:4].any()


def test_boxes_and_frames_are_those_of_the_files(lasot_root, open_raw, read_all):
  sequence = read_all(open_raw(Lasot, lasot_root, allow_missing=True))[2]
  folder = lasot_root / "zebra/zebra-1"
  np.testing.assert_array_equal(
    sequence.targets[0].boxes_xywh, np.loadtxt(folder / "groundtruth.txt", delimiter=",")
  )
  assert sequence.frames[:2] == (folder / "img/00000001.jpg", folder / "img/00000002.jpg")
  assert sequence.targets[0].name == "zebra-1"


def test_missing_videos_are_counted_and_named(lasot_root, open_raw):
  with pytest.raises(
    FileNotFoundError, match=r"1117 of 1120 .* missing: airplane-11, .*--allow_missing"
  ):
    open_raw(Lasot, lasot_root).list_sequences("train")


def test_a_complete_list_needs_no_permission(lasot_root, open_raw, monkeypatch):
  monkeypatch.setattr(splits, "subset", lambda dataset, split: ("zebra-1", "airplane-10"))
  keys = open_raw(Lasot, lasot_root).list_sequences("train")
  assert keys == ["zebra/zebra-1", "airplane/airplane-10"]


def test_a_folder_without_any_video_is_refused(tmp_path, open_raw):
  with pytest.raises(FileNotFoundError, match=r"1120 of 1120 .*check the raw folder"):
    open_raw(Lasot, tmp_path, allow_missing=True).list_sequences("train")


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (
      lambda v: (v / "img/00000003.jpg").unlink(),
      r"bear-1: 5 boxes .* 4 frames .*00000003\.jpg is m",
    ),
    (
      lambda v: (v / "img/00000006.jpg").touch(),
      r"bear-1: 5 boxes .* 6 frames .*00000006\.jpg is on",
    ),
    (
      lambda v: (v / "groundtruth.txt").write_text("1,2,3,4\n" * 2 + "NaN,2,3,4\n" * 3),
      r"bear-1: NaN in .*bear-1/groundtruth\.txt, line 3",
    ),
    (
      lambda v: (v / "groundtruth.txt").write_text("1,2,3\n" * 5),
      r"bear-1: 3 columns in .*groundtruth\.txt; expected x y w h",
    ),
    (
      lambda v: (v / "groundtruth.txt").write_text("1,2,3,4\n5,6,7,x\n"),
      r"bear-1/groundtruth\.txt, line 2: '5,6,7,x'",
    ),
    (
      lambda v: (v / "out_of_view.txt").write_text("0,0,0,0"),
      r"bear-1: 4 marks in .*out_of_view\.txt but 5 boxes",
    ),
    (
      lambda v: (v / "full_occlusion.txt").unlink(),
      r"bear-1: no file .*full_occlusion\.txt",
    ),
    (
      lambda v: (v / "img").rename(v / "frames"),
      r"bear-1: no folder .*bear-1/img",
    ),
  ],
)
def test_what_is_wrong_with_a_video_is_named(lasot_root, open_raw, damage, message):
  damage(lasot_root / "bear-1")
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    open_raw(Lasot, lasot_root).read_sequence("train", "bear-1")


def test_nan_where_the_target_is_hidden_is_no_error(lasot_root, open_raw):
  video = lasot_root / "bear-1"
  (video / "groundtruth.txt").write_text("1,2,3,4\nNaN,NaN,NaN,NaN\n" + "1,2,3,4\n" * 3)
  (video / "out_of_view.txt").write_text("0,1,0,0,0")
  (target,) = open_raw(Lasot, lasot_root).read_sequence("train", "bear-1").targets
  assert target.visible.sum() == 4 and np.isfinite(target.boxes_xywh).all()


def test_a_real_video(reference_dir, open_raw, read_all):
  root = reference_dir / "data/sequences/LaSOT"
  builder = open_raw(Lasot, root, allow_missing=True)
  (sequence,) = read_all(builder, "test")
  assert (sequence.name, len(sequence.frames)) == ("airplane-1", 200)
  (target,) = sequence.targets
  assert target.visible.all()
  np.testing.assert_array_equal(target.boxes_xywh[[0, 3]], [[367, 101, 41, 16], [362, 109, 46, 16]])
  with pytest.raises(FileNotFoundError, match="279 of 280 LaSOT test sequences"):
    open_raw(Lasot, root).list_sequences("test")
