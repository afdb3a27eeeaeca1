"""Run the checks over every sequence of a raw folder, in processes, and count what they found."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tqdm

from data_pipelines import raw_checks, workers
from data_pipelines.builders import frame_records
from data_pipelines.raw_findings import KINDS, SEVERITIES, Finding, Picture, SequenceReport

# Shares of the boxes that are smaller than the sizes a summary names.
QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
# A still image is checked in milliseconds: sent one by one, sending would cost as much.
_IMAGES_A_TASK = 32
_builder: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
  """What the checks found in a raw folder.

  findings: the worst first. samples: a frame of every sequence that could be read.
  summary: counts for people and machines.
  """

  findings: tuple[Finding, ...]
  samples: tuple[tuple[str, Picture], ...]
  summary: dict[str, Any]

  def count(self, severity: str) -> int:
    """Return how many cases of a severity there are."""
    return sum(finding.count for finding in self.findings if finding.severity == severity)


def scan(builder_class, config, splits: Sequence[str], num_workers: int) -> Scan:
  """Check every sequence of the splits; the result does not depend on `num_workers`.

  Args:
    builder_class: a FrameRecordBuilder.
    config: its configuration, with the raw folder.
    num_workers: processes; 0 checks in this one.

  Raises:
    FileNotFoundError, ValueError: the builder cannot list the sequences.
    ChildProcessError: a process died.
  """
  builder = _open_builder(builder_class, config)
  tasks = [(split, key) for split in splits for key in builder.list_sequences(split)]
  chunk = 1 if builder.IS_VIDEO else _IMAGES_A_TASK
  reports = []
  with tqdm.tqdm(total=len(tasks), desc="checking", unit="seq", disable=None) as progress:
    for report in _each(builder, builder_class, config, tasks, num_workers, chunk):
      reports.append(report)
      progress.update()
  return gather(reports)


def _open_builder(builder_class, config) -> frame_records.FrameRecordBuilder:
  # Its data_dir is neither read nor made.
  return frame_records.open_builder(builder_class, config, pathlib.Path(config.root, ".unused"))


def _each(
  builder, builder_class, config, tasks, num_workers: int, chunk: int
) -> Iterator[SequenceReport]:
  """Check the tasks, in order."""
  if not num_workers:
    for split, key in tasks:
      yield raw_checks.check_sequence(builder, split, key)
    return
  parts = [tasks[i : i + chunk] for i in range(0, len(tasks), chunk)]
  count = max(1, min(num_workers, len(parts)))
  with workers.process_pool(count, _begin_worker, builder_class, config) as pool:
    with workers.deaf_children():
      waiting = collections.deque(pool.submit(_check, part) for part in parts)
    while waiting:
      yield from waiting.popleft().result()


def _begin_worker(builder_class, config) -> None:
  global _builder
  _builder = _open_builder(builder_class, config)


def _check(tasks: Sequence[tuple[str, Any]]) -> list[SequenceReport]:
  return [raw_checks.check_sequence(_builder, split, key) for split, key in tasks]


def gather(reports: Sequence[SequenceReport]) -> Scan:
  """Compare the sequences with each other, and put everything together, the worst first."""
  found = [finding for report in reports for finding in report.findings]
  found += raw_checks.check_together(reports)
  order = {kind: place for place, kind in enumerate(KINDS)}
  # Stable: within a kind they stay in the order of the sequences.
  found.sort(key=lambda finding: order[finding.kind])
  samples = tuple((r.sequence, r.sample) for r in reports if r.sample is not None)
  return Scan(findings=tuple(found), samples=samples, summary=_summarise(reports, found))


def _summarise(reports: Sequence[SequenceReport], found: Sequence[Finding]) -> dict[str, Any]:
  splits = {}
  for split in dict.fromkeys(report.split for report in reports):
    of_split = [report for report in reports if report.split == split]
    totals = {
      name: sum(getattr(report, name) for report in of_split)
      for name in ("targets", "frames", "target_frames", "visible", "trains")
    }
    sides = np.concatenate([report.sides for report in of_split])
    splits[split] = {
      "sequences": len(of_split),
      "targets": totals["targets"],
      "frames": totals["frames"],
      "visible_share": totals["visible"] / max(totals["target_frames"], 1),
      "targets_that_train": totals["trains"],
      "box_size_quantiles": {
        f"{share:g}": round(float(np.quantile(sides, share)), 1) for share in QUANTILES
      }
      if len(sides)
      else {},
    }
  kinds: dict[str, dict[str, Any]] = {}
  for kind, (severity, heading) in KINDS.items():
    of_kind = [finding for finding in found if finding.kind == kind]
    if of_kind:
      kinds[kind] = {
        "severity": severity,
        "heading": heading,
        "cases": sum(finding.count for finding in of_kind),
        "sequences": len({(finding.split, finding.sequence) for finding in of_kind}),
      }
  cases = {
    severity: sum(row["cases"] for row in kinds.values() if row["severity"] == severity)
    for severity in SEVERITIES
  }
  return {"splits": splits, "cases": cases, "kinds": kinds}


def format_summary(scan: Scan) -> str:
  """Return the summary as lines for the screen."""
  lines = []
  for split, row in scan.summary["splits"].items():
    lines.append(
      f"split {split}: {row['sequences']:,} sequences, {row['targets']:,} targets, {row['frames']:,} frames; "
      f"targets are visible in {row['visible_share']:.1%} of theirs; {row['targets_that_train']:,} can train"
    )
    if row["box_size_quantiles"]:
      sizes = ", ".join(
        f"{float(share):.0%} below {size:,.0f}" for share, size in row["box_size_quantiles"].items()
      )
      lines.append(f"  size of the boxes, sqrt(w * h) in pixels: {sizes}")
  for row in scan.summary["kinds"].values():
    lines.append(
      f"{row['severity']:<8}{row['cases']:>8,} in {row['sequences']:,} of the sequences: {row['heading']}"
    )
  return "\n".join(lines)
