"""The loop: resuming, stopping, schedules, what it writes."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from ostrack_jax import description, sharding
from ostrack_jax.loading import load
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.training import loop
from ostrack_jax.training.checkpoint import restore_step_variables
from ostrack_jax.training.checkpoint_store import CheckpointStore
from ostrack_jax.training.losses import LossWeights
from ostrack_jax.training.optimizer import OptimizerSettings
from ostrack_jax.training.state import init_variables

MODEL = OSTrack(
  variant="custom",
  width=16,
  depth=2,
  num_heads=1,
  template_size=16,
  search_size=64,
  head_channels=8,
  elimination_layers=(1,),
  keep_ratios=(0.5,),
  drop_path_rate=0.1,
)
# Two steps an epoch; masked candidates in epochs 1 and 2, the final ratio from epoch 3 on.
SETTINGS = loop.LoopSettings(
  epochs=3,
  pairs_per_epoch=8,
  batch_size=4,
  elimination_start=1,
  elimination_warmup=2,
  log_every_steps=1,
  validate_every_epochs=2,
  save_every_epochs=1,
  keep_checkpoints=1,
)


def _batch(seed):
  rng = np.random.default_rng(seed)
  return {
    "template": rng.integers(0, 256, (4, 16, 16, 3), np.uint8),
    "search": rng.integers(0, 256, (4, 64, 64, 3), np.uint8),
    "search_box_xywh": rng.uniform(0.2, 0.5, (4, 4)).astype(np.float32),
  }


class _Batches:
  """Batches by number; can be told to fail, or to hand out a broken batch, and what draws to report."""

  def __init__(self, *, fail_at=None, broken_at=None, skipped_at=()):
    self._step, self._fail_at, self._broken_at = 0, fail_at, broken_at
    self._skipped_at = skipped_at
    self.counts = {"pairs": 0, "redraws": 0, "skipped": 0}

  def __next__(self):
    if self._step == self._fail_at:
      raise KeyboardInterrupt
    batch = _batch(self._step)
    if self._step == self._broken_at:
      batch["search_box_xywh"][0, 0] = np.nan
    self._step += 1
    self.counts = {
      "pairs": self.counts["pairs"] + 4,
      "redraws": self.counts["redraws"] + 1,
      "skipped": self.counts["skipped"] + int(self._step in self._skipped_at),
    }
    return batch

  def get_state(self):
    return {"step": self._step}

  def set_state(self, state):
    self._step = state["step"]


@pytest.fixture(scope="module")
def start():
  return jax.device_get(init_variables(MODEL, 0))


def _train(workdir, start, batches, settings=SETTINGS, devices=1):
  workdir.mkdir(exist_ok=True)
  store = CheckpointStore(workdir, keep=settings.keep_checkpoints)
  try:
    return loop.train(
      MODEL,
      start,
      batches,
      lambda: iter([_batch(100)]),
      optimizer_settings=OptimizerSettings(learning_rate=1e-3, drop_epoch=2),
      loss_weights=LossWeights(),
      settings=settings,
      store=store,
      writer_dir=workdir,
      mesh=sharding.make_mesh(jax.devices()[:devices]),
    )
  finally:
    store.close()


def _rows(workdir):
  return [json.loads(line) for line in (workdir / "scalars.jsonl").read_text().splitlines()]


def test_resuming_equals_training_straight_through_bit_for_bit(tmp_path, start):
  straight = _train(tmp_path / "straight", start, _Batches())
  with pytest.raises(KeyboardInterrupt):
    _train(tmp_path / "resumed", start, _Batches(fail_at=4))
  resumed = _train(tmp_path / "resumed", start, _Batches())
  assert int(resumed.step) == 6
  key_data = [s.replace(rng=jax.random.key_data(s.rng)) for s in (straight, resumed)]
  jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, key_data))

  losses = [
    {row["step"]: row["train/loss"] for row in _rows(tmp_path / name) if "train/loss" in row}
    for name in ("straight", "resumed")
  ]
  assert losses[0] == losses[1]
  assert sorted(losses[0]) == [1, 2, 3, 4, 5, 6]

  # The marked best checkpoint survives beside the newest, and both can be read.
  best = json.loads((tmp_path / "straight" / "best.json").read_text())
  validated = {
    r["step"]: r["validation/iou"] for r in _rows(tmp_path / "straight") if "validation/iou" in r
  }
  assert sorted(validated) == [4, 6]
  assert best["iou"] == max(validated.values())
  kept = {
    int(p.name) for p in (tmp_path / "straight" / "checkpoints").iterdir() if p.name.isdigit()
  }
  assert kept == {best["step"], 6}
  saved = restore_step_variables(tmp_path / "straight", 6)
  jax.tree.map(np.testing.assert_array_equal, saved["params"], jax.device_get(straight.params))


def test_finished_run_is_not_trained_further(tmp_path, start):
  settings = dataclasses.replace(SETTINGS, epochs=1)
  first = _train(tmp_path, start, _Batches(), settings)
  again = _train(tmp_path, start, _Batches(fail_at=2), settings)
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(first.params), jax.device_get(again.params)
  )


def test_nan_stops_the_run_names_the_step_and_keeps_the_last_checkpoint(tmp_path, start):
  with pytest.raises(loop.NonFiniteLossError, match=r"loss.* stopped being finite at step 4"):
    _train(tmp_path, start, _Batches(broken_at=3))
  assert CheckpointStore(tmp_path, keep=1).latest_step() == 2


def test_time_limit_stops_after_a_whole_step_and_saves(tmp_path, start):
  # The first step compiles, which the limit does not count.
  state = _train(tmp_path, start, _Batches(), dataclasses.replace(SETTINGS, max_minutes=1e-9))
  assert int(state.step) == 2
  assert CheckpointStore(tmp_path, keep=1).latest_step() == 2


def test_damaged_mark_does_not_hide_the_newest_checkpoint(tmp_path, start):
  _train(tmp_path, start, _Batches(), dataclasses.replace(SETTINGS, epochs=1))
  (tmp_path / "description.json").write_text(
    json.dumps(description.describe(MODEL, {"template_factor": 2, "search_factor": 4}, {}, True))
  )
  (tmp_path / "best.json").write_text('{"step": 1, "iou": 1.0}')
  restored = load(tmp_path).variables["params"]
  jax.tree.map(
    np.testing.assert_array_equal, restored, restore_step_variables(tmp_path, 2)["params"]
  )


def test_draws_in_vain_are_logged_and_damage_is_told(tmp_path, start, capsys):
  _train(tmp_path, start, _Batches(skipped_at=(3,)))
  rows = [row for row in _rows(tmp_path) if "train/loss" in row]
  assert {row["train/redraws_per_thousand_pairs"] for row in rows} == {250.0, 0.0}
  # Counted when fetched, a step ahead: two batches before the first row, none before the last.
  assert rows[0]["train/redraws_per_thousand_pairs"] == 250.0
  skipped = [row["train/skipped_per_thousand_pairs"] for row in rows]
  assert skipped == [0, 250, 0, 0, 0, 0]
  told = [line for line in capsys.readouterr().out.splitlines() if "met a damaged" in line]
  assert len(told) == 1
  assert "step 2, process 0: 1 draws for 4 pairs" in told[0] and "1 so far" in told[0]


def test_the_next_batch_travels_while_a_step_runs(tmp_path, start, monkeypatch):
  events = []

  def tell(event, function):
    def told(*arguments):
      events.append(event)
      return function(*arguments)

    return told

  at_epoch = loop.CompiledSteps.at_epoch

  def watched_at_epoch(self, epoch):
    step = at_epoch(self, epoch)
    dispatched = tell("dispatch", step)
    return lambda state, batch: (dispatched if hasattr(state, "opt_state") else step)(state, batch)

  settings = dataclasses.replace(SETTINGS, validate_every_epochs=100, save_every_epochs=100)
  with monkeypatch.context() as patch:
    patch.setattr(loop.CompiledSteps, "at_epoch", watched_at_epoch)
    patch.setattr(_Batches, "__next__", tell("fetch", _Batches.__next__))
    patch.setattr(loop.sharding, "put_batch", tell("send", sharding.put_batch))
    patch.setattr(jax, "block_until_ready", tell("read", jax.block_until_ready))
    patch.setattr(loop, "_mean_scalars", tell("read", loop._mean_scalars))
    _train(tmp_path, start, _Batches(), settings)
  steps = " ".join(events).split("dispatch")
  assert len(steps) == 7
  assert steps[0].split() == ["fetch", "send"]
  # The first step is waited for once more, behind its compilation; the last one fetches nothing.
  assert steps[1].split() == ["fetch", "send", "read", "read"]
  assert all(step.split() == ["fetch", "send", "read"] for step in steps[2:6])
  assert steps[6].split()[0] == "read"


def test_schedule_needs_two_compilations():
  traces = []

  def make_step(model):
    def step(counts=None):
      traces.append(model.keep_ratios)
      return 0 if counts is None else counts

    return step

  steps = loop.CompiledSteps(MODEL, make_step, SETTINGS)
  counts = [steps.at_epoch(epoch)() for epoch in (1, 2, 3, 4, 300)]
  assert traces == [(1.0,), (0.5,)]
  assert counts[0].tolist() == [16]
  assert counts[1].tolist() == [12]
  assert counts[2:] == [0, 0, 0]


def test_epochs_hold_whole_batches_only():
  assert loop.LoopSettings().steps_per_epoch == 468


@pytest.mark.parametrize("fields", [dict(batch_size=0), dict(pairs_per_epoch=10), dict(epochs=0)])
def test_bad_settings_are_refused(fields):
  with pytest.raises(ValueError, match=r"train\."):
    loop.LoopSettings(**fields)
