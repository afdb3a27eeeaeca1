"""What is written of several objects, and that files are complete however a track ends."""

import json
import signal
import types

import cv2
import numpy as np
import pytest

from ostrack_jax import track_outputs
from ostrack_jax.track_drawing import DrawingOptions, TrackPainter
from ostrack_jax.tracking.frames import open_frames
from ostrack_jax.tracking.multi_tracker import TrackedObjects
from ostrack_jax.tracking.tracker import TrackResult

_GIVEN = TrackResult(np.array([10.0, 20.0, 30.0, 40.5]), float("nan"))
_FOUND = TrackResult(np.array([11.25, 20.0, 30.0, 40.0]), 0.875)
_SURE = TrackResult(np.array([1.0, 2.0, 30.0, 40.0]), 0.5, confidence=0.25, visible=False)


def _tracks(count=2, before=lambda index: None):
  """Frame 0 has object 0, frame 1 another with a confidence, and so on."""
  for index in range(count):
    before(index)
    results = {0: _GIVEN} if index == 0 else {0: _FOUND, 3: _SURE}
    image = np.full((48, 64, 3), 20 * index, np.uint8)
    yield TrackedObjects(index=index, image=image, results=results, seconds=0.01)


def _write(outputs, tracks=None, is_live=False, progress=lambda: None):
  return track_outputs.write_tracks(tracks or _tracks(), outputs, is_live, progress)


def test_a_table_has_a_row_an_object_and_frame_and_leaves_open_what_there_is_not(tmp_path):
  ending = _write([track_outputs.CsvTable(tmp_path / "o.csv")])
  assert (tmp_path / "o.csv").read_text().splitlines() == [
    "frame,object,x,y,w,h,score,confidence,visible",
    "0,0,10.0000,20.0000,30.0000,40.5000,,,",
    "1,0,11.2500,20.0000,30.0000,40.0000,0.875000,,",
    "1,3,1.0000,2.0000,30.0000,40.0000,0.500000,0.250000,0",
  ]
  assert (ending.frames, ending.seconds, ending.stopped_by) == (2, [0.01, 0.01], None)


def test_json_lines_say_the_same_with_null(tmp_path):
  _write([track_outputs.JsonLines(tmp_path / "o.jsonl")])
  first, second, third = map(json.loads, (tmp_path / "o.jsonl").read_text().splitlines())
  assert first == {
    "frame": 0, "object": 0, "box_xywh": [10, 20, 30, 40.5], "score": None, "confidence": None,
    "visible": None,
  }  # fmt: skip
  assert (second["score"], second["confidence"], second["visible"]) == (0.875, None, None)
  assert (third["object"], third["confidence"], third["visible"]) == (3, 0.25, False)


def test_motchallenge_lines_count_frames_objects_and_pixels_from_one(tmp_path):
  _write([track_outputs.MotText(tmp_path / "o.txt")])
  assert (tmp_path / "o.txt").read_text().splitlines() == [
    "1,1,11.0000,21.0000,30.0000,40.5000,1.000000,-1,-1,-1",
    "2,1,12.2500,21.0000,30.0000,40.0000,0.875000,-1,-1,-1",
    "2,4,2.0000,3.0000,30.0000,40.0000,0.250000,-1,-1,-1",
  ]


def _outputs(folder):
  painter = TrackPainter(DrawingOptions())
  return [
    track_outputs.CsvTable(folder / "o.csv"),
    track_outputs.AnnotatedVideo(folder / "o.mp4", 10, painter),
  ]


def _complete(folder, frames):
  assert sorted(path.name for path in folder.iterdir()) == ["o.csv", "o.mp4"]
  rows = (folder / "o.csv").read_text().splitlines()
  assert (
    len(rows) == 1 + 1 + 2 * (frames - 1) and len(list(open_frames(folder / "o.mp4"))) == frames
  )


@pytest.mark.parametrize("when", ["while a frame is awaited", "while one is written"])
def test_ctrl_c_completes_the_files_of_the_frames_so_far(tmp_path, when):
  def press(*_):
    signal.raise_signal(signal.SIGINT)

  outputs = _outputs(tmp_path)
  before = signal.getsignal(signal.SIGINT)
  if when == "while one is written":
    write, counts = outputs[0].write, []

    def interrupted(tracked):
      counts.append(1)
      if len(counts) == 3:
        press()
      write(tracked)

    outputs[0].write = interrupted
    ending = _write(outputs, _tracks(9))
  else:
    ending = _write(outputs, _tracks(9, lambda index: press() if index == 3 else None))
  assert isinstance(ending.stopped_by, KeyboardInterrupt) and ending.frames == 3
  _complete(tmp_path, 3)
  assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_before_the_first_frame_leaves_nothing(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    _write(_outputs(tmp_path), _tracks(9, lambda index: signal.raise_signal(signal.SIGINT)))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_live", [True, False])
def test_a_source_that_breaks_leaves_complete_files_only_if_it_cannot_be_read_again(
  tmp_path, is_live
):
  def lost(index):
    if index == 4:
      raise ValueError("camera 0 stopped delivering after 4 frames")

  if is_live:
    ending = _write(_outputs(tmp_path), _tracks(9, lost), is_live=True)
    assert str(ending.stopped_by) == "camera 0 stopped delivering after 4 frames"
    _complete(tmp_path, 4)
  else:
    with pytest.raises(ValueError, match="stopped delivering"):
      _write(_outputs(tmp_path), _tracks(9, lost))
    assert not list(tmp_path.iterdir())


def test_a_video_that_cannot_be_completed_leaves_no_table_either(tmp_path, monkeypatch):
  def fail(_):
    raise OSError("only 1 of 2 frames reached o.mp4")

  monkeypatch.setattr(track_outputs.visualization.VideoWriter, "_check_complete", fail)
  table, video = _outputs(tmp_path)
  with pytest.raises(OSError, match="only 1 of 2 frames"):
    _write([video, table])
  assert not list(tmp_path.iterdir())


@pytest.fixture
def window(monkeypatch):
  """OpenCV's windows without a display: `shown` images, `key` that waitKey gives, `closed` by its frame."""
  state = types.SimpleNamespace(shown=[], key=-1, visible=1.0, destroyed=0)
  monkeypatch.setenv("DISPLAY", ":0")
  monkeypatch.setattr(
    cv2, "getBuildInformation", lambda: "    GUI:                           GTK3\n"
  )
  monkeypatch.setattr(cv2, "imshow", lambda title, image: state.shown.append(image))
  monkeypatch.setattr(cv2, "waitKey", lambda wait: state.key if len(state.shown) == 2 else -1)
  monkeypatch.setattr(cv2, "getWindowProperty", lambda title, which: state.visible)
  monkeypatch.setattr(cv2, "destroyAllWindows", lambda: setattr(state, "destroyed", 1))
  return state


@pytest.mark.parametrize(("key", "visible", "frames"), [(ord("q"), 1, 2), (-1, 0, 1), (-1, 1, 5)])
def test_a_window_shows_every_frame_until_it_is_closed(tmp_path, window, key, visible, frames):
  window.key, window.visible = key, visible
  painter = TrackPainter(DrawingOptions())
  outputs = [track_outputs.CsvTable(tmp_path / "o.csv"), track_outputs.LiveWindow("clip", painter)]
  ending = _write(outputs, _tracks(5))
  assert (ending.frames, len(window.shown), window.destroyed) == (frames, frames, 1)
  assert ending.stopped_by is None and (tmp_path / "o.csv").exists()
  # BGR: the box of object 0 is yellow.
  assert window.shown[0][20, 15].tolist() == [66, 228, 240]


def test_a_window_without_a_display_is_refused_with_the_cure(monkeypatch, window):
  monkeypatch.delenv("DISPLAY")
  monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
  monkeypatch.setattr(track_outputs.sys, "platform", "linux")
  with pytest.raises(ValueError, match="needs a display, and neither DISPLAY nor WAYLAND_DISPLAY"):
    track_outputs.check_display()
