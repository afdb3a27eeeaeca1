"""Train ViT-S on little video, evaluate it, and gather what came out in one file.

  python -m benchmarks.little_video --run=elimination --seed=42 --data_dir=prepared \\
    --weights=dinov2_vits14_fp16.npz --otb=OTB --lasot=LaSOT --runs=runs/little_video
  python -m benchmarks.little_video --gathered=docs/results/little_video.json --pictures=docs/results

The first line does one run of configs/ostrack_s_256.py, which says how the data is prepared: training, then
the last checkpoint, and the one that did best on held-out pairs, on the sequences of OTB and LaSOT that the
folders hold, then an entry in --gathered. Runs on different days and machines gather there; a run
that was stopped goes on. The second line prints the table, names what has not been run, and draws the curves.
"""

import pathlib
import statistics
import sys

from absl import flags

from benchmarks import gathered_runs
from ostrack_jax import command_line, visualization

_NAME = "benchmarks.little_video"
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
  "absent targets": ("absent", (), (42,)),
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


def training_command(run: str, seed: int, workdir: pathlib.Path) -> list[str]:
  """Return the command that trains."""
  argument, changes, _ = PLANNED[run]
  flags_of_run = (
    f"--config.data.data_dir={FLAGS.data_dir}",
    f"--config.model.pretrained={FLAGS.weights}",
    f"--config.train.seed={seed}",
    *changes,
    *FLAGS.change,
  )
  config = f"ostrack_s_256.py{':' if argument else ''}{argument}"
  return gathered_runs.training_command(config, workdir, flags_of_run)


def evaluation_commands(workdir: pathlib.Path) -> list[list[str]]:
  """Return the commands that evaluate a trained run."""
  datasets = {
    "otb": ["--dataset=otb", f"--root={FLAGS.otb}", "--allow_missing"],
    "lasot": ["--dataset=folder", "--rule=otb", f"--root={FLAGS.lasot}"],
  }
  return gathered_runs.evaluation_commands(workdir, datasets)


def gather(workdir: pathlib.Path, run: str, seed: int) -> dict:
  """Return what a finished run leaves; FileNotFoundError where it is not finished."""
  return gathered_runs.gather(workdir, run, seed, ("otb", "lasot"))


def table(entries: dict[str, dict]) -> str:
  """Return a Markdown table of all planned runs: means over seeds and standard errors."""
  lines = [
    "| | seeds | pairs | minutes | OTB mean success AUC | by sequence | LaSOT clip | OTB, best held-out | LaSOT clip |",
    "|---|---|---|---|---|---|---|---|---|",
  ]
  for run, (_, _, seeds) in PLANNED.items():
    found, unrun = gathered_runs.found_and_unrun(entries, run, seeds)
    if found:
      names = found[0]["last"]["otb"]["per_sequence"]
      single = ", ".join(
        f"{name} {statistics.mean(e['last']['otb']['per_sequence'][name] for e in found):.3f}"
        for name in names
      )
      otb, lasot, best_otb, best_lasot = (
        gathered_runs.mean_and_error([e[chosen][dataset]["success_auc"] for e in found])
        for chosen in ("last", "best")
        for dataset in ("otb", "lasot")
      )
      lines.append(
        f"| {run} | {', '.join(str(e['seed']) for e in found)} | {found[0]['pairs']:,} "
        f"| {statistics.mean(e['minutes'] for e in found):.1f} "
        f"| {otb} | {single} | {lasot} | {best_otb} | {best_lasot} |"
      )
    if unrun:
      lines.append(f"| {run} | {', '.join(map(str, unrun))} | | | {gathered_runs.UNRUN} | | | | |")
  return "\n".join(lines)


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
  with visualization.written_whole(path) as temporary:
    figure.savefig(temporary, dpi=110)


def _make() -> None:
  gathered = pathlib.Path(FLAGS.gathered)
  if FLAGS.run:
    name = gathered_runs.run_name(FLAGS.run, FLAGS.seed)
    workdir = pathlib.Path(FLAGS.runs) / name
    if not FLAGS.evaluate_only:
      gathered_runs.execute(training_command(FLAGS.run, FLAGS.seed, workdir), _NAME)
    for command in evaluation_commands(workdir):
      gathered_runs.execute(command, _NAME)
    entries = gathered_runs.read(gathered) | {name: gather(workdir, FLAGS.run, FLAGS.seed)}
    gathered_runs.write(gathered, entries)
  entries = gathered_runs.read(gathered)
  print(table(entries))
  if FLAGS.pictures:
    draw(entries, pathlib.Path(FLAGS.pictures) / "little_video.png")


def main(argv: list[str]) -> None:
  """Run or report."""
  del argv
  try:
    _make()
  except (ValueError, OSError) as error:
    sys.exit(f"{_NAME}: {error}")


if __name__ == "__main__":
  command_line.run(main, _NAME, FLAGS, __doc__)
