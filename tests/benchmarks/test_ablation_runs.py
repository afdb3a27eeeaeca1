"""Tables 4 and 5: what is trained, gathered and printed."""

import json
import pathlib

import pytest

from benchmarks import ablation_runs, gathered_runs, speed_rows
from configs import ostrack_s_256
from ostrack_jax import configuration

_FILES = {one.start: f"{one.start}.pth" for one in ablation_runs.PLANNED.values() if one.start}


def _config(run, seed, changes=()):
  """What training makes of the planned command, with further keys changed."""
  training = ablation_runs.training_command(
    run, seed, pathlib.Path("x"), config="", data_dir="p", files=_FILES, changes=changes
  )
  config = ostrack_s_256.get_config("no_ce")
  for flag in training[5:]:
    path, _, value = flag.removeprefix("--config.").partition("=")
    group, _, key = path.partition(".")
    config[group][key] = type(config[group][key])(value)
  return config


def _workdir(tmp_path, run, seed, auc, validation, pairs=ablation_runs.PAIRS, changes=()):
  workdir = tmp_path / gathered_runs.run_name(run, seed)
  (workdir / "otb_3000").mkdir(parents=True)
  summary = {
    "rule": "otb",
    "mean": {"success_auc": auc},
    "per_sequence": {"Vase": {"success_auc": auc}},
  }
  (workdir / "otb_3000" / "summary.json").write_text(json.dumps(summary))
  report = {"pairs": pairs, "minutes": 2.0, "devices": "1 x NVIDIA H100 80GB HBM3"}
  (workdir / "report.json").write_text(json.dumps(report))
  config = configuration.as_json(_config(run, seed, changes))
  (workdir / "config.json").write_text(json.dumps(config))
  (workdir / "checkpoints" / "3000").mkdir(parents=True)
  rows = [{"step": 150 * (n + 1), "validation/iou": value} for n, value in enumerate(validation)]
  (workdir / "scalars.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return workdir


def _entry(tmp_path, run, seed, auc, validation=(0.2, 0.4), changes=()):
  workdir = _workdir(tmp_path, run, seed, auc, validation, changes=changes)
  return ablation_runs.gather(workdir, run, seed)


def test_a_run_is_gathered_with_how_it_was_made(tmp_path):
  entry = _entry(tmp_path, "stark", 43, 0.5)
  assert entry["curves"]["validation/iou"] == [(19_200, 0.2), (38_400, 0.4)]
  assert entry["last"]["pairs"] == 384_000 and entry["last"]["otb"]["success_auc"] == 0.5
  assert (entry["start"], entry["changes"]) == ("dinov2.pth", [])
  with pytest.raises(FileNotFoundError):
    ablation_runs.gather(tmp_path / "none", "stark", 42)


@pytest.mark.parametrize(
  ("run", "change", "found"),
  [
    ("stark", "--config.model.pretrained=", ["model.pretrained="]),
    ("random", "--config.model.pretrained=some.pth", ["model.pretrained=some.pth"]),
    ("mae", "--config.model.pretrained=elsewhere/other.pth", []),
    ("mae", "--config.model.variant=s", ["model.variant=s"]),
    ("one_stream", "--config.model.relation=stark", ["model.relation=stark"]),
    ("one_stream", "--config.train.seed=44", ["train.seed=44"]),
    # OSTrack's rate, at which STARK does not learn.
    ("stark", "--config.optim.learning_rate=4e-4", ["optim.learning_rate=0.0004"]),
    ("one_stream", "--config.data.data_dir=elsewhere", []),
  ],
)
def test_what_a_run_was_is_compared_with_what_is_planned(run, change, found):
  config = configuration.as_json(_config(run, 43, (change,)))
  assert ablation_runs.deviations(run, 43, config) == found


@pytest.mark.parametrize(
  ("curve", "target", "pairs"),
  [
    # A quarter of the way from 0.4 to 0.6.
    ([(100, 0.2), (200, 0.4), (400, 0.6), (600, 0.5)], 0.45, 250.0),
    ([(100, 0.2), (200, 0.4)], 0.4, 200.0),
    ([(100, 0.2), (200, 0.1), (300, 0.3)], 0.2, 100.0),
    ([(100, 0.2), (200, 0.4)], 0.41, None),
    ([], 0.1, None),
  ],
)
def test_pairs_to_reach_are_read_between_validations(curve, target, pairs):
  found = ablation_runs.pairs_to_reach(curve, target)
  assert found == (None if pairs is None else pytest.approx(pairs))


def _table_5(tmp_path, speed):
  runs = {
    gathered_runs.run_name(run, seed): _entry(tmp_path, run, seed, auc, validation)
    for run, seed, auc, validation in (
      ("one_stream", 42, 0.50, (0.2, 0.6)),
      ("one_stream", 43, 0.52, (0.4, 0.6)),
      ("one_stream", 44, 0.54, (0.3, 0.6)),
      ("stark", 42, 0.40, (0.2, 0.3)),
      ("stark", 43, 0.44, (0.4, 0.6)),
    )
  }
  names = ("one_stream", "stark")
  fps = {speed_rows.key("b", 256, False, name): speed(120.0 + 40 * (name == "one_stream")) for name in names}  # fmt: skip
  return {"runs": runs, "fps": fps}


def test_table_5_gives_means_spreads_ratios_and_what_is_unrun(command, speed, tmp_path):
  (tmp_path / "gathered.json").write_text(json.dumps(_table_5(tmp_path, speed)))
  lines = command("--table=5", "--target_iou=0.5").splitlines()
  stark, swintrack, ours = (
    line for line in lines if line.startswith(("| STARK", "| Swin", "| OST"))
  )
  # 0.50, 0.52, 0.54 deviate by 0.02; 0.5 lies at 3/4, 1/2 and 2/3 of the way from 19,200 to 38,400.
  assert "| 42, 43, 44 | 384,000 | 2.0 | 0.520 ± 0.020 | 31,467 ± 2,444 | 160.0 | 1.00 |" in ours
  assert ours.endswith("| 93.1 | 1.00 | 18 |")
  assert "| 0.420 ± 0.028 | 28,800 (1 of 2 runs) | 120.0 | 1.33 |" in stark
  assert stark.endswith("| 67.6 | 82.6 | 68.8 | 52.9 | 1.76 | 30 |")
  assert "| not run yet | not run yet | not run yet | not run yet |" in swintrack
  assert swintrack.endswith("| 67.5 | 1.38 | 39.3 |")
  text = "\n".join(lines)
  assert "STARK-aligned (ViT-S), seed 44: not run yet (`--table=5 --run=stark --seed=44`)" in text
  assert "SwinTrack-aligned (ViT-S), seed 42, 43, 44: not run yet" in text
  assert (
    "OSTrack over STARK-aligned: +0.100 here, the paper +1.1 points of LaSOT AUC: agrees" in text
  )
  assert "Not the planned runs" not in text
  runs = "one_stream-42, one_stream-43, one_stream-44"
  assert "Backbones started from dinov2.pth (stark-42, stark-43, " + runs in text
  assert "not reached" in "\n".join(command("--table=5", "--target_iou=0.9").splitlines())


@pytest.mark.parametrize(
  ("better", "other", "said"),
  [
    ((0.50, 0.52), (0.40, 0.42), "agrees"),
    ((0.40, 0.42), (0.50, 0.52), "**disagrees**"),
    # Each mean has an error of 0.05, their difference of 0.071.
    ((0.50, 0.60), (0.40, 0.50), "the same within what seeds differ by (standard error 0.071)"),
    ((0.50, 0.50), (0.50, 0.50), "the same within what seeds differ by (standard error 0.000)"),
    ((0.50,), (0.40, 0.42), "one seed cannot tell whether they agree"),
  ],
)
def test_a_difference_counts_from_twice_its_standard_error(better, other, said):
  assert ablation_runs.verdict(better, other) == said


def test_table_4_names_kinds_whose_file_is_not_given_and_takes_table_5s_run(
  command, speed, tmp_path
):
  (tmp_path / "gathered.json").write_text(json.dumps(_table_5(tmp_path, speed)))
  text = command("--table=4", "--deit=deit.pth")
  assert "| DINOv2 | ViT-S | 42, 43, 44 | 384,000 | 2.0 | 0.520 ± 0.020 | - | - | - |" in text
  assert "| none (random) | ViT-S |  |  |  | not run yet | 60.4 | 77.5 | 62.7 |" in text
  assert "| MAE | ViT-B |  |  |  | not run yet | 68.7 | 82.9 | 73.6 |" in text
  assert "`--table=4 --run=mae --seed=42`; needs --mae=FILE" in text
  assert "`--table=4 --run=deit --seed=42`)" in text


def test_a_trial_cannot_pass_for_the_planned_run(command, tmp_path, monkeypatch):
  changes = ["--config.model.pretrained=", "--config.model.head=mlp"]
  _workdir(tmp_path, "stark", 42, 0.5, (0.2,), changes=changes)
  monkeypatch.setattr(gathered_runs, "execute", lambda one, caller: None)
  # The trial's own flags are not given again.
  text = command(
    "--table=5", "--run=stark", "--evaluate_only", f"--runs={tmp_path}", "--weights=dinov2.npz"
  )
  words = "**Not the planned runs**: stark-42 were with model.head=mlp model.pretrained= on 384,000"
  assert words in text
  assert "Backbones started from random weights (stark-42)." in text


def test_files_of_several_machines_are_merged(command, speed, tmp_path):
  whole = _table_5(tmp_path, speed)
  for name, run in (("gathered", "one_stream-42"), ("other", "stark-42")):
    part = {"runs": {run: whole["runs"][run]}}
    (tmp_path / f"{name}.json").write_text(json.dumps(part))
  assert "| 0.400 |" in command("--table=5", f"--merge={tmp_path / 'other.json'}")
  assert sorted(json.loads((tmp_path / "gathered.json").read_text())["runs"]) == [
    "one_stream-42",
    "stark-42",
  ]


@pytest.mark.parametrize("run", ablation_runs.PLANNED)
def test_commands_change_keys_that_the_configuration_has(run, tmp_path):
  training = ablation_runs.training_command(
    run, 43, tmp_path, config=ablation_runs.CONFIG, data_dir="prepared", files=_FILES, changes=()
  )
  assert training[3] == "--config=configs/ostrack_s_256.py:no_ce"
  config = _config(run, 43)
  model = configuration.build_model(config)
  assert model.elimination_layers == ()
  assert config.train.epochs * config.train.pairs_per_epoch == ablation_runs.PAIRS
  assert ablation_runs.PAIRS % (100 * config.train.batch_size) == 0
  assert config.train.epochs // config.train.validate_every_epochs == 20
  assert config.train.seed == 43
  assert config.model.pretrained == ("" if run == "random" else _FILES[ablation_runs.PLANNED[run].start])  # fmt: skip
  assert model.relation == (run if run in ("stark", "swintrack") else "one_stream")
  assert f"ViT-{model.variant.upper()}" == ablation_runs.PLANNED[run].size


def test_the_last_checkpoint_is_evaluated(tmp_path):
  workdir = _workdir(tmp_path, "stark", 42, 0.5, ())
  (command,) = ablation_runs.evaluation_commands(workdir, "OTB")
  assert f"--checkpoint={workdir}/checkpoints/3000" in command
  assert {"--dataset=otb", "--root=OTB", f"--output={workdir}/otb_3000"} <= set(command)


def test_a_run_that_went_on_is_evaluated_in_another_folder(tmp_path):
  workdir = _workdir(tmp_path, "stark", 42, 0.5, ())
  before = ablation_runs.evaluation_commands(workdir, "OTB")
  (workdir / "checkpoints" / "4000").mkdir()
  (command,) = ablation_runs.evaluation_commands(workdir, "OTB")
  assert f"--output={workdir}/otb_4000" in command and command[-1] != before[0][-1]
  # Nor is the score of the step before taken for the last one's.
  with pytest.raises(FileNotFoundError, match="otb_4000"):
    ablation_runs.gather(workdir, "stark", 42)


def test_a_run_trains_evaluates_and_gathers(command, tmp_path, monkeypatch):
  _workdir(tmp_path, "stark", 43, 0.5, (0.2,))
  done = []
  monkeypatch.setattr(gathered_runs, "execute", lambda one, caller: done.append(one[2]))
  arguments = ("--table=5", "--run=stark", "--seed=43", f"--runs={tmp_path}")
  assert "| STARK-aligned | ViT-S | 43 |" in command(*arguments)
  assert done == ["training", "ostrack_jax.evaluate"]
  assert "stark-43" in json.loads((tmp_path / "gathered.json").read_text())["runs"]
