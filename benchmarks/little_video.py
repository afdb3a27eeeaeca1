"""Train ViT-S on little video, evaluate it, and gather what came out in one file.

  python -m benchmarks.little_video --run=elimination --seed=42 --data_dir=prepared \\
    --weights=dinov2_vits14_fp16.npz --otb=OTB --lasot=LaSOT --runs=runs/little_video
  python -m benchmarks.little_video --gathered=docs/results/little_video.json --pictures=docs/results

The first line does one run of configs/ostrack_s_256.py, which says how the data is prepared: training, then
the last checkpoint, and the one that did best on held-out pairs, on the sequences of OTB and LaSOT that the
folders hold, then an entry in --gathered. Runs on different days and machines gather there; a run
that was stopped goes on. The second line prints the table, names what has not been run, and draws the curves.
"""

import json
import pathlib
import statistics
import subprocess
import sys
from typing import Any

from absl import flags

from ostrack_jax import command_line
from ostrack_jax.evaluation.results import write_text
from ostrack_jax.training import checkpoint

# What is compared: the argument of the configuration, changes to it, and the seeds.
PLANNED: dict[str, tuple[str, tuple[str, ...], tuple[int, ...]]] = {
  "elimination": ("", (), (42, 43, 44)),
  "no elimination": ("no_ce", (), (42,)),
  # Weights that know nothing need the full rate.
  "random start": (
    "",
    ("--config.model.pretrained=", "--config.optim.backbone_multiplier=1.0"),
    (42,),
  ),
  "3 times as long": ("long", (), (42,)),
}

FLAGS = command_line.new_flags()
flags.DEFINE_enum("run", None, sorted(PLANNED), "What to run; nothing: report.", flag_values=FLAGS)
flags.DEFINE_integer("seed", 42, "Of the run.", flag_values=FLAGS)
flags.DEFINE_string("data_dir", "prepared", "Prepared data.", flag_values=FLAGS)
flags.DEFINE_string("weights", "dinov2_vits14_fp16.npz", "DINOv2's ViT-S/14.", flag_values=FLAGS)
flags.DEFINE_string("otb", "OTB", "Folder of OTB sequences.", flag_values=FLAGS)
flags.DEFINE_string("lasot", "LaSOT", "Folder of LaSOT sequences.", flag_values=FLAGS)
flags.DEFINE_string("runs", "runs/little_video", "Where runs are kept.", flag_values=FLAGS)
flags.DEFINE_string(
  "gathered", "docs/results/little_video.json", "Results of all runs.", flag_values=FLAGS
)
flags.DEFINE_string("pictures", "", "Folder for the curves.", flag_values=FLAGS)
flags.DEFINE_bool(
  "evaluate_only", False, "The run is trained already, elsewhere perhaps.", flag_values=FLAGS
)
flags.DEFINE_list("change", [], "Further flags for training, as tests need.", flag_values=FLAGS)


def run_name(run: str, seed: int) -> str:
  """Return the folder and key of a run."""
  return f"{run.replace(' ', '_')}-{seed}"


def training_command(run: str, seed: int, workdir: pathlib.Path) -> list[str]:
  """Return the command that trains."""
  argument, changes, _ = PLANNED[run]
  return [
    *(sys.executable, "-m", "training"),
    f"--config=configs/ostrack_s_256.py{':' if argument else ''}{argument}",
    f"--workdir={workdir}",
    f"--config.data.data_dir={FLAGS.data_dir}",
    f"--config.model.pretrained={FLAGS.weights}",
    f"--config.train.seed={seed}",
    *changes,
    *FLAGS.change,
  ]


def checkpoints(workdir: pathlib.Path) -> dict[str, int]:
  """Return the steps to evaluate by what chooses them: "last", and "best" on held-out pairs.

  Raises:
    FileNotFoundError: the run is not finished.
  """
  best = json.loads((workdir / "best.json").read_text())["step"]
  steps = checkpoint.steps_in(workdir)
  if not steps:
    raise FileNotFoundError(f"{workdir} holds no checkpoint; train first")
  return {"last": steps[-1], "best": best}


def evaluation_commands(workdir: pathlib.Path) -> list[list[str]]:
  """Return the commands that evaluate a trained run."""
  commands = []
  for chosen, step in checkpoints(workdir).items():
    start = [
      *(sys.executable, "-m", "ostrack_jax.evaluate"),
      f"--checkpoint={workdir}/{checkpoint.STEPS_FOLDER}/{step}",
    ]
    for dataset, how in (
      ("otb", ["--dataset=otb", f"--root={FLAGS.otb}", "--allow_missing"]),
      ("lasot", ["--dataset=folder", "--rule=otb", f"--root={FLAGS.lasot}"]),
    ):
      commands.append([*start, *how, f"--output={workdir}/{dataset}_{chosen}"])
  return commands


def gather(workdir: pathlib.Path, run: str, seed: int) -> dict:
  """Return what a finished run leaves: pairs, minutes, curves by pairs, and scores.

  Raises:
    FileNotFoundError: the run is not finished.
  """
  report = json.loads((workdir / "report.json").read_text())
  batch = json.loads((workdir / "config.json").read_text())["train"]["batch_size"]
  rows = [json.loads(line) for line in (workdir / "scalars.jsonl").read_text().splitlines()]

  def curve(name: str) -> list[tuple[int, float]]:
    return [(row["step"] * batch, round(row[name], 4)) for row in rows if name in row]

  entry: dict[str, Any] = {
    "run": run,
    "seed": seed,
    "devices": report["devices"],
    "pairs": report["pairs"],
    "minutes": round(report["minutes"], 2),
    "curves": {name: curve(name) for name in ("train/iou", "validation/iou", "validation/ao")},
  }
  for chosen, step in checkpoints(workdir).items():
    entry[chosen] = {"pairs": step * batch}
    for dataset in ("otb", "lasot"):
      summary = json.loads((workdir / f"{dataset}_{chosen}" / "summary.json").read_text())
      scores = {name: one["success_auc"] for name, one in summary["per_sequence"].items()}
      entry[chosen][dataset] = {
        "rule": summary["rule"],
        "success_auc": round(summary["mean"]["success_auc"], 4),
        "per_sequence": {name: round(value, 4) for name, value in scores.items()},
      }
  return entry


def table(entries: dict[str, dict]) -> str:
  """Return a Markdown table of all planned runs: means over seeds and standard errors."""
  lines = [
    "| | seeds | pairs | minutes | OTB mean success AUC | by sequence | LaSOT clip | OTB, best held-out | LaSOT clip |",
    "|---|---|---|---|---|---|---|---|---|",
  ]
  for run, (_, _, seeds) in PLANNED.items():
    found = [entries[run_name(run, s)] for s in seeds if run_name(run, s) in entries]
    unrun = [str(s) for s in seeds if run_name(run, s) not in entries]
    if found:
      names = found[0]["last"]["otb"]["per_sequence"]
      single = ", ".join(
        f"{name} {statistics.mean(e['last']['otb']['per_sequence'][name] for e in found):.3f}"
        for name in names
      )
      otb, lasot, best_otb, best_lasot = (
        _mean([e[chosen][dataset]["success_auc"] for e in found])
        for chosen in ("last", "best")
        for dataset in ("otb", "lasot")
      )
      lines.append(
        f"| {run} | {', '.join(str(e['seed']) for e in found)} | {found[0]['pairs']:,} "
        f"| {statistics.mean(e['minutes'] for e in found):.1f} "
        f"| {otb} | {single} | {lasot} | {best_otb} | {best_lasot} |"
      )
    if unrun:
      lines.append(f"| {run} | {', '.join(unrun)} | | | not run yet | | | | |")
  return "\n".join(lines)


def _mean(values: list[float]) -> str:
  mean = f"{statistics.mean(values):.3f}"
  if len(values) == 1:
    return mean
  return f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.3f}"


def draw(entries: dict[str, dict], path: pathlib.Path) -> None:
  """Draw IoU in training and validation, and the AO of the validation tracks, by pairs."""
  # Loaded late: a run needs no pictures.
  import matplotlib.figure

  figure = matplotlib.figure.Figure(figsize=(13, 4), layout="constrained")
  titles = {
    "train/iou": "IoU, training pairs",
    "validation/iou": "IoU, held-out pairs",
    "validation/ao": "AO, held-out tracks",
  }
  for axes, (name, title) in zip(figure.subplots(1, 3), titles.items()):
    for key, entry in sorted(entries.items()):
      pairs, values = zip(*entry["curves"][name]) if entry["curves"][name] else ((), ())
      axes.plot([p / 1e6 for p in pairs], values, label=key.replace("_", " "), linewidth=1.2)
    axes.set(title=title, xlabel="million pairs")
    axes.grid(alpha=0.3)
  figure.axes[0].legend(fontsize=8)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=110)


def _run(command: list[str]) -> None:
  """Run a command; end with its exit code where it fails."""
  print("+ " + " ".join(command[2:]), flush=True)
  code = subprocess.run(command, check=False).returncode
  if code:
    print(f"benchmarks.little_video: {command[2]} ended with exit code {code}", file=sys.stderr)
    sys.exit(code)


def _read(path: pathlib.Path) -> dict[str, dict]:
  return json.loads(path.read_text()) if path.is_file() else {}


def main(argv: list[str]) -> None:
  """Run or report."""
  del argv
  gathered = pathlib.Path(FLAGS.gathered)
  if FLAGS.run:
    name = run_name(FLAGS.run, FLAGS.seed)
    workdir = pathlib.Path(FLAGS.runs) / name
    if not FLAGS.evaluate_only:
      _run(training_command(FLAGS.run, FLAGS.seed, workdir))
    for command in evaluation_commands(workdir):
      _run(command)
    entries = _read(gathered) | {name: gather(workdir, FLAGS.run, FLAGS.seed)}
    write_text(gathered, json.dumps(entries, indent=1) + "\n")
  entries = _read(gathered)
  print(table(entries))
  if FLAGS.pictures:
    draw(entries, pathlib.Path(FLAGS.pictures) / "little_video.png")


if __name__ == "__main__":
  command_line.run(main, "benchmarks.little_video", FLAGS, __doc__)
