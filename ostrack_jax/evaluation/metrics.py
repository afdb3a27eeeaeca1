"""Rules: which frames of a benchmark count, and with which errors (numpy only).

A number depends on what is done with absent frames, the first frame, unequal lengths and boxes
without area, so each convention is a named rule. docs/evaluation.md has the table of what each of
them does, and tests/evaluation/test_rules.py checks its cells.

| rule               | gives                                                                |
|--------------------|----------------------------------------------------------------------|
| `pytracking`       | LaSOT-ext, NFS and TNL2K as in the paper                             |
| `pytracking_lasot` | LaSOT as in the paper: invisible frames fail both precisions         |
| `pytracking_uav`   | UAV123 as in the paper: absent frames hit both precisions            |
| `got10k`           | AO and SR of the GOT-10k server                                      |
| `trackingnet`      | the areas of the TrackingNet server                                  |
| `otb`              | the GOT-10k toolkit's OTB experiment                                 |
| `absent_hits`      | the published UAV20L numbers                                         |
| `visible`          | the GOT-10k toolkit's UAV123 experiment                              |

AO and SR follow GOT-10k whatever the rule of the curves: see `got10k_overlaps`.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from ostrack_jax.evaluation import curves
from ostrack_jax.evaluation.box_errors import (
  centre_error,
  clip_boxes,
  divided_centre_error,
  normalised_error,
  overlap,
  usable_boxes,
)


@dataclasses.dataclass(frozen=True)
class FrameErrors:
  """Errors of the frames that count under a rule, each [m] float64.

  overlaps: IoU in [0, 1]. centre_errors: pixels. normalised_errors: in sizes of the annotated box.
  NaN and infinity fail every threshold; -1 fails success and hits every precision threshold.
  """

  overlaps: np.ndarray
  centre_errors: np.ndarray
  normalised_errors: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rule:
  """A named convention. Calling it gives the errors of the frames that count.

  errors: from checked boxes [n, 4], [n] visibility and the image's size (either None where unknown)
  to FrameErrors.
  source: whose numbers it gives, in words. own_lengths: it says itself what unequal lengths mean;
  the others refuse them, and `match_length` makes them equal. areas: scores are areas under the
  curves. pooled: curves are over the frames of all sequences, not means of sequences. clips: boxes
  are cut at the image's border.
  """

  name: str
  source: str
  errors: Callable[..., FrameErrors]
  own_lengths: bool = False
  areas: bool = False
  pooled: bool = False
  clips: bool = False
  success_thresholds: np.ndarray = dataclasses.field(
    default_factory=lambda: curves.SUCCESS_THRESHOLDS
  )
  precision_thresholds: np.ndarray = dataclasses.field(
    default_factory=lambda: curves.PRECISION_THRESHOLDS
  )
  normalised_thresholds: np.ndarray = dataclasses.field(
    default_factory=lambda: curves.NORMALISED_THRESHOLDS
  )

  def __call__(
    self,
    predicted_xywh: np.ndarray,
    annotated_xywh: np.ndarray,
    visible: np.ndarray | None = None,
    image_size: tuple[int, int] | None = None,
  ) -> FrameErrors:
    """Compare boxes frame by frame.

    Args:
      predicted_xywh: [m, 4] pixels. annotated_xywh: [n, 4] pixels, NaN where absent.
      visible: [n] bool, False where the benchmark calls the target invisible; None if it is silent.
      image_size: (width, height), to which `got10k` clips; None leaves boxes unclipped.

    Raises ValueError for wrong shapes, and for lengths, sizes or NaN that the rule refuses.
    """
    predicted = _boxes("predicted", predicted_xywh)
    annotated = _boxes("annotated", annotated_xywh)
    if visible is not None:
      visible = np.asarray(visible, dtype=bool)
      if visible.shape != (len(annotated),):
        raise ValueError(
          f"visible has shape {visible.shape} for {len(annotated)} annotated boxes; "
          "expected one value a frame"
        )
    if not self.own_lengths and len(predicted) != len(annotated):
      raise ValueError(
        f"{len(predicted)} predicted boxes for {len(annotated)} annotated ones; "
        "match_length makes them equal"
      )
    return self.errors(predicted, annotated, visible, image_size)


def _boxes(name: str, boxes_xywh: np.ndarray) -> np.ndarray:
  boxes = np.array(boxes_xywh, dtype=np.float64)
  if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
    raise ValueError(f"{name} boxes have shape {boxes.shape}; expected (n, 4) with n at least 1")
  return boxes


def match_length(predicted_xywh: np.ndarray, frames: int, rule: str = "otb") -> np.ndarray:
  """Return predictions [m, 4] of as many frames as the rule needs: [frames, 4].

  Rows beyond are dropped; missing rows become NaN, so that they fail. The GOT-10k toolkit stops
  instead: whoever calls this should say so to the user. Under a rule that has a convention of its
  own for unequal lengths they are returned as they are.
  """
  if RULES[rule].own_lengths:
    return predicted_xywh
  return _resized(predicted_xywh, frames, np.nan)


def _resized(predicted: np.ndarray, frames: int, fill: float) -> np.ndarray:
  resized = np.full((frames, 4), fill)
  rows = min(len(predicted), frames)
  resized[:rows] = predicted[:rows]
  return resized


def _absent(annotated: np.ndarray, visible: np.ndarray | None) -> np.ndarray:
  usable = usable_boxes(annotated)
  return ~usable if visible is None else ~(usable & visible)


def _otb(predicted, annotated, visible=None, image_size=None) -> FrameErrors:
  del visible, image_size  # OTB has no such labels, and does not clip.
  predicted[0] = annotated[0]
  return FrameErrors(
    overlaps=overlap(predicted, annotated),
    centre_errors=centre_error(predicted, annotated),
    normalised_errors=normalised_error(predicted, annotated),
  )


def _absent_hits(predicted, annotated, visible, image_size) -> FrameErrors:
  del image_size
  errors = _otb(predicted, annotated)
  absent = _absent(annotated, visible)
  return FrameErrors(
    overlaps=np.where(absent, -1.0, errors.overlaps),
    centre_errors=np.where(absent, -1.0, errors.centre_errors),
    normalised_errors=np.where(absent, -1.0, errors.normalised_errors),
  )


def _visible(predicted, annotated, visible, image_size) -> FrameErrors:
  del image_size
  return _only(_otb(predicted, annotated), ~_absent(annotated, visible))


def _got10k(predicted, annotated, visible, image_size) -> FrameErrors:
  counted = _cover_above_zero(annotated, visible)
  if image_size is not None:
    predicted, annotated = clip_boxes(predicted, image_size), clip_boxes(annotated, image_size)
  return _only(_otb(predicted, annotated), counted)


def _cover_above_zero(annotated: np.ndarray, visible: np.ndarray | None) -> np.ndarray:
  # Where cover labels are at hand they decide alone; a NaN box has nothing to compare with.
  if visible is None:
    counted = usable_boxes(annotated)
  else:
    counted = visible & ~np.isnan(annotated.sum(axis=1))
  counted = counted.copy()
  counted[0] = False
  return counted


def _only(errors: FrameErrors, counted: np.ndarray) -> FrameErrors:
  return FrameErrors(
    overlaps=errors.overlaps[counted],
    centre_errors=errors.centre_errors[counted],
    normalised_errors=errors.normalised_errors[counted],
  )


def _trackingnet(predicted, annotated, visible, image_size) -> FrameErrors:
  del visible, image_size  # TrackingNet has no such labels, and does not clip.
  predicted = np.round(_resized(predicted, len(annotated), np.nan))
  return _otb(predicted, np.round(annotated))


def _pytracking(dataset: str):
  """Return the errors of pytracking's calc_seq_err_robust for '', 'uav' or 'lasot'."""

  def errors(predicted, annotated, visible, image_size) -> FrameErrors:
    del image_size
    _refuse(predicted, annotated, nan_allowed=dataset == "uav")
    if dataset == "lasot":
      if visible is None:
        raise ValueError(
          "rule pytracking_lasot needs the visible frames (full_occlusion.txt and out_of_view.txt); "
          "give visible, or choose rule pytracking"
        )
      if len(predicted) < len(annotated):
        raise ValueError(
          f"{len(predicted)} predicted boxes for {len(annotated)} annotated ones; "
          "rule pytracking_lasot refuses results that are too short: track the whole sequence"
        )
    rows = min(len(predicted), len(annotated))
    predicted = predicted[:rows]
    (empty,) = np.nonzero((predicted[:, 2:] == 0).any(axis=1))
    for row in empty:
      if row and not np.isnan(annotated[row]).any():
        predicted[row] = predicted[row - 1]
    # After the replacement: filled rows stay zero boxes, which can hit a precision threshold.
    predicted = _resized(predicted, len(annotated), 0.0)
    predicted[0] = annotated[0]
    invalid = _absent(annotated, visible)
    centre = np.where(
      invalid, -1.0 if dataset == "uav" else np.inf, centre_error(predicted, annotated)
    )
    normalised = np.where(invalid, -1.0, divided_centre_error(predicted, annotated))
    if dataset == "lasot":
      normalised = np.where(visible, normalised, np.inf)
    return FrameErrors(
      overlaps=np.where(invalid, -1.0, overlap(predicted, annotated)),
      centre_errors=centre,
      normalised_errors=normalised,
    )

  return errors


def _refuse(predicted: np.ndarray, annotated: np.ndarray, nan_allowed: bool) -> None:
  bad = np.isnan(predicted).any(axis=1) | (predicted[:, 2:] < 0).any(axis=1)
  if bad.any():
    row = int(np.argmax(bad))
    raise ValueError(
      f"predicted box {predicted[row].tolist()} of frame {row}: pytracking's rules refuse NaN and "
      "negative sizes; correct the result file, or choose another rule"
    )
  absent = np.isnan(annotated).any(axis=1)
  if absent.any() and not nan_allowed:
    raise ValueError(
      f"annotated box of frame {int(np.argmax(absent))} is NaN, which pytracking allows for UAV123 "
      "alone; choose rule pytracking_uav, absent_hits or visible"
    )


_SERVER_THRESHOLDS = np.linspace(0.0, 1.0, 21)
RULES: dict[str, Rule] = {
  rule.name: rule
  for rule in (
    Rule(
      name="pytracking",
      source="pytracking, as the paper's numbers on LaSOT-ext, NFS and TNL2K",
      errors=_pytracking(""),
      own_lengths=True,
    ),
    Rule(
      name="pytracking_uav",
      source="pytracking for UAV123, as the paper's numbers",
      errors=_pytracking("uav"),
      own_lengths=True,
    ),
    Rule(
      name="pytracking_lasot",
      source="pytracking for LaSOT, as the paper's numbers",
      errors=_pytracking("lasot"),
      own_lengths=True,
    ),
    Rule(
      name="got10k",
      source="the GOT-10k toolkit and server, over the frames of all sequences together",
      errors=_got10k,
      pooled=True,
      clips=True,
      success_thresholds=np.linspace(0.0, 1.0, 101),
    ),
    Rule(
      name="trackingnet",
      source="the TrackingNet server: areas under the curves",
      errors=_trackingnet,
      own_lengths=True,
      areas=True,
      precision_thresholds=50 * _SERVER_THRESHOLDS,
      normalised_thresholds=0.5 * _SERVER_THRESHOLDS,
    ),
    Rule(name="otb", source="the GOT-10k toolkit's OTB experiment", errors=_otb),
    Rule(name="absent_hits", source="the published UAV20L numbers", errors=_absent_hits),
    Rule(name="visible", source="the GOT-10k toolkit's UAV123 experiment", errors=_visible),
  )
}


def got10k_overlaps(
  predicted_xywh: np.ndarray,
  annotated_xywh: np.ndarray,
  image_size: tuple[int, int] | None = None,
  visible: np.ndarray | None = None,
) -> np.ndarray:
  """Return the overlaps that AO and SR average: all frames but the first and the absent ones.

  Args:
    predicted_xywh, annotated_xywh: [n, 4] pixels.
    image_size: (width, height), to which both boxes are clipped; None leaves them unclipped.
    visible: [n] bool, False where cover is 0; None takes a NaN box or one without area as absent.

  Returns:
    [m] in [0, 1]; a NaN prediction has overlap 0. Empty for a sequence of one frame.

  Follows ExperimentGOT10k of the GOT-10k toolkit.
  """
  errors = RULES["got10k"](predicted_xywh, annotated_xywh, visible, image_size)
  return np.nan_to_num(errors.overlaps, nan=0.0)
