"""One-pass evaluation: start a tracker on the first frame and let it run to the last."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
from absl import logging

from ostrack_jax.evaluation.run_folder import RunFolder, TrackedSequence
from ostrack_jax.evaluation.videos import Video


class Tracked(Protocol):
  """What tracking a sequence gives: boxes_xywh [n, 4] pixels, scores and seconds [n], a row a frame, or the
  seconds of all."""

  @property
  def boxes_xywh(self) -> np.ndarray: ...

  @property
  def scores(self) -> np.ndarray: ...

  @property
  def seconds(self) -> np.ndarray | float: ...


# Tracks one sequence, calling what it is given after every frame.
Track = Callable[[Video, Callable[[], object]], Tracked]


def one_by_one(
  track: Track, videos: Sequence[Video], progress: Callable[[int], object] = lambda frames: None
) -> Iterator[TrackedSequence]:
  """Track sequences one after another; what one raises is its own end alone.

  progress: called with 1 after every frame.
  """
  for video in videos:
    try:
      tracked = track(video, lambda: progress(1))
    except Exception as error:
      nothing = np.empty(0)
      yield TrackedSequence(
        video=video, boxes_xywh=np.empty((0, 4)), scores=nothing, seconds=nothing, error=error
      )
    else:
      yield TrackedSequence(
        video=video,
        boxes_xywh=tracked.boxes_xywh,
        scores=tracked.scores,
        seconds=tracked.seconds,
      )


def record(tracked: Iterable[TrackedSequence], folder: RunFolder) -> dict[str, str]:
  """Write the files of each sequence as it ends; return those that failed, with the reason.

  A sequence fails that ended with an error, or whose boxes are too few or not finite. It is logged, and
  the others go on.
  """
  failed = {}
  for one in tracked:
    try:
      if one.error is not None:
        raise one.error
      folder.write(one)
    except Exception as error:
      # Bad files and boxes explain themselves; anything else needs its traceback.
      expected = isinstance(error, ValueError | OSError)
      logging.warning("sequence %s failed: %s", one.video.name, error, exc_info=not expected)
      failed[one.video.name] = str(error) if expected else f"{type(error).__name__}: {error}"
  return failed
