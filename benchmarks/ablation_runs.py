"""The trained runs behind Tables 4 and 5: what is planned, what came out, ours beside the paper's.

All of them train without elimination, as in the paper, on equally many pairs of configs/ostrack_s_256.py's data.
"""

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import gathered_runs, speed_rows
from configs import ostrack_s_256
from ostrack_jax import configuration
from ostrack_jax.evaluation import published_ablations

_ARGUMENT = "no_ce"
CONFIG = f"ostrack_s_256.py:{_ARGUMENT}"
SEEDS = (42, 43, 44)
# Two minutes of an H100; an epoch is a hundredth of it.
PAIRS = 384_000
# Sequences are not tracked on the way: the curves wanted are those of pairs.
_SETTINGS = {
  "train.pairs_per_epoch": PAIRS // 100,
  "train.validate_every_epochs": 5,
  "train.track_validation_sequences": 0,
}
_VIT_B = {"model.variant": "b"}
_WHY = (
  f"A run here sees {PAIRS:,} pairs of a dozen short videos and some still images; the paper's see 18 M pairs or more "
  "of four data sets, with ViT-B. Whatever no pre-training prepares, be it what two-stream trackers put behind the "
  "backbone or a random backbone, has a fiftieth of the paper's pairs to learn in, so differences can be larger "
  "here than there, or of another sign; and seven short sequences measure an AUC to some hundredths only."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
  """A run of a table.

  Attributes:
    title: its name in Table 5, or in Table 4 where it is in that alone.
    start: which of the given files the backbone starts from; "" for random weights.
    changes: of the configuration beyond the common ones, key to value.
    size: of its backbone.
  """

  title: str
  start: str = "dinov2"
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  size: str = "ViT-S"

  def title_in(self, number: int) -> str:
    """Return its name in Table 4, where starts are compared, or 5, where networks are."""
    return "DINOv2" if number == 4 and self.start == "dinov2" else self.title


# STARK's own learning rates, 1e-4 and 1e-5 in the backbone; at OSTrack's its encoder makes all tokens alike. Reached
# slowly, as encoders that normalise behind their sums are said to need (Xiong et al. 2020); not shown to help here.
_STARK = {
  "model.relation": "stark",
  "optim.learning_rate": 1e-4,
  "optim.backbone_multiplier": 0.1,
  "optim.warmup_steps": 1000,
}

PLANNED = {
  "stark": Planned(title="STARK-aligned", changes=_STARK),
  "swintrack": Planned(title="SwinTrack-aligned", changes={"model.relation": "swintrack"}),
  "one_stream": Planned(title="OSTrack"),
  # Weights that know nothing need the full rate.
  "random": Planned(title="none (random)", start="", changes={"optim.backbone_multiplier": 1.0}),
  "deit": Planned(title="ImageNet-1k (DeiT)", start="deit", changes=_VIT_B, size="ViT-B"),
  "augreg": Planned(title="ImageNet-21k (AugReg)", start="augreg", changes=_VIT_B, size="ViT-B"),
  "mae": Planned(title="MAE", start="mae", changes=_VIT_B, size="ViT-B"),
  "dinov2_b": Planned(title="DINOv2", start="dinov2_b", changes=_VIT_B, size="ViT-B"),
}
# The run of one_stream stands in both tables.
TABLES = {
  4: ("random", "one_stream", "deit", "augreg", "mae", "dinov2_b"),
  5: ("stark", "swintrack", "one_stream"),
}
_PUBLISHED_KINDS = {
  "random": "none",
  "deit": "ImageNet-1k",
  "augreg": "ImageNet-21k",
  "mae": "MAE",
}


def training_command(
  run: str,
  seed: int,
  workdir: pathlib.Path,
  *,
  config: str,
  data_dir: str,
  files: Mapping[str, str],
  changes: Sequence[str],
) -> list[str]:
  """Return the command that trains.

  files: by Planned.start, "" for a file that is not given. changes: further flags.

  Raises:
    ValueError: the run starts from a file that is not given.
  """
  planned = PLANNED[run]
  start = files[planned.start] if planned.start else ""
  if planned.start and not start:
    raise ValueError(
      f"--run={run} starts from a file of {planned.size}; give --{_flag(planned.start)}=FILE"
    )
  given = {"data.data_dir": data_dir, "model.pretrained": start, "train.seed": seed}
  settings = {**_SETTINGS, **given, **planned.changes}
  keys = (f"--config.{name}={value}" for name, value in settings.items())
  return gathered_runs.training_command(config, workdir, (*keys, *changes))


def _flag(start: str) -> str:
  return "weights" if start == "dinov2" else start


def deviations(run: str, seed: int, config: Mapping[str, Any]) -> list[str]:
  """Return the keys in which a run's configuration is not the planned one, as 'model.depth=1'.

  config: what its config.json holds. Which file it starts from is no deviation; whether from one is.
  """
  planned = PLANNED[run]
  wanted = ostrack_s_256.get_config(_ARGUMENT)
  start = config["model"]["pretrained"]
  settings = {**_SETTINGS, **planned.changes, "train.seed": seed}
  settings["model.pretrained"] = start if planned.start and start else planned.start
  wanted.update_from_flattened_dict(settings)
  differing = configuration.differing_keys(dict(config), configuration.as_json(wanted))
  return [f"{name}={theirs}" for name, (theirs, _) in differing.items()]


def evaluation_commands(workdir: pathlib.Path, otb: str) -> list[list[str]]:
  """Return the command that evaluates the last checkpoint."""
  datasets = {"otb": ["--dataset=otb", f"--root={otb}", "--allow_missing"]}
  return gathered_runs.evaluation_commands(workdir, datasets, ("last",))


def gather(workdir: pathlib.Path, run: str, seed: int) -> dict[str, Any]:
  """Return what a finished run leaves, with the file that it started from and its deviations from the plan.

  Raises:
    FileNotFoundError: it is not finished.
  """
  entry = gathered_runs.gather(workdir, run, seed, ("otb",), ("last",))
  # What the run was, not what this call's flags say, so that a trial cannot pass for the planned run.
  config = json.loads((workdir / "config.json").read_text())
  return entry | {
    "start": pathlib.PurePath(config["model"]["pretrained"]).name,
    "changes": deviations(run, seed, config),
  }


def pairs_to_reach(curve: Sequence[tuple[int, float]], target: float) -> float | None:
  """Return after how many pairs a validation curve reaches a target, None where it never does.

  Between two validations the curve is a straight line; before the first nothing is known, so what that one
  has reached already counts from there.
  """
  before: tuple[int, float] | None = None
  for pairs, value in curve:
    if value >= target:
      if before is None:
        return float(pairs)
      share = (target - before[1]) / (value - before[1])
      return before[0] + share * (pairs - before[0])
    before = (pairs, value)
  return None


def table(
  number: int,
  content: Mapping[str, Any],
  target_iou: float,
  files: Mapping[str, str],
  variant: str = "b",
) -> tuple[str, list[dict]]:
  """Return Table 4 or 5 as Markdown and as rows.

  content: what is gathered. files: as for training_command. variant: of the models whose speed is shown.
  """
  runs = content.get("runs", {})
  rows = [_row(number, run, content, target_iou, variant) for run in TABLES[number]]
  heading = f"## Table {number}: " + (
    "kinds of pre-training" if number == 4 else "one stream against two"
  )
  paper = ["LaSOT AUC", "TrackingNet AUC", "GOT-10k AO"]
  columns = ["backbone", "seeds", "pairs each", "minutes", "OTB success AUC"]
  if number == 5:
    columns += [
      f"pairs to held-out IoU {target_iou:g}",
      f"FPS (ViT-{variant.upper()})",
      "OSTrack's FPS over it",
    ]
    paper += ["FPS", "OSTrack's FPS over it", "million pairs"]
  names = ["", *columns, *(f"paper: {name}" for name in paper)]
  lines = [heading, "", "| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
  for row in rows:
    cells = [row["title"], *row["ours"], *row["paper"]]
    lines.append("| " + " | ".join(cells) + " |")
  lines += ["", *_remarks(number, runs, files)]
  speeds = {row["run"]: row["fps"] for row in rows if row.get("fps")}
  if speeds:
    lines.append(
      f"* FPS: the network alone at batch 1, without elimination, on {speed_rows.devices(speeds)}; a two-stream "
      f"tracker sees its template once a track. The paper's are of an {published_ablations.DEVICE}."
    )
  lines += [*_agreement(number, runs), "", _WHY]
  return "\n".join(lines) + "\n", rows


def _row(
  number: int, run: str, content: Mapping[str, Any], target_iou: float, variant: str
) -> dict[str, Any]:
  planned = PLANNED[run]
  found, unrun = gathered_runs.found_and_unrun(content.get("runs", {}), run, SEEDS)
  row: dict[str, Any] = {"run": run, "title": planned.title_in(number), "unrun_seeds": unrun}
  ours = [planned.size, ", ".join(str(one["seed"]) for one in found)]
  if found:
    ours += [
      ", ".join(sorted({f"{one['pairs']:,}" for one in found})),
      f"{statistics.mean(one['minutes'] for one in found):.1f}",
      gathered_runs.mean_and_spread(_scores(found)),
    ]
    row["success_auc"] = _scores(found)
  else:
    ours += ["", "", gathered_runs.UNRUN]
  if number == 5:
    reached = [pairs_to_reach(one["curves"]["validation/iou"], target_iou) for one in found]
    row["pairs_to_reach"] = reached
    ours.append(_reached_text(reached) if found else gathered_runs.UNRUN)
    fps = content.get("fps", {})
    own, reference = (
      fps.get(speed_rows.key(variant, 256, False, name)) for name in (run, "one_stream")
    )
    row["fps"], row["fps_ratio"] = own, speed_rows.ratio(reference, own)
    ours += [speed_rows.text(own), speed_rows.ratio_text(reference, own)]
    printed = published_ablations.relations()
    one = printed[run]
    ratio = printed["one_stream"]["fps"] / one["fps"]
    extra = [f"{one['fps']:.1f}", f"{ratio:.2f}", f"{one['million_pairs']:g}"]
  else:
    one = published_ablations.pretraining_kinds().get(_PUBLISHED_KINDS.get(run, ""), {})
    extra = []
  scores = [one.get(key) for key in ("lasot_auc", "trackingnet_auc", "got10k_ao")]
  row["ours"] = ours
  row["paper"] = ["-" if score is None else f"{score:.1f}" for score in scores] + extra
  return row


def _scores(found: Sequence[dict]) -> list[float]:
  return [one["last"]["otb"]["success_auc"] for one in found]


def _reached_text(reached: Sequence[float | None]) -> str:
  known = [value for value in reached if value is not None]
  if not known:
    return "not reached"
  text = gathered_runs.mean_and_spread(known, ",.0f")
  return text if len(known) == len(reached) else f"{text} ({len(known)} of {len(reached)} runs)"


def _remarks(number: int, runs: Mapping[str, dict], files: Mapping[str, str]) -> list[str]:
  """Return what the table's reader must know of its runs, as a list of Markdown."""
  lines = [
    "* Mean over seeds ± standard deviation of one run. Success AUC of the last checkpoint by rule `otb`; no run "
    "has elimination, as in the paper. Paper: " + f"{published_ablations.SOURCE}, Table {number}."
  ]
  found = [run for name in TABLES[number] for run in _entries(runs, name)]
  devices = sorted({one["devices"] for one in found})
  if devices:
    sequences = sorted({", ".join(one["last"]["otb"]["per_sequence"]) for one in found})
    lines.append(f"* Trained on {'; '.join(devices)}. OTB: {'; or '.join(sequences)}.")
  for name in TABLES[number]:
    unrun = gathered_runs.found_and_unrun(runs, name, SEEDS)[1]
    if unrun:
      start = PLANNED[name].start
      hint = f"; needs --{_flag(start)}=FILE" if start and not files.get(start) else ""
      seeds = ", ".join(map(str, unrun))
      lines.append(
        f"* {PLANNED[name].title_in(number)} ({PLANNED[name].size}), seed {seeds}: {gathered_runs.UNRUN} "
        f"(`--table={number} --run={name} --seed={unrun[0]}`{hint})."
      )
  starts: dict[str, list[str]] = {}
  trials: dict[str, list[str]] = {}
  for one in found:
    name = gathered_runs.run_name(one["run"], one["seed"])
    starts.setdefault(one["start"] or "random weights", []).append(name)
    if one["changes"] or one["pairs"] != PAIRS:
      how = " ".join([*one["changes"], f"on {one['pairs']:,} pairs"])
      trials.setdefault(how, []).append(name)
  if starts:
    words = (f"{start} ({', '.join(names)})" for start, names in starts.items())
    lines.append(f"* Backbones started from {'; '.join(words)}.")
  lines += [
    f"* **Not the planned runs**: {', '.join(names)} were with {how}."
    for how, names in trials.items()
  ]
  if number == 4:
    lines.append(
      "* ViT-S and ViT-B stand in one table: compare kinds of one size, the paper's being all ViT-B."
    )
  return lines


def _entries(runs: Mapping[str, dict], run: str) -> list[dict]:
  return gathered_runs.found_and_unrun(runs, run, SEEDS)[0]


def _agreement(number: int, runs: Mapping[str, dict]) -> list[str]:
  """Return for every pair of runs that both sides have whether ours and the paper's order agree."""
  if number == 5:
    printed = {name: one["lasot_auc"] for name, one in published_ablations.relations().items()}
    pairs = [("one_stream", "stark"), ("one_stream", "swintrack")]
  else:
    kinds = published_ablations.pretraining_kinds()
    printed = {name: kinds[kind]["lasot_auc"] for name, kind in _PUBLISHED_KINDS.items()}
    pairs = [("mae", "augreg"), ("mae", "deit"), ("augreg", "deit")]
  lines = []
  for better, other in pairs:
    ours, theirs = (_scores(_entries(runs, name)) for name in (better, other))
    if not ours or not theirs:
      continue
    difference = statistics.mean(ours) - statistics.mean(theirs)
    names = f"{PLANNED[better].title_in(number)} over {PLANNED[other].title_in(number)}"
    paper = f"the paper +{printed[better] - printed[other]:.1f} points of LaSOT AUC"
    lines.append(f"* {names}: {difference:+.3f} here, {paper}: {verdict(ours, theirs)}.")
  return lines


def verdict(better: Sequence[float], other: Sequence[float]) -> str:
  """Say whether scores of several seeds show that the first are higher, as the paper's are.

  A difference counts from twice its standard error, which needs two seeds of each.
  """
  if min(len(better), len(other)) < 2:
    return "one seed cannot tell whether they agree"
  difference = statistics.mean(better) - statistics.mean(other)
  error = sum(statistics.variance(values) / len(values) for values in (better, other)) ** 0.5
  if abs(difference) <= 2 * error:
    return f"the same within what seeds differ by (standard error {error:.3f})"
  return "agrees" if difference > 0 else "**disagrees**"
