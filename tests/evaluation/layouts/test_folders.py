import cv2
import numpy as np
import pytest

from ostrack_jax.evaluation import benchmarks
from ostrack_jax.tracking import frames as frame_files


def write_tnl2k(tree, names, frames=3, suffix=".png"):
  for name in names:
    tree.frames(f"{name}/imgs", 1, frames, 5, suffix)
    tree.boxes(f"{name}/groundtruth.txt", 3)


def test_tnl2k_has_700_folders_of_jpg_or_png(tree):
  write_tnl2k(tree, [f"video_{i}" for i in range(699)], suffix=".jpg")
  write_tnl2k(tree, ["_odd-Done"])
  for ignored in (".cache", "__MACOSX"):
    (tree.root / ignored).mkdir()
  selection = tree.select("tnl2k")
  assert len(selection.videos) == 700
  assert tree.video("tnl2k", "_odd-Done").frames[2].name == "00003.png"


def test_tnl2k_names_missing_frames_and_annotations(tree):
  write_tnl2k(tree, ["a", "b", "c"])
  (tree.root / "a/imgs/00002.png").unlink()
  (tree.root / "b/groundtruth.txt").rename(tree.root / "b/groundtruth_rect.txt")
  (tree.root / "c/imgs").rename(tree.root / "c/img")
  assert tree.reason("tnl2k", "a") == "2 frames for 3 boxes; none is numbered 00002"
  assert tree.reason("tnl2k", "b") == "no groundtruth.txt"
  assert tree.reason("tnl2k", "c") == "no frames in imgs"


def test_a_damaged_frame_is_named_when_it_is_read(tree):
  write_tnl2k(tree, ["test_015_Sord_video_Q01_done"])
  video = tree.video("tnl2k", "test_015_Sord_video_Q01_done")
  _, good = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))
  video.frames[0].write_bytes(good.tobytes())
  assert frame_files.read_image(video.frames[0]).shape == (4, 4, 3)
  with pytest.raises(ValueError, match=r"Q01_done/imgs/00002\.png is not a readable image"):
    frame_files.read_image(video.frames[1])


def test_vot_takes_the_extent_of_polygons_and_nan_as_absent(tree):
  tree.frames("book/color", 1, 3, 8)
  tree.text("book/groundtruth.txt", "5,0,10,5,5,12,1,5\n" + ",".join(["nan"] * 8) + "\n" * 2)
  tree.text("book/occlusion.tag", "0\n1\n")
  tree.text("notes/readme.txt", "no sequence\n")
  (video,) = tree.select("vot").videos
  assert video.name == "book"
  np.testing.assert_array_equal(video.boxes_xywh, [[1, 0, 9, 12], [np.nan] * 4])
  assert [frame.name for frame in video.frames] == ["00000001.jpg", "00000002.jpg"]


def test_vot_names_follow_its_list(tree):
  for name in ("b", "a", "spare"):
    tree.frames(f"{name}/color", 1, 2, 8)
    tree.boxes(f"{name}/groundtruth.txt", 2)
  tree.text("list.txt", "b\na\ngone\n")
  selection = tree.select("vot", allow_missing=True)
  assert [video.name for video in selection.videos] == ["b", "a"]
  assert selection.missing == {"gone": "no folder gone"}
  assert selection.declared == 3


def test_official_polygons_are_read(reference_dir):
  root = reference_dir / "data" / "sequences" / "VOT"
  book, bag = benchmarks.select(benchmarks.BENCHMARKS["vot"], root).videos
  assert (book.name, len(book.frames), bag.name, len(bag.frames)) == ("book", 175, "vot15_bag", 196)
  assert book.boxes_xywh[0].tolist() == [199, 49, 88, 64]
