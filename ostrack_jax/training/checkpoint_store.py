"""Checkpoints of a training run: state, position in the data, and which step was best."""

import json
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from ostrack_jax.training import checkpoint
from ostrack_jax.training.state import TrainState

_BEST = "best.json"


class CheckpointStore:
  """Keep the newest checkpoints of a run, and the best one, under `workdir/checkpoints`.

  Saving is asynchronous and atomic: a kill leaves whole checkpoints and perhaps a temporary folder.
  """

  def __init__(self, workdir: pathlib.Path, *, keep: int):
    self._workdir = pathlib.Path(workdir).absolute()
    self._best = _read_best(self._workdir)
    # Kept whatever their age: the best step, and until the mark has moved on, the one before it.
    self.kept_steps = set() if self._best is None else {self._best["step"]}
    policies = [checkpoint_managers.LatestN(keep), _KeepBest(self)]
    self._manager = ocp.CheckpointManager(
      self._workdir / checkpoint.STEPS_FOLDER,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies)
      ),
    )

  def latest_step(self) -> int | None:
    """Return the newest whole checkpoint's step, or None."""
    return self._manager.latest_step()

  def save(
    self, step: int, state: TrainState, data_state: dict, validation_iou: float | None = None
  ) -> None:
    """Write a checkpoint; it is marked best when its validation IoU is the highest so far."""
    is_best = validation_iou is not None and (
      self._best is None or validation_iou > self._best["iou"]
    )
    if is_best:
      self._best = {"step": step, "iou": validation_iou}
      self.kept_steps.add(step)
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data_state)
      ),
    )
    if is_best:
      # The mark must never name a checkpoint that is not whole.
      self._manager.wait_until_finished()
      if jax.process_index() == 0:
        temporary = self._workdir / f".{_BEST}.tmp"
        temporary.write_text(json.dumps(self._best) + "\n")
        temporary.replace(self._workdir / _BEST)
      self.kept_steps = {step}

  def restore(self, like: TrainState) -> tuple[TrainState, dict]:
    """Return the newest checkpoint's state, placed as `like` is, and its position in the data."""
    targets = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
    )
    restored = self._manager.restore(
      self._manager.latest_step(),
      args=ocp.args.Composite(state=ocp.args.StandardRestore(targets), data=ocp.args.JsonRestore()),
    )
    return restored["state"], restored["data"]

  def wait(self) -> None:
    """Return when everything saved is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Finish and release the folder."""
    self._manager.close()


class _KeepBest(checkpoint_managers.PreservationPolicy):
  def __init__(self, store: CheckpointStore):
    self._store = store

  def should_preserve(self, checkpoints, context):
    del context
    return [saved.step in self._store.kept_steps for saved in checkpoints]


def _read_best(workdir: pathlib.Path) -> dict[str, Any] | None:
  path = workdir / _BEST
  return json.loads(path.read_text()) if path.exists() else None
