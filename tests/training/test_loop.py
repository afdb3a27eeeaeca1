"""The loop: resuming, stopping, schedules, what it writes."""

import dataclasses
import functools
import json
import re
import signal

import jax
import numpy as np
import optax
import pytest
from small_run import MODEL, QUICK, SETTINGS, Batches, train

from ostrack_jax import description, sharding
from ostrack_jax.loading import load
from ostrack_jax.training import checkpoint, finiteness, loop
from ostrack_jax.training.checkpoint import restore_step_variables
from ostrack_jax.training.checkpoint_store import CheckpointStore
from ostrack_jax.training.finiteness import NonFiniteLossError, UnreadMetrics
from ostrack_jax.training.state import create_state, init_variables
from ostrack_jax.training.stopping import StoppedBySignalError


@pytest.fixture(scope="module")
def start():
  return jax.device_get(init_variables(MODEL, 0))


def _rows(workdir):
  return [json.loads(line) for line in (workdir / "scalars.jsonl").read_text().splitlines()]


def _assert_same(*states):
  states = [jax.device_get(s.replace(rng=jax.random.key_data(s.rng))) for s in states]
  jax.tree.map(np.testing.assert_array_equal, *states)


def test_resuming_equals_training_straight_through_bit_for_bit(tmp_path, start):
  straight = train(tmp_path / "straight", start, Batches())
  with pytest.raises(KeyboardInterrupt):
    train(tmp_path / "resumed", start, Batches(fail_at=4))
  resumed = train(tmp_path / "resumed", start, Batches())
  assert int(resumed.step) == 6
  _assert_same(straight, resumed)

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
  settings = dataclasses.replace(QUICK, epochs=1)
  first = train(tmp_path, start, Batches(), settings)
  again = train(tmp_path, start, Batches(fail_at=2), settings)
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(first.params), jax.device_get(again.params)
  )


def test_nan_stops_the_run_names_step_and_records_and_keeps_the_last_checkpoint(tmp_path, start):
  # Read every third step only, so that a step later than the broken one is on its way.
  settings = dataclasses.replace(QUICK, log_every_steps=3, save_every_epochs=2, pairs_per_epoch=16)
  with pytest.raises(NonFiniteLossError) as raised:
    train(tmp_path, start, Batches(broken_at=9), settings)
  sentence, *names = str(raised.value).splitlines()
  named = r"^grad_norm \(nan\), l1 \(nan\), loss \(nan\) stopped being finite at step 10;"
  assert re.search(named, sentence)
  assert names == [f"  pair {row} of batch 9" for row in range(4)]
  assert CheckpointStore(tmp_path, keep=1).latest_step() == 8


def test_state_that_overflowed_behind_a_finite_gradient_is_not_saved():
  params = {"box_head": {"bias": np.array([1.0, np.inf], np.float32)}}
  state = create_state({"params": params, "batch_stats": {}}, optax.sgd(1.0), 0)
  with pytest.raises(NonFiniteLossError, match=r"^params/box_head/bias .* at or before step 7"):
    finiteness.check_state(state, 7)


def test_time_limit_stops_after_a_whole_step_and_saves(tmp_path, start):
  # The first step compiles, which the limit does not count.
  state = train(tmp_path, start, Batches(), dataclasses.replace(QUICK, max_minutes=1e-9))
  assert int(state.step) == 2
  assert CheckpointStore(tmp_path, keep=1).latest_step() == 2


def test_time_limit_counts_the_parts_of_a_run_together(tmp_path, start):
  train(tmp_path, start, Batches(), dataclasses.replace(QUICK, epochs=1))
  notes = checkpoint.read_notes(tmp_path, 2)
  # The first of the two steps compiled.
  assert 0 < notes["seconds_trained"] < 1
  over = dataclasses.replace(QUICK, max_minutes=0.9 * notes["seconds_trained"] / 60)
  assert int(train(tmp_path, start, Batches(fail_at=2), over).step) == 2


def _stopped(tmp_path, start, *signals):
  # Batch 3 is fetched while step 3 runs.
  with pytest.raises(KeyboardInterrupt) as raised:
    train(tmp_path, start, Batches(signal_at=3, signals=signals), QUICK)
  return raised.value, CheckpointStore(tmp_path, keep=1).latest_step()


def test_sigterm_saves_the_running_step_and_a_second_start_equals_straight_through(tmp_path, start):
  handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  straight = train(tmp_path / "straight", start, Batches(), QUICK)
  stop, saved = _stopped(tmp_path / "stopped", start, signal.SIGTERM)
  assert isinstance(stop, StoppedBySignalError)
  assert (stop.step, stop.signal_name, saved) == (3, "SIGTERM", 3)
  assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
  _assert_same(straight, train(tmp_path / "stopped", start, Batches(), QUICK))


def test_ctrl_c_saves_too_and_a_second_one_interrupts_at_once(tmp_path, start):
  stop, saved = _stopped(tmp_path / "once", start, signal.SIGINT)
  assert isinstance(stop, StoppedBySignalError) and saved == 3
  stop, saved = _stopped(tmp_path / "twice", start, signal.SIGINT, signal.SIGINT)
  assert not isinstance(stop, StoppedBySignalError) and saved == 2


def test_best_checkpoint_is_the_one_that_tracks_best(tmp_path, start):
  scores = iter([0.75, 0.5])
  seen = []

  def track(variables):
    seen.append(variables["params"]["backbone"]["norm"]["scale"])
    return next(scores)

  state = train(tmp_path, start, Batches(), QUICK, track_validation=track)
  assert json.loads((tmp_path / "best.json").read_text()) == {"step": 4, "ao": 0.75}
  validated = {r["step"]: r["validation/ao"] for r in _rows(tmp_path) if "validation/ao" in r}
  assert validated == {4: 0.75, 6: 0.5}
  np.testing.assert_array_equal(seen[-1], jax.device_get(state.params["backbone"]["norm"]["scale"]))


def test_best_checkpoint_is_the_one_of_the_highest_iou_if_asked_for(tmp_path, start):
  scores = iter([0.75, 0.5])
  quick = dataclasses.replace(QUICK, best_by="iou")
  train(tmp_path, start, Batches(), quick, track_validation=lambda variables: next(scores))
  ious = {r["step"]: r["validation/iou"] for r in _rows(tmp_path) if "validation/iou" in r}
  highest = max(ious, key=lambda step: ious[step])
  assert json.loads((tmp_path / "best.json").read_text()) == {
    "step": highest,
    "iou": pytest.approx(ious[highest]),
  }
  with pytest.raises(ValueError, match="best_by 'loss' must be 'ao' or 'iou'"):
    dataclasses.replace(QUICK, best_by="loss")


def test_average_of_the_weights_is_validated_saved_and_loaded(tmp_path, start):
  seen = []
  settings = dataclasses.replace(
    QUICK, epochs=2, pairs_per_epoch=4, keep_checkpoints=2, ema_decay=0.22
  )
  train(tmp_path, start, Batches(), settings, track_validation=lambda v: seen.append(v) or 0.0)
  one, two = (checkpoint.read_step(tmp_path, step)[0] for step in (1, 2))
  # By hand: the decays are min(0.22, 2/11) and min(0.22, 3/12).
  first = jax.tree.map(lambda x, new: 2 / 11 * x + 9 / 11 * new, start["params"], one["params"])
  second = jax.tree.map(lambda x, new: 0.22 * x + 0.78 * new, first, two["params"])
  assert_allclose = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
  jax.tree.map(assert_allclose, one["ema_variables"]["params"], first)
  jax.tree.map(assert_allclose, two["ema_variables"]["params"], second)
  assert not np.allclose(two["params"]["box_head"]["conv5_ctr"]["bias"], 0, atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, seen[-1], two["ema_variables"])
  jax.tree.map(np.testing.assert_array_equal, restore_step_variables(tmp_path), seen[-1])


def test_damaged_mark_does_not_hide_the_newest_checkpoint(tmp_path, start):
  train(tmp_path, start, Batches(), dataclasses.replace(QUICK, epochs=1))
  (tmp_path / "description.json").write_text(
    json.dumps(description.describe(MODEL, {"template_factor": 2, "search_factor": 4}, {}, True))
  )
  (tmp_path / "best.json").write_text('{"step": 1, "iou": 1.0}')
  restored = load(tmp_path).variables["params"]
  jax.tree.map(
    np.testing.assert_array_equal, restored, restore_step_variables(tmp_path, 2)["params"]
  )


def test_draws_in_vain_are_logged_and_damage_is_told(tmp_path, start, capsys):
  train(tmp_path, start, Batches(skipped_at=(3,)), QUICK)
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
    patch.setattr(Batches, "__next__", tell("fetch", Batches.__next__))
    patch.setattr(loop.sharding, "put_batch", tell("send", sharding.put_batch))
    patch.setattr(jax, "block_until_ready", tell("read", jax.block_until_ready))
    patch.setattr(UnreadMetrics, "read", tell("read", UnreadMetrics.read))
    train(tmp_path, start, Batches(), settings)
  steps = [step.split() for step in " ".join(events).split("dispatch")]
  assert len(steps) == 7
  assert steps[0] == ["fetch", "send"]
  # The first step of each epoch is waited for once more, behind its compilation.
  for step in (1, 3, 5):
    assert steps[step] == ["fetch", "send", "read", "read"]
  for step in (2, 4):
    assert steps[step] == ["fetch", "send", "read"]
  # The last one fetches nothing.
  assert steps[6][0] == "read"


@pytest.mark.parametrize(("batch_norm", "groups"), [("global", 1), ("device", 2)])
def test_batch_norm_is_told_of_the_devices(tmp_path, start, monkeypatch, batch_norm, groups):
  if len(jax.devices()) < 2:
    pytest.skip("this test needs 2 devices")

  def stop(*arguments, batch_norm_groups, batch_norm_shards, **options):
    raise InterruptedError(batch_norm_groups, batch_norm_shards)

  monkeypatch.setattr(loop.step_lib, "make_train_step", stop)
  settings = dataclasses.replace(QUICK, batch_norm=batch_norm)
  with pytest.raises(InterruptedError) as stopped:
    train(tmp_path, start, Batches(), settings, devices=2)
  assert stopped.value.args == (groups, 2)


def test_epochs_hold_whole_batches_only():
  assert loop.LoopSettings().steps_per_epoch == 468


@pytest.mark.parametrize("fields", [dict(batch_size=0), dict(pairs_per_epoch=10), dict(epochs=0)])
def test_bad_settings_are_refused(fields):
  with pytest.raises(ValueError, match=r"train\."):
    loop.LoopSettings(**fields)
