"""Videos of visitors: read whole, with a picture of every frame; and boxes that an object can start with."""

import pathlib
import shutil

import cv2
import numpy as np
import pytest

from ostrack_jax import visualization
from ostrack_jax.web.clips import Limits, check_room, open_clip


def _write_video(path, count=6, size=(64, 48), fps=12.5):
  with visualization.VideoWriter(path, fps=fps) as writer:
    for number in range(count):
      writer.write(np.full((size[1], size[0], 3), 20 + 30 * number, np.uint8))
  return path


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "server").mkdir()
  return tmp_path / "server"


def _open(source, folder, name="mine.mp4", max_frames=100, progress=lambda share, words: None):
  return open_clip(source, name, folder / "previews", max_frames, progress)


def test_every_frame_has_its_own_picture(tmp_path, folder):
  told = []
  clip = _open(_write_video(tmp_path / "v.mp4"), folder, progress=lambda *one: told.append(one))
  assert (clip.name, clip.count, clip.size, clip.fps) == ("mine.mp4", 6, (64, 48), 12.5)
  assert not clip.is_cut
  for number in range(6):
    shown = cv2.imdecode(np.frombuffer(clip.preview(number), np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (48, 64, 3)
    assert abs(shown.mean() - (20 + 30 * number)) < 6
  assert [share for share, _ in told] == pytest.approx(np.arange(1, 7) / 6)
  assert told[0][1] == "Reading mine.mp4"


def test_pictures_of_large_frames_are_smaller_and_of_the_same_shape(tmp_path, folder):
  clip = _open(_write_video(tmp_path / "v.mp4", 2, (2400, 200)), folder)
  shown = cv2.imdecode(np.frombuffer(clip.preview(1), np.uint8), cv2.IMREAD_COLOR)
  assert clip.size == (2400, 200) and shown.shape == (80, 960, 3)


def test_a_longer_video_is_cut_and_says_so(tmp_path, folder):
  source = _write_video(tmp_path / "v.mp4")
  clip = _open(source, folder, max_frames=4)
  assert (clip.count, clip.is_cut) == (4, True)
  assert len(list(clip.previews.iterdir())) == 4
  frames = list(clip.frames())
  assert len(frames) == 4
  np.testing.assert_array_equal(next(clip.frames(3)), frames[3])
  shutil.rmtree(clip.previews)
  assert not _open(source, folder, max_frames=6).is_cut


def _text(path):
  path.write_text("no video")


def _single(path):
  _write_video(path, 1)


def _uneven(path):
  path.mkdir()
  for number, width in enumerate((64, 64, 62)):
    cv2.imwrite(str(path / f"{number}.png"), np.zeros((48, width, 3), np.uint8))


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (_text, "holiday.mp4 is not a readable video"),
    (_single, "holiday.mp4 has 1 frame; expected a video of 2 frames or more"),
    (_uneven, "frame 2 of holiday.mp4 has 62 x 48 pixels, those before it 64 x 48"),
    (lambda path: None, "holiday.mp4 does not exist"),
  ],
)
def test_what_cannot_be_used_is_called_by_its_name_and_leaves_nothing(
  tmp_path, folder, make, message
):
  make(tmp_path / "upload.mp4")
  with pytest.raises(ValueError) as raised:
    _open(tmp_path / "upload.mp4", folder, "holiday.mp4")
  assert str(raised.value).startswith(message) and str(tmp_path) not in str(raised.value)
  assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  folder = tmp_path_factory.mktemp("clip")
  return _open(_write_video(folder / "v.mp4"), folder)


@pytest.mark.parametrize(
  ("box", "kept"),
  [
    ((10.04, 8, 20, 12.34), (10.0, 8.0, 20.0, 12.3)),
    ((-5, -6, 15, 16), (0.0, 0.0, 10.0, 10.0)),
    ((50, 40, 30, 30), (50.0, 40.0, 14.0, 8.0)),
  ],
)
def test_boxes_are_cut_at_the_border(clip, box, kept):
  assert clip.check_box(box) == kept


@pytest.mark.parametrize(
  ("box", "message"),
  [
    ((10, 10, 3.9, 20), "a box of 3.9 x 20 pixels is too small to follow; draw one of 4 pixels"),
    ((10, 10, 0, 0), "a box of 0 x 0 pixels is too small to follow"),
    ((61, 10, 20, 20), "a box of 3 x 20 pixels is too small to follow"),
    ((90, 10, 20, 20), "lies outside the frame of 64 x 48 pixels"),
    ((0, 0, 500, 20), "more than twice as large"),
    ((0, 0, float("nan"), 20), "must be four finite numbers"),
    ((1, 2, 3), "must be four finite numbers"),
  ],
)
def test_boxes_that_no_track_could_start_with_are_refused(clip, box, message):
  with pytest.raises(ValueError, match=message):
    clip.check_box(box)


def test_a_full_folder_is_refused_in_megabytes(tmp_path: pathlib.Path):
  (tmp_path / "deep").mkdir()
  (tmp_path / "deep" / "file").write_bytes(bytes(2_000_000))
  check_room(tmp_path, 2.1)
  with pytest.raises(
    ValueError, match=r"temporary folder is full \(2 of 1.5 MB\): close other tabs"
  ):
    check_room(tmp_path, 1.5)


@pytest.mark.parametrize(
  ("limits", "message"),
  [
    ({"max_frames": 1}, "--max_frames=1 leaves nothing to track"),
    ({"max_upload_mb": 0}, "--max_upload_mb=0 must be above 0"),
    ({"max_temp_mb": -1}, "--max_temp_mb=-1 must be above 0"),
    ({"max_temp_mb": float("nan")}, "--max_temp_mb=nan must be above 0 and finite"),
    ({"max_upload_mb": float("inf")}, "--max_upload_mb=inf must be above 0 and finite"),
  ],
)
def test_limits_that_leave_nothing_are_refused(limits, message):
  with pytest.raises(ValueError, match=message):
    Limits(**limits)
