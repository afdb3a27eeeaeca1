"""Procedural video on disk: made once, complete or not there, free of TensorFlow."""

import dataclasses
import filecmp
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines import procedural_video, sources
from data_pipelines.builders.procedural import ProceduralSettings, prepare_procedural

VIDEO = procedural_video.ProceduralVideoSettings(width=64, height=48, length=4, max_target_size=20)
SETTINGS = ProceduralSettings(train_sequences=3, test_sequences=1, video=VIDEO)

SCRIPT = """
import os, sys
from data_pipelines import procedural_video, sources
# Reading threads must find it loaded: two of them importing it at once can deadlock.
assert "tensorflow_datasets.proto.tf_example_generated_pb2" in sys.modules
from data_pipelines.builders import procedural
video = procedural_video.ProceduralVideoSettings(width=64, height=48, length=4, max_target_size=20)
settings = procedural.ProceduralSettings(train_sequences=3, test_sequences=1, video=video)
made = []
def encode(task, encode_sequence=procedural_video.encode_sequence):
  made.append(task)
  if len(made) == int(sys.argv[2]):
    os.kill(os.getpid(), 9)
  return encode_sequence(task)
procedural.procedural_video.encode_sequence = encode
directory = procedural.prepare_procedural(sys.argv[1], settings)
assert sources.FrameSource(directory).frame(0).shape == (48, 64, 3)
found = sorted({"tensorflow", "torch"} & set(sys.modules))
assert not found, found
print(directory)
"""


def run_script(data_dir, die_at):
  return subprocess.run(
    [sys.executable, "-c", SCRIPT, data_dir, str(die_at)],
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    timeout=120,
  )


def refuse(task):
  raise AssertionError("rendered again")


def test_tfds_reads_what_was_prepared(tmp_path):
  directory = prepare_procedural(tmp_path, SETTINGS)
  record = tfds.builder_from_directory(os.fspath(directory)).as_data_source("train")[6]
  source = sources.FrameSource(directory)
  np.testing.assert_array_equal(record["jpeg"], source.frame(6))
  np.testing.assert_array_equal(record["boxes_xywh"], source.index.boxes_xywh[6:7])
  assert record["boxes_xywh"].dtype == np.float32
  assert (record["sequence"], record["frame"]) == (b"train-000001", 2)
  assert record["visible"] == source.index.visible[6:7]


def test_a_second_call_renders_nothing(tmp_path, monkeypatch):
  directory = prepare_procedural(tmp_path, SETTINGS)
  monkeypatch.setattr(procedural_video, "encode_sequence", refuse)
  assert prepare_procedural(tmp_path, SETTINGS) == directory


@pytest.mark.parametrize(
  "change",
  [{"seed": 1}, {"test_sequences": 2}, {"video": dataclasses.replace(VIDEO, max_speed=0.3)}],
)
def test_other_settings_are_other_data(change):
  assert dataclasses.replace(SETTINGS, **change).config_name != SETTINGS.config_name


def test_the_number_of_processes_does_not_change_a_byte(tmp_path):
  here = prepare_procedural(tmp_path / "a", SETTINGS)
  spread = prepare_procedural(tmp_path / "b", SETTINGS, num_workers=2)
  names = sorted(p.name for p in here.glob("*array_record*"))
  assert len(names) == 2
  assert filecmp.cmpfiles(here, spread, names, shallow=False)[0] == names


def test_an_error_leaves_nothing_that_passes_for_finished(tmp_path, monkeypatch):
  monkeypatch.setattr(procedural_video, "encode_sequence", refuse)
  with pytest.raises(AssertionError, match="rendered again"):
    prepare_procedural(tmp_path, SETTINGS)
  assert not [p for p in tmp_path.rglob("*") if p.name == sources.MANIFEST or "partial" in p.name]


def test_a_killed_preparation_is_not_taken_for_a_finished_one(tmp_path):
  killed = run_script(tmp_path, die_at=3)
  assert killed.returncode == -9, killed.stderr
  assert not list(tmp_path.rglob(sources.MANIFEST))
  finished = run_script(tmp_path, die_at=0)
  assert finished.returncode == 0, finished.stderr
  assert len(sources.FrameSource(finished.stdout.strip())) == 12


def test_a_foreign_directory_in_the_way_is_refused(tmp_path):
  directory = prepare_procedural(tmp_path, SETTINGS)
  (directory / sources.MANIFEST).unlink()
  with pytest.raises(FileExistsError, match="move it away"):
    prepare_procedural(tmp_path, SETTINGS)


def test_no_sequences_are_refused():
  with pytest.raises(ValueError, match="0 training"):
    ProceduralSettings(train_sequences=0)
