"""From result files to a report: those of a run just made, or of any tracker."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ostrack_jax import annotations as annotation_files
from ostrack_jax.evaluation import benchmarks, metrics, plots, report, results
from ostrack_jax.evaluation.run_folder import RUN_FILE
from ostrack_jax.tracking import frames as frame_files


def score_run(
  recorded: Mapping[str, results.RecordedResult],
  videos: Sequence[benchmarks.Video],
  *,
  rule: str,
  declared: int,
  timed: bool = False,
) -> report.Summary:
  """Score what result files say of annotated sequences, and with `timed` their seconds.

  See report.score for what is raised.
  """
  seconds = {name: one.seconds for name, one in recorded.items() if one.seconds is not None}
  return report.score(
    {name: one.boxes_xywh for name, one in recorded.items()},
    {video.name: video.boxes_xywh for video in videos},
    {video.name: frame_files.image_size(video.frames[0]) for video in videos},
    rule=rule,
    declared=declared,
    seconds=seconds if timed else None,
    visible={video.name: video.visible for video in videos if video.visible is not None},
  )


def check_rule(videos: Sequence[benchmarks.Video], rule: str) -> None:
  """Raise ValueError, naming the sequence, where a rule cannot score a sequence's annotations.

  Asked before hours of tracking, of a tracker that never moves.
  """
  annotated = [video for video in videos if video.is_annotated]
  if annotated:
    report.score(
      {v.name: np.repeat(v.boxes_xywh[:1], len(v.boxes_xywh), axis=0) for v in annotated},
      {v.name: v.boxes_xywh for v in annotated},
      rule=rule,
      visible={v.name: v.visible for v in annotated if v.visible is not None},
    )


def attribute_summaries(
  summary: report.Summary, videos: Sequence[benchmarks.Video]
) -> dict[str, report.Summary] | None:
  """Return a summary for each attribute of the sequences; None where they have no attributes."""
  attributes = {video.name: video.attributes for video in videos}
  return report.by_attribute(summary, attributes) if any(attributes.values()) else None


def score_files(
  results_folder: pathlib.Path,
  annotations_folder: pathlib.Path,
  output: pathlib.Path | None = None,
  *,
  rule: str = "otb",
  sequences: Sequence[str] | None = None,
  limit: int | None = None,
  allow_missing: bool = False,
) -> tuple[report.Summary, list[str]]:
  """Score existing result files against a folder of annotation files of the same names.

  Returns the summary and remarks for the user: each sequence without a partner or of another
  length. Raises FileNotFoundError for a sequence without a partner unless allow_missing, and
  ValueError for files that cannot be read as boxes.
  """
  annotated = benchmarks.choose(results.names_in(annotations_folder), sequences)
  predicted = results.names_in(results_folder)
  remarks = [f"{name}: no result file" for name in annotated if name not in predicted]
  if sequences is None:
    remarks += [f"{name}: no annotation file" for name in predicted if name not in annotated]
  if remarks and not allow_missing:
    raise FileNotFoundError(
      f"{len(remarks)} sequences have no partner in {results_folder} and {annotations_folder}; "
      f"pass --allow_missing to leave them out:" + "".join(f"\n  {line}" for line in remarks)
    )
  names = [name for name in annotated if name in predicted][:limit]
  if not names:
    raise FileNotFoundError(
      f"no file name occurs in both {results_folder} and {annotations_folder}"
    )
  boxes, truth, seconds = {}, {}, {}
  for name in names:
    truth[name] = annotation_files.read_boxes(annotations_folder / f"{name}.txt").boxes_xywh
    result = results.read_result(results_folder, name)
    rows, frames = len(result.boxes_xywh), len(truth[name])
    if rows != frames:
      effect = "the missing frames count as failures"
      if rows > frames:
        effect = "the rest is ignored"
      elif metrics.RULES[rule].own_lengths:
        effect = f"the missing frames count as the rule {rule} has it"
      remarks.append(f"{name}: {rows} boxes for {frames} annotated frames; {effect}")
    boxes[name] = metrics.match_length(result.boxes_xywh, frames, rule)
    if result.seconds is not None:
      seconds[name] = result.seconds
  total = len(results.names_in(annotations_folder))
  summary = report.score(boxes, truth, rule=rule, seconds=seconds, declared=total)
  if output is not None:
    label = results_folder.resolve().name
    write_report(summary, output, label, {"remarks": remarks})
    # A run of the evaluator knows more of its times than this.
    if seconds and not (output / RUN_FILE).exists():
      report.write_timing(summary, output / results.TIMING_FILE)
  return summary, remarks


def write_report(
  summary: report.Summary,
  output: pathlib.Path,
  label: str,
  extra: Mapping[str, Any],
  attributes: Mapping[str, report.Summary] | None = None,
) -> None:
  """Write summary.json, per_sequence.csv, success.png and precision.png to a folder."""
  report.write_json(summary, output / "summary.json", extra, attributes)
  report.write_csv(summary, output / "per_sequence.csv")
  plots.plot_success({label: summary.success_curve}, output / "success.png", summary.rule)
  plots.plot_precision({label: summary.precision_curve}, output / "precision.png", summary.rule)
