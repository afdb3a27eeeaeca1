"""One-pass evaluation: start a tracker on the first frame and let it run to the last."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
from absl import logging

from ostrack_jax.evaluation import benchmarks, results
from ostrack_jax.tracking import frames as frame_files


class Tracked(Protocol):
  """What tracking a sequence gives: boxes_xywh [n, 4] pixels and seconds [n], a row a frame."""

  @property
  def boxes_xywh(self) -> np.ndarray: ...

  @property
  def seconds(self) -> np.ndarray: ...


# Frames [h, w, 3] RGB uint8 and the first box, xywh pixels.
Track = Callable[[Iterable[np.ndarray], np.ndarray], Tracked]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """What a run gave: name to result, to (width, height), and, where it failed, to the reason."""

  results: dict[str, results.RecordedResult]
  image_sizes: dict[str, tuple[int, int]]
  failed: dict[str, str]


def warm_up(track: Track, videos: Sequence[benchmarks.Video]) -> None:
  """Track two frames and forget them, so that no sequence's time holds the compilation.

  A failure here is left to the sequence itself to report.
  """
  try:
    first = videos[0]
    frame = frame_files.read_image(first.frames[0])
    track([frame, frame], first.boxes_xywh[0])
  except Exception:
    logging.debug("warm-up failed", exc_info=True)


def run(
  track: Track,
  videos: Sequence[benchmarks.Video],
  folder: pathlib.Path,
  on_frame: Callable[[str], object] = lambda name: None,
) -> Outcome:
  """Track each sequence from its first annotated box and write its result files to a folder.

  Args:
    track: tracks one sequence, as tracking.engine.track_sequence does with a tracker.
    on_frame: called with the sequence's name for every frame that is `track` has taken.

  A sequence that raises, or whose boxes are too few or not finite, is logged and recorded as
  failed, and the others go on.
  """
  outcome = Outcome(results={}, image_sizes={}, failed={})
  for video in videos:
    try:
      recorded, image_size = _track_one(track, video, on_frame)
      results.write_result(folder, video.name, recorded)
    except Exception as error:
      # Bad files and boxes explain themselves; anything else needs its traceback.
      expected = isinstance(error, ValueError | OSError)
      logging.warning("sequence %s failed: %s", video.name, error, exc_info=not expected)
      outcome.failed[video.name] = str(error) if expected else f"{type(error).__name__}: {error}"
    else:
      outcome.results[video.name] = recorded
      outcome.image_sizes[video.name] = image_size
  return outcome


def _track_one(
  track: Track, video: benchmarks.Video, on_frame: Callable[[str], object]
) -> tuple[results.RecordedResult, tuple[int, int]]:
  image_size = (0, 0)

  def frames() -> Iterator[np.ndarray]:
    nonlocal image_size
    for frame in map(frame_files.read_image, video.frames):
      image_size = (frame.shape[1], frame.shape[0])
      on_frame(video.name)
      yield frame

  tracked = track(frames(), video.boxes_xywh[0])
  boxes_xywh = np.asarray(tracked.boxes_xywh, dtype=np.float64)
  if boxes_xywh.shape != (len(video.frames), 4):
    raise ValueError(
      f"tracker gave boxes of shape {boxes_xywh.shape}; expected {(len(video.frames), 4)}"
    )
  (bad,) = np.nonzero(~np.isfinite(boxes_xywh).all(axis=1))
  if len(bad):
    raise ValueError(f"tracker gave {boxes_xywh[bad[0]].tolist()} for frame {bad[0]}")
  return results.RecordedResult(boxes_xywh, np.asarray(tracked.seconds)), image_size
