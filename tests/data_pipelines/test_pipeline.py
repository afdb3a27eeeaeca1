"""The pipeline is a function of its seed: not of workers, threads, restarts or other hosts."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines import pipeline
from data_pipelines.augmentation import AugmentationSettings
from data_pipelines.builders.procedural import ProceduralSettings, prepare_procedural
from data_pipelines.procedural_video import ProceduralVideoSettings
from data_pipelines.sources import FrameSource
from ostrack_jax import boxes

SETTINGS = pipeline.PipelineSettings(
  augmentation=AugmentationSettings(template_size=32, search_size=64)
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  video = ProceduralVideoSettings(width=96, height=72, length=24, max_target_size=30)
  settings = ProceduralSettings(train_sequences=4, test_sequences=1, video=video)
  return FrameSource(prepare_procedural(tmp_path_factory.mktemp("data"), settings))


def take(source, count, **options):
  options = {"batch_size": 4, "seed": 7, "num_threads": 0} | options
  iterator = pipeline.train_pipeline([(source, 1.0)], SETTINGS, **options)
  batches = [next(iterator) for _ in range(count)]
  iterator.close()
  return batches


def assert_equal(first, second):
  assert len(first) == len(second)
  for a, b in zip(first, second):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_a_batch_has_the_agreed_entries(source):
  (batch,) = take(source, 1)
  described = {name: (value.shape, value.dtype.name) for name, value in batch.items()}
  assert described == {
    "template": ((4, 32, 32, 3), "uint8"),
    "search": ((4, 64, 64, 3), "uint8"),
    "template_brightness": ((4,), "float32"),
    "search_brightness": ((4,), "float32"),
    "template_box_xywh": ((4, 4), "float32"),
    "search_box_xywh": ((4, 4), "float32"),
  }
  # Half a pixel by the label's centre, half a pixel of the frame by rounding, one by the flip.
  centres = batch["template_box_xywh"][:, :2] + batch["template_box_xywh"][:, 2:] / 2
  np.testing.assert_allclose(centres, 0.5, atol=0.02)


def test_the_seed_decides(source):
  assert_equal(take(source, 2), take(source, 2))
  assert not np.array_equal(take(source, 1)[0]["search"], take(source, 1, seed=8)[0]["search"])


def test_threads_do_not_change_the_data(source):
  assert_equal(take(source, 5), take(source, 5, num_threads=3))


def test_worker_processes_do_not_change_the_data(source):
  assert_equal(take(source, 5), take(source, 5, num_workers=2))


KILLED = """
import multiprocessing, os, sys
from data_pipelines import pipeline, sources
if __name__ == "__main__":
  source = sources.FrameSource(sys.argv[1])
  iterator = pipeline.train_pipeline(
    [(source, 1.0)], pipeline.PipelineSettings(), batch_size=2, seed=0, num_workers=1
  )
  next(iterator)
  print(*[child.pid for child in multiprocessing.active_children()], flush=True)
  os.kill(os.getpid(), 9)
"""


def test_workers_end_with_a_killed_training(source):
  # Their pids come through a pipe that closes, and so lets run() return, when the workers are gone.
  killed = subprocess.run(
    [sys.executable, "-c", KILLED, str(source.directory)],
    stdout=subprocess.PIPE,
    env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    timeout=60,
  )
  assert killed.returncode == -9
  (worker,) = map(int, killed.stdout.split())
  assert not pathlib.Path(f"/proc/{worker}/fd").exists() or not os.listdir(f"/proc/{worker}/fd")


@pytest.mark.parametrize("options", [{}, {"num_threads": 2}])
def test_going_on_from_a_state_equals_going_straight_through(source, options):
  straight = take(source, 5)
  iterator = pipeline.train_pipeline([(source, 1.0)], SETTINGS, batch_size=4, seed=7, **options)
  for _ in range(3):
    next(iterator)
  state = iterator.get_state()
  iterator.close()
  other = pipeline.train_pipeline([(source, 1.0)], SETTINGS, batch_size=4, seed=7, num_threads=0)
  next(other)
  other.set_state(state)
  assert_equal([next(other), next(other)], straight[3:])
  assert state == {"step": 3}


def test_a_start_step_skips_that_many_batches(source):
  assert_equal(take(source, 2, start_step=2), take(source, 4)[2:])


def test_hosts_share_the_pairs_and_not_the_random_numbers(source):
  whole = np.concatenate([b["search"] for b in take(source, 4)])
  first = np.concatenate([b["search"] for b in take(source, 2, shard_index=0, shard_count=2)])
  second = np.concatenate([b["search"] for b in take(source, 2, shard_index=1, shard_count=2)])
  np.testing.assert_array_equal(first, whole[::2])
  np.testing.assert_array_equal(second, whole[1::2])
  assert not any(np.array_equal(a, b) for a, b in zip(first, second))


def test_validation_pairs_are_finite_repeatable_and_plain(source):
  def draw():
    return list(pipeline.validation_pairs([(source, 1.0)], SETTINGS, count=8, batch_size=4, seed=1))

  batches = draw()
  assert len(batches) == 2
  assert_equal(batches, draw())
  assert all((b["search_brightness"] == 1).all() for b in batches)


def test_validation_can_cut_at_the_previous_true_box(source):
  augmentation = dataclasses.replace(SETTINGS.augmentation, search_centre_from="previous_box")
  settings = dataclasses.replace(SETTINGS, augmentation=augmentation)
  (batch,) = pipeline.validation_pairs([(source, 1.0)], settings, count=32, batch_size=32, seed=1)
  corners = boxes.xywh_to_xyxy(batch["search_box_xywh"])
  # The target moved by less than half its side, a quarter of which is the crop's side.
  assert (np.abs((corners[:, :2] + corners[:, 2:]) / 2 - 0.5) < 0.2).all()
  assert np.abs((corners[:, :2] + corners[:, 2:]) / 2 - 0.5).max() > 0.02


def test_a_count_that_leaves_a_rest_is_refused(source):
  with pytest.raises(ValueError, match="count 10"):
    pipeline.validation_pairs([(source, 1.0)], SETTINGS, count=10, batch_size=4, seed=0)


def test_a_shard_out_of_range_is_refused(source):
  with pytest.raises(ValueError, match="shard 2 of 2"):
    pipeline.train_pipeline(
      [(source, 1.0)], SETTINGS, batch_size=4, seed=0, shard_index=2, shard_count=2
    )


@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_damaged_record_stops_training_with_its_name(source, monkeypatch, num_threads):
  monkeypatch.setattr(source, "jpeg", lambda record: b"")
  with pytest.raises(ValueError, match=r"cannot decode .* \(sequence train-"):
    take(source, 1, num_threads=num_threads)


def test_boxes_that_never_show_a_target_end_in_words(source, monkeypatch):
  monkeypatch.setattr(pipeline, "_MOST_REDRAWS", 5)
  source.index.boxes_xywh[:] += (9000, 0, 0, 0)
  try:
    with pytest.raises(ValueError, match="5 pairs in a row"):
      take(source, 1)
  finally:
    source.index.boxes_xywh[:] -= (9000, 0, 0, 0)
