"""Videos to try the page with."""

import cv2
import numpy as np
import pytest

from ostrack_jax.tracking.frames import open_frames
from ostrack_jax.web import examples


def test_procedural_examples_come_with_a_target_in_a_box(tmp_path):
  found = examples.render(tmp_path)
  assert len(found) == 2 and len({one.name for one in found}) == 2
  for one in found:
    video = open_frames(one.source)
    first = next(iter(video))
    assert len(video) == 60 and first.shape == (360, 480, 3)
    assert cv2.imread(str(one.thumbnail)).shape == (240, 320, 3)
    x, y, w, h = one.box_xywh
    assert x >= 0 and y >= 0 and x + w <= 480 and y + h <= 360 and min(w, h) > 20


def test_a_folder_gives_its_videos_and_folders_of_images(tmp_path):
  folder, place = tmp_path / "mine", tmp_path / "place"
  place.mkdir()
  for name in ("clip10", "clip9/img", "empty"):
    (folder / name).mkdir(parents=True)
  image = np.zeros((48, 64, 3), np.uint8)
  cv2.imwrite(str(folder / "clip10" / "0.png"), image)
  cv2.imwrite(str(folder / "clip9" / "img" / "0.jpg"), image)
  (folder / "notes.txt").write_text("not a video")
  (folder / ".hidden.mp4").write_text("not a video")
  found = examples.find(folder, place)
  assert [(one.name, one.source) for one in found] == [
    ("clip9", folder / "clip9" / "img"),
    ("clip10", folder / "clip10"),
  ]
  assert all(one.box_xywh is None and one.thumbnail.parent == place for one in found)


def test_a_folder_without_videos_or_with_a_broken_one_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"--examples=.*nowhere is not a folder"):
    examples.find(tmp_path / "nowhere", tmp_path)
  with pytest.raises(FileNotFoundError, match=r"holds neither a video \(mp4, avi"):
    examples.find(tmp_path, tmp_path)
  (tmp_path / "broken.mp4").write_text("no video")
  with pytest.raises(ValueError, match=r"broken\.mp4 is not a readable video"):
    examples.find(tmp_path, tmp_path)
