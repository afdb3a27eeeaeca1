"""What `track` writes, frame by frame: a table, JSON lines, MOTChallenge text, a video, a window."""

import abc
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol

import cv2
import numpy as np

from ostrack_jax import visualization
from ostrack_jax.interrupts import Interrupts
from ostrack_jax.track_drawing import TrackPainter

_QUIT_KEYS = (ord("q"), 27)


class Found(Protocol):
  """One object's result, as tracking.tracker.TrackResult."""

  @property
  def box_xywh(self) -> np.ndarray: ...

  @property
  def score(self) -> float: ...

  @property
  def confidence(self) -> float | None: ...

  @property
  def visible(self) -> bool | None: ...


class Tracked(Protocol):
  """A frame's results, as tracking.multi_tracker.TrackedObjects."""

  @property
  def index(self) -> int: ...

  @property
  def image(self) -> np.ndarray: ...

  @property
  def results(self) -> Mapping[int, Found]: ...


class Output(contextlib.AbstractContextManager, abc.ABC):
  """Takes one frame after another. A file appears when the block ends without an error, else none.

  Attributes:
    is_closed: whether the user wants no more of it.
  """

  is_closed = False

  def __enter__(self):
    return self

  @abc.abstractmethod
  def write(self, tracked: Tracked) -> None:
    """Write a frame's results."""


class _TextFile(Output):
  """Lines of text, one for every object of every frame."""

  header = ""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._context = contextlib.ExitStack()

  def __enter__(self):
    temporary = self._context.enter_context(visualization.written_whole(self._path))
    self._file = self._context.enter_context(temporary.open("w", encoding="utf-8"))
    self._file.write(self.header)
    return self

  def write(self, tracked: Tracked) -> None:
    """Write a frame's results."""
    for number, found in tracked.results.items():
      self._file.write(self.line(tracked.index, number, found) + "\n")

  @abc.abstractmethod
  def line(self, frame: int, number: int, found: Found) -> str:
    """Return the line of one object in one frame."""

  def __exit__(self, *error):
    return self._context.__exit__(*error)


class CsvTable(_TextFile):
  """A row an object and frame, both from 0; boxes in pixels; what there is not stays empty."""

  header = "frame,object,x,y,w,h,score,confidence,visible\n"

  def line(self, frame: int, number: int, found: Found) -> str:
    """Return the line of one object in one frame."""
    box = ",".join(f"{value:.4f}" for value in found.box_xywh.tolist())
    score, confidence = (
      "" if value is None else f"{value:.6f}" for value in (_score(found), found.confidence)
    )
    visible = "" if found.visible is None else str(int(found.visible))
    return f"{frame},{number},{box},{score},{confidence},{visible}"


class JsonLines(_TextFile):
  """A JSON object an object and frame, both from 0; boxes in pixels; what there is not is null."""

  def line(self, frame: int, number: int, found: Found) -> str:
    """Return the line of one object in one frame."""
    values = {
      "frame": frame,
      "object": number,
      "box_xywh": [round(value, 4) for value in found.box_xywh.tolist()],
      "score": _rounded(_score(found)),
      "confidence": _rounded(found.confidence),
      "visible": found.visible,
    }
    return json.dumps(values)


class MotText(_TextFile):
  """The MOTChallenge's result lines: frame, id, left, top, width, height, confidence, -1, -1, -1.

  Frames, ids and pixels count from 1, as its development kit asks; the confidence is the calibrated one
  where there is one, else the score, and 1 for the box that was given.
  """

  def line(self, frame: int, number: int, found: Found) -> str:
    """Return the line of one object in one frame."""
    x, y, w, h = found.box_xywh.tolist()
    score = _score(found) if found.confidence is None else found.confidence
    return f"{frame + 1},{number + 1},{x + 1:.4f},{y + 1:.4f},{w:.4f},{h:.4f},{1 if score is None else score:.6f},-1,-1,-1"


def _rounded(value: float | None) -> float | None:
  return None if value is None else round(value, 6)


def _score(found: Found) -> float | None:
  """Return the score, None in an object's first frame and from heads that have none."""
  return None if math.isnan(found.score) else found.score


class AnnotatedVideo(Output):
  """The frames with what a painter draws on them, as an .mp4."""

  def __init__(self, path: pathlib.Path, fps: float, painter: TrackPainter):
    self._writer = visualization.VideoWriter(path, fps)
    self._painter = painter

  @property
  def codec(self) -> str:
    """Which codec is used, see visualization.VideoWriter."""
    return self._writer.codec

  def __enter__(self):
    self._writer.__enter__()
    return self

  def write(self, tracked: Tracked) -> None:
    """Write a frame's results."""
    self._writer.write(self._painter.paint(tracked.image, tracked.results))

  def __exit__(self, *error):
    return self._writer.__exit__(*error)


class LiveWindow(Output):
  """A window with the frames and what a painter draws on them.

  Raises:
    ValueError: OpenCV was built without windows, or there is no display.
  """

  def __init__(self, title: str, painter: TrackPainter):
    check_display()
    self._title, self._painter = title, painter

  def write(self, tracked: Tracked) -> None:
    """Show a frame; sets is_closed where the user closed the window, or pressed q or Escape."""
    painted = self._painter.paint(tracked.image, tracked.results)
    cv2.imshow(self._title, cv2.cvtColor(painted, cv2.COLOR_RGB2BGR))
    pressed = cv2.waitKey(1) & 0xFF
    self.is_closed = (
      pressed in _QUIT_KEYS or cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1
    )

  def __exit__(self, *error):
    cv2.destroyAllWindows()


def check_display() -> None:
  """Raise ValueError where no window can be shown, with what to do."""
  if "GUI:                           NONE" in cv2.getBuildInformation():
    raise ValueError(
      "--show needs an OpenCV with windows: pip uninstall opencv-python-headless, then pip install "
      "opencv-python"
    )
  if sys.platform == "linux" and not (
    os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
  ):
    raise ValueError(
      "--show needs a display, and neither DISPLAY nor WAYLAND_DISPLAY names one; leave it away and "
      "write --output=OUT.mp4"
    )


@dataclasses.dataclass
class Ending:
  """How a track ended.

  Attributes:
    frames: how many were written.
    seconds: spent in the tracker, for each of them.
    per_second: frames, from reading to writing, those that compile left out; NaN for fewer than three.
    stopped_by: what ended it early, though its files are complete; None for the source's end.
  """

  frames: int = 0
  seconds: list[float] = dataclasses.field(default_factory=list)
  per_second: float = float("nan")
  stopped_by: BaseException | None = None


def write_tracks(
  tracks: Generator[Any],
  outputs: Sequence[Output],
  is_live: bool,
  progress: Callable[[], object],
) -> Ending:
  """Write every frame's results to all outputs.

  Ctrl-C ends the track and completes the files, and so does an error of a live source; any other error
  leaves no file behind, as does Ctrl-C before the first frame. Videos are completed first, so that one that
  cannot be leaves no table either; a disk that is full at the last lines of a table may leave the files before it.

  Args:
    tracks: gives TrackedObjects.
    progress: called after each frame.
  """
  ending, times = Ending(), []
  with Interrupts() as interrupts, contextlib.ExitStack() as files:
    # The last one entered is completed first.
    for output in sorted(outputs, key=lambda one: isinstance(one, AnnotatedVideo)):
      files.enter_context(output)
    with contextlib.closing(tracks):
      try:
        while not any(output.is_closed for output in outputs):
          with interrupts.raised():
            tracked = next(tracks, None)
          if tracked is None:
            break
          for output in outputs:
            output.write(tracked)
          ending.seconds.append(tracked.seconds)
          times.append(time.perf_counter())
          progress()
      except KeyboardInterrupt as interrupt:
        if not times:
          raise
        ending.stopped_by = interrupt
      except (ValueError, OSError) as error:
        if not (is_live and times):
          raise
        ending.stopped_by = error
  ending.frames = len(times)
  if len(times) > 2:
    # The first update compiles.
    ending.per_second = (len(times) - 2) / (times[-1] - times[1])
  return ending
