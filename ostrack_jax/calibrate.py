"""Fit the confidence of a checkpoint's tracker on annotated video, and store it with the checkpoint.

  python -m ostrack_jax.calibrate --checkpoint=DIR --data_dir=prepared --dataset='davis[cat,dog] + vot[book]' \\
    --test_dataset=otb --test_root=OTB100 --output=calibration
  python -m ostrack_jax.calibrate --checkpoint=ostrack_tiny --save_as=tiny --dataset=procedural_test

The confidence is the probability that the target is in the search region and the box overlaps it by more
than 0.5; a target counts as visible above the threshold that --false_alarms chooses. Take videos on which
the network did not train. DIR/calibrator.json holds what was fitted: --checkpoint is a converted folder or
a training work folder, or --save_as names a folder that gets a copy of any other checkpoint.

A data set is the name of one that was prepared with --full_frames, as configurations name them, or with
--root (--test_root) a benchmark's. --output gets calibration.json, reliability.png and roc.png.
docs/confidence.md says what the numbers mean.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from ostrack_jax import command_line

if TYPE_CHECKING:
  from ostrack_jax.loading import Checkpoint

FLAGS = command_line.new_flags()
flags.DEFINE_string(
  "checkpoint", None, "what to calibrate: a converted folder or a training work folder; with --save_as anything that loads", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_string(
  "save_as", None, "folder to write (absent or empty) that gets the checkpoint with its calibrator", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_enum(
  "dtype", None, ["float32", "bfloat16", "float16"], "to compute in, as of track", flag_values=FLAGS
)
flags.DEFINE_string("dataset", None, "annotated videos to fit on", flag_values=FLAGS)
flags.DEFINE_string(
  "root", None, "folder of a benchmark's sequences; --dataset is then its name, perhaps with [A,B] behind it", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_string("test_dataset", None, "annotated videos to test on", flag_values=FLAGS)
flags.DEFINE_string("test_root", None, "as --root, of --test_dataset", flag_values=FLAGS)
flags.DEFINE_string(
  "data_dir", "", "root of prepared data; default: OSTRACK_DATA_DIR, else prepared", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_bool(
  "allow_missing", False, "leave out benchmark sequences that are incomplete", flag_values=FLAGS
)
flags.DEFINE_float(
  "false_alarms", 0.05, "share of frames without the target in the box that may be called visible, videos counting alike", 0, 0.999, flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_integer(
  "crops", 64, "frames a video from which crops with and without the target are cut", 1, flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_integer("starts", 16, "tracks a video to fit on, evenly spaced", 1, flag_values=FLAGS)
flags.DEFINE_float(
  "centre_jitter", 3.0, "of crops around the target, as config.augmentation.search_centre_jitter", 0, flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_float("scale_jitter", 0.25, "likewise, search_scale_jitter", 0, flag_values=FLAGS)
flags.DEFINE_float(
  "l2", 1.0, "weight decay of the fit; less where there are many videos", 0, flag_values=FLAGS
)
flags.DEFINE_float(
  "memory", 0.5, "share of a frame's log odds that is of the frames before it; 0 for every frame by itself", 0, 0.99, flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_integer("seed", 0, "of crops, and of what covers targets", flag_values=FLAGS)
flags.DEFINE_string("output", None, "folder for plots and numbers", flag_values=FLAGS)


def _check_flags() -> None:
  absent = [f"--{name}" for name in ("checkpoint", "dataset") if not FLAGS[name].value]
  if absent:
    raise ValueError(f"{' and '.join(absent)} missing (see --help)")
  if FLAGS.test_root and not FLAGS.test_dataset:
    raise ValueError(f"--test_root={FLAGS.test_root} needs --test_dataset, the benchmark's name")


def _load() -> "tuple[Checkpoint, pathlib.Path]":
  """Load the checkpoint; return it, and the folder that calibrator.json is for."""
  from ostrack_jax import loading

  path = pathlib.Path(FLAGS.checkpoint)
  folder = pathlib.Path(FLAGS.save_as or path)
  if FLAGS.save_as:
    loading.check_output(folder, overwrite=False)
  elif not (path / "description.json").is_file():
    # Also a name that ships: what is installed stays as it is.
    loading.load(path)
    raise ValueError(
      f"{path} cannot hold a calibrator, only a converted folder or a training work folder can; give "
      "--save_as=DIR for a copy that does"
    )
  return loading.load(path, dtype=FLAGS.dtype), folder


def _open(dataset: str, root: str | None, flag: str) -> list:
  """Return the annotated videos that two flags name."""
  if root is not None:
    found = _benchmark(dataset, pathlib.Path(root), flag)
  else:
    from data_pipelines import datasets, sequences

    settings = datasets.DatasetSettings(data_dir=datasets.data_dir(FLAGS.data_dir))
    parts = datasets.locate(dataset, settings)
    found = [
      sequence
      for part in parts
      for sequence in sequences.iter_sequences(part.directory, part.split, part.sequences)
    ]
  usable = [one for one in found if one.visible.sum() > 1]
  if not usable:
    raise ValueError(f"{flag}={dataset} has no video in which a target is visible twice")
  return usable


def _benchmark(dataset: str, root: pathlib.Path, flag: str) -> list:
  from ostrack_jax.evaluation import benchmarks, videos

  name, _, listed = dataset.removesuffix("]").partition("[")
  if name not in benchmarks.BENCHMARKS:
    raise ValueError(
      f"{flag}={dataset} is no benchmark; choose one of {', '.join(sorted(benchmarks.BENCHMARKS))}"
    )
  selection = benchmarks.select(
    benchmarks.BENCHMARKS[name],
    root,
    sequences=listed.split(",") if listed else None,
    allow_missing=FLAGS.allow_missing,
  )
  held_back = [video.name for video in selection.videos if not video.is_annotated]
  if held_back:
    raise ValueError(f"{flag}={dataset}: only the first box of {held_back[0]} is public")
  return [videos.annotated(video) for video in selection.videos]


def _calibrate() -> int:
  _check_flags()
  fit_videos = _open(FLAGS.dataset, FLAGS.root, "--dataset")
  test_videos = None
  if FLAGS.test_dataset:
    test_videos = _open(FLAGS.test_dataset, FLAGS.test_root, "--test_dataset")
  # Late, so that wrong paths are named at once.
  from data_pipelines.augmentation import jitter_box
  from ostrack_jax import loading
  from ostrack_jax.evaluation import calibration_report, results
  from ostrack_jax.tracking import confidence, confidence_samples

  checkpoint, folder = _load()

  def jitter(rng, box_xywh):
    return jitter_box(rng, box_xywh, FLAGS.centre_jitter, FLAGS.scale_jitter)

  observer = confidence_samples.Observer(checkpoint, jitter)

  def draw(videos, starts: int, label: str):
    return calibration_report.draw(
      observer, videos, crops=FLAGS.crops, starts=starts, seed=FLAGS.seed, label=label
    )

  samples = draw(fit_videos, FLAGS.starts, "fitting")
  subject = loading.calibration_subject(checkpoint) | {
    "search_factor": observer.search_factor,
    "template_factor": observer.template_factor,
  }
  settings = {"dataset": FLAGS.dataset, "videos": [video.name for video in fit_videos]} | {
    name: FLAGS[name].value
    for name in ("crops", "starts", "centre_jitter", "scale_jitter", "l2", "seed")
  }
  fitting = calibration_report.Fitting(
    signs=confidence.evidence_signs(checkpoint.model),
    l2=FLAGS.l2,
    false_alarm_rate=FLAGS.false_alarms,
    fitted_for=subject,
    provenance=settings,
    memory=FLAGS.memory,
  )
  calibrator = fitting.fit(samples)
  report: dict[str, Any] = {
    "checkpoint": loading.label(FLAGS.checkpoint),
    "fit": calibration_report.measure(calibration_report.rate(calibrator, samples)),
  }
  shown = calibration_report.left_out(fitting, samples)
  if shown is not None:
    report["left_out"] = calibration_report.measure(shown)
  if test_videos is not None:
    drawn = draw(test_videos, 1, "testing")
    shown = calibration_report.rate(calibrator, drawn)
    report["test"] = {"dataset": FLAGS.test_dataset} | calibration_report.measure(shown)
  report["calibrator"] = dataclasses.asdict(calibrator)
  if FLAGS.save_as:
    loading.write_folder(dataclasses.replace(checkpoint, calibrator=calibrator), folder)
  else:
    results.write_text(folder / "calibrator.json", calibrator.to_json())
  if FLAGS.output:
    output = pathlib.Path(FLAGS.output)
    results.write_text(output / "calibration.json", json.dumps(report, indent=2) + "\n")
    calibration_report.plot(shown or calibration_report.rate(calibrator, samples), output)
  print(calibration_report.format_report(report))
  print(f"written: {folder / 'calibrator.json'}{f', {FLAGS.output}' if FLAGS.output else ''}")
  return 0


def main(argv: Sequence[str]) -> int:
  """Run the command with the parsed FLAGS and return its exit code."""
  del argv
  try:
    return _calibrate()
  except (ValueError, OSError) as error:
    sys.exit(f"ostrack-calibrate: {error}")


def run() -> None:
  """Parse the command line and run; the console script."""
  command_line.run(main, "ostrack-calibrate", FLAGS, __doc__)


if __name__ == "__main__":
  run()
