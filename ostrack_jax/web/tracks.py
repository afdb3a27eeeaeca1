"""A track through a clip: the annotated video, the table, how sure the network was, and what it eliminated."""

import dataclasses
import itertools
import math
import pathlib
import threading
from collections.abc import Sequence

from ostrack_jax import network_figures, track_drawing, track_outputs
from ostrack_jax.tracking import inspection
from ostrack_jax.tracking.multi_tracker import MultiTracker
from ostrack_jax.tracking.weights import TrackableCheckpoint
from ostrack_jax.web.clips import Clip, Progress

Box = tuple[float, float, float, float]
_TRAIL_FRAMES = 15


@dataclasses.dataclass(frozen=True)
class Start:
  """Where an object starts: a frame's number from 0, and box_xywh in its pixels."""

  frame: int
  box_xywh: Box


@dataclasses.dataclass(frozen=True)
class FrameScore:
  """How sure the network was of an object in a frame: its score, and the calibrated confidence if there is one."""

  frame: int
  object: int
  score: float
  confidence: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tracks:
  """Results of a track.

  Attributes:
    video, table: the annotated .mp4 and the .csv, as `ostrack-track` writes them.
    elimination: .mp4 of what the network eliminated along one object's track; None where not asked for.
    scores: of every object and frame but those that the objects start in.
    frames: that were tracked.
    was_stopped: whether the visitor ended it before the clip's end.
  """

  video: pathlib.Path
  table: pathlib.Path
  elimination: pathlib.Path | None
  scores: list[FrameScore]
  frames: int
  was_stopped: bool


class _FrameScores(track_outputs.Output):
  """Keeps scores, and ends the track when the visitor stops it."""

  def __init__(self, stop: threading.Event):
    self.found: list[FrameScore] = []
    self._stop = stop

  def write(self, tracked: track_outputs.Tracked) -> None:
    """Keep a frame's scores."""
    self.found += [
      FrameScore(tracked.index, number, found.score, found.confidence)
      for number, found in tracked.results.items()
      if not math.isnan(found.score)
    ]
    self.is_closed = self._stop.is_set()

  def __exit__(self, *error) -> None:
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Follower:
  """Tracks objects through a clip, into files.

  Attributes:
    checkpoint: what `ostrack_jax.load` returns.
    search_factor: as for Tracker.
    folder: to write to, which exists.
    progress: called with the share done, None where unknown, and words.
    stop: ends the work at the next frame; what is written by then is complete.
  """

  checkpoint: TrackableCheckpoint
  search_factor: float | None
  folder: pathlib.Path
  progress: Progress
  stop: threading.Event

  def follow(self, clip: Clip, starts: Sequence[Start]) -> Tracks:
    """Track all objects at once, numbered in the order of `starts`, which is that of their frames.

    Raises ValueError and OSError as MultiTracker.track and the files do.
    """
    objects = "1 object" if len(starts) == 1 else f"{len(starts)} objects"
    self.progress(None, f"Preparing the network for {objects}")
    tracker = MultiTracker(
      self.checkpoint, max_objects=len(starts), search_factor=self.search_factor
    )
    boxes_by_frame: dict[int, list[Box]] = {}
    for start in starts:
      boxes_by_frame.setdefault(start.frame, []).append(start.box_xywh)
    painter = track_drawing.TrackPainter(
      track_drawing.DrawingOptions(trail=_TRAIL_FRAMES, numbered=len(starts) > 1)
    )
    video, table = (self.folder / f"{file_stem(clip.name)}_tracks{s}" for s in (".mp4", ".csv"))
    scores, count = _FrameScores(self.stop), itertools.count(1)
    ending = track_outputs.write_tracks(
      tracker.track(clip.frames(), boxes_by_frame),
      [
        track_outputs.AnnotatedVideo(video, clip.fps, painter),
        track_outputs.CsvTable(table),
        scores,
      ],
      is_live=False,
      progress=lambda: self.progress(next(count) / clip.count, f"Tracking {objects}"),
    )
    return Tracks(
      video=video,
      table=table,
      elimination=None,
      scores=scores.found,
      frames=ending.frames,
      was_stopped=ending.frames < clip.count,
    )

  def show_elimination(self, clip: Clip, start: Start) -> pathlib.Path | None:
    """Track one object again, and write a video of the candidates eliminated on the way.

    Returns its path; None where `stop` came before its first frame. Raises as inspection.inspect.
    """
    inspected = inspection.inspect(
      self.checkpoint,
      clip.frames(start.frame),
      start.box_xywh,
      search_factor=self.search_factor,
    )
    numbered = (
      dataclasses.replace(one, index=one.index + start.frame)
      for one in itertools.takewhile(lambda _: not self.stop.is_set(), inspected)
    )
    count, total = itertools.count(1), clip.count - start.frame - 1
    network_figures.write_pictures(
      numbered,
      (),
      self.folder,
      fps=clip.fps,
      source=clip.name,
      names=(),
      progress=lambda: self.progress(next(count) / total, "Drawing eliminated candidates"),
    )
    written = self.folder / "elimination.mp4"
    if not written.is_file():
      return None
    return written.rename(self.folder / f"{file_stem(clip.name)}_elimination.mp4")


def check_eliminates(checkpoint: TrackableCheckpoint) -> None:
  """Raise ValueError where a network keeps all its candidates."""
  if not checkpoint.model.elimination_layers:
    raise ValueError("this network keeps all candidates, so there is nothing eliminated to show")


def file_stem(name: str) -> str:
  """Return a name made safe for files: letters, digits, and - _ . between them, at most 80 bytes."""
  kept = "".join(one if one.isalnum() or one in "-_." else "_" for one in pathlib.Path(name).stem)
  return kept.strip("._").encode()[:80].decode(errors="ignore") or "video"
