"""What a visitor of the page does, without a browser and without a network."""

import csv
import pathlib
import threading
import types

import numpy as np
import pytest

from ostrack_jax import visualization
from ostrack_jax.tracking.frames import open_frames
from ostrack_jax.tracking.multi_tracker import TrackedObjects
from ostrack_jax.tracking.tracker import TrackResult
from ostrack_jax.web import tracks as tracks_lib
from ostrack_jax.web import views
from ostrack_jax.web.clips import Limits
from ostrack_jax.web.session import Session, Sessions
from ostrack_jax.web.tracks import FrameScore, Start, file_stem

EIGHT = 8


class _Shifting:
  """A MultiTracker without a network: moves every box by a pixel a frame."""

  def __init__(self, checkpoint, max_objects, search_factor=None):
    self.checkpoint, self.max_objects = checkpoint, max_objects

  def track(self, frames, boxes_by_frame):
    boxes = {}
    for index, image in enumerate(frames):
      self.checkpoint.at(index)
      boxes = {number: box + np.array([1.0, 0, 0, 0]) for number, box in boxes.items()}
      results = {n: TrackResult(box, 0.5 + n / 10) for n, box in boxes.items()}
      for box in boxes_by_frame.get(index, ()):
        boxes[len(boxes)] = np.array(box)
        results[len(results)] = TrackResult(np.array(box), float("nan"))
      assert len(boxes) <= self.max_objects
      yield TrackedObjects(index=index, image=image, results=results, seconds=0.01)


def _network(at=lambda index: None, elimination_layers=()):
  return types.SimpleNamespace(
    at=at, model=types.SimpleNamespace(elimination_layers=elimination_layers)
  )


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
  monkeypatch.setattr(tracks_lib, "MultiTracker", _Shifting)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
  path = tmp_path_factory.mktemp("video") / "my clip.mp4"
  with visualization.VideoWriter(path, fps=10) as writer:
    for number in range(EIGHT):
      writer.write(np.full((48, 64, 3), 20 * number, np.uint8))
  return path


@pytest.fixture
def root(tmp_path):
  (tmp_path / "server").mkdir()
  return tmp_path / "server"


@pytest.fixture
def session(root):
  return Session(root, Limits(max_objects=3))


def _quiet(share, words):
  pass


def _files(folder):
  return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".jpg")


def _upload(video, root) -> pathlib.Path:
  """Lay a copy where Gradio lays uploads."""
  folder = root / "0123abcd"
  folder.mkdir()
  path = folder / video.name
  path.write_bytes(video.read_bytes())
  return path


def test_objects_are_tracked_from_where_each_was_drawn_into_both_files(session, video):
  session.open(video, video.name, _quiet)
  session.add(3, (30, 20, 10, 12))
  session.add(0, (5, 6, 20, 22))
  told = []
  found = session.track(_network(), lambda *one: told.append(one))
  with found.table.open() as file:
    rows = [list(row.values()) for row in csv.DictReader(file)]
  # Numbered by where they start, whatever came first by hand, in the list and in the table.
  assert [start.frame for start in session.starts] == [0, 3]
  assert [(int(row[0]), int(row[1])) for row in rows] == [
    *((frame, 0) for frame in range(3)),
    *((frame, number) for frame in range(3, EIGHT) for number in (0, 1)),
  ]
  x = {(int(row[0]), int(row[1])): float(row[2]) for row in rows}
  assert x[0, 0] == 5 and x[7, 0] == 12 and x[3, 1] == 30 and x[7, 1] == 34
  assert (found.frames, found.was_stopped, found.elimination) == (EIGHT, False, None)
  assert found.video.name == "my_clip_tracks.mp4" and found.table.name == "my_clip_tracks.csv"
  written = open_frames(found.video)
  assert (len(list(written)), written.fps) == (EIGHT, 10)
  assert found.scores[:2] == [FrameScore(1, 0, 0.5, None), FrameScore(2, 0, 0.5, None)]
  assert len(found.scores) == 7 + 4
  assert [share for share, _ in told[1:]] == pytest.approx(np.arange(1, 9) / 8)
  assert told[0][1] == "Preparing the network for 2 objects"


def test_stopping_keeps_what_was_tracked(session, video):
  session.open(video, "v.mp4", _quiet)
  session.add(0, (5, 6, 20, 22))
  found = session.track(_network(lambda index: session.stop() if index == 4 else None), _quiet)
  assert (found.frames, found.was_stopped) == (5, True)
  assert len(found.table.read_text().splitlines()) == 1 + 5
  assert len(list(open_frames(found.video))) == 5
  assert (
    views.tracks_line(found, session.opened()) == "Stopped: 5 of 8 frames of v.mp4 were tracked."
  )
  # The next one starts anew.
  assert session.track(_network(), _quiet).frames == EIGHT


def test_a_track_that_waits_for_others_can_be_stopped_before_it_begins(session, video, root):
  session.open(video, "v.mp4", _quiet)
  session.add(0, (5, 6, 20, 22))
  session.stop()
  with pytest.raises(ValueError, match=r"^stopped before the track began$"):
    session.track(_network(), _quiet)
  assert _files(root) == []
  assert session.track(_network(), _quiet).frames == EIGHT
  # A click that came too late is not for what comes next.
  for then in (session.forget_stop, lambda: session.open(video, "w.mp4", _quiet)):
    session.stop()
    then()
    session.starts = [Start(0, (5, 6, 20, 22))]
    assert session.track(_network(), _quiet).frames == EIGHT


def test_a_second_track_replaces_the_files_of_the_first(session, video, root):
  session.open(_upload(video, root), "v.mp4", _quiet, is_upload=True)
  session.add(0, (5, 6, 20, 22))
  first = session.track(_network(), _quiet)
  second = session.track(_network(), _quiet)
  assert not first.video.exists() and second.video.exists()
  assert _files(root) == ["clip0.mp4", "v_tracks.csv", "v_tracks.mp4"]


def test_an_error_while_tracking_leaves_the_clip_and_no_half_files(session, video, root):
  session.open(_upload(video, root), "v.mp4", _quiet, is_upload=True)
  session.add(0, (5, 6, 20, 22))

  def fail(index):
    if index == 4:
      raise ValueError("frame 4: the network found no box")

  with pytest.raises(ValueError, match="found no box"):
    session.track(_network(fail), _quiet)
  assert _files(root) == ["clip0.mp4"]
  assert session.track(_network(), _quiet).frames == EIGHT


def test_another_video_forgets_the_objects_and_the_files_of_the_one_before(session, video, root):
  session.open(_upload(video, root), "v.mp4", _quiet, is_upload=True)
  session.add(0, (5, 6, 20, 22))
  session.track(_network(), _quiet)
  session.open(video, "other.mp4", _quiet)
  assert session.starts == [] and session.opened().name == "other.mp4"
  assert _files(root) == []
  # An example is the server's own and stays.
  assert video.exists()


def test_an_upload_that_cannot_be_read_goes_and_the_clip_before_stays(session, video, root):
  session.open(video, "good.mp4", _quiet)
  bad = _upload(video, root)
  bad.write_text("no video")
  with pytest.raises(ValueError, match=r"^bad\.mp4 is not a readable video$"):
    session.open(bad, "bad.mp4", _quiet, is_upload=True)
  assert _files(root) == [] and not bad.parent.exists()
  assert session.opened().name == "good.mp4" and session.opened().preview(7)


def test_an_upload_that_another_visitor_took_is_asked_for_again(session, root):
  with pytest.raises(ValueError, match=r"^v\.mp4 is no longer there; upload it again$"):
    session.open(root / "0123abcd" / "v.mp4", "v.mp4", _quiet, is_upload=True)


def test_closing_the_page_removes_its_files_alone(root, video):
  sessions = Sessions(root, Limits())
  for key in ("a", "b"):
    sessions.of(key).open(video, f"{key}.mp4", _quiet)
  assert sessions.of("a") is sessions.of("a") is not sessions.of("b")
  assert len(list(root.iterdir())) == 2
  sessions.close("a")
  sessions.close("never seen")
  assert len(list(root.iterdir())) == 1
  assert sessions.of("b").opened().preview(0)
  assert sessions.of("a").clip is None


def test_closing_the_page_ends_its_track_and_then_removes_the_files(session, video, root):
  session.open(video, "v.mp4", _quiet)
  session.add(0, (5, 6, 20, 22))
  reached = []

  def close_in_frame_2(index):
    reached.append(index)
    if index == 2:
      closing = threading.Thread(target=session.close)
      closing.start()
      closing.join()
      assert any(root.iterdir())

  session.track(_network(close_in_frame_2), _quiet)
  assert reached == [0, 1, 2] and list(root.iterdir()) == []
  with pytest.raises(ValueError, match="this page was closed"):
    session.track(_network(), _quiet)


def test_closing_the_page_ends_reading(session, video, root):
  def close_at_once(share, words):
    session.close()

  with pytest.raises(ValueError, match="stopped before the video was read"):
    session.open(_upload(video, root), "v.mp4", close_at_once, is_upload=True)
  assert list(root.iterdir()) == []


def test_a_second_click_is_refused_and_the_first_one_goes_on(session, video):
  session.open(video, "v.mp4", _quiet)
  session.add(0, (5, 6, 20, 22))
  refused = []

  def click_again(index):
    if index in (1, 5):
      for again in (
        lambda: session.track(_network(), _quiet),
        lambda: session.open(video, "w", _quiet),
      ):
        with pytest.raises(ValueError, match="at work already; wait for it, or press Stop"):
          again()
        refused.append(index)
      # Drawing goes on, for the next track.
      session.add(index, (9, 9, 9, 9))

  found = session.track(_network(click_again), _quiet)
  assert refused == [1, 1, 5, 5]
  assert found.frames == EIGHT and {one.object for one in found.scores} == {0}
  assert len(session.starts) == 3 and session.opened().name == "v.mp4"


def test_what_is_missing_is_said_in_one_sentence(session, video, root):
  with pytest.raises(ValueError, match=r"^choose a video first: upload one, or take an example$"):
    session.add(0, (5, 6, 20, 22))
  session.open(video, "v.mp4", _quiet)
  with pytest.raises(ValueError, match=r"^draw a box around a target first$"):
    session.track(_network(), _quiet)
  with pytest.raises(ValueError, match=r"no frame 8; v\.mp4 has frames 0 to 7"):
    session.add(8, (5, 6, 20, 22))
  session.add(0, (5, 6, 20, 22))
  with pytest.raises(ValueError, match="this network keeps all candidates"):
    session.track(_network(), _quiet, elimination_of=0)
  with pytest.raises(ValueError, match="there is no object 1"):
    session.track(_network(elimination_layers=(1,)), _quiet, elimination_of=1)
  session.add(7, (5, 6, 20, 22))
  with pytest.raises(ValueError, match="object 1 starts in the last frame"):
    session.track(_network(elimination_layers=(1,)), _quiet, elimination_of=1)
  session.add(7, (5, 6, 20, 22))
  with pytest.raises(ValueError, match="there are 3 objects already"):
    session.add(7, (5, 6, 20, 22))


def test_a_full_server_refuses_uploads_and_tracks(root, video):
  session = Session(root, Limits(max_temp_mb=0.5))
  session.open(video, "v.mp4", _quiet)
  session.add(0, (5, 6, 20, 22))
  (root / "of somebody else").write_bytes(bytes(600_000))
  for refused in (
    lambda: session.track(_network(), _quiet),
    lambda: session.open(_upload(video, root), "w.mp4", _quiet, is_upload=True),
  ):
    with pytest.raises(ValueError, match="the server's temporary folder is full"):
      refused()
  assert _files(root) == ["of somebody else"]


def test_removing_an_object_keeps_the_others(session, video):
  session.open(video, "v.mp4", _quiet)
  for frame in (0, 2, 4):
    session.add(frame, (5 + frame, 6, 20, 22))
  session.remove(1)
  session.remove(7)
  assert session.starts == [Start(0, (5, 6, 20, 22)), Start(4, (9, 6, 20, 22))]


def test_the_frame_shows_the_boxes_that_start_in_it(session, video):
  assert views.frame_view(session, 0) is None
  session.open(video, "v.mp4", _quiet)
  session.add(2, (5, 6, 20, 22))
  session.add(4, (9, 6, 20, 22))
  shown = views.frame_view(session, 4)
  assert (shown["frame"], shown["width"], shown["height"]) == (4, 64, 48)
  assert shown["source"].startswith("data:image/jpeg;base64,/9j/")
  assert [(one["label"], one["box_xywh"]) for one in shown["boxes"]] == [("1", (9, 6, 20, 22))]
  assert views.frame_view(session, 3)["boxes"] == []
  # A slider may still stand at a frame of the clip before.
  assert views.frame_view(session, 99)["frame"] == 7


def test_names_are_text_and_never_markup(session, video):
  hostile = "<img src=x onerror=alert(1)>.mp4"
  clip = session.open(video, hostile, _quiet)
  session.add(0, (5, 6, 20, 22))
  found = session.track(_network(), _quiet)
  for line in (views.clip_line(clip), views.tracks_line(found, clip)):
    assert "<img" not in line and "&lt;img src=x" in line
  assert "8 frames of 64 x 48 pixels, 10 a second" in views.clip_line(clip)


@pytest.mark.parametrize(
  ("name", "stem"),
  [
    ("my clip.mp4", "my_clip"), ("../../etc/passwd", "passwd"), ("...", "video"), ("飞机.mov", "飞机"),
    ("a" * 300 + ".mp4", "a" * 80), ("漢" * 80 + ".mp4", "漢" * 26),
  ],
)  # fmt: skip
def test_results_are_named_after_the_video(name, stem):
  assert file_stem(name) == stem
