"""Run a tracker over a benchmark and score it, or score result files that are already there.

  python -m ostrack_jax.evaluate --checkpoint=PATH --dataset=otb --root=DIR --output=DIR
  python -m ostrack_jax.evaluate --results=DIR --annotations=DIR

Tracks many sequences at once; --one_by_one tracks frame after frame and times each. A run that was
killed goes on when the same command is given again, and ends with the same results, byte for byte.

The output folder gets results/ (boxes, one text file a sequence), scores/ (one number a frame),
summary.json, per_sequence.csv, report.html, success.png and precision.png; run.json says what they depend
on, and all times stand in timing.json. The table on the screen says which rule made its numbers;
evaluation/metrics.py says what each rule does. Where a benchmark holds its annotations back nothing is
scored, and python -m ostrack_jax.pack packs the results for its server.
"""

import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags
from tqdm import tqdm

from ostrack_jax import __version__, command_line, network_flags
from ostrack_jax.evaluation import (
  benchmarks,
  html_report,
  metrics,
  one_pass,
  report,
  results,
  run_folder,
  scoring,
)

if TYPE_CHECKING:
  # Starts jax, which scoring files does without.
  from ostrack_jax.evaluation import tracking_runs

_FORCED_NOTE = (
  "every frame was searched around the annotated box before it; no published score is so"
)
_SET_NOTE = "candidate elimination was set for this run: {}"

FLAGS = command_line.new_flags()
flags.DEFINE_string(
  "checkpoint", None, "what to evaluate: a converted folder, a training work folder or its checkpoints/STEP, or an official file", flag_values=FLAGS
)  # fmt: skip
network_flags.define(FLAGS)
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
flags.DEFINE_integer(
  "batch_size", 0, "sequences in a batch, of which two take turns; 0 for 32 on a GPU and 4 a device elsewhere", lower_bound=0, flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_integer(
  "threads",
  0,
  "that decode images, in processes of their own from 8 on; 0 for one a core",
  lower_bound=0,
  flag_values=FLAGS,
)
flags.DEFINE_bool(
  "fuse_blocks", False, "on Hopper GPUs a tenth to a fifth less time for the network, and some 15 seconds more before it starts: for several 100,000 frames, where decoding is not the limit", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_bool(
  "one_by_one", False, "track frame after frame and time the tracker alone", flag_values=FLAGS
)
flags.DEFINE_bool(
  "teacher_forced", False, "search every frame around the annotated box before it", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_bool(
  "integer_boxes", False, "write whole pixels, truncated as in the official code", flag_values=FLAGS
)
flags.DEFINE_string(
  "compilation_cache", "~/.cache/ostrack_jax/compilation", "folder that keeps compiled programs; '' for none", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_bool(
  "multi_host", False, "share the sequences out over the processes of the cluster that jax finds; all of them need to see --output", flag_values=FLAGS
)  # fmt: skip


def track_and_record(
  run: "tracking_runs.Run", folder: run_folder.RunFolder
) -> tuple[dict[str, str], int]:
  """Track what is not finished of this process's share, and write it; return failures and frames."""
  unfinished = [video for video in run.videos if not folder.is_finished(video)]
  frames = [sum(len(video.frames) for video in videos) for videos in (run.videos, unfinished)]
  began = time.perf_counter()
  with tqdm(
    total=frames[0], initial=frames[0] - frames[1], unit="frame", smoothing=0.05, disable=None
  ) as bar:
    tracked = run.track(unfinished, lambda count: bar.update(count)) if unfinished else ()
    failed = one_pass.record(tracked, folder)
  seconds = time.perf_counter() - began
  if unfinished:
    folder.write_timing({"last_run": run.timing() | {"frames": frames[1], "seconds": seconds}})
  return failed, frames[1]


def score_and_write(
  selection: benchmarks.Selection,
  folder: run_folder.RunFolder,
  failed: dict[str, str],
  *,
  dataset: str,
  label: str,
  rule: str,
  timed: bool,
  teacher_forced: bool,
  elimination: str | None = None,
) -> report.Summary | None:
  """Score the finished sequences that are annotated and write the report; None where there are none.

  timed: whether frames were timed one by one, so that the table can show frames per second.
  elimination: what candidate elimination was set to for this run, None for the checkpoint's own.
  """
  videos = [v for v in selection.videos if v.is_annotated and folder.is_finished(v)]
  if not videos:
    return None
  recorded = {video.name: results.read_result(folder.results, video.name) for video in videos}
  summary = scoring.score_run(recorded, videos, rule=rule, declared=selection.declared)
  attributes = scoring.attribute_summaries(summary, videos)
  extra = {
    "dataset": dataset,
    "tracker": label,
    "teacher_forced": teacher_forced,
    "elimination_set_to": elimination,
    "missing": selection.missing,
    "failed": {name: failed[name] for name in sorted(failed)},
  }
  scoring.write_report(summary, folder.output, label, extra, attributes)
  notes = {}
  if teacher_forced:
    notes["Teacher-forced"] = _FORCED_NOTE
  if elimination is not None:
    notes["Elimination"] = _SET_NOTE.format(elimination)
  html_report.write_report(
    folder.output / "report.html",
    {label: summary},
    dataset=dataset,
    videos={video.name: video for video in videos},
    predictions={label: {name: one.boxes_xywh for name, one in recorded.items()}},
    notes=notes,
  )
  if timed:
    # For the screen alone, since no other file than timing.json may differ between two runs.
    summary = scoring.score_run(
      recorded, videos, rule=rule, declared=selection.declared, timed=True
    )
  print(report.format_table(summary))
  for note in notes.values():
    print(note)
  if attributes:
    print(report.format_attributes(attributes))
  return summary


def open_run(videos: Sequence[benchmarks.Video]) -> "tracking_runs.Run":
  """Load the checkpoint that the flags name and plan tracking videos with it; raises as `load` does."""
  # Imported late, so that wrong roots are named at once and scoring files never starts jax.
  from ostrack_jax import load
  from ostrack_jax.evaluation import tracking_runs
  from ostrack_jax.training import compilation_cache

  # A run that goes on must run the very programs that it ran before.
  compilation_cache.enable(FLAGS.compilation_cache)
  options = tracking_runs.Options(
    one_by_one=FLAGS.one_by_one,
    batch_size=FLAGS.batch_size,
    threads=FLAGS.threads,
    teacher_forced=FLAGS.teacher_forced,
    fuse_blocks=FLAGS.fuse_blocks,
  )
  checkpoint = load(FLAGS.checkpoint, **network_flags.load_arguments(FLAGS))
  return tracking_runs.plan(checkpoint, videos, options)


def _track_benchmark() -> int:
  process, processes = _join_cluster() if FLAGS.multi_host else (0, 1)
  benchmark = benchmarks.BENCHMARKS[FLAGS.dataset]
  output = pathlib.Path(FLAGS.output)
  selection = benchmarks.select(
    benchmark,
    pathlib.Path(FLAGS.root),
    sequences=FLAGS.sequences,
    limit=FLAGS.limit,
    allow_missing=FLAGS.allow_missing,
  )
  rule = FLAGS.rule or benchmark.rule
  scoring.check_rule(selection.videos, rule)
  sets_elimination = any(one is not None for one in network_flags.read_elimination(FLAGS).values())
  run = open_run(selection.videos)
  settings = run.settings | {
    "dataset": FLAGS.dataset,
    "integer_boxes": FLAGS.integer_boxes,
    "sequences": run_folder.sequences_digest(selection.videos),
    "ostrack_jax": __version__,
  }
  folder = run_folder.RunFolder(
    output,
    settings,
    result_folder=benchmark.result_folder,
    integer_boxes=FLAGS.integer_boxes,
    process=process,
    processes=processes,
  )
  began = time.perf_counter()
  failed, frames = track_and_record(run, folder)
  if frames:
    seconds = time.perf_counter() - began
    print(f"tracked {frames} frames in {seconds:.1f} s, {frames / seconds:.1f} frames/s")
  if processes > 1:
    failed = _gather(output, failed, process, processes)
    if process:
      return 1 if failed else 0
  from ostrack_jax import loading

  score_and_write(
    selection,
    folder,
    failed,
    dataset=FLAGS.dataset,
    label=loading.label(FLAGS.checkpoint),
    rule=rule,
    timed=FLAGS.one_by_one,
    teacher_forced=FLAGS.teacher_forced,
    elimination=run.settings["elimination"] if sets_elimination else None,
  )
  for name, reason in selection.missing.items():
    print(f"left out {name}: {reason}", file=sys.stderr)
  held_back = not any(video.is_annotated for video in selection.videos)
  if held_back and len(failed) < len(selection.videos):
    print(
      f"{FLAGS.dataset} holds its annotations back, so nothing is scored; pack the results for its server: "
      f"python -m ostrack_jax.pack --dataset={FLAGS.dataset} --results={output} "
      f"--root={FLAGS.root} --output={FLAGS.dataset}.zip"
    )
  print(f"written to {output}")
  if failed:
    lines = "".join(f"\n  {name}: {reason}" for name, reason in failed.items())
    print(
      f"ostrack-evaluate: {len(failed)} of {len(selection.videos)} sequences failed:{lines}\n"
      "the same command tries them again and keeps the others",
      file=sys.stderr,
    )
  return 1 if failed else 0


def _join_cluster() -> tuple[int, int]:
  """Return which process of how many this is."""
  import jax

  if not jax.distributed.is_initialized():
    jax.distributed.initialize()
  return jax.process_index(), jax.process_count()


def _gather(
  output: pathlib.Path, failed: dict[str, str], process: int, processes: int
) -> dict[str, str]:
  """Wait for all processes; return the failures of all to the first one, its own to each other."""
  from jax.experimental import multihost_utils

  paths = [output / f".failed.{number}.json" for number in range(processes)]
  results.write_text(paths[process], json.dumps(failed))
  multihost_utils.sync_global_devices("every process has tracked its sequences")
  if process:
    return failed
  gathered = {}
  for path in paths:
    gathered |= json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
  run_folder.merge_timing(output, processes)
  return gathered


def _score_files() -> int:
  summary, remarks = scoring.score_files(
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
