"""Check a raw data set before it is prepared, or look at what training sees of a prepared one.

  python -m data_pipelines.validate --dataset=lasot --raw_dir=DIR
  python -m data_pipelines.validate --preview=FILE.png --prepared=lasot_train --data_dir=DIR

The check decodes every frame and looks at every box: unreadable or truncated images, frames and boxes
that do not match in number, boxes outside the frame, NaN and zero size, identical frames, sudden jumps,
sequences too short to train, and boxes that look like corners or fractions. It prints a summary and
writes report.html (with pictures), report.json and overview.png; the exit status is 1 if there are
errors, 0 if there are at most warnings.

The preview is a sheet of sampled pairs with their labels, cropped, flipped, grey and lit as the
network would get them. --prepared takes the names that configurations list data sets by, or directories
that data_pipelines.prepare wrote.
"""

import os
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from data_pipelines import check_report, context, datasets, raw_data_flags, raw_scan
from data_pipelines.builders import frame_records
from data_pipelines.sources import MANIFEST, FrameSource
from ostrack_jax import command_line

COMMAND = "data_pipelines.validate"
# As many errors are told on the screen; the report has all.
_TOLD = 5
_SIZES = ("search_size", "template_size")

FLAGS = command_line.new_flags()
raw_data_flags.define(FLAGS)
flags.DEFINE_string(
  "report", None, "folder for the report; default: <dataset>_check", flag_values=FLAGS
)
flags.DEFINE_string(
  "preview", None, "image file to write sampled training pairs to", flag_values=FLAGS
)
flags.DEFINE_list(
  "prepared",
  None,
  "what to sample from, separated by commas: data sets as configurations list them, or prepared "
  "directories",
  flag_values=FLAGS,
)
flags.DEFINE_string(
  "preview_split", "train", "split of the prepared directories", flag_values=FLAGS
)
flags.DEFINE_enum(
  "preset", "256", ["256", "384"], "the official crop settings of this search size", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_integer("search_size", None, "pixels; default: the preset's", flag_values=FLAGS)
flags.DEFINE_integer("template_size", None, "pixels; default: the preset's", flag_values=FLAGS)
flags.DEFINE_integer("preview_pairs", 16, "how many pairs", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "of the sampled pairs", flag_values=FLAGS)
flags.DEFINE_float(
  "absent_probability",
  0.0,
  "that a search region shows another target, as config.sampling.absent_probability; it then has no box",
  flag_values=FLAGS,
)


def check(
  dataset: str,
  raw_dir: str | os.PathLike[str],
  report: str | os.PathLike[str],
  *,
  splits: Sequence[str] | None = None,
  num_workers: int = 0,
  allow_missing: bool = False,
) -> raw_scan.Scan:
  """Check a raw folder and write the report.

  Args:
    dataset: a name in datasets.DATASETS.
    raw_dir: the raw folder.
    report: folder to write report.html, report.json and overview.png to.
    splits: None for those that training uses.
    num_workers: processes; 0 checks in this one. The findings do not depend on it.
    allow_missing: leave out what an official list names and the folder lacks.

  Raises:
    FileNotFoundError, ValueError: no such folder or split, or its sequences cannot be listed.
    OSError: the report cannot be written.
  """
  builder_class = datasets.DATASETS[dataset]
  root = pathlib.Path(raw_dir)
  if not root.is_dir():
    raise FileNotFoundError(f"no folder {root}: pass the folder that holds the raw data")
  splits = tuple(splits or builder_class.DEFAULT_SPLITS)
  for split in splits:
    if split not in builder_class.SPLITS:
      known = ", ".join(builder_class.SPLITS)
      raise ValueError(f"{dataset} has no split {split!r}, only {known}")
  config = frame_records.RawDataConfig(root=os.fspath(root), allow_missing=allow_missing)
  scan = raw_scan.scan(builder_class, config, splits, num_workers)
  check_report.write_report(
    scan, pathlib.Path(report), dataset=dataset, raw_dir=str(root.resolve())
  )
  return scan


def _check() -> int:
  if FLAGS.dataset is None:
    raise ValueError(f"--dataset missing; expected one of {', '.join(sorted(datasets.DATASETS))}")
  report = pathlib.Path(FLAGS.report or f"{FLAGS.dataset}_check")
  scan = check(
    FLAGS.dataset,
    FLAGS.raw_dir,
    report,
    splits=FLAGS.splits,
    num_workers=FLAGS.num_workers,
    allow_missing=FLAGS.allow_missing,
  )
  print(raw_scan.format_summary(scan))
  page = report / "report.html"
  errors = [finding for finding in scan.findings if finding.severity == "error"]
  if not errors:
    print(f"no errors; the report is {page}")
    return 0
  for finding in errors[:_TOLD]:
    place = f" ({finding.file})" if finding.file else ""
    print(f"  {finding.sequence or finding.split}{place}: {finding.sentence}", file=sys.stderr)
  if len(errors) > _TOLD:
    print(f"  and in {len(errors) - _TOLD} more sequences", file=sys.stderr)
  count = scan.count("error")
  return _fail(f"{count} error{'s' if count > 1 else ''} in {FLAGS.raw_dir}; see {page}")


def _preview() -> None:
  if not FLAGS.prepared:
    raise ValueError(
      "--preview shows prepared data: run `python -m data_pipelines.prepare`, then pass its directory, or the "
      "data set's name, as --prepared"
    )
  # The pipeline's packages take memory that the processes of a check need not have.
  from data_pipelines import preview

  changes = {name: FLAGS[name].value for name in _SIZES if FLAGS[name].value is not None}
  augmentation = preview.settings(FLAGS.preset, **changes)
  sources = [
    source for name in FLAGS.prepared for source in _open(name, FLAGS.preview_split, augmentation)
  ]
  path = pathlib.Path(FLAGS.preview)
  preview.write_preview(
    path,
    sources,
    augmentation,
    pairs=FLAGS.preview_pairs,
    seed=FLAGS.seed,
    absent_probability=FLAGS.absent_probability,
  )
  print(f"{FLAGS.preview_pairs} pairs written to {path}")


def _open(name: str, split: str, augmentation) -> list[tuple[FrameSource, float]]:
  """Open a prepared directory, or what a data set's name stands for."""
  if (pathlib.Path(name) / MANIFEST).is_file():
    source = FrameSource(name, split)
    lacking = (
      context.ContextSettings(**source.storage).shortcomings(augmentation) if source.storage else []
    )
    if lacking:
      raise ValueError(f"{name} holds context crops for less: {'; '.join(lacking)}")
    return [(source, 1.0)]
  settings = datasets.DatasetSettings(data_dir=datasets.data_dir(FLAGS.data_dir))
  return datasets.open_mixture([name], [1.0], settings, augmentation)


def _fail(message: str) -> int:
  print(f"{COMMAND}: {message}", file=sys.stderr)
  return 1


def main(argv: Sequence[str]) -> int:
  """Run the command with the parsed FLAGS and return its exit code."""
  del argv
  try:
    if not FLAGS.raw_dir and not FLAGS.preview:
      raise ValueError("give --dataset and --raw_dir to check, or --preview=FILE.png (see --help)")
    code = _check() if FLAGS.raw_dir else 0
    if FLAGS.preview:
      _preview()
    return code
  except (ValueError, OSError) as error:
    return _fail(str(error))
  except KeyboardInterrupt:
    return _fail("interrupted; no report was written")


def run() -> None:
  """Parse the command line and run; the console script."""
  command_line.run(main, COMMAND, FLAGS, __doc__)


if __name__ == "__main__":
  run()
