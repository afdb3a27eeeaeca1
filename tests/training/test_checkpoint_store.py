"""Checkpoints of a run: damage, a full disk, which one is best."""

import errno
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ostrack_jax.training import checkpoint
from ostrack_jax.training.checkpoint_store import (
  CheckpointError,
  CheckpointStore,
  full_disk_in_words,
)
from ostrack_jax.training.state import TrainState


def _state(step):
  rng = np.random.default_rng(step)
  params = {"kernel": rng.normal(size=(64, 64)).astype(np.float32), "bias": np.zeros(3, np.float32)}
  tree = {"params": params, "batch_stats": {"mean": np.full(3, step, np.float32)}}
  return TrainState(
    step=jnp.asarray(step, jnp.int32),
    params=jax.tree.map(jnp.asarray, tree["params"]),
    batch_stats=jax.tree.map(jnp.asarray, tree["batch_stats"]),
    opt_state=(jnp.ones(2), {"nu": jnp.full(4, step, jnp.float32)}),
    rng=jax.random.key(step),
  )


def _save(workdir, *steps, validations=None, keep=3):
  store = CheckpointStore(workdir, keep=keep, config={"key": 1})
  for step in steps:
    validation = (validations or {}).get(step)
    store.save(step, _state(step), {"data": {"step": step}}, validation)
  store.close()


def _best(workdir):
  return json.loads((workdir / "best.json").read_text())


def _largest_file(folder):
  return max((p for p in folder.rglob("*") if p.is_file()), key=lambda path: path.stat().st_size)


def _truncate(folder):
  path = _largest_file(folder)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_a_bit(folder):
  # In the middle of the compressed weights, where orbax notices nothing.
  path = _largest_file(folder)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0x10
  path.write_bytes(content)


def _lose_a_file(folder):
  (folder / "state" / "manifest.ocdbt").unlink()


def _lose_the_notes(folder):
  (folder / "notes" / "metadata").write_text('{"data": {"st')


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, _lose_a_file, _lose_the_notes])
def test_damaged_newest_checkpoint_is_told_and_moved_aside_and_the_one_before_is_used(
  tmp_path, capsys, damage
):
  _save(tmp_path, 1, 2, 3)
  damage(tmp_path / "checkpoints" / "3")
  with pytest.raises(ValueError, match=r"checkpoints/3 holds no complete checkpoint"):
    checkpoint.restore_step_variables(tmp_path)

  store = CheckpointStore(tmp_path, keep=3)
  state, notes = store.restore(_state(0))
  assert int(state.step) == 2
  assert notes["data"] == {"step": 2}
  np.testing.assert_array_equal(state.params["kernel"], _state(2).params["kernel"])
  assert (jax.random.key_data(state.rng) == jax.random.key_data(jax.random.key(2))).all()
  assert (tmp_path / "checkpoints" / "damaged-3" / "state").is_dir()
  told = capsys.readouterr().out
  assert re.search(
    r"WARNING: the checkpoint of step 3 is damaged .*damaged-3; going on from step 2", told
  )
  # The step can be saved again, and be damaged again.
  store.save(3, _state(3), {"data": {}})
  store.close()
  damage(tmp_path / "checkpoints" / "3")
  store = CheckpointStore(tmp_path, keep=3)
  assert int(store.restore(_state(0))[0].step) == 2
  assert (tmp_path / "checkpoints" / "damaged-3-2").is_dir()
  store.close()


def test_without_a_whole_checkpoint_one_sentence_says_so_and_nothing_moves(tmp_path):
  _save(tmp_path, 1, 2)
  for step in ("1", "2"):
    _flip_a_bit(tmp_path / "checkpoints" / step)
  for _ in range(2):
    store = CheckpointStore(tmp_path, keep=2)
    with pytest.raises(
      ValueError, match=r"no checkpoint in .* is whole; .*params is not what was saved"
    ):
      store.restore(_state(0))
    store.close()
  assert checkpoint.steps_in(tmp_path) == [1, 2]


class _FullDisk:
  def result(self, timeout=None):
    raise ValueError(
      f"RESOURCE_EXHAUSTED: Failed to write: No space left on device [os_error_code='{errno.ENOSPC}']"
    )


def test_full_disk_is_an_error_in_words_and_the_previous_checkpoint_survives(tmp_path, monkeypatch):
  _save(tmp_path, 1)
  store = CheckpointStore(tmp_path, keep=1)

  async def no_room(self, *arguments, **options):
    return [_FullDisk()]

  with monkeypatch.context() as patch:
    patch.setattr(ocp.StandardCheckpointHandler, "async_save", no_room)
    # Writing goes on behind training's back: the error comes when somebody asks.
    store.save(2, _state(2), {"data": {}})
    with pytest.raises(
      CheckpointError,
      match=r"of step 2 could not be written .* the disk is full; that of step 1 is whole. Make room",
    ):
      store.wait()
    # It is told once.
    store.close()
  assert checkpoint.steps_in(tmp_path) == [1]
  store = CheckpointStore(tmp_path, keep=1)
  assert int(store.restore(_state(0))[0].step) == 1
  store.save(2, _state(2), {"data": {}})
  store.close()
  assert checkpoint.steps_in(tmp_path) == [2]
  assert not list((tmp_path / "checkpoints").glob("*tmp*"))


def test_other_files_that_find_no_room_say_so_too(tmp_path):
  _save(tmp_path, 1)
  with (
    pytest.raises(CheckpointError, match=r"disk of .* is full; the checkpoint of step 1 is whole"),
    full_disk_in_words(tmp_path),
  ):
    raise OSError(errno.ENOSPC, "No space left on device")
  with pytest.raises(PermissionError), full_disk_in_words(tmp_path):
    raise PermissionError(errno.EACCES, "no")


def test_best_is_by_ao_where_tracked_and_stays_beside_the_newest(tmp_path):
  scores = {1: {"iou": 0.2, "ao": 0.6}, 2: {"iou": 0.9, "ao": 0.5}, 3: {"iou": 0.9, "ao": 0.4}}
  _save(tmp_path, 1, 2, 3, validations=scores, keep=1)
  assert _best(tmp_path) == {"step": 1, "ao": 0.6}
  assert checkpoint.steps_in(tmp_path) == [1, 3]


def test_best_is_by_iou_where_nothing_is_tracked(tmp_path):
  _save(tmp_path, 1, 2, validations={1: {"iou": 0.2}, 2: {"iou": 0.3}}, keep=1)
  assert _best(tmp_path) == {"step": 2, "iou": 0.3}


def test_a_kill_between_the_best_checkpoint_and_its_mark_is_made_up_for(tmp_path):
  _save(tmp_path, 1, validations={1: {"iou": 0.2}})
  mark = (tmp_path / "best.json").read_text()
  _save(tmp_path, 2, validations={2: {"iou": 0.3}})
  (tmp_path / "best.json").write_text(mark)
  store = CheckpointStore(tmp_path, keep=3)
  store.restore(_state(0))
  store.close()
  assert _best(tmp_path) == {"step": 2, "iou": 0.3}


def test_mark_of_a_damaged_checkpoint_does_not_keep_others_from_being_best(tmp_path):
  _save(tmp_path, 1, 2, validations={2: {"iou": 0.3}})
  _truncate(tmp_path / "checkpoints" / "2")
  store = CheckpointStore(tmp_path, keep=3)
  store.restore(_state(0))
  store.save(2, _state(2), {"data": {}}, {"iou": 0.1})
  store.close()
  assert _best(tmp_path) == {"step": 2, "iou": 0.1}


def test_checkpoint_holds_configuration_and_notes(tmp_path):
  _save(tmp_path, 4)
  notes = checkpoint.read_notes(tmp_path, 4)
  assert notes["config"] == {"key": 1}
  assert notes["data"] == {"step": 4}


def test_what_a_killed_save_left_is_removed(tmp_path):
  _save(tmp_path, 1)
  (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
  _save(tmp_path, 2)
  assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}
