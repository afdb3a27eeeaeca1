"""Track a whole sequence, reading frames while the device computes."""

import contextlib
import dataclasses
import itertools
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from ostrack_jax.tracking.cutting import starting_boxes
from ostrack_jax.tracking.tracker import TrackResult

FRAMES_AHEAD = 4
# More than any decoder takes for a frame.
_SECONDS_TO_END = 1.0
_END: Any = object()
NO_FRAMES = "the sequence has no frames; at least the one with the first box is needed"


class FrameTracker(Protocol):
  """Anything that starts from a box and gives a TrackResult per further frame."""

  def init(self, frame, box_xywh) -> None: ...

  def update(self, frame) -> TrackResult: ...


class Movable(FrameTracker, Protocol):
  """A tracker whose last box can be set, as Tracker's can."""

  @property
  def box_xywh(self) -> np.ndarray: ...

  @box_xywh.setter
  def box_xywh(self, box_xywh) -> None: ...


class Follower(FrameTracker, Protocol):
  """A tracker that works on frames while others are on their way, as Tracker does."""

  def follow(self, frames: Iterable[np.ndarray]) -> Iterable[TrackResult]: ...


class TeacherForced:
  """Starts every frame of a tracker from a given box, whatever was found in the frame before.

  Args:
    start_boxes_xywh: [n, 4] annotated: frame t is searched around row t - 1; see cutting.starting_boxes.
  """

  def __init__(self, tracker: Movable, start_boxes_xywh: np.ndarray):
    self._tracker = tracker
    self._annotated = self._starts = start_boxes_xywh
    self._index = 0

  def init(self, frame, box_xywh) -> None:
    """Start the track; see Tracker.init."""
    self._tracker.init(frame, box_xywh)
    self._starts = starting_boxes(self._annotated, frame.shape[:2])
    self._index = 0

  def update(self, frame) -> TrackResult:
    """Find the target in the next frame; see Tracker.update."""
    self._tracker.box_xywh = self._starts[self._index]
    self._index += 1
    return self._tracker.update(frame)


@dataclasses.dataclass(frozen=True)
class TrackedFrame:
  """A frame and what the tracker said of it.

  Attributes:
    image: [H, W, 3] RGB uint8, as read.
    box_xywh: [4] float64 pixels; in the first frame the box that was given.
    score: NaN in the first frame.
    seconds: spent in the tracker, reading the frame not counted.
  """

  image: np.ndarray
  box_xywh: np.ndarray
  score: float
  seconds: float


@dataclasses.dataclass(frozen=True)
class SequenceResult:
  """A row a frame; row 0 is the start: the given box, score NaN, the time of init.

  Attributes:
    boxes_xywh: [n, 4] float64 pixels.
    scores: [n] float64.
    seconds: [n] float64 spent in the tracker, reading not counted; of follow_sequence the time of all.
  """

  boxes_xywh: np.ndarray
  scores: np.ndarray
  seconds: np.ndarray | float


def read_ahead(frames: Iterable[np.ndarray], depth: int = FRAMES_AHEAD) -> Generator[np.ndarray]:
  """Yield frames in order while a thread reads up to `depth` more.

  What reading raises comes out where the frame would. The thread ends with this generator; one that
  waits for a camera or a pipe is left behind, and keeps no program from ending.
  """
  ready: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
  room, is_over = threading.Semaphore(depth), threading.Event()

  def read() -> None:
    frame = None
    try:
      iterator = iter(frames)
      while frame is not _END:
        room.acquire()
        if is_over.is_set():
          break
        frame = next(iterator, _END)
        ready.put((frame, None))
    except Exception as error:
      ready.put((_END, error))

  thread = threading.Thread(target=read, name="frames", daemon=True)
  thread.start()
  try:
    while True:
      frame, error = ready.get()
      if error is not None:
        raise error
      if frame is _END:
        return
      room.release()
      yield frame
  finally:
    is_over.set()
    room.release()
    thread.join(_SECONDS_TO_END)


def track_frames(
  tracker: FrameTracker, frames: Iterable[np.ndarray], init_box_xywh
) -> Iterator[TrackedFrame]:
  """Track a sequence and yield frame by frame, so that no more than a few are held.

  Args:
    tracker: is started anew on the first frame.
    frames: RGB uint8.
    init_box_xywh: four numbers, the target in the first frame, pixels.

  Raises:
    ValueError: there is no frame, or the tracker refuses one, which is named by its number from 0;
      and whatever reading a frame raises.
  """
  index = -1
  with contextlib.closing(read_ahead(frames)) as images:
    for index, image in enumerate(images):
      start = time.perf_counter()
      try:
        if index == 0:
          tracker.init(image, init_box_xywh)
          box, score = np.array(init_box_xywh, np.float64), float("nan")
        else:
          result = tracker.update(image)
          box, score = result.box_xywh, result.score
      except ValueError as error:
        raise ValueError(f"frame {index}: {error}") from error
      yield TrackedFrame(image, box, score, time.perf_counter() - start)
  if index < 0:
    raise ValueError(NO_FRAMES)


def track_sequence(
  tracker: FrameTracker,
  frames: Iterable[np.ndarray],
  init_box_xywh,
  progress: Callable[[], object] | None = None,
) -> SequenceResult:
  """Track a sequence from its first box to its last frame.

  Args:
    tracker, frames, init_box_xywh: as for track_frames, which also says what is raised.
    progress: called after each frame; the `update` of a tqdm bar, for example.
  """
  boxes_xywh, scores, seconds = [], [], []
  for tracked in track_frames(tracker, frames, init_box_xywh):
    boxes_xywh.append(tracked.box_xywh)
    scores.append(tracked.score)
    seconds.append(tracked.seconds)
    if progress is not None:
      progress()
  return SequenceResult(np.stack(boxes_xywh), np.array(scores), np.array(seconds))


def follow_sequence(
  tracker: Follower,
  frames: Iterable[np.ndarray],
  init_box_xywh,
  progress: Callable[[], object] | None = None,
) -> SequenceResult:
  """Track a sequence as track_sequence does, with the next frames on their way to the device.

  Several frames are worked on at once, so there is no more than a time of all, reading included.
  """
  began = time.perf_counter()
  images = iter(frames)
  first = next(images, None)
  if first is None:
    raise ValueError(NO_FRAMES)
  boxes_xywh, scores = [], []
  try:
    tracker.init(first, init_box_xywh)
    start = TrackResult(box_xywh=np.array(init_box_xywh, np.float64), score=float("nan"))
    for result in itertools.chain([start], tracker.follow(images)):
      boxes_xywh.append(result.box_xywh)
      scores.append(result.score)
      if progress is not None:
        progress()
  except ValueError as error:
    raise ValueError(f"frame {len(boxes_xywh)}: {error}") from error
  return SequenceResult(np.stack(boxes_xywh), np.array(scores), time.perf_counter() - began)


@contextlib.contextmanager
def frame_named(index: int) -> Iterator[None]:
  """Put a frame's number before a ValueError's words."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f"frame {index}: {error}") from error
