"""Print a table of the paper with ours beside it, and do the runs that it needs.

  python -m benchmarks.tables --table=1 --results=results/lasot --output=docs/results
  python -m benchmarks.tables --table=3 --measure
  python -m benchmarks.tables --table=3 --checkpoint=PATH --dataset=otb --root=OTB --output=docs/results
  python -m benchmarks.tables --table=5 --run=stark --seed=42 --data_dir=prepared \\
    --weights=dinov2_vits14_fp16.npz --otb=OTB
  python -m benchmarks.tables --table=5 --measure

Tables 1 and 2 take folders that `evaluate` wrote. Table 3 counts; --measure measures speeds at batch 1 too, and
--checkpoint evaluates at several keep ratios, for a curve. Tables 4 and 5 train: --run does one run of one seed,
two minutes on an H100, and goes on where it stopped; without it the table is printed. docs/results.md has
all commands. Runs and speeds gather in --gathered, from several machines by --merge. What has
not been run is named so. --output gets table_N.md, table_N.json and the curve's picture.
"""

import concurrent.futures
import json
import multiprocessing
import pathlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from absl import flags

from benchmarks import ablation_runs, elimination_table, gathered_runs, published_rows, speed_rows
from ostrack_jax import command_line
from ostrack_jax.evaluation import benchmarks
from ostrack_jax.evaluation.results import write_text
from ostrack_jax.models import checks

_NAME = "benchmarks.tables"
_PARTS = ("runs", "fps", "curves")
_Number = TypeVar("_Number")

FLAGS = command_line.new_flags()
flags.DEFINE_integer("table", None, "of the paper, 1 to 5", 1, 5, flag_values=FLAGS)
flags.DEFINE_string(
  "gathered", "docs/results/tables.json", "JSON file of all runs and speeds", flag_values=FLAGS
)
flags.DEFINE_list(
  "merge", [], "further such files, whose runs and speeds are taken over", flag_values=FLAGS
)
flags.DEFINE_string("output", "", "folder for table_N.md and table_N.json", flag_values=FLAGS)
flags.DEFINE_string("runs", "runs/tables", "where runs are kept", flag_values=FLAGS)
flags.DEFINE_list("results", [], "Tables 1, 2: folders that evaluate wrote", flag_values=FLAGS)
flags.DEFINE_bool("measure", False, "Tables 3, 5: measure speeds at batch 1", flag_values=FLAGS)
flags.DEFINE_float("seconds", 3.0, "of every measurement", 0.01, flag_values=FLAGS)
flags.DEFINE_enum(
  "variant", "b", ["ti", "s", "b", "l"], "what is counted and measured", flag_values=FLAGS
)
flags.DEFINE_enum(
  "dtype", None, list(checks.DTYPES), "to measure in; by default bfloat16 on a GPU, else float32", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_list("search_sizes", ["256", "384"], "Table 3: in pixels", flag_values=FLAGS)
flags.DEFINE_string("checkpoint", "", "Table 3: for a curve over keep ratios", flag_values=FLAGS)
flags.DEFINE_enum(
  "dataset", "otb", sorted(benchmarks.BENCHMARKS), "of the curve", flag_values=FLAGS
)
flags.DEFINE_string("root", "", "folder of the curve's sequences", flag_values=FLAGS)
flags.DEFINE_list(
  "keep_ratios_curve", ["1", "0.9", "0.8", "0.7", "0.6", "0.5", "0.4", "0.3"], "1 for no elimination", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_enum("run", None, sorted(ablation_runs.PLANNED), "Tables 4, 5", flag_values=FLAGS)
flags.DEFINE_integer("seed", 42, "of the run", flag_values=FLAGS)
flags.DEFINE_string("data_dir", "prepared", "prepared data", flag_values=FLAGS)
flags.DEFINE_string("weights", "dinov2_vits14_fp16.npz", "DINOv2's ViT-S/14", flag_values=FLAGS)
flags.DEFINE_string("deit", "", "DeiT's ViT-B of ImageNet-1k", flag_values=FLAGS)
flags.DEFINE_string("augreg", "", "AugReg's ViT-B of ImageNet-21k", flag_values=FLAGS)
flags.DEFINE_string("mae", "", "MAE's ViT-B", flag_values=FLAGS)
flags.DEFINE_string("dinov2_b", "", "DINOv2's ViT-B/14, beside the other ViT-B", flag_values=FLAGS)
flags.DEFINE_string("otb", "OTB", "folder of OTB sequences", flag_values=FLAGS)
flags.DEFINE_float(
  "target_iou", 0.5, "Table 5: held-out IoU that pairs are counted to", 0.0, 1.0, flag_values=FLAGS
)
flags.DEFINE_bool("evaluate_only", False, "the run is trained already", flag_values=FLAGS)
flags.DEFINE_string(
  "config", ablation_runs.CONFIG, "of configs/; another for trials", flag_values=FLAGS
)
flags.DEFINE_multi_string("change", [], "further flag for training, for trials", flag_values=FLAGS)


def files() -> dict[str, str]:
  """Return the given initial weights by ablation_runs.Planned.start."""
  return {
    "dinov2": FLAGS.weights,
    "deit": FLAGS.deit,
    "augreg": FLAGS.augreg,
    "mae": FLAGS.mae,
    "dinov2_b": FLAGS.dinov2_b,
  }


def read_gathered() -> dict[str, dict]:
  """Return all runs, speeds and curves: those of --merge, and over them those of --gathered."""
  content: dict[str, dict] = {part: {} for part in _PARTS}
  for path in (*FLAGS.merge, FLAGS.gathered):
    if path in FLAGS.merge and not pathlib.Path(path).is_file():
      raise FileNotFoundError(f"--merge={path}: there is no such file")
    for part, entries in gathered_runs.read(pathlib.Path(path)).items():
      if part not in content:
        raise ValueError(f"{path} holds {part!r}, which no table has; give another file")
      content[part] |= entries
  for name, entry in content["runs"].items():
    lacking = sorted({"start", "changes"} - entry.keys())
    if lacking:
      raise ValueError(
        f"the gathered run {name} does not say its {lacking[0]}; gather it again with --evaluate_only"
      )
  return content


def record(part: str, entries: dict[str, Any]) -> None:
  """Add to what is gathered, read anew, since another run may have written meanwhile."""
  content = read_gathered()
  content[part] |= entries
  gathered_runs.write(pathlib.Path(FLAGS.gathered), content)


def do_run() -> None:
  """Train, evaluate and gather the run of --run and --seed."""
  if FLAGS.seed not in ablation_runs.SEEDS:
    raise ValueError(f"--seed={FLAGS.seed} is not planned; choose one of {ablation_runs.SEEDS}")
  if FLAGS.run not in ablation_runs.TABLES[FLAGS.table]:
    of_table = ", ".join(ablation_runs.TABLES[FLAGS.table])
    raise ValueError(f"--run={FLAGS.run} is not of Table {FLAGS.table}, which has {of_table}")
  name = gathered_runs.run_name(FLAGS.run, FLAGS.seed)
  workdir = pathlib.Path(FLAGS.runs) / name
  if not FLAGS.evaluate_only:
    training = ablation_runs.training_command(
      FLAGS.run,
      FLAGS.seed,
      workdir,
      config=FLAGS.config,
      data_dir=FLAGS.data_dir,
      files=files(),
      changes=FLAGS.change,
    )
    gathered_runs.execute(training, _NAME)
  for command in ablation_runs.evaluation_commands(workdir, FLAGS.otb):
    gathered_runs.execute(command, _NAME)
  record("runs", {name: ablation_runs.gather(workdir, FLAGS.run, FLAGS.seed)})


def measure() -> None:
  """Measure the speeds of Table 3 or 5."""
  # Starts the device, which runs that are trained in a process of their own must find free.
  import jax

  default = "bfloat16" if jax.default_backend() == "gpu" else "float32"
  wanted = (
    [(size, eliminates, "one_stream") for size in _sizes() for eliminates in (False, True)]
    if FLAGS.table == 3
    else [(256, False, relation) for relation in ablation_runs.TABLES[5]]
  )
  models = {
    speed_rows.key(FLAGS.variant, *one): speed_rows.make_model(FLAGS.variant, *one).clone(
      dtype=FLAGS.dtype or default
    )
    for one in wanted
  }
  record("fps", speed_rows.measure(models, FLAGS.seconds))


def make_curve() -> None:
  """Evaluate at the keep ratios that are not evaluated yet, and measure speeds."""
  words = FLAGS.keep_ratios_curve
  ratios = [_number("keep_ratios_curve", word, float, "numbers") for word in words]
  # In a process of its own, which leaves the device to those that evaluate.
  with concurrent.futures.ProcessPoolExecutor(
    1, mp_context=multiprocessing.get_context("spawn")
  ) as pool:
    name = pool.submit(elimination_table.curve_name, FLAGS.checkpoint, FLAGS.dataset).result()
  commands = elimination_table.evaluation_commands(
    name,
    FLAGS.checkpoint,
    FLAGS.dataset,
    FLAGS.root,
    ratios,
    pathlib.Path(FLAGS.runs) / "curves",
  )
  for command, _ in commands.values():
    gathered_runs.execute(command, _NAME)
  folders = {ratio: folder for ratio, (_, folder) in commands.items()}
  found = elimination_table.curve(FLAGS.checkpoint, folders, FLAGS.seconds)
  record("curves", {name: found})


def _sizes() -> list[int]:
  return [_number("search_sizes", word, int, "whole numbers") for word in FLAGS.search_sizes]


def _number(name: str, word: str, kind: Callable[[str], _Number], expected: str) -> _Number:
  try:
    return kind(word)
  except ValueError:
    raise ValueError(f"--{name} has {word!r}; expected {expected}") from None


def _check_flags() -> None:
  if FLAGS.table is None:
    raise ValueError("--table missing; give 1 to 5 (see --help)")
  for name, tables in (
    ("results", (1, 2)),
    ("measure", (3, 5)),
    ("checkpoint", (3,)),
    ("run", (4, 5)),
  ):
    if FLAGS[name].value and FLAGS.table not in tables:
      numbers = " and ".join(map(str, tables))
      raise ValueError(f"--{name} is for --table {numbers}, not {FLAGS.table}")
  if FLAGS.checkpoint and not FLAGS.root:
    raise ValueError("--checkpoint needs --root, the folder of --dataset's sequences")


def _make() -> None:
  _check_flags()
  number = FLAGS.table
  if FLAGS.run:
    do_run()
  if FLAGS.measure:
    measure()
  if FLAGS.checkpoint:
    make_curve()
  if FLAGS.merge:
    gathered_runs.write(pathlib.Path(FLAGS.gathered), read_gathered())
  content = read_gathered()
  output = pathlib.Path(FLAGS.output) if FLAGS.output else None
  rows: Any
  if number <= 2:
    summaries = [published_rows.read(pathlib.Path(folder)) for folder in FLAGS.results]
    text, rows = published_rows.table(number, summaries)
  elif number == 3:
    text, rows = elimination_table.table(content, FLAGS.variant, _sizes())
    rows = {"models": rows, "curves": content["curves"]}
    for name, found in content["curves"].items():
      text += "\n" + elimination_table.curve_table(name, found)
      if output:
        picture = f"keep_ratio_{name.replace(' ', '_')}.png"
        elimination_table.draw_curve(name, found, output / picture)
        text += f"\n![Speed and accuracy over the keep ratio]({picture})\n"
    if not content["curves"]:
      text += f"\nCurve over keep ratios: {gathered_runs.UNRUN} (`--table=3 --checkpoint=PATH`).\n"
  else:
    text, rows = ablation_runs.table(number, content, FLAGS.target_iou, files(), FLAGS.variant)
  print(text)
  if output:
    write_text(output / f"table_{number}.md", text)
    write_text(output / f"table_{number}.json", json.dumps(rows, indent=1) + "\n")
    print(f"written to {output}")


def main(argv: list[str]) -> None:
  """Run, measure and print what the flags say."""
  del argv
  try:
    _make()
  except (ValueError, OSError) as error:
    sys.exit(f"{_NAME}: {error}")


if __name__ == "__main__":
  command_line.run(main, _NAME, FLAGS, __doc__)
