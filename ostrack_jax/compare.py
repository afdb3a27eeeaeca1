"""Compare the result files of several trackers in one report.

  python -m ostrack_jax.compare --results=DIR --results=DIR --annotations=DIR --output=DIR
  python -m ostrack_jax.compare --results=DIR --results=DIR --dataset=otb --root=DIR --output=DIR

A results folder holds one <sequence>.txt of boxes a sequence, or is what evaluate wrote. Annotations
come from --annotations, or from the benchmark under --root; with --root the report has film strips of
the worst sequences, and AO and SR are of boxes clipped to the image. --dataset chooses the rule and the
published scores that stand beside. The output folder gets report.html (one file, opens anywhere) and
comparison.json.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from ostrack_jax import command_line
from ostrack_jax.evaluation import benchmarks, comparison, html_report, metrics, report

FLAGS = command_line.new_flags()
flags.DEFINE_multi_string(
  "results", None, "folder of a tracker's result files; give it once a tracker", flag_values=FLAGS
)
flags.DEFINE_list("labels", None, "names of the trackers, separated by commas", flag_values=FLAGS)
flags.DEFINE_string("annotations", None, "folder of <sequence>.txt annotations", flag_values=FLAGS)
flags.DEFINE_enum("dataset", None, sorted(benchmarks.BENCHMARKS), "benchmark", flag_values=FLAGS)
flags.DEFINE_string("root", None, "folder that holds the benchmark's sequences", flag_values=FLAGS)
flags.DEFINE_string("output", None, "folder to write to", flag_values=FLAGS)
flags.DEFINE_enum(
  "rule", None, sorted(metrics.RULES), "which frames count; default: the benchmark's own, otb without --dataset", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_bool(
  "allow_missing", False, "leave out sequences that a tracker or the root lacks", flag_values=FLAGS
)
flags.DEFINE_list("sequences", None, "only these sequences, separated by commas", flag_values=FLAGS)


def _compare() -> int:
  output = pathlib.Path(FLAGS.output)
  folders = comparison.label_folders([pathlib.Path(one) for one in FLAGS.results], FLAGS.labels)
  benchmark = benchmarks.BENCHMARKS[FLAGS.dataset] if FLAGS.dataset else None
  rule = FLAGS.rule or (benchmark.rule if benchmark else "otb")
  videos, declared = None, 0
  if FLAGS.root:
    assert benchmark is not None
    selection = benchmarks.select(
      benchmark,
      pathlib.Path(FLAGS.root),
      sequences=FLAGS.sequences,
      allow_missing=FLAGS.allow_missing,
    )
    for name, reason in selection.missing.items():
      print(f"left out {name}: {reason}", file=sys.stderr)
    videos, declared = {video.name: video for video in selection.videos}, selection.declared
  if FLAGS.annotations:
    annotated = comparison.read_annotations(pathlib.Path(FLAGS.annotations), videos)
    declared = declared or len(annotated)
    wanted = benchmarks.choose(list(annotated), None if FLAGS.root else FLAGS.sequences)
    videos = {name: annotated[name] for name in wanted}
  assert videos is not None
  found = comparison.score_folders(
    folders, videos, rule=rule, declared=declared, allow_missing=FLAGS.allow_missing
  )
  for remark in found.remarks:
    print(remark, file=sys.stderr)
  dataset = FLAGS.dataset or pathlib.Path(FLAGS.annotations).resolve().parent.name
  comparison.write_json(found, output / "comparison.json", dataset=dataset)
  html_report.write_report(
    output / "report.html",
    found.trackers,
    dataset=dataset,
    videos=videos if FLAGS.root else None,
    predictions=found.predictions,
    notes={"remarks": "; ".join(found.remarks)} if found.remarks else {},
  )
  print(report.format_comparison(found.trackers))
  print(f"written to {output}")
  return 0


def _check_flags() -> None:
  absent = [f"--{name}" for name in ("results", "output") if not FLAGS[name].value]
  if not (FLAGS.annotations or FLAGS.root):
    absent.append("--annotations or --root")
  if FLAGS.root and not FLAGS.dataset:
    absent.append("--dataset, which --root needs,")
  if absent:
    raise ValueError(f"{' and '.join(absent)} missing (see --help)")


def main(argv: Sequence[str]) -> int:
  """Run the command with the parsed FLAGS and return its exit code."""
  del argv
  try:
    _check_flags()
    return _compare()
  except (ValueError, OSError) as error:
    sys.exit(f"ostrack-compare: {error}")


def run() -> None:
  """Parse the command line and run; the console script."""
  command_line.run(main, "ostrack-compare", FLAGS, __doc__)


if __name__ == "__main__":
  run()
