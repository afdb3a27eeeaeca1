"""Scores of a set of sequences: computed, shown as a table, written as JSON and CSV."""

import csv
import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Mapping

import numpy as np

from ostrack_jax.evaluation import box_errors, curves, measures, metrics, results, text_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceScore:
  """Scores of one sequence.

  measures: the numbers, NaN where not known. overlaps: [m], those that AO averages.
  frame_overlaps: [frames] IoU as tracked, 0 where a prediction is missing, NaN where the target is
  absent; no rule has touched them. counted: how many frames the curves are over.
  """

  frames: int
  measures: dict[str, float]
  success_curve: np.ndarray
  precision_curve: np.ndarray
  normalised_precision_curve: np.ndarray
  overlaps: np.ndarray
  frame_overlaps: np.ndarray
  counted: int
  clipped: bool
  tracked_frames: int
  tracked_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
  """Scores of a set of sequences under one rule.

  mean: every measure averaged over the sequences that have it; curves likewise, except under
  `got10k`, whose curves are over all frames together.
  pooled: AO, SR and FPS over the frames of all sequences together, as GOT-10k gives AO and SR;
  under `got10k` also what is read from the curves.
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

  @property
  def made_by(self) -> dict[str, str]:
    """Say for every measure which rule made it, and for AO and SR whether boxes were clipped."""
    overlap_rule = f"got10k, {self.clipping}"
    curve_rule = overlap_rule if metrics.RULES[self.rule].clips else self.rule
    shown = [one for one in measures.measures_of(self.rule) if one is not measures.FPS]
    return {one.key: curve_rule if one.curve else overlap_rule for one in shown}

  @property
  def headline(self) -> dict[str, float]:
    """Return the numbers that the benchmark is quoted by: over all frames under `got10k`, else means."""
    return self.pooled if metrics.RULES[self.rule].pooled else self.mean


def score(
  predictions: Mapping[str, np.ndarray],
  annotations: Mapping[str, np.ndarray],
  image_sizes: Mapping[str, tuple[int, int]] | None = None,
  *,
  rule: str = "visible",
  seconds: Mapping[str, np.ndarray] | None = None,
  declared: int | None = None,
  visible: Mapping[str, np.ndarray] | None = None,
) -> Summary:
  """Score predicted boxes against annotated ones, sequence by sequence.

  Args:
    predictions: name to [n, 4] xywh pixels, row 0 the frame that the tracker was started on.
    annotations: name to [n, 4] xywh pixels, NaN where the target is absent.
    image_sizes: name to (width, height), where known: AO and SR are of boxes clipped to it.
    rule: what counts, and how, in the curves: a name in metrics.RULES.
    seconds: name to [n] seconds a frame, where known.
    declared: how many sequences there should be; by default those that are given.
    visible: name to [n] bool, False where the benchmark calls the target invisible; sequences
      without an entry have no such labels.

  Raises ValueError for an unknown rule, no sequences, names without a partner, and, naming the
  sequence, for what the rule refuses or annotations without a single usable box.
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
        (visible or {}).get(name),
      )
    except ValueError as error:
      raise ValueError(f"sequence {name}: {error}") from error
  return _summarise(rule, sequences, len(sequences) if declared is None else declared)


def _summarise(rule: str, sequences: dict[str, SequenceScore], declared: int) -> Summary:
  scores = list(sequences.values())
  keys = [measure.key for measure in measures.measures_of(rule)]
  pooled = metrics.RULES[rule].pooled
  weights = [one.counted if pooled else 1 for one in scores]
  by_name = {
    "success": np.average([one.success_curve for one in scores], axis=0, weights=weights),
    "precision": np.average([one.precision_curve for one in scores], axis=0, weights=weights),
    "normalised_precision": np.average(
      [one.normalised_precision_curve for one in scores], axis=0, weights=weights
    ),
  }
  tracked_seconds = sum(one.tracked_seconds for one in scores)
  tracked_frames = sum(one.tracked_frames for one in scores)
  return Summary(
    rule=rule,
    sequences=sequences,
    mean={key: _mean([one.measures[key] for one in scores]) for key in keys},
    pooled={
      **measures.overlap_measures(np.concatenate([one.overlaps for one in scores])),
      **(measures.read_curves(rule, by_name) if pooled else {}),
      "fps": tracked_frames / tracked_seconds if tracked_seconds > 0 else math.nan,
    },
    success_curve=by_name["success"],
    precision_curve=by_name["precision"],
    normalised_precision_curve=by_name["normalised_precision"],
    declared=declared,
  )


def by_attribute(summary: Summary, attributes: Mapping[str, tuple[str, ...]]) -> dict[str, Summary]:
  """Return a summary for every attribute, over the scored sequences that have it.

  attributes: sequence name to its attributes, of all sequences of the benchmark: a summary's
  `declared` is how many of them have the attribute. The order is alphabetic; attributes without a
  scored sequence are left out. Raises ValueError for a scored sequence that is not in `attributes`.
  """
  unknown = sorted(set(summary.sequences) - set(attributes))
  if unknown:
    raise ValueError(
      f"no attributes are given for {', '.join(unknown[:5])}; expected every scored sequence "
      "(an empty tuple for none)"
    )
  summaries = {}
  for attribute in sorted({one for named in attributes.values() for one in named}):
    having = [name for name, named in attributes.items() if attribute in named]
    scored = {name: summary.sequences[name] for name in having if name in summary.sequences}
    if scored:
      summaries[attribute] = _summarise(summary.rule, scored, len(having))
  return summaries


def _score_sequence(predicted, annotated, rule, image_size, seconds, visible) -> SequenceScore:
  errors = rule(predicted, annotated, visible, image_size)
  by_name = {
    "success": curves.success_curve(errors.overlaps, rule.success_thresholds),
    "precision": curves.precision_curve(errors.centre_errors, rule.precision_thresholds),
    "normalised_precision": curves.normalised_precision_curve(
      errors.normalised_errors, rule.normalised_thresholds
    ),
  }
  frames = len(annotated)
  predicted = metrics.match_length(predicted, frames)
  overlaps = metrics.got10k_overlaps(predicted, annotated, image_size, visible)
  present = box_errors.usable_boxes(annotated)
  if visible is not None:
    present &= np.asarray(visible, dtype=bool)
  raw = np.nan_to_num(box_errors.overlap(predicted, annotated), nan=0.0)
  fps = results.RecordedResult(predicted, seconds).frames_per_second()
  tracked = 0 if math.isnan(fps) else len(seconds) - 1
  return SequenceScore(
    frames=frames,
    measures={
      **measures.read_curves(rule.name, by_name),
      **measures.overlap_measures(overlaps),
      "fps": fps,
    },
    success_curve=by_name["success"],
    precision_curve=by_name["precision"],
    normalised_precision_curve=by_name["normalised_precision"],
    overlaps=overlaps,
    frame_overlaps=np.where(present, raw, np.nan),
    counted=len(errors.overlaps),
    clipped=image_size is not None,
    tracked_frames=tracked,
    tracked_seconds=tracked / fps if tracked else 0.0,
  )


def _mean(values: list[float]) -> float:
  known = [value for value in values if not math.isnan(value)]
  return sum(known) / len(known) if known else math.nan


def format_table(summary: Summary) -> str:
  """Return an aligned table: one line a sequence, the mean, and all frames together.

  A dash stands for what is not known.
  """
  rows = [(name, one.frames, one.measures) for name, one in summary.sequences.items()]
  frames = sum(one.frames for one in summary.sequences.values())
  totals = [("mean", frames, summary.mean), ("all frames", frames, summary.pooled)]
  return "\n".join(
    [*text_table.aligned("sequence", "frames", summary.rule, rows, totals), _remark(summary)]
  )


def format_comparison(trackers: Mapping[str, Summary]) -> str:
  """Return an aligned table of one line a tracker; all of them must be under one rule."""
  if not trackers:
    raise ValueError("there are no trackers to compare; expected at least one")
  first = next(iter(trackers.values()))
  rows = [(name, len(one.sequences), one.headline) for name, one in trackers.items()]
  return "\n".join([*text_table.aligned("tracker", "seqs", first.rule, rows), _remark(first)])


def format_attributes(summaries: Mapping[str, Summary]) -> str:
  """Return an aligned table of one line an attribute, as by_attribute gives them."""
  if not summaries:
    raise ValueError("there are no attributes to show; expected at least one")
  rule = next(iter(summaries.values())).rule
  rows = [(name, len(one.sequences), one.headline) for name, one in summaries.items()]
  return "\n".join(text_table.aligned("attribute", "seqs", rule, rows))


def _remark(summary: Summary) -> str:
  return (
    f"{summary.coverage} sequences; rule of the curves: {summary.rule}; "
    f"AO and SR: GOT-10k's rule, {summary.clipping}"
  )


def as_json(summary: Summary) -> dict:
  """Return a summary as what JSON can hold, without times: the same run gives the same bytes."""
  return {
    "sequences": summary.coverage,
    "rule": summary.rule,
    "ao_and_sr": f"got10k, {summary.clipping}",
    "made_by": summary.made_by,
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
    "definitions": {
      one.key: one.definition
      for one in measures.measures_of(summary.rule)
      if one is not measures.FPS
    },
  }


def write_json(
  summary: Summary,
  path: pathlib.Path,
  extra: Mapping | None = None,
  attributes: Mapping[str, Summary] | None = None,
) -> None:
  """Write the summary as JSON; null stands for what is not known. Times are write_timing's.

  extra: further keys in front, such as the data set's name, and the missing and failed sequences.
  attributes: what by_attribute gives, to be written as `per_attribute`.
  """
  content = {**(extra or {}), **as_json(summary)}
  if attributes is not None:
    content["per_attribute"] = {
      name: {"sequences": one.coverage, **_known(one.headline)} for name, one in attributes.items()
    }
  results.write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _known(values: Mapping[str, float]) -> dict[str, float | None]:
  return {key: _null(value) for key, value in values.items() if key != measures.FPS.key}


def _null(value: float) -> float | None:
  return None if math.isnan(value) else value


def write_csv(summary: Summary, path: pathlib.Path) -> None:
  """Write one row a sequence, with a header; an empty cell stands for what is not known."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  keys = list(summary.made_by)
  writer.writerow(["sequence", "frames", *keys])
  for name, one in summary.sequences.items():
    known = _known(one.measures)
    writer.writerow([name, one.frames, *(known[key] for key in keys)])
  results.write_text(path, text.getvalue())


def write_timing(summary: Summary, path: pathlib.Path, extra: Mapping | None = None) -> None:
  """Write frames per second as JSON, over all frames and a sequence; null where not known."""
  fps = measures.FPS.key
  content = {
    **(extra or {}),
    "all_frames": {fps: _null(summary.pooled[fps])},
    "mean": {fps: _null(summary.mean[fps])},
    "per_sequence": {
      name: {
        fps: _null(one.measures[fps]),
        "tracked_frames": one.tracked_frames,
        "tracked_seconds": one.tracked_seconds,
      }
      for name, one in summary.sequences.items()
    },
    "definitions": {fps: measures.FPS.definition},
  }
  results.write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
