import threading
import time

import numpy as np
import pytest

from ostrack_jax.tracking import engine
from ostrack_jax.tracking.tracker import TrackResult


class _Counting:
  """Answers frame n, which is filled with n, with the box [n, 1, 2, 3]."""

  def __init__(self, seconds=0.0):
    self.seconds = seconds
    self.started_with = None

  def init(self, frame, box_xywh):
    self.started_with = (int(frame.flat[0]), tuple(box_xywh))

  def update(self, frame):
    time.sleep(self.seconds)
    number = int(frame.flat[0])
    return TrackResult(np.array([number, 1.0, 2.0, 3.0]), number / 100)


def _frames(count, seconds=0.0):
  for number in range(count):
    time.sleep(seconds)
    yield np.full((2, 2, 3), number, np.uint8)


def test_each_frame_has_a_row_and_the_first_is_the_given_box():
  tracker, calls = _Counting(seconds=0.003), []
  result = engine.track_sequence(
    tracker, _frames(7), (5, 6, 7, 8), progress=lambda: calls.append(1)
  )
  assert tracker.started_with == (0, (5, 6, 7, 8))
  np.testing.assert_array_equal(result.boxes_xywh[0], [5, 6, 7, 8])
  np.testing.assert_array_equal(result.boxes_xywh[1:, 0], np.arange(1, 7))
  assert result.boxes_xywh.shape == (7, 4) and result.boxes_xywh.dtype == np.float64
  assert np.isnan(result.scores[0])
  np.testing.assert_allclose(result.scores[1:], np.arange(1, 7) / 100)
  assert (result.seconds[1:] >= 0.003).all()
  assert len(calls) == 7


def test_the_next_frame_is_read_while_the_tracker_works():
  asked_for = [threading.Event() for _ in range(6)]

  def frames():
    for number in range(6):
      asked_for[number].set()
      yield np.full((2, 2, 3), number, np.uint8)

  class Waiting(_Counting):
    def update(self, frame):
      following = int(frame.flat[0]) + 1
      assert following == 6 or asked_for[following].wait(timeout=20)
      return super().update(frame)

  assert len(engine.track_sequence(Waiting(), frames(), (0, 0, 9, 9)).boxes_xywh) == 6


def test_waiting_for_frames_is_not_in_the_trackers_time():
  result = engine.track_sequence(_Counting(), _frames(5, seconds=0.04), (0, 0, 9, 9))
  assert np.median(result.seconds) < 0.02


def test_few_frames_are_read_ahead():
  read = []

  def frames():
    for number in range(50):
      read.append(number)
      yield np.full((2, 2, 3), number, np.uint8)

  images = engine.read_ahead(frames(), depth=3)
  next(images)
  time.sleep(0.05)
  assert len(read) <= 4
  images.close()
  assert len(read) <= 5


def test_what_is_read_is_closed_when_nobody_wants_more():
  closed = threading.Event()

  def frames():
    try:
      yield from _frames(50)
    finally:
      closed.set()

  images = engine.read_ahead(frames())
  next(images)
  images.close()
  assert closed.is_set()


def test_an_error_while_reading_comes_out_after_the_frames_before_it():
  def frames():
    yield from _frames(3)
    raise ValueError("7.jpg is not a readable image")

  seen = []
  with pytest.raises(ValueError, match=r"7\.jpg is not a readable image"):
    for tracked in engine.track_frames(_Counting(), frames(), (0, 0, 9, 9)):
      seen.append(tracked.box_xywh)
  assert len(seen) == 3


def test_a_frame_that_the_tracker_refuses_is_numbered_and_the_reader_ends():
  class Refusing(_Counting):
    def update(self, frame):
      if frame.flat[0] == 2:
        raise ValueError("cannot use it")
      return super().update(frame)

  with pytest.raises(ValueError, match=r"^frame 2: cannot use it$"):
    engine.track_sequence(Refusing(), _frames(30), (0, 0, 9, 9))
  assert not [t for t in threading.enumerate() if t.name.startswith("frames")]


def test_a_sequence_without_frames_is_refused():
  with pytest.raises(ValueError, match="no frames"):
    engine.track_sequence(_Counting(), [], (0, 0, 9, 9))


def test_one_frame_gives_the_given_box_alone():
  result = engine.track_sequence(_Counting(), _frames(1), (1, 2, 3, 4))
  np.testing.assert_array_equal(result.boxes_xywh, [[1, 2, 3, 4]])
