"""Training runs that are compared: how one is trained, evaluated, and gathered with others in one JSON file.

What is compared is the business of benchmarks.little_video and benchmarks.tables. A run that was stopped
goes on when it is given again; runs on different days and machines gather in one file.
"""

import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ostrack_jax.evaluation.results import write_text
from ostrack_jax.training import checkpoint

UNRUN = "not run yet"
CURVES = ("train/iou", "validation/iou", "validation/ao")
# What chooses a checkpoint: being the last, or the best on held-out pairs.
CHOICES = ("last", "best")


def run_name(run: str, seed: int) -> str:
  """Return the folder and key of a run."""
  return f"{run.replace(' ', '_')}-{seed}"


def training_command(config: str, workdir: pathlib.Path, changes: Sequence[str]) -> list[str]:
  """Return the command that trains a configuration of configs/, flags behind it; it goes on where it stopped."""
  start = [sys.executable, "-m", "training", f"--config=configs/{config}", f"--workdir={workdir}"]
  return [*start, *changes]


def checkpoints(workdir: pathlib.Path, choices: Sequence[str] = CHOICES) -> dict[str, int]:
  """Return the steps to evaluate by what chooses them: "last", and "best" on held-out pairs.

  Raises:
    FileNotFoundError: the run is not finished.
  """
  steps = checkpoint.steps_in(workdir)
  if not steps:
    raise FileNotFoundError(f"{workdir} holds no checkpoint; train first")
  chosen = {"last": steps[-1]}
  if "best" in choices:
    chosen["best"] = json.loads((workdir / "best.json").read_text())["step"]
  return {name: chosen[name] for name in choices}


def evaluation_commands(
  workdir: pathlib.Path,
  datasets: Mapping[str, Sequence[str]],
  choices: Sequence[str] = CHOICES,
) -> list[list[str]]:
  """Return the commands that evaluate a trained run.

  datasets: name to the flags of `evaluate` that say what it is. Results go to WORKDIR/<name>_<choice>.
  """
  commands = []
  for chosen, step in checkpoints(workdir, choices).items():
    start = [
      *(sys.executable, "-m", "ostrack_jax.evaluate"),
      f"--checkpoint={workdir}/{checkpoint.STEPS_FOLDER}/{step}",
    ]
    for name, how in datasets.items():
      commands.append([*start, *how, f"--output={workdir}/{name}_{chosen}"])
  return commands


def gather(
  workdir: pathlib.Path,
  run: str,
  seed: int,
  datasets: Sequence[str],
  choices: Sequence[str] = CHOICES,
) -> dict[str, Any]:
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
    "curves": {name: curve(name) for name in CURVES},
  }
  for chosen, step in checkpoints(workdir, choices).items():
    entry[chosen] = {"pairs": step * batch}
    for dataset in datasets:
      entry[chosen][dataset] = success_of(workdir / f"{dataset}_{chosen}")
  return entry


def success_of(folder: pathlib.Path) -> dict[str, Any]:
  """Return the success AUC of an evaluated folder, with the rule that made it, and each sequence's.

  Raises:
    FileNotFoundError: it was not evaluated.
  """
  summary = json.loads((folder / "summary.json").read_text())
  scores = {name: one["success_auc"] for name, one in summary["per_sequence"].items()}
  return {
    "rule": summary["rule"],
    "success_auc": round(summary["mean"]["success_auc"], 4),
    "per_sequence": {name: round(value, 4) for name, value in scores.items()},
  }


def execute(command: Sequence[str], caller: str) -> None:
  """Run a command of this Python; end with its exit code where it fails. caller: named in the error."""
  print("+ " + " ".join(command[2:]), flush=True)
  code = subprocess.run(command, check=False).returncode
  if code:
    print(f"{caller}: {command[2]} ended with exit code {code}", file=sys.stderr)
    sys.exit(code)


def read(path: pathlib.Path) -> dict[str, Any]:
  """Return what is gathered in a file, {} where there is none; ValueError where it is damaged."""
  if not path.is_file():
    return {}
  try:
    content = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(
      f"{path} is not readable JSON ({error}); restore it or give another file"
    ) from error
  if not isinstance(content, dict):
    raise ValueError(f"{path} holds a {type(content).__name__}; expected an object")
  return content


def write(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Write a gathered file whole."""
  write_text(path, json.dumps(content, indent=1) + "\n")


def found_and_unrun(
  entries: Mapping[str, dict], run: str, seeds: Sequence[int]
) -> tuple[list[dict], list[int]]:
  """Return the gathered entries of a run's seeds, and the seeds that are missing."""
  names = {seed: run_name(run, seed) for seed in seeds}
  found = [entries[name] for name in names.values() if name in entries]
  return found, [seed for seed, name in names.items() if name not in entries]


def mean_and_error(values: Sequence[float]) -> str:
  """Return the mean with its standard error: '0.550 ± 0.050', of one value alone without."""
  if len(values) == 1:
    return f"{values[0]:.3f}"
  return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) / len(values) ** 0.5:.3f}"


def mean_and_spread(values: Sequence[float], form: str = ".3f") -> str:
  """Return the mean and the standard deviation of single values around it, of one value alone without."""
  if len(values) == 1:
    return f"{values[0]:{form}}"
  return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}"
