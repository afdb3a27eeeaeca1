"""How far two runs over one sequence agree, and where they part."""

import dataclasses

import numpy as np

from ostrack_jax import crop


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
  """What free-running results share.

  Attributes:
    parted_at: the first frame whose search region was cut elsewhere, because a corner or side that is
      rounded to whole pixels came out differently; None where they never part. From there on the network
      saw other pixels, and the boxes may differ by anything.
    largest_px: the largest difference of a coordinate before that frame.
  """

  parted_at: int | None
  largest_px: float


def compare_runs(ours_xywh: np.ndarray, theirs_xywh: np.ndarray, search_factor: float) -> Agreement:
  """Compare the boxes of two free-running trackers of one checkpoint.

  Args:
    ours_xywh, theirs_xywh: [n, 4] pixels of the frame, row 0 the box that both were started with.
    search_factor: that both cut their search regions with.

  Raises:
    ValueError: the shapes differ or are no boxes.
  """
  ours, theirs = np.asarray(ours_xywh, np.float64), np.asarray(theirs_xywh, np.float64)
  if ours.shape != theirs.shape or ours.ndim != 2 or ours.shape[1] != 4 or not len(ours):
    raise ValueError(
      f"cannot compare boxes of shapes {ours.shape} and {theirs.shape}; expected twice the same [n, 4]"
    )
  # The search region of a frame is cut around the box before it.
  parted = (
    number
    for number in range(1, len(ours))
    if crop.crop_window(ours[number - 1], search_factor)
    != crop.crop_window(theirs[number - 1], search_factor)
  )
  parted_at = next(parted, None)
  return Agreement(parted_at=parted_at, largest_px=float(np.abs(ours - theirs)[:parted_at].max()))
