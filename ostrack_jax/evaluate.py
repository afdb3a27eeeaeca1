"""Run a tracker over a benchmark and score it, or score result files that are already there.

  python -m ostrack_jax.evaluate --checkpoint=PATH --dataset=otb --root=DIR --output=DIR
  python -m ostrack_jax.evaluate --results=DIR --annotations=DIR

The output folder gets results/ (one text file of boxes a sequence, and its seconds), summary.json,
per_sequence.csv, success.png and precision.png. The table on the screen says which rule made its
numbers; evaluation/metrics.py says what each rule does.
"""

import functools
import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from tqdm import tqdm

from ostrack_jax import annotations as annotation_files
from ostrack_jax import command_line
from ostrack_jax.evaluation import benchmarks, metrics, one_pass, plots, report, results

FLAGS = command_line.new_flags()
flags.DEFINE_string(
  "checkpoint", None, "what to evaluate: a converted folder, a training work folder, or an official file", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_integer(
  "num_heads", None, "attention heads, where width/64 is wrong", flag_values=FLAGS
)
flags.DEFINE_enum("dataset", "otb", sorted(benchmarks.BENCHMARKS), "benchmark", flag_values=FLAGS)
flags.DEFINE_string("root", None, "folder that holds the benchmark's sequences", flag_values=FLAGS)
flags.DEFINE_string("output", None, "folder to write to", flag_values=FLAGS)
flags.DEFINE_string(
  "results", None, "folder of result files to score instead of tracking", flag_values=FLAGS
)
flags.DEFINE_string(
  "annotations", None, "folder of <sequence>.txt annotations for --results", flag_values=FLAGS
)
flags.DEFINE_enum(
  "rule", None, sorted(metrics.RULES), "which frames count; default: the benchmark's own, otb for --results", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_bool(
  "allow_missing",
  False,
  "leave out sequences that are incomplete or have no partner",
  flag_values=FLAGS,
)
flags.DEFINE_list("sequences", None, "only these sequences, separated by commas", flag_values=FLAGS)
flags.DEFINE_integer("limit", None, "at most so many sequences", flag_values=FLAGS)


def evaluate_tracker(
  track: one_pass.Track,
  selection: benchmarks.Selection,
  output: pathlib.Path,
  *,
  dataset: str,
  label: str,
  rule: str,
) -> tuple[report.Summary | None, dict[str, str]]:
  """Track a selection of sequences, score them, and write everything to the output folder.

  Returns the summary (None if every sequence failed) and the failed sequences with the reason.
  Raises FileExistsError where the output folder holds results of sequences that this run does not
  cover, since they would be taken for its own.
  """
  folder = output / "results"
  covered = {video.name for video in selection.videos}
  present = results.names_in(folder) if any(folder.glob("*.txt")) else []
  foreign = sorted(set(present) - covered)
  if foreign:
    raise FileExistsError(
      f"{folder} holds results of other sequences ({', '.join(foreign[:5])}); "
      "choose another --output"
    )
  frames = sum(len(video.frames) for video in selection.videos)
  with tqdm(total=frames, unit="frame", disable=None) as progress:

    def on_frame(name: str) -> None:
      progress.set_postfix_str(name, refresh=False)
      progress.update()

    one_pass.warm_up(track, selection.videos)
    outcome = one_pass.run(track, selection.videos, folder, on_frame)
  summary = None
  if outcome.results:
    summary = report.score(
      {name: result.boxes_xywh for name, result in outcome.results.items()},
      {v.name: v.boxes_xywh for v in selection.videos if v.name in outcome.results},
      outcome.image_sizes,
      rule=rule,
      seconds={
        name: result.seconds
        for name, result in outcome.results.items()
        if result.seconds is not None
      },
      declared=selection.declared,
    )
    extra = {
      "dataset": dataset,
      "tracker": label,
      "missing": selection.missing,
      "failed": outcome.failed,
    }
    write_report(summary, output, label, extra)
  return summary, outcome.failed


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
      effect = "the rest is ignored" if rows > frames else "the missing frames count as failures"
      remarks.append(f"{name}: {rows} boxes for {frames} annotated frames; {effect}")
    boxes[name] = metrics.match_length(result.boxes_xywh, frames)
    if result.seconds is not None:
      seconds[name] = result.seconds
  total = len(results.names_in(annotations_folder))
  summary = report.score(boxes, truth, rule=rule, seconds=seconds, declared=total)
  if output is not None:
    write_report(summary, output, results_folder.resolve().name, {"remarks": remarks})
  return summary, remarks


def write_report(summary: report.Summary, output: pathlib.Path, label: str, extra: dict) -> None:
  """Write summary.json, per_sequence.csv, success.png and precision.png to a folder."""
  report.write_json(summary, output / "summary.json", extra)
  report.write_csv(summary, output / "per_sequence.csv")
  plots.plot_success({label: summary.success_curve}, output / "success.png")
  plots.plot_precision({label: summary.precision_curve}, output / "precision.png")


def open_tracker(checkpoint: str, num_heads: int | None = None) -> one_pass.Track:
  """Load a checkpoint and return what tracks one sequence with it; raises as `load` does."""
  # Imported late, so that wrong roots are named at once and scoring files never starts jax.
  from ostrack_jax import Tracker, load
  from ostrack_jax.tracking import engine

  return functools.partial(engine.track_sequence, Tracker(load(checkpoint, num_heads=num_heads)))


def _track_benchmark() -> int:
  benchmark = benchmarks.BENCHMARKS[FLAGS.dataset]
  selection = benchmarks.select(
    benchmark,
    pathlib.Path(FLAGS.root),
    sequences=FLAGS.sequences,
    limit=FLAGS.limit,
    allow_missing=FLAGS.allow_missing,
  )
  for name, reason in selection.missing.items():
    print(f"left out {name}: {reason}", file=sys.stderr)
  summary, failed = evaluate_tracker(
    open_tracker(FLAGS.checkpoint, FLAGS.num_heads),
    selection,
    pathlib.Path(FLAGS.output),
    dataset=FLAGS.dataset,
    label=pathlib.Path(FLAGS.checkpoint).resolve().stem,
    rule=FLAGS.rule or benchmark.rule,
  )
  if summary is not None:
    print(report.format_table(summary))
    print(f"written to {FLAGS.output}")
  if failed:
    lines = "".join(f"\n  {name}: {reason}" for name, reason in failed.items())
    print(
      f"ostrack-evaluate: {len(failed)} of {len(selection.videos)} sequences failed:{lines}",
      file=sys.stderr,
    )
  return 1 if failed else 0


def _score_files() -> int:
  summary, remarks = score_files(
    pathlib.Path(FLAGS.results),
    pathlib.Path(FLAGS.annotations),
    pathlib.Path(FLAGS.output) if FLAGS.output else None,
    rule=FLAGS.rule or "otb",
    sequences=FLAGS.sequences,
    limit=FLAGS.limit,
    allow_missing=FLAGS.allow_missing,
  )
  print(report.format_table(summary))
  for remark in remarks:
    print(remark, file=sys.stderr)
  return 0


def _check_flags() -> None:
  if FLAGS.limit is not None and FLAGS.limit < 1:
    raise ValueError(f"--limit={FLAGS.limit} leaves nothing to do; expected at least 1")
  scoring = ("results", "annotations")
  tracking = ("checkpoint", "root", "output")
  needed = scoring if FLAGS.results or FLAGS.annotations else tracking
  absent = [f"--{name}" for name in needed if not FLAGS[name].value]
  if absent:
    together = " ".join(f"--{name}" for name in needed)
    raise ValueError(f"{' and '.join(absent)} missing; give {together} (see --help)")
  if needed is scoring and (FLAGS.checkpoint or FLAGS.root):
    raise ValueError("--results scores existing files: it goes without --checkpoint and --root")


def main(argv: Sequence[str]) -> int:
  """Run the command with the parsed FLAGS and return its exit code."""
  del argv
  try:
    _check_flags()
    return _score_files() if FLAGS.results else _track_benchmark()
  except (ValueError, OSError) as error:
    sys.exit(f"ostrack-evaluate: {error}")


def run() -> None:
  """Parse the command line and run; the console script."""
  command_line.run(main, "ostrack-evaluate", FLAGS, __doc__)


if __name__ == "__main__":
  run()
