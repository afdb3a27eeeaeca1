"""Scores of a set of sequences: computed, shown as a table, written as JSON and CSV."""

import csv
import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Mapping

import numpy as np

from ostrack_jax.evaluation import metrics, results

# Key in the files, heading in the table, decimals.
_MEASURES = (
  ("success_auc", "success", 4),
  ("precision_20px", "prec@20", 4),
  ("normalised_precision_0.2", "norm@.2", 4),
  ("ao", "AO", 4),
  ("sr_0.5", "SR.5", 4),
  ("sr_0.75", "SR.75", 4),
  ("fps", "FPS", 1),
)
_DEFINITIONS = {
  "success_auc": "mean of the success curve: share of frames with overlap above 0, 0.05, ... 1",
  "precision_20px": "share of frames with the centre within 20 pixels",
  "normalised_precision_0.2": "share of frames with the centre within 0.2 of the annotated size",
  "ao": "mean overlap, first and absent frames left out (GOT-10k)",
  "sr_0.5": "share of the frames of AO with overlap above 0.5",
  "sr_0.75": "share of the frames of AO with overlap above 0.75",
  "fps": "tracked frames over the seconds they took, the first frame left out",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceScore:
  """Scores of one sequence.

  measures: the seven numbers, NaN where not known. overlaps: [m], those that AO averages.
  """

  frames: int
  measures: dict[str, float]
  success_curve: np.ndarray
  precision_curve: np.ndarray
  normalised_precision_curve: np.ndarray
  overlaps: np.ndarray
  clipped: bool
  tracked_frames: int
  tracked_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
  """Scores of a set of sequences under one rule.

  mean: every measure averaged over the sequences that have it; curves likewise.
  pooled: AO, SR and FPS over the frames of all sequences together, as GOT-10k gives AO and SR.
  declared: how many sequences the benchmark has, of which `sequences` are scored here.
  """

  rule: str
  sequences: dict[str, SequenceScore]
  mean: dict[str, float]
  pooled: dict[str, float]
  success_curve: np.ndarray
  precision_curve: np.ndarray
  normalised_precision_curve: np.ndarray
  declared: int

  @property
  def coverage(self) -> str:
    """Say how many of the declared sequences are scored, as in '7 of 100'."""
    return f"{len(self.sequences)} of {self.declared}"

  @property
  def clipping(self) -> str:
    """Say whether AO and SR are of boxes clipped to the image."""
    clipped = sum(score.clipped for score in self.sequences.values())
    if clipped in (0, len(self.sequences)):
      return "clipped" if clipped else "unclipped"
    return f"clipped in {clipped} of {len(self.sequences)} sequences"


def score(
  predictions: Mapping[str, np.ndarray],
  annotations: Mapping[str, np.ndarray],
  image_sizes: Mapping[str, tuple[int, int]] | None = None,
  *,
  rule: str = "visible",
  seconds: Mapping[str, np.ndarray] | None = None,
  declared: int | None = None,
) -> Summary:
  """Score predicted boxes against annotated ones, sequence by sequence.

  Args:
    predictions: name to [n, 4] xywh pixels, row 0 the frame that the tracker was started on.
    annotations: name to [n, 4] xywh pixels, NaN where the target is absent.
    image_sizes: name to (width, height), where known: AO and SR are of boxes clipped to it.
    rule: which frames count in the curves, a name in metrics.RULES.
    seconds: name to [n] seconds a frame, where known.
    declared: how many sequences there should be; by default those that are given.

  Raises ValueError for an unknown rule, no sequences, names without a partner, and, naming the
  sequence, for lengths that differ or annotations without a single usable box.
  """
  if rule not in metrics.RULES:
    raise ValueError(f"unknown rule {rule!r}; expected one of {', '.join(metrics.RULES)}")
  alone = sorted(set(predictions) ^ set(annotations))
  if alone:
    raise ValueError(f"predictions and annotations must pair up; alone: {', '.join(alone)}")
  if not predictions:
    raise ValueError("there are no sequences to score; expected at least one")
  sequences: dict[str, SequenceScore] = {}
  for name, predicted in predictions.items():
    try:
      sequences[name] = _score_sequence(
        np.asarray(predicted, dtype=np.float64),
        np.asarray(annotations[name], dtype=np.float64),
        metrics.RULES[rule],
        (image_sizes or {}).get(name),
        (seconds or {}).get(name),
      )
    except ValueError as error:
      raise ValueError(f"sequence {name}: {error}") from error
  scores = list(sequences.values())
  overlaps = np.concatenate([one.overlaps for one in scores])
  tracked_seconds = sum(one.tracked_seconds for one in scores)
  tracked_frames = sum(one.tracked_frames for one in scores)
  return Summary(
    rule=rule,
    sequences=sequences,
    mean={key: _mean([one.measures[key] for one in scores]) for key, _, _ in _MEASURES},
    pooled={
      **_overlap_measures(overlaps),
      "fps": tracked_frames / tracked_seconds if tracked_seconds > 0 else math.nan,
    },
    success_curve=np.mean([one.success_curve for one in scores], axis=0),
    precision_curve=np.mean([one.precision_curve for one in scores], axis=0),
    normalised_precision_curve=np.mean([one.normalised_precision_curve for one in scores], axis=0),
    declared=len(scores) if declared is None else declared,
  )


def _score_sequence(predicted, annotated, rule, image_size, seconds) -> SequenceScore:
  errors = rule(predicted, annotated)
  success = metrics.success_curve(errors.overlaps)
  precision = metrics.precision_curve(errors.centre_errors)
  normalised = metrics.normalised_precision_curve(errors.normalised_errors)
  overlaps = metrics.got10k_overlaps(predicted, annotated, image_size)
  timed = results.RecordedResult(predicted, seconds)
  fps = timed.frames_per_second()
  tracked = 0 if math.isnan(fps) else len(seconds) - 1
  return SequenceScore(
    frames=len(annotated),
    measures={
      "success_auc": float(success.mean()),
      "precision_20px": float(precision[metrics.SCORE_POSITION]),
      "normalised_precision_0.2": float(normalised[metrics.SCORE_POSITION]),
      **_overlap_measures(overlaps),
      "fps": fps,
    },
    success_curve=success,
    precision_curve=precision,
    normalised_precision_curve=normalised,
    overlaps=overlaps,
    clipped=image_size is not None,
    tracked_frames=tracked,
    tracked_seconds=tracked / fps if tracked else 0.0,
  )


def _overlap_measures(overlaps: np.ndarray) -> dict[str, float]:
  return {
    "ao": metrics.average_overlap(overlaps),
    "sr_0.5": metrics.success_rate(overlaps, 0.5),
    "sr_0.75": metrics.success_rate(overlaps, 0.75),
  }


def _mean(values: list[float]) -> float:
  known = [value for value in values if not math.isnan(value)]
  return sum(known) / len(known) if known else math.nan


def format_table(summary: Summary) -> str:
  """Return an aligned table: one line a sequence, the mean, and all frames together.

  A dash stands for what is not known.
  """
  width = max(len("all frames"), *(len(name) for name in summary.sequences))
  rows = [(name, one.frames, one.measures) for name, one in summary.sequences.items()]
  frames = sum(one.frames for one in summary.sequences.values())
  head = f"{'sequence':<{width}}  frames" + "".join(f"{head:>9}" for _, head, _ in _MEASURES)
  lines = [head, "-" * len(head), *(_line(width, *row) for row in rows), "-" * len(head)]
  lines.append(_line(width, "mean", frames, summary.mean))
  lines.append(_line(width, "all frames", frames, summary.pooled))
  lines.append(
    f"{summary.coverage} sequences; rule of the curves: {summary.rule}; "
    f"AO and SR: GOT-10k's rule, {summary.clipping}"
  )
  return "\n".join(lines)


def _line(width: int, name: str, frames: int, measures: Mapping[str, float]) -> str:
  cells = []
  for key, _, decimals in _MEASURES:
    value = measures.get(key, math.nan)
    cells.append(f"{'-' if math.isnan(value) else format(value, f'.{decimals}f'):>9}")
  return f"{name:<{width}}  {frames:>6}" + "".join(cells)


def write_json(summary: Summary, path: pathlib.Path, extra: Mapping | None = None) -> None:
  """Write the summary as JSON; null stands for what is not known.

  extra: further keys in front, such as the data set's name, and the missing and failed sequences.
  """
  content = {
    **(extra or {}),
    "sequences": summary.coverage,
    "rule": summary.rule,
    "ao_and_sr": f"got10k, {summary.clipping}",
    "mean": _known(summary.mean),
    "all_frames": _known(summary.pooled),
    "per_sequence": {
      name: {"frames": one.frames, **_known(one.measures)}
      for name, one in summary.sequences.items()
    },
    "curves": {
      "success": summary.success_curve.tolist(),
      "precision": summary.precision_curve.tolist(),
      "normalised_precision": summary.normalised_precision_curve.tolist(),
    },
    "definitions": _DEFINITIONS,
  }
  results.write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _known(measures: Mapping[str, float]) -> dict[str, float | None]:
  return {key: None if math.isnan(value) else value for key, value in measures.items()}


def write_csv(summary: Summary, path: pathlib.Path) -> None:
  """Write one row a sequence, with a header; an empty cell stands for what is not known."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(["sequence", "frames", *(key for key, _, _ in _MEASURES)])
  for name, one in summary.sequences.items():
    known = _known(one.measures)
    writer.writerow([name, one.frames, *(known[key] for key, _, _ in _MEASURES)])
  results.write_text(path, text.getvalue())
