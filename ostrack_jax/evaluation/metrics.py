"""Overlaps, errors and curves of tracking benchmarks (numpy only).

A number depends on which frames count, so each choice is a named rule, and a rule is a function
from predicted and annotated boxes to the errors that its curves are made of:

| rule          | annotated box is NaN               | annotated box without area         |
|---------------|------------------------------------|------------------------------------|
| `otb`         | counts, fails every measure        | counts, as written: overlap 0      |
| `absent_hits` | counts, success fails, precision hits | as for NaN                      |
| `visible`     | is left out                        | is left out                        |

In every rule the first predicted box is replaced by the annotated one and counts; a predicted box
without area counts as written (overlap 0, its corner as its centre); a NaN prediction fails every
measure; lengths must agree (see `match_length`). Curves are means over the frames that count.

`otb` gives the numbers of the GOT-10k toolkit's OTB experiment. `absent_hits` is how the UAV20L
numbers were published (the original OTB and UAV123 toolkits, and pytracking for UAV123, give
absent frames an error of -1, which is below every threshold). `visible` is the GOT-10k toolkit's
UAV123 experiment.

AO and SR follow GOT-10k whatever the rule of the curves: see `got10k_overlaps`.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

SUCCESS_THRESHOLDS = np.linspace(0.0, 1.0, 21)
PRECISION_THRESHOLDS = np.arange(51.0)
NORMALISED_THRESHOLDS = np.arange(51) / 100.0
# Both precision scores are read at position 20 of their curves: 20 px, and 0.20 of the target.
SCORE_POSITION = 20


@dataclasses.dataclass(frozen=True)
class FrameErrors:
  """Errors of the frames that count under a rule, each [m] float64.

  overlaps: IoU in [0, 1]. centre_errors: pixels. normalised_errors: in sizes of the annotated box.
  NaN and infinity fail every threshold; -1 fails success and hits every precision threshold.
  """

  overlaps: np.ndarray
  centre_errors: np.ndarray
  normalised_errors: np.ndarray


Rule = Callable[[np.ndarray, np.ndarray], FrameErrors]


def overlap(a_xywh: np.ndarray, b_xywh: np.ndarray) -> np.ndarray:
  """Return the IoU of paired boxes, [n, 4] pixels each, as [n] in [0, 1].

  0 where the union has no area; NaN where a box is NaN.
  """
  top_left = np.maximum(a_xywh[:, :2], b_xywh[:, :2])
  bottom_right = np.minimum(a_xywh[:, :2] + a_xywh[:, 2:], b_xywh[:, :2] + b_xywh[:, 2:])
  intersection = np.maximum(bottom_right - top_left, 0.0).prod(axis=1)
  union = a_xywh[:, 2:].prod(axis=1) + b_xywh[:, 2:].prod(axis=1) - intersection
  safe = np.where(union <= 0, 1.0, union)
  return np.clip(np.where(union <= 0, 0.0, intersection / safe), 0.0, 1.0)


def centre_error(predicted_xywh: np.ndarray, annotated_xywh: np.ndarray) -> np.ndarray:
  """Return the distance in pixels between the centres of paired boxes, [n]."""
  return np.linalg.norm(_centre_offset(predicted_xywh, annotated_xywh), axis=1)


def normalised_error(predicted_xywh: np.ndarray, annotated_xywh: np.ndarray) -> np.ndarray:
  """Return the centre distance with x in annotated widths and y in annotated heights, [n].

  Infinite where the annotated box has no area. Follows pytracking (TrackingNet's definition).
  """
  has_area = annotated_xywh[:, 2:].min(axis=1) > 0
  size = np.where(has_area[:, None], annotated_xywh[:, 2:], 1.0)
  error = np.linalg.norm(_centre_offset(predicted_xywh, annotated_xywh) / size, axis=1)
  return np.where(has_area, error, np.inf)


def _centre_offset(a_xywh: np.ndarray, b_xywh: np.ndarray) -> np.ndarray:
  # The -1 of inclusive pixel ranges cancels, but keeping it keeps the toolkit's rounding.
  return (a_xywh[:, :2] + (a_xywh[:, 2:] - 1) / 2) - (b_xywh[:, :2] + (b_xywh[:, 2:] - 1) / 2)


def match_length(predicted_xywh: np.ndarray, frames: int) -> np.ndarray:
  """Return the predictions of exactly `frames` frames, [frames, 4].

  Rows beyond are dropped; missing rows become NaN, so that they fail. pytracking also drops the
  excess, but fills with zero boxes, which can still hit a precision threshold near the corner. The
  GOT-10k toolkit stops instead: whoever calls this should say so to the user.
  """
  matched = np.full((frames, 4), np.nan)
  rows = min(len(predicted_xywh), frames)
  matched[:rows] = predicted_xywh[:rows]
  return matched


def usable_boxes(annotated_xywh: np.ndarray) -> np.ndarray:
  """Return where an annotated box is a box: no NaN, positive width and height. [n] bool."""
  return ~np.isnan(annotated_xywh.sum(axis=1)) & (annotated_xywh[:, 2:].min(axis=1) > 0)


def _checked(predicted_xywh: np.ndarray, annotated_xywh: np.ndarray):
  predicted = np.array(predicted_xywh, dtype=np.float64)
  annotated = np.asarray(annotated_xywh, dtype=np.float64)
  for name, boxes in (("predicted", predicted), ("annotated", annotated)):
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
      raise ValueError(f"{name} boxes have shape {boxes.shape}; expected (n, 4) with n at least 1")
  if len(predicted) != len(annotated):
    raise ValueError(
      f"{len(predicted)} predicted boxes for {len(annotated)} annotated ones; "
      "match_length makes them equal"
    )
  predicted[0] = annotated[0]
  return predicted, annotated


def otb(predicted_xywh: np.ndarray, annotated_xywh: np.ndarray) -> FrameErrors:
  """Count all n frames, absent ones as failures of every measure; boxes are [n, 4] pixels.

  Follows ExperimentOTB of the GOT-10k toolkit. Raises ValueError where the lengths differ.
  """
  predicted, annotated = _checked(predicted_xywh, annotated_xywh)
  return FrameErrors(
    overlaps=overlap(predicted, annotated),
    centre_errors=centre_error(predicted, annotated),
    normalised_errors=normalised_error(predicted, annotated),
  )


def absent_hits(predicted_xywh: np.ndarray, annotated_xywh: np.ndarray) -> FrameErrors:
  """Count all n frames, absent ones as failed overlaps and as hits of both precisions.

  Boxes are [n, 4] pixels. The rule of the published UAV20L numbers. Raises ValueError where the
  lengths differ.
  """
  errors = otb(predicted_xywh, annotated_xywh)
  usable = usable_boxes(np.asarray(annotated_xywh))
  return FrameErrors(
    overlaps=np.where(usable, errors.overlaps, -1.0),
    centre_errors=np.where(usable, errors.centre_errors, -1.0),
    normalised_errors=np.where(usable, errors.normalised_errors, -1.0),
  )


def visible(predicted_xywh: np.ndarray, annotated_xywh: np.ndarray) -> FrameErrors:
  """Count the frames whose annotated box is usable, the first among them; boxes are [n, 4] pixels.

  Follows ExperimentUAV123 of the GOT-10k toolkit. Raises ValueError where the lengths differ.
  """
  errors = otb(predicted_xywh, annotated_xywh)
  usable = usable_boxes(np.asarray(annotated_xywh))
  return FrameErrors(
    overlaps=errors.overlaps[usable],
    centre_errors=errors.centre_errors[usable],
    normalised_errors=errors.normalised_errors[usable],
  )


RULES: dict[str, Rule] = {"otb": otb, "absent_hits": absent_hits, "visible": visible}


def got10k_overlaps(
  predicted_xywh: np.ndarray,
  annotated_xywh: np.ndarray,
  image_size: tuple[int, int] | None = None,
) -> np.ndarray:
  """Return the overlaps that AO and SR average: all frames but the first and the absent ones.

  Args:
    predicted_xywh, annotated_xywh: [n, 4] pixels.
    image_size: (width, height), to which both boxes are clipped; None leaves them unclipped.

  Returns:
    [m] in [0, 1]; a NaN prediction has overlap 0. Empty for a sequence of one frame.

  Follows ExperimentGOT10k of the GOT-10k toolkit, whose clip moves a corner into the image
  without shortening the box by the part that was outside. Absent here means a box that is NaN or
  has no area, where GOT-10k has its own cover labels.
  """
  predicted, annotated = _checked(predicted_xywh, annotated_xywh)
  counted = usable_boxes(annotated)
  counted[0] = False
  predicted, annotated = predicted[counted], annotated[counted]
  if image_size is not None:
    predicted, annotated = _clip(predicted, image_size), _clip(annotated, image_size)
  return np.nan_to_num(overlap(predicted, annotated), nan=0.0)


def _clip(boxes_xywh: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
  bound = np.asarray(image_size, dtype=np.float64)
  corner = np.clip(boxes_xywh[:, :2], 0.0, bound)
  return np.concatenate([corner, np.clip(boxes_xywh[:, 2:], 0.0, bound - corner)], axis=1)


def success_curve(overlaps: np.ndarray) -> np.ndarray:
  """Return the share of frames whose overlap exceeds each of 21 thresholds from 0 to 1 (strict).

  Every entry of overlaps [m] counts, NaN as a failure. The mean of the curve is the AUC. Raises
  ValueError for no frames.
  """
  return (_some(overlaps)[:, None] > SUCCESS_THRESHOLDS).mean(axis=0)


def precision_curve(centre_errors: np.ndarray) -> np.ndarray:
  """Return the share of frames whose centre error is within each of 0, 1, ... 50 pixels.

  Every entry of centre_errors [m] counts, NaN as a failure. Raises ValueError for no frames.
  """
  return (_some(centre_errors)[:, None] <= PRECISION_THRESHOLDS).mean(axis=0)


def normalised_precision_curve(normalised_errors: np.ndarray) -> np.ndarray:
  """Return the share of frames whose normalised error is within each of 0, 0.01, ... 0.5.

  Every entry of normalised_errors [m] counts, NaN as a failure. Raises ValueError for no frames.
  """
  return (_some(normalised_errors)[:, None] <= NORMALISED_THRESHOLDS).mean(axis=0)


def _some(values: np.ndarray) -> np.ndarray:
  if not len(values):
    raise ValueError("no frame counts: every frame is absent; expected at least one usable box")
  return np.asarray(values, dtype=np.float64)


def average_overlap(overlaps: np.ndarray) -> float:
  """Return AO, the mean of the overlaps [m] of got10k_overlaps; NaN for none."""
  return float(np.mean(overlaps)) if len(overlaps) else float("nan")


def success_rate(overlaps: np.ndarray, threshold: float) -> float:
  """Return SR, the share of the overlaps [m] of got10k_overlaps above threshold; NaN for none."""
  return float(np.mean(overlaps > threshold)) if len(overlaps) else float("nan")
