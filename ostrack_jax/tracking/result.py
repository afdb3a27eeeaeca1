"""What a tracker says of a frame."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from ostrack_jax.tracking.confidence import Calibrator

# What to look for where a network says something that is not finite.
NO_BOX = "are the checkpoint's weights finite? In float16 numbers beyond 65504 are not: set dtype to bfloat16 or float32"


@dataclasses.dataclass(frozen=True)
class TrackResult:
  """Where the target is.

  Attributes:
    box_xywh: [4] float64 pixels of the frame, never smaller than 10 x 10.
    score: maximum of the raw score map, before the window, in (0, 1). It says how sure the network
      is of some target in the search region; it need not fall when the target is gone. NaN from a head
      that has no score (`mlp`).
    confidence: calibrated probability that the target is in the search region and the box overlaps it by
      more than 0.5, as this frame and those before it say; None without a calibrator, never a made-up number.
    visible: whether that is above the calibrator's threshold; None without a calibrator.

  While a MultiTracker with long_term seeks a lost target, the box is frozen and visible false; score and
  confidence are those of the best place looked at.
  """

  box_xywh: np.ndarray
  score: float
  confidence: float | None = None
  visible: bool | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PendingFrame:
  """A frame that was handed to the network, which may still be at work.

  Attributes:
    index, image: as of TrackedObjects.
    lanes: by object, its row of found.
    found: [max_objects, 5 or 6] boxes, scores and, with a calibrator, confidences, perhaps not yet computed;
      None without objects.
    started: the objects that start here.
    seconds: spent on it so far.
  """

  index: int
  image: np.ndarray
  lanes: dict[int, int]
  found: np.ndarray | jax.Array | None
  started: dict[int, TrackResult]
  seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackedObjects:
  """A frame and where the objects are in it.

  Attributes:
    index: of the frame, from 0.
    image: [H, W, 3] RGB uint8, as read.
    results: by object; one that starts in this frame has the given box, and NaN for a score.
    seconds: spent on it in the tracker: not in reading it, nor while frames were on their way.
  """

  index: int
  image: np.ndarray
  results: dict[int, TrackResult]
  seconds: float


def result_of(
  box_xywh: np.ndarray,
  score: float,
  confidence: Sequence[float] | np.ndarray,
  calibrator: Calibrator | None,
  before: float | None = None,
) -> TrackResult:
  """Return the result of one target.

  Args:
    box_xywh: [4] pixels, copied.
    confidence: one number, what this frame says by itself, or none without a calibrator.
    before: the confidence told of the frame before; None for the first.
  """
  box_xywh = np.array(box_xywh, np.float64)
  if calibrator is None:
    return TrackResult(box_xywh=box_xywh, score=float(score))
  sure = calibrator.remembered(before, float(confidence[0]))
  return TrackResult(box_xywh, float(score), sure, calibrator.is_visible(sure))
