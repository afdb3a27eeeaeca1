"""Waiting for data, MFU, the profiler's window, and compiled programs on disk."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest
import small_run

from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.training import compilation_cache, cost
from ostrack_jax.training.profiling import ProfilerWindow
from ostrack_jax.training.speed import Speed
from ostrack_jax.training.state import init_variables

MODEL = OSTrack(dtype="bfloat16")
COUNTS = (180, 126, 89)


@pytest.fixture
def speed():
  with contextlib.closing(Speed(MODEL, jax.devices()[:1])) as speed:
    yield speed


class _Result:
  """Stands for a step's result: ready once `end` is called."""

  def __init__(self):
    self._ready = threading.Event()
    self.end = self._ready.set

  def block_until_ready(self):
    assert self._ready.wait(60)


@pytest.mark.parametrize(
  ("step_ends", "batch_comes", "lost"), [(0.0, 0.3, 0.3), (None, 0.3, 0.0), (0.1, 0.4, 0.3)]
)
def test_only_what_outlasts_the_step_is_waiting(speed, monkeypatch, step_ends, batch_comes, lost):
  now = 0.0
  monkeypatch.setattr(time, "perf_counter", lambda: now)
  result = _Result()
  speed.dispatched({"loss": result})
  with speed.fetching():
    if step_ends is not None:
      now = step_ends
      result.end()
      speed._end.result()
    now = batch_comes
  result.end()
  share = speed.read(pairs=8, seconds=1.0, stage_counts=COUNTS)["data_wait_share"]
  assert share == pytest.approx(lost)
  assert speed.read(pairs=8, seconds=1.0, stage_counts=COUNTS)["data_wait_share"] == 0


def test_scalars_hold_counts_always_and_mfu_where_the_peak_is_known(speed):
  counts = {f"search_tokens_stage_{stage + 1}": count for stage, count in enumerate(COUNTS)}
  assert speed.read(pairs=0, seconds=1.0, stage_counts=COUNTS) == counts
  assert "mfu" not in speed.read(pairs=8, seconds=1.0, stage_counts=COUNTS)

  class H100:
    device_kind = "NVIDIA H100 80GB HBM3"

  with contextlib.closing(Speed(MODEL, [H100(), H100()])) as fast:
    scalars = fast.read(pairs=2800, seconds=1.0, stage_counts=COUNTS)
  assert scalars["pairs_per_second"] == 2800
  assert scalars["mfu"] == pytest.approx(2800 * cost.training_flops(MODEL) / (2 * 989e12))


def test_estimate_tells_the_rest(speed):
  assert "100 pairs/s: about 2.0 h of training left" in speed.estimate(100.0, 720_000)


def test_profiler_traces_its_window_alone(tmp_path):
  window = ProfilerWindow((3, 4), tmp_path / "profile")
  written = []
  for step in range(1, 6):
    with window.step(step):
      result = jnp.ones(3) + step
    window.after(step, result)
    written.append(any((tmp_path / "profile").rglob("*.xplane.pb")))
  assert written == [False, False, False, True, True]
  window.close()


def test_profiler_without_steps_does_nothing(tmp_path):
  window = ProfilerWindow((), tmp_path / "profile")
  with window.step(1):
    pass
  window.after(1, jnp.ones(3))
  window.close()
  assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize("steps", [(1,), (5, 4), (0, 2)])
def test_bad_windows_are_refused(steps, tmp_path):
  with pytest.raises(ValueError, match=r"train.profile_steps .* must be \(first, last\)"):
    ProfilerWindow(steps, tmp_path)


def test_a_run_writes_what_it_measures_and_its_profile(tmp_path, monkeypatch):
  monkeypatch.setattr(cost, "peak_flops", lambda kind, dtype: 1e12)
  settings = dataclasses.replace(small_run.QUICK, profile_steps=(2, 3))
  start = jax.device_get(init_variables(small_run.MODEL, 0))
  small_run.train(tmp_path, start, small_run.Batches(), settings)
  rows = [json.loads(line) for line in (tmp_path / "scalars.jsonl").read_text().splitlines()]
  rows = [row for row in rows if "train/loss" in row]
  assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
  # The first step compiles, which has no speed.
  assert "train/pairs_per_second" not in rows[0]
  for row in rows:
    assert row["train/search_tokens_stage_1"] == 8
    assert row["train/learning_rate_backbone"] == pytest.approx(0.1 * row["train/learning_rate"])
    assert row["train/grad_norm"] > 0
    assert row["train/compiled_steps"] == 1
  for row in rows[1:]:
    assert 0 <= row["train/data_wait_share"] <= 1
    mfu = row["train/pairs_per_second"] * cost.training_flops(small_run.MODEL) / 1e12
    assert row["train/mfu"] == pytest.approx(mfu)
  assert any((tmp_path / "profile").rglob("*.xplane.pb"))


COMPILE = """
import sys
import jax
from ostrack_jax.training import compilation_cache
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
folder = compilation_cache.enable(sys.argv[1])
jax.jit(lambda x: x * 2 + 1)(jax.numpy.ones(5)).block_until_ready()
print(folder, len(hits) > 0)
"""


def test_a_second_process_finds_what_the_first_compiled(tmp_path):
  environment = {
    name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"
  } | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

  def run(folder, **variables):
    done = subprocess.run(
      [sys.executable, "-c", COMPILE, folder],
      env=environment | variables,
      capture_output=True,
      text=True,
      check=True,
    )
    return done.stdout.split()

  cache = str(tmp_path / "cache")
  assert [run(cache), run(cache)] == [[cache, "False"], [cache, "True"]]
  assert any((tmp_path / "cache").iterdir())
  # What jax was told by its own variable stays; without either, nothing is kept.
  assert run("/nowhere", JAX_COMPILATION_CACHE_DIR=cache) == [cache, "True"]


def test_a_cache_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / "file").touch()
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  try:
    assert compilation_cache.enable("") == ""
    with pytest.raises(OSError, match=r"config.compilation_cache .*file/cache' cannot be made"):
      compilation_cache.enable(str(tmp_path / "file" / "cache"))
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
