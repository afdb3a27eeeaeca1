"""What benchmarks.little_video runs, gathers and prints."""

import json
import pathlib

import matplotlib.figure
import pytest

from benchmarks import gathered_runs, little_video
from configs import ostrack_s_256
from ostrack_jax import configuration


@pytest.fixture(autouse=True)
def flags():
  little_video.FLAGS.unparse_flags()
  for name in little_video.FLAGS:
    little_video.FLAGS[name].unparse()
  little_video.FLAGS(["little_video"])


def _finished(folder, run, seed, otb):
  workdir = folder / gathered_runs.run_name(run, seed)
  for dataset, scores in (
    ("otb_8000", otb),
    ("otb_7200", {name: value - 0.1 for name, value in otb.items()}),
    ("lasot_8000", {"airplane-1": 0.5}),
    ("lasot_7200", {"airplane-1": 0.25}),
  ):
    (workdir / dataset).mkdir(parents=True)
    summary = {
      "rule": "otb",
      "mean": {"success_auc": sum(scores.values()) / len(scores)},
      "per_sequence": {name: {"success_auc": value} for name, value in scores.items()},
    }
    (workdir / dataset / "summary.json").write_text(json.dumps(summary))
  (workdir / "report.json").write_text(
    json.dumps({"pairs": 1_024_000, "minutes": 5.25, "devices": "1 x cpu"})
  )
  (workdir / "config.json").write_text(json.dumps({"train": {"batch_size": 128}}))
  (workdir / "best.json").write_text(json.dumps({"step": 7200}))
  for step in (7200, 8000):
    (workdir / "checkpoints" / str(step)).mkdir(parents=True)
  rows = [
    {"step": 50, "train/iou": 0.3},
    {"step": 800, "train/iou": 0.6},
    {"step": 800, "validation/iou": 0.55, "validation/ao": 0.5},
  ]
  (workdir / "scalars.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return little_video.gather(workdir, run, seed)


def test_runs_gather_with_pairs_for_steps(tmp_path):
  entry = _finished(tmp_path, "elimination", 42, {"Bird2": 0.7, "Vase": 0.6})
  assert entry["best"]["pairs"] == 921_600
  assert entry["last"]["pairs"] == 1_024_000
  assert entry["curves"]["train/iou"] == [(6400, 0.3), (102_400, 0.6)]
  assert entry["curves"]["validation/ao"] == [(102_400, 0.5)]
  assert entry["last"]["otb"]["success_auc"] == 0.65
  assert entry["best"]["otb"]["success_auc"] == 0.55
  assert entry["last"]["lasot"]["per_sequence"] == {"airplane-1": 0.5}


def test_table_gives_means_standard_errors_and_what_is_unrun(tmp_path):
  entries = {
    gathered_runs.run_name("elimination", seed): _finished(
      tmp_path, "elimination", seed, {"Bird2": bird, "Vase": 0.6}
    )
    for seed, bird in ((42, 0.4), (43, 0.6))
  }
  lines = little_video.table(entries).splitlines()
  # 0.5 and 0.6: deviation 0.0707, over the root of 2.
  assert "| 42, 43 | 1,024,000 | 5.2 | 0.550 ± 0.050 | Bird2 0.500, Vase 0.600 | 0.500" in lines[2]
  assert lines[2].endswith("| 0.450 ± 0.050 | 0.250 ± 0.000 |")
  assert lines[3] == "| elimination | 44 | | | not run yet | | | | |"
  # One line for the missing seed, and one for every other kind.
  assert sum("not run yet" in line for line in lines) == len(little_video.PLANNED)
  little_video.draw(entries, tmp_path / "pictures" / "curves.png")
  assert (tmp_path / "pictures" / "curves.png").stat().st_size > 10_000


def test_an_unfinished_run_is_not_gathered(tmp_path):
  with pytest.raises(FileNotFoundError):
    little_video.gather(tmp_path, "elimination", 42)


@pytest.mark.parametrize("run", little_video.PLANNED)
def test_commands_change_keys_that_the_configuration_has(run, tmp_path):
  training = little_video.training_command(run, 43, tmp_path / "run")
  argument = training[3].partition(":")[2]
  config = ostrack_s_256.get_config(argument)
  for flag in training:
    if flag.startswith("--config."):
      path, _, value = flag.removeprefix("--config.").partition("=")
      group, _, key = path.partition(".")
      config[group][key] = type(config[group][key])(value)
  configuration.build_model(config)
  assert config.train.seed == 43
  assert (config.model.pretrained == "") == (run == "random start")


def test_last_and_best_checkpoints_are_evaluated(tmp_path):
  _finished(tmp_path, "elimination", 42, {"Bird2": 0.7})
  workdir = tmp_path / "elimination-42"
  commands = little_video.evaluation_commands(workdir)
  assert [(command[3], command[-1]) for command in commands] == [
    (f"--checkpoint={workdir}/checkpoints/{step}", f"--output={workdir}/{folder}")
    for step, folder in (
      (8000, "otb_8000"),
      (8000, "lasot_8000"),
      (7200, "otb_7200"),
      (7200, "lasot_7200"),
    )
  ]
  (workdir / "best.json").write_text(json.dumps({"step": 8000}))
  assert little_video.evaluation_commands(workdir) == commands[:2]


def test_a_run_that_is_not_there_ends_in_one_sentence(tmp_path):
  little_video.FLAGS(["little_video", "--run=elimination", "--evaluate_only", f"--runs={tmp_path}"])
  with pytest.raises(SystemExit, match=r"^benchmarks\.little_video: .* holds no checkpoint; train"):
    little_video.main([])


def test_a_picture_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
  def fail(figure, path, **options):
    pathlib.Path(path).write_bytes(b"half")
    raise OSError("no space left")

  curves = {name: [(1, 0.5)] for name in gathered_runs.CURVES}
  (tmp_path / "curves.png").write_bytes(b"whole")
  monkeypatch.setattr(matplotlib.figure.Figure, "savefig", fail)
  with pytest.raises(OSError, match="no space"):
    little_video.draw({"elimination-42": {"curves": curves}}, tmp_path / "curves.png")
  assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"whole"]
