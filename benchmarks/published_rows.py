"""Tables 1 and 2: evaluated runs set among the trackers that the paper prints."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gathered_runs import UNRUN
from ostrack_jax.evaluation import benchmarks, measures, metrics, published

# Of which table a benchmark is.
DATASETS = {1: ("lasot", "lasot_ext", "trackingnet", "got10k_test"), 2: ("nfs", "uav123", "tnl2k")}


def read(folder: pathlib.Path) -> dict[str, Any]:
  """Return what a run evaluated into a folder says of itself: its summary.json.

  Raises:
    FileNotFoundError: there is none. ValueError: it is not one of a benchmark.
  """
  file = folder / "summary.json"
  if not file.is_file():
    raise FileNotFoundError(
      f"{folder} holds no summary.json; evaluate first: python -m ostrack_jax.evaluate --output={folder} ..."
    )
  try:
    summary = json.loads(file.read_text())
  except ValueError as error:
    raise ValueError(f"{file} is not readable JSON ({error}); evaluate again") from error
  lacking = [name for name in ("dataset", "tracker", "rule", "sequences") if name not in summary]
  if lacking:
    raise ValueError(
      f"{file} does not say its {lacking[0]}; expected what evaluate --checkpoint writes"
    )
  return summary


def check(number: int, summaries: Sequence[Mapping[str, Any]]) -> None:
  """Refuse a run of a benchmark that the other table prints; ValueError with the cure."""
  other = 3 - number
  for summary in summaries:
    if summary["dataset"] in DATASETS[other]:
      raise ValueError(
        f"{summary['tracker']} is evaluated on {summary['dataset']}, which is in Table {other}; use "
        f"--table={other}"
      )


def rows(dataset: str, summaries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Return a benchmark's trackers, the paper's and ours, best first by the first measure; scores in percent."""
  found = [
    {"tracker": tracker, "ours": False, "scores": dict(scores), "notes": []}
    for tracker, scores in published.scores(dataset).items()
  ]
  for summary in summaries:
    pooled = metrics.RULES[summary["rule"]].pooled
    scores = summary["all_frames" if pooled else "mean"]
    found.append(
      {
        "tracker": summary["tracker"],
        "ours": True,
        "scores": {key: 100 * value for key, value in scores.items() if value is not None},
        "notes": _notes(summary),
      }
    )
  first = columns(dataset, summaries)[0].key
  return sorted(found, key=lambda row: -row["scores"].get(first, -math.inf))


def columns(dataset: str, summaries: Sequence[Mapping[str, Any]] = ()) -> list[measures.Measure]:
  """Return the measures of a benchmark's columns: those that the paper prints, else its rule's own."""
  rule = summaries[0]["rule"] if summaries else benchmarks.BENCHMARKS[dataset].rule
  shown = [one for one in measures.measures_of(rule) if one is not measures.FPS]
  printed = {key for scores in published.scores(dataset).values() for key in scores}
  return [one for one in shown if one.key in printed] or shown


def _notes(summary: Mapping[str, Any]) -> list[str]:
  own = benchmarks.BENCHMARKS[summary["dataset"]].rule
  rule = summary["rule"]
  notes = [f"rule `{rule}`" + ("" if rule == own else f", **not the benchmark's `{own}`**")]
  scored, _, declared = summary["sequences"].partition(" of ")
  if scored != declared:
    notes.append(f"**{summary['sequences']} sequences**: not the benchmark's score")
  else:
    notes.append(f"all {declared} sequences")
  if summary.get("teacher_forced"):
    notes.append("**every search around the annotated box**")
  if summary.get("elimination_set_to"):
    notes.append(f"elimination set at test time: {summary['elimination_set_to']}")
  return notes


def table(
  number: int, summaries: Sequence[Mapping[str, Any]]
) -> tuple[str, dict[str, list[dict[str, Any]]]]:
  """Return Table 1 or 2 as Markdown, and its rows by benchmark.

  A benchmark that the paper prints nowhere has rows of ours alone.
  """
  check(number, summaries)
  unprinted = sorted({one["dataset"] for one in summaries} - set(DATASETS[number]))
  parts, by_dataset = [f"## Table {number}"], {}
  for dataset in (*DATASETS[number], *unprinted):
    ours = [one for one in summaries if one["dataset"] == dataset]
    shown = columns(dataset, ours)
    by_dataset[dataset] = rows(dataset, ours)
    heads = ["", *(one.heading for one in shown), "how"]
    lines = [f"### {dataset}", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    if not ours:
      lines.append("| **ours** |" + " |" * len(shown) + f" {UNRUN} |")
    for row in by_dataset[dataset]:
      scores = [row["scores"].get(one.key) for one in shown]
      cells = ["-" if score is None else f"{score:.1f}" for score in scores]
      source = published.table_of(dataset)
      if row["ours"]:
        cells = [f"**{cell}**" for cell in cells]
      name = f"**{row['tracker']} (ours)**" if row["ours"] else row["tracker"]
      lines.append("| " + " | ".join([name, *cells, "; ".join(row["notes"]) or source]) + " |")
    if dataset in unprinted:
      lines += ["", f"The paper prints no scores on `{dataset}`."]
    parts.append("\n".join(lines))
  parts.append("Percent; best first by the first column.")
  return "\n\n".join(parts) + "\n", by_dataset
