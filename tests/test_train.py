"""The training command: the public configuration, shrunk, from data to report."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

from configs import tiny
from ostrack_jax import configuration, train
from ostrack_jax.loading import load
from ostrack_jax.tracking.tracker import Tracker
from ostrack_jax.training.checkpoint_store import CheckpointError
from ostrack_jax.training.finiteness import NonFiniteLossError
from ostrack_jax.training.stopping import StoppedBySignalError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def config(data_dir):
  config = tiny.get_config("scratch")
  config.lock()
  config.data.data_dir = str(data_dir)
  config.data.validation_pairs = 8
  config.model.width = 16
  config.model.depth = 2
  config.model.num_heads = 1
  config.model.template_size = 32
  config.model.search_size = 64
  config.model.head_channels = 8
  config.model.elimination_layers = (1,)
  config.model.keep_ratios = (0.7,)
  config.procedural.train_sequences = 3
  config.procedural.test_sequences = 2
  config.procedural.length = 24
  config.procedural.width = 160
  config.procedural.height = 120
  config.train.epochs = 2
  config.train.pairs_per_epoch = 8
  config.train.batch_size = 4
  config.train.elimination_start = 0
  config.train.elimination_warmup = 0
  config.train.log_every_steps = 1
  config.train.save_every_epochs = 1
  config.report.sequences = 2
  return config


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
  """A run trained to its end, with its configuration."""
  configuration = config.__wrapped__(data_dir)
  workdir = tmp_path_factory.mktemp("runs") / "small"
  return configuration, workdir, train.train_and_report(configuration, workdir)


def test_report_compares_the_result_with_baselines(finished):
  _, workdir, report = finished
  assert json.loads((workdir / "report.json").read_text()) == report
  assert report["steps"] == 4
  assert report["pairs"] == 16
  assert 0 < report["minutes"] < 1
  assert set(report["tracking"]) == {"first box kept still", "random weights", "result"}
  assert set(report["held_out_pairs"]["results"]) == {"random weights", "result"}
  for scores in report["tracking"].values():
    assert 0 <= scores["ao"] <= 1
  random, result = (
    report["held_out_pairs"]["results"][k]["loss"] for k in ("random weights", "result")
  )
  assert random != result


def test_pictures_and_scalars_are_written(finished):
  _, workdir, _ = finished
  for name in ("success.png", "curves.png", "track.png"):
    assert cv2.imread(str(workdir / name)) is not None
  video = cv2.VideoCapture(str(workdir / "track.mp4"))
  assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 24
  rows = [json.loads(line) for line in (workdir / "scalars.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4]
  assert any((workdir / "tensorboard").iterdir())
  assert (workdir / "config.json").exists()


def test_workdir_loads_and_tracks(finished):
  configuration, workdir, _ = finished
  checkpoint = load(workdir)
  assert checkpoint.description["source"]["kind"] == "training"
  tracker = Tracker(checkpoint)
  tracker.init(np.zeros((72, 96, 3), np.uint8), [20, 20, 20, 20])
  assert np.isfinite(tracker.update(np.zeros((72, 96, 3), np.uint8)).box_xywh).all()
  assert configuration.tracker.search_factor == checkpoint.description["tracker"]["search_factor"]


def test_second_start_of_a_finished_run_changes_nothing(finished):
  configuration, workdir, report = finished
  before = sorted(path.name for path in (workdir / "checkpoints").iterdir())
  again = train.train_and_report(configuration, workdir)
  assert again["steps"] == report["steps"]
  assert again["held_out_pairs"] == report["held_out_pairs"]
  assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == before


def test_a_start_that_failed_does_not_claim_the_workdir(config, tmp_path):
  config.data.train = ("lasot_train",)
  with pytest.raises(FileNotFoundError, match="is not prepared"):
    train.train_and_report(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_other_configuration_is_refused_for_the_workdir_by_its_keys(finished):
  configuration, workdir, _ = finished
  configuration = configuration.copy_and_resolve_references()
  configuration.optim.learning_rate = 1.0
  configuration.train.seed = 7
  with pytest.raises(
    ValueError,
    match=r"optim.learning_rate \(0.0015 there, 1.0 now\), train.seed \(42 there, 7 now\)",
  ):
    train.train_and_report(configuration, workdir)


def test_a_run_of_a_version_that_lacked_a_key_goes_on(finished, tmp_path):
  configuration_of_run, workdir, _ = finished
  copy = tmp_path / "copy"
  shutil.copytree(workdir, copy)
  old = json.loads((copy / "config.json").read_text())
  del old["model"]["head"], old["train"]["best_by"]
  (copy / "config.json").write_text(json.dumps(old))
  configuration.check_workdir(configuration_of_run, copy)
  other = configuration_of_run.copy_and_resolve_references()
  other.model.head = "corner"
  with pytest.raises(ValueError, match=r"model.head \('center' there, 'corner' now\)"):
    configuration.check_workdir(other, copy)


def test_configuration_in_the_checkpoints_counts_where_the_file_is_lost(finished, tmp_path):
  configuration_of_run, workdir, _ = finished
  copy = tmp_path / "copy"
  shutil.copytree(workdir, copy)
  (copy / "config.json").unlink()
  configuration.check_workdir(configuration_of_run, copy)
  other = configuration_of_run.copy_and_resolve_references()
  other.train.ema_decay = 0.5
  with pytest.raises(ValueError, match=r"train.ema_decay \(0.0 there, 0.5 now\)"):
    configuration.check_workdir(other, copy)
  for notes in copy.glob("checkpoints/*/notes/metadata"):
    notes.unlink()
  with pytest.raises(ValueError, match="says with which configuration"):
    configuration.check_workdir(configuration_of_run, copy)


def test_weights_of_another_size_are_refused_naming_both(finished, config, tmp_path):
  _, workdir, _ = finished
  config.model.pretrained = str(workdir)
  config.model.width = 32
  with pytest.raises(
    ValueError, match=r"has width 16, .*, and config.model \(variant 'custom'\) has width 32, "
  ):
    train.train_and_report(config, tmp_path / "run")


def test_training_starts_from_given_weights(finished, config, tmp_path):
  _, workdir, report = finished
  config.model.pretrained = str(workdir)
  config.optim.learning_rate = 0.0
  config.optim.weight_decay = 0.0
  config.report.sequences = 0
  again = train.train_and_report(config, tmp_path / "run")
  start = again["held_out_pairs"]["results"]["start (small)"]
  assert start["loss"] == pytest.approx(
    report["held_out_pairs"]["results"]["result"]["loss"], rel=1e-5
  )


def test_folder_of_sequences_trains(config, tmp_path):
  rng = np.random.default_rng(0)
  folder = tmp_path / "sequences" / "one" / "img"
  folder.mkdir(parents=True)
  for number in range(21):
    cv2.imwrite(str(folder / f"{number + 1:04d}.jpg"), rng.integers(0, 256, (72, 96, 3), np.uint8))
  boxes = "\n".join(f"{20 + number},30,20,16" for number in range(21))
  (folder.parent / "groundtruth.txt").write_text(boxes + "\n")
  config.data.train = ("folder",)
  config.data.folder_roots = (str(tmp_path / "sequences"),)
  config.data.data_dir = str(tmp_path / "prepared")
  config.data.validation = "folder"
  config.report.sequences = 0
  config.train.epochs = 1
  assert train.train_and_report(config, tmp_path / "run")["steps"] == 2


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data.train": ("lasot_train",)}, "data set 'lasot_train' is not prepared"),
    ({"data.train": ("folder",)}, "set config.data.folder_roots"),
    ({"data.weights": (1.0, 2.0)}, "need as many weights"),
    pytest.param(
      {"train.batch_size": 6, "train.pairs_per_epoch": 6},
      "batch size 6 is not divisible by 4 devices",
      marks=pytest.mark.skipif(jax.device_count() != 4, reason="this test needs 4 devices"),
    ),
    ({"data.num_workers": -2}, "it must be -1, 0 or a number of processes"),
    ({"model.dtype": "float16"}, "float16 is for tracking: .* set bfloat16, or float32"),
    ({"data.validation_pairs": 2}, "set config.data.validation_pairs to at least one batch"),
  ],
)
def test_mistakes_are_named_with_their_cure(config, tmp_path, changes, message):
  config.update_from_flattened_dict(changes)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    train.train_and_report(config, tmp_path / "run")


def _command(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "training", *arguments], capture_output=True, text=True, check=False
  )


def test_command_refuses_unknown_keys_in_one_sentence(tmp_path):
  done = _command("--config=configs/tiny.py", f"--workdir={tmp_path}", "--config.optim.lr=1")
  assert done.returncode != 0
  assert "ostrack-train: --config.optim.lr is not a key of the configuration" in done.stderr
  assert "Traceback" not in done.stderr


def test_command_refuses_unknown_configuration_arguments_in_one_sentence(tmp_path):
  done = _command("--config=configs/tiny.py:fast", f"--workdir={tmp_path}")
  assert done.stderr.startswith("ostrack-train: config argument 'fast' is unknown")
  assert len(done.stderr.splitlines()) == 1


def test_command_suggests_similar_keys_and_prints_help(tmp_path):
  done = _command("--config=configs/tiny.py", f"--workdir={tmp_path}", "--config.model.widht=1")
  assert (
    "--config.model.widht is not a key of the configuration; did you mean width?" in done.stderr
  )
  helped = _command("--help")
  assert helped.returncode == 0
  assert "--workdir" in helped.stdout


@pytest.mark.parametrize(
  ("ending", "code", "sentence"),
  [
    (StoppedBySignalError(3, "SIGTERM"), 75, "interrupted; the same command continues from"),
    (KeyboardInterrupt(), 1, "interrupted; the same command continues from"),
    (NonFiniteLossError("loss stopped being finite at step 4"), 1, "finite at step 4"),
    (CheckpointError("the disk is full"), 1, "the disk is full"),
  ],
)
def test_exit_code_says_how_training_ended(tmp_path, monkeypatch, capsys, ending, code, sentence):
  def end(*arguments):
    raise ending

  # Nothing is to outlive the test.
  monkeypatch.setattr(train, "train_and_report", end)
  monkeypatch.setattr(train.compilation_cache, "enable", lambda folder: None)
  monkeypatch.setattr(signal, "signal", lambda number, handler: None)
  argv = ["ostrack-train", "--config=configs/tiny.py", f"--workdir={tmp_path}"]
  train.FLAGS(argv)
  with pytest.raises(SystemExit) as ended:
    train.main(argv)
  assert sentence in capsys.readouterr().err + str(ended.value.code)
  # A sentence as the code means 1.
  assert ended.value.code == code or (code == 1 and isinstance(ended.value.code, str))


def test_unknown_keys_in_a_configuration_file_are_refused(config, tmp_path):
  with config.unlocked():
    config.data.trian = 1
  with pytest.raises(
    ValueError, match=r"config.data.trian is not a key .*did you mean data.train\?"
  ):
    train.train_and_report(config, tmp_path / "run")


def test_installed_configurations_are_found_outside_a_checkout(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  found = configuration.installed_config("--config=configs/tiny.py:scratch").removeprefix(
    "--config="
  )
  assert pathlib.Path(found.removesuffix(":scratch")).exists()
  assert configuration.installed_config("--config=configs/mine.py") == "--config=configs/mine.py"


def test_command_asks_for_what_is_missing():
  done = _command()
  assert done.returncode != 0
  assert "--config" in done.stderr
  assert "Traceback" not in done.stderr
