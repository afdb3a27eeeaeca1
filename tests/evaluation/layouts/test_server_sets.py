"""GOT-10k and TrackingNet, whose test sets publish the first box alone."""

import numpy as np
import pytest


def write_test(tree, count=180, listed=True):
  names = [f"GOT-10k_Test_{number:06d}" for number in range(1, count + 1)]
  for name in names:
    tree.frames(f"test/{name}", 1, 3, 8)
    tree.text(f"test/{name}/groundtruth.txt", "5.5000,6.0000,7.0000,8.0000\n")
  if listed:
    tree.text("test/list.txt", "\n".join(names))
  return names


def write_val(tree, name="GOT-10k_Val_000001", cover="8\n0\n3\n"):
  tree.text("val/list.txt", f"{name}\n")
  tree.frames(f"val/{name}", 1, 3, 8)
  tree.boxes(f"val/{name}/groundtruth.txt", 3)
  tree.text(f"val/{name}/absence.label", "0\n0\n0\n")
  tree.text(f"val/{name}/cover.label", cover)
  return name


@pytest.mark.parametrize("listed", [True, False])
def test_got10k_test_has_only_first_boxes(tree, listed):
  names = write_test(tree, listed=listed)
  selection = tree.select("got10k_test")
  assert [video.name for video in selection.videos] == names
  video = selection.videos[0]
  assert [frame.name for frame in video.frames] == [f"{i:08d}.jpg" for i in (1, 2, 3)]
  assert video.boxes_xywh[0].tolist() == [5.5, 6, 7, 8]
  assert video.boxes_xywh.shape == (3, 4)
  assert np.isnan(video.boxes_xywh[1:]).all()
  assert not video.is_annotated


def test_got10k_takes_the_order_and_the_names_of_its_list(tree):
  names = write_test(tree, 3)
  tree.text("test/list.txt", "\n".join([names[2], names[0], "GOT-10k_Test_000009"]))
  with pytest.raises(FileNotFoundError) as error:
    tree.select("got10k_test")
  assert "names 3 of 180 sequences" in str(error.value)
  assert "\n  GOT-10k_Test_000009: no folder test/GOT-10k_Test_000009" in str(error.value)
  selection = tree.select("got10k_test", allow_missing=True)
  assert [video.name for video in selection.videos] == [names[2], names[0]]
  assert selection.declared == 180
  assert "177 without a name" in selection.missing
  tree.text("test/list.txt", f"{names[0]}\n{names[0]}\n")
  with pytest.raises(ValueError, match="names GOT-10k_Test_000001 more than once"):
    tree.select("got10k_test")


def test_more_sequences_than_the_benchmark_has_are_refused(tree):
  write_test(tree, 181)
  with pytest.raises(ValueError, match="names 181 sequences, but got10k_test has 180"):
    tree.select("got10k_test", allow_missing=True)
  assert len(tree.select("got10k_test", "GOT-10k_Test_000181").videos) == 1


def test_got10k_incomplete_sequences_are_named(tree):
  (name,) = write_test(tree, 1)
  tree.boxes(f"test/{name}/groundtruth.txt", 2)
  assert "has 2 rows; expected the first frame's box alone" in tree.reason("got10k_test", name)
  (tree.root / "test" / name / "groundtruth.txt").unlink()
  assert tree.reason("got10k_test", name) == f"no file test/{name}/groundtruth.txt"
  (tree.root / "test" / name / "00000002.jpg").unlink()
  reason = "1 of 2 frames are missing, the first 00000002.jpg"
  assert tree.reason("got10k_test", name) == reason
  with pytest.raises(FileNotFoundError, match="expected the root that holds val/"):
    tree.select("got10k_val")


def test_got10k_val_hides_frames_without_cover_and_keeps_their_boxes(tree):
  name = write_val(tree)
  assert tree.video("got10k_val", name).attributes == ()
  tree.text(
    f"val/{name}/meta_info.ini",
    "[METAINFO]\nurl: https://youtu.be/x\nobject_class: ctenophore\nmotion_class: swimming\n"
    "root_class: animal\nresolution: (1920, 1080)\n",
  )
  video = tree.video("got10k_val", name)
  np.testing.assert_array_equal(video.visible, [True, False, True])
  assert video.boxes_xywh[1].tolist() == [2, 2, 30, 40]
  assert video.is_annotated
  assert video.attributes == ("root_class: animal", "motion_class: swimming")


def test_got10k_val_needs_its_cover(tree):
  name = write_val(tree, cover="8\n8\n")
  assert tree.reason("got10k_val", name) == f"val/{name}/cover.label has 2 values for 3 frames"
  (tree.root / "val" / name / "cover.label").unlink()
  assert tree.reason("got10k_val", name) == f"no file val/{name}/cover.label"


def write_trackingnet(tree, count, frames=1):
  # YouTube's names may begin like hidden files of other systems.
  names = ["_x-Y_0", "-Dz7OIf54b0_0", *(f"a{i}_0" for i in range(count - 2))]
  for name in names:
    tree.frames(f"TEST/frames/{name}", 0, frames - 1, 1)
    tree.text(f"TEST/anno/{name}.txt", "10,20,30,40\n")
  return names


def test_trackingnet_has_511_sequences_with_one_box(tree):
  names = write_trackingnet(tree, 511)
  selection = tree.select("trackingnet")
  assert [video.name for video in selection.videos] == sorted(names)
  assert not any(video.is_annotated for video in selection.videos)


def test_trackingnet_counts_frames_from_zero_without_padding(tree):
  write_trackingnet(tree, 3, frames=12)
  video = tree.video("trackingnet", "_x-Y_0")
  assert [frame.name for frame in video.frames] == [f"{i}.jpg" for i in range(12)]
  assert video.boxes_xywh[0].tolist() == [10, 20, 30, 40]
  assert np.isnan(video.boxes_xywh[1:]).all()


def test_trackingnet_names_what_has_frames_or_a_box_only(tree):
  write_trackingnet(tree, 4, frames=2)
  (tree.root / "TEST/anno/_x-Y_0.txt").unlink()
  for frame in (tree.root / "TEST/frames/a1_0").iterdir():
    frame.unlink()
  (tree.root / "TEST/frames/a1_0").rmdir()
  with pytest.raises(FileNotFoundError) as error:
    tree.select("trackingnet")
  text = str(error.value)
  assert "2 of 4 sequences are incomplete" in text
  assert "names 4 of 511 sequences; complete them, or pass --allow_missing" in text
  assert "\n  _x-Y_0: no file TEST/anno/_x-Y_0.txt" in text
  assert "\n  a1_0: no folder TEST/frames/a1_0" in text
  assert len(tree.select("trackingnet", limit=1).videos) == 1
