"""Measure the long-term mode: real sequences whose target is taken out for a while, with and without the mode.

  python -m benchmarks.long_term --checkpoint=DIR --dataset=otb --root=DIR --allow_missing --output=FILE.json

The checkpoint needs a calibrator (python -m ostrack_jax.calibrate). For 20 to 60 frames the target is covered
by what other frames of the video show there (target_removal.without_target), or with --cover=blank the frames
are black; where it cannot be covered they are, too. Both modes see the same frames. FILE.json gets everything,
FILE.png the overlaps.

A target is found again where the box overlaps it by more than 0.5 within 60 frames of its coming back, and a
frozen box does not count. The same frames untouched say what the mode costs: success AUC may fall by 0.005.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from ostrack_jax import MultiTracker, command_line, load, visualization
from ostrack_jax.evaluation import benchmarks, report, videos
from ostrack_jax.evaluation.box_errors import overlap
from ostrack_jax.evaluation.results import write_text
from ostrack_jax.tracking.confidence_samples import RIGHT_IOU
from ostrack_jax.tracking.long_term import LongTermSettings
from ostrack_jax.tracking.target_removal import without_target

_NAME = "benchmarks.long_term"
_DEFAULTS = LongTermSettings()

FLAGS = command_line.new_flags()
flags.DEFINE_string("checkpoint", None, "With a calibrator.", required=True, flag_values=FLAGS)
flags.DEFINE_string("dataset", "folder", "Layout of --root.", flag_values=FLAGS)
flags.DEFINE_string("root", None, "Annotated sequences.", required=True, flag_values=FLAGS)
flags.DEFINE_bool("allow_missing", False, "Leave out incomplete sequences.", flag_values=FLAGS)
flags.DEFINE_integer("absences", 3, "A sequence, each in a run of its own.", 1, flag_values=FLAGS)
flags.DEFINE_enum("cover", "background", ["background", "blank"], "See above.", flag_values=FLAGS)
flags.DEFINE_integer(
  "seed", 0, "Of when targets are absent, and what covers them.", flag_values=FLAGS
)
flags.DEFINE_string("dtype", None, "By default as load.", flag_values=FLAGS)
flags.DEFINE_float("loss_odds", _DEFAULTS.loss_odds, "Of LongTermSettings.", flag_values=FLAGS)
flags.DEFINE_integer("patience", _DEFAULTS.patience, "Likewise.", flag_values=FLAGS)
flags.DEFINE_float("accept_odds", _DEFAULTS.accept_odds, "Likewise.", flag_values=FLAGS)
flags.DEFINE_float("regain_odds", _DEFAULTS.regain_odds, "Likewise.", flag_values=FLAGS)
flags.DEFINE_integer("regain_frames", _DEFAULTS.regain_frames, "Likewise.", flag_values=FLAGS)
flags.DEFINE_integer("proof", _DEFAULTS.proof, "Likewise.", flag_values=FLAGS)
flags.DEFINE_integer("windows", _DEFAULTS.windows, "Likewise.", flag_values=FLAGS)
flags.DEFINE_string("output", None, "JSON file to write; its picture beside it.", flag_values=FLAGS)

MODES = ("plain", "long_term")
FRAMES_TO_FIND = 60
LARGEST_LOSS = 0.005
_ABSENT_FRAMES = (20, 60)
# Before, so that a track has begun, and behind, so that it can be found again.
_FRAMES_BEFORE, _FRAMES_BEHIND = 10, 20
_ROWS_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Run:
  """What a tracker said of every frame; row 0 is the given box.

  boxes_xywh: [n, 4]. visible, lost: [n] bool. seconds: [n], NaN in row 0.
  """

  boxes_xywh: np.ndarray
  visible: np.ndarray
  lost: np.ndarray
  seconds: np.ndarray


def follow(tracker: MultiTracker, frames: Iterable[np.ndarray], box_xywh) -> Run:
  """Track one target through frames, and leave the tracker empty."""
  rows = []
  for tracked in tracker.track(frames, {0: [box_xywh]}, is_live=True):
    (result,) = tracked.results.values()
    seconds = tracked.seconds if rows else float("nan")
    rows.append((result.box_xywh, result.visible is not False, bool(tracker.lost), seconds))
  for number in tracker.objects:
    tracker.remove(number)
  return Run(*(np.array(column) for column in zip(*rows, strict=True)))


def choose_absence(frames: int, rng: np.random.Generator) -> tuple[int, int] | None:
  """Return the first frame of an absence and the one behind its last; None where there is no room."""
  fewest, most = _ABSENT_FRAMES
  most = min(most, frames - _FRAMES_BEFORE - _FRAMES_BEHIND)
  if most < fewest:
    return None
  length = int(rng.integers(fewest, most + 1))
  first = int(rng.integers(_FRAMES_BEFORE, frames - _FRAMES_BEHIND - length + 1))
  return first, first + length


@dataclasses.dataclass(frozen=True)
class Held:
  """An annotated video in memory."""

  name: str
  frames: Sequence[np.ndarray]
  boxes_xywh: np.ndarray
  visible: np.ndarray

  def overlaps(self, run: Run) -> np.ndarray:
    """Return [n] IoU, 0 where the target has no box."""
    return np.nan_to_num(overlap(run.boxes_xywh, self.boxes_xywh))

  def without_target(
    self, first: int, stop: int, is_blank: bool, rng: np.random.Generator
  ) -> list[np.ndarray]:
    """Return all frames, those of an absence covered."""
    frames = list(self.frames)
    for number in range(first, stop):
      if not is_blank and not self.visible[number]:
        continue
      covered = None if is_blank else without_target(self, number, rng)
      frames[number] = np.zeros_like(frames[number]) if covered is None else covered
    return frames


def measure_absence(run: Run, overlaps: np.ndarray, first: int, stop: int) -> dict[str, Any]:
  """Return what became of a target that was absent in frames [first, stop).

  `held_before`: whether the box was right in the frame before. `found_after`: frames from its coming back
  until the box was right, 0 for at once, None for never. `found_at_end`: whether it is right 60 frames
  later, or at the end. `false_finds`: times it was said to be found, visible and no longer lost, while it was gone; an
  end of doubt that is not visible is none. `seen_while_gone`: share of these frames called visible.
  """
  right = (overlaps > RIGHT_IOU) & ~run.lost
  behind = right[stop : stop + FRAMES_TO_FIND]
  gone = slice(first, stop)
  found = run.lost[first - 1 : stop - 1] & ~run.lost[gone] & run.visible[gone]
  return {
    "held_before": bool(right[first - 1]),
    "found_after": int(behind.argmax()) if behind.any() else None,
    "found_at_end": bool(behind[-1]),
    "false_finds": int(found.sum()),
    "lost_while_gone": float(run.lost[gone].mean()),
    "seen_while_gone": float(run.visible[gone].mean()),
    "mean_iou_behind": float(overlaps[stop:].mean()),
  }


def summary(absences: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Return shares and means over absences of measure_absence; None where nothing counts."""
  waits = [one["found_after"] for one in absences if one["found_after"] is not None]
  means = {
    name: float(np.mean([one[name] for one in absences]))
    for name in ("held_before", "found_at_end", "lost_while_gone", "seen_while_gone", "mean_iou_behind")
  } if absences else {}  # fmt: skip
  return {
    "absences": len(absences),
    "found_again": len(waits) / len(absences) if absences else None,
    "frames_until": float(np.mean(waits)) if waits else None,
    "falsely_found": sum(one["false_finds"] > 0 for one in absences),
    **means,
  }


def _measure_sequence(trackers, video, number: int, progress) -> dict[str, Any]:
  annotated = videos.annotated(video)
  frames = [annotated.frames[t] for t in range(len(annotated.frames))]
  held = Held(video.name, frames, np.asarray(video.boxes_xywh, float), annotated.visible)
  start = held.boxes_xywh[0]
  found: dict[str, Any] = {"frames": len(frames), "absences": []}
  found["untouched"] = {mode: follow(tracker, frames, start) for mode, tracker in trackers.items()}
  progress()
  for turn in range(FLAGS.absences):
    rng = np.random.default_rng([FLAGS.seed, number, turn])
    span = choose_absence(len(frames), rng)
    if span is not None:
      shown = held.without_target(*span, FLAGS.cover == "blank", rng)
      runs = {mode: follow(tracker, shown, start) for mode, tracker in trackers.items()}
      overlaps = {mode: held.overlaps(run) for mode, run in runs.items()}
      found["absences"].append(
        {
          "sequence": video.name,
          "turn": turn,
          "span": span,
          "runs": runs,
          "overlaps": overlaps,
          "measures": {mode: measure_absence(runs[mode], overlaps[mode], *span) for mode in MODES},
        }
      )
    progress()
  return found


def _milliseconds(runs: Sequence[Run]) -> dict[str, float | None]:
  """Return medians of frames in which a target was lost at the end, and of the others."""
  # The first updates compile.
  seconds = np.concatenate([run.seconds[3:] for run in runs])
  lost = np.concatenate([run.lost[3:] for run in runs])
  return {
    name: float(1000 * np.median(seconds[rows])) if rows.any() else None
    for name, rows in (("followed", ~lost), ("lost", lost))
  }


def content_of(found: dict[str, Any], truth: dict[str, np.ndarray]) -> dict[str, Any]:
  """Return what FILE.json says of the runs, by sequence as _measure_sequence returns them.

  truth: [n, 4] annotated boxes by sequence.
  """
  absences = [one for sequence in found.values() for one in sequence["absences"]]
  content: dict[str, Any] = {}
  for mode in MODES:
    untouched = {name: one["untouched"][mode] for name, one in found.items()}
    scores = report.score(
      {name: run.boxes_xywh for name, run in untouched.items()}, truth, rule="visible"
    )
    auc = {name: one.measures["success_auc"] for name, one in scores.sequences.items()}
    measured = [one["measures"][mode] for one in absences]
    held = [one["measures"][mode] for one in absences if one["measures"]["plain"]["held_before"]]
    runs = [*untouched.values(), *(one["runs"][mode] for one in absences)]
    content[mode] = {
      "untouched_success_auc": float(np.mean(list(auc.values()))),
      "untouched_success_auc_by_sequence": auc,
      "untouched_lost": float(np.concatenate([run.lost for run in untouched.values()]).mean()),
      "all": summary(measured),
      "held_before_by_plain": summary(held),
      "milliseconds": _milliseconds(runs),
    }
  change = content["long_term"]["untouched_success_auc"] - content["plain"]["untouched_success_auc"]
  content["untouched_success_auc_change"] = change
  content["untouched_is_within_bar"] = bool(change >= -LARGEST_LOSS)
  content["absences"] = [
    {"sequence": one["sequence"], "span": one["span"], **one["measures"]} for one in absences
  ]
  return content


def show(content: dict[str, Any]) -> None:
  """Print both modes beside each other."""

  def cell(value) -> str:
    return f"{'none' if value is None else f'{value:.3f}':>11}"

  print(f"{'':<52}{'plain':>11}{'long-term':>11}")
  for part, words in (("all", ""), ("held_before_by_plain", ", held before")):
    count = content["plain"][part]["absences"]
    for name in ("found_again", "found_at_end", "frames_until", "mean_iou_behind", "falsely_found", "seen_while_gone"):  # fmt: skip
      label = f"{name.replace('_', ' ')}, {count} absences{words}"
      print(f"{label:<52}" + "".join(cell(content[mode][part].get(name)) for mode in MODES))
  for name in ("untouched_success_auc", "untouched_lost"):
    print(f"{name.replace('_', ' '):<52}" + "".join(cell(content[mode][name]) for mode in MODES))
  for name in ("followed", "lost"):
    cells = (cell(content[mode]["milliseconds"][name]) for mode in MODES)
    print(f"{f'ms a frame, {name}':<52}" + "".join(cells))
  change = content["untouched_success_auc_change"]
  told = "within" if content["untouched_is_within_bar"] else "NOT within"
  print(f"untouched success AUC changes by {change:+.4f}, {told} the bar of -{LARGEST_LOSS}")


def plot(absences: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
  """Draw overlaps frame by frame, a row an absence, which is shaded; where the box is frozen it is dotted.

  The first absence of every sequence comes first; ten are drawn.
  """
  import matplotlib.figure

  shown = sorted(absences, key=lambda one: one["turn"])[:_ROWS_SHOWN]
  figure = matplotlib.figure.Figure(figsize=(9, 1.5 * len(shown) + 0.6), layout="constrained")
  rows = figure.subplots(len(shown), squeeze=False)[:, 0]
  for axes, one in zip(rows, shown, strict=True):
    axes.axvspan(one["span"][0], one["span"][1], color="#dddddd")
    for mode, colour in zip(MODES, ("#d55e00", "#0072b2"), strict=True):
      overlaps, lost = one["overlaps"][mode], one["runs"][mode].lost
      axes.plot(np.where(lost, np.nan, overlaps), color=colour, label=mode.replace("_", "-"))
      axes.plot(np.where(lost, overlaps, np.nan), ":", color=colour)
    axes.axhline(RIGHT_IOU, color="#888888", linewidth=0.6)
    axes.set(ylim=(-0.03, 1.03), ylabel="IoU")
    axes.margins(x=0)
    axes.set_title(one["sequence"], fontsize=9, loc="left")
  rows[0].legend(loc="upper right", fontsize=8, ncols=2)
  rows[-1].set_xlabel("frame; grey: the target is covered; dotted: frozen")
  with visualization.written_whole(path) as temporary:
    figure.savefig(temporary, dpi=110)


def _measure() -> None:
  settings = LongTermSettings(
    loss_odds=FLAGS.loss_odds,
    patience=FLAGS.patience,
    accept_odds=FLAGS.accept_odds,
    regain_odds=FLAGS.regain_odds,
    regain_frames=FLAGS.regain_frames,
    proof=FLAGS.proof,
    windows=FLAGS.windows,
  )
  if FLAGS.dataset not in benchmarks.BENCHMARKS:
    known = ", ".join(sorted(benchmarks.BENCHMARKS))
    raise ValueError(f"--dataset={FLAGS.dataset} is no benchmark; choose one of {known}")
  selected = benchmarks.select(
    benchmarks.BENCHMARKS[FLAGS.dataset],
    pathlib.Path(FLAGS.root),
    allow_missing=FLAGS.allow_missing,
  ).videos
  unknown = [video.name for video in selected if not video.is_annotated]
  if unknown:
    raise ValueError(f"--dataset={FLAGS.dataset}: only the first box of {unknown[0]} is public")
  checkpoint = load(FLAGS.checkpoint, **({"dtype": FLAGS.dtype} if FLAGS.dtype else {}))
  trackers = {
    mode: MultiTracker(checkpoint, max_objects=1, long_term=None if mode == "plain" else settings)
    for mode in MODES
  }
  found = {}
  with tqdm(total=len(selected) * (1 + FLAGS.absences), unit="run", disable=None) as bar:
    for number, video in enumerate(selected):
      found[video.name] = _measure_sequence(trackers, video, number, bar.update)
  content = {
    "device": jax.local_devices()[0].device_kind,
    "settings": {name: FLAGS[name].value for name in FLAGS if name != "help"},
  } | content_of(found, {video.name: video.boxes_xywh for video in selected})
  show(content)
  if FLAGS.output:
    output = pathlib.Path(FLAGS.output)
    write_text(output, json.dumps(content, indent=2) + "\n")
    absences = [one for sequence in found.values() for one in sequence["absences"]]
    if absences:
      plot(absences, output.with_suffix(".png"))


def main(argv: list[str]) -> None:
  """Measure, print, and write what --output names."""
  del argv
  try:
    _measure()
  except (ValueError, OSError) as error:
    sys.exit(f"{_NAME}: {error}")


if __name__ == "__main__":
  command_line.run(main, _NAME, FLAGS, __doc__)
