"""Checkpoints of a training run: state, what else the run knows, and which step was best."""

import contextlib
import errno
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tqdm
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from ostrack_jax.training import checkpoint
from ostrack_jax.training.state import TrainState

_BEST = "best.json"
_FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT)
_FULL_DISK = ("No space left on device", "Disk quota exceeded")


class CheckpointError(OSError):
  """A checkpoint could not be written; those before it are whole."""


@contextlib.contextmanager
def full_disk_in_words(workdir: pathlib.Path) -> Iterator[None]:
  """Turn what scalars and the like raise on a full disk, perhaps over a CheckpointError, into one."""
  try:
    yield
  except OSError as error:
    if isinstance(error, CheckpointError) or error.errno not in _FULL_DISK_ERRORS:
      raise
    steps = checkpoint.steps_in(workdir)
    rest = (
      f"the checkpoint of step {steps[-1]} is whole" if steps else "no checkpoint was saved yet"
    )
    raise CheckpointError(
      f"the disk of {workdir} is full; {rest}. Make room and start the same command again"
    ) from error


class CheckpointStore:
  """Keep the newest checkpoints of a run, and the best one, under `workdir/checkpoints`.

  Saving is asynchronous and atomic: a kill leaves whole checkpoints and perhaps a temporary folder,
  which the next start removes. The best one is that of the highest validation AO where the run tracks,
  else of the highest IoU; `workdir/best.json` names it.
  """

  def __init__(self, workdir: pathlib.Path, *, keep: int, config: Mapping[str, Any] | None = None):
    """Open or create the folder.

    Args:
      keep: how many of the newest checkpoints stay.
      config: the run's configuration, as in JSON, to be kept in each checkpoint.

    Raises:
      ValueError: best.json is damaged.
    """
    self._workdir = pathlib.Path(workdir).absolute()
    self._config = dict(config or {})
    self._best = _read_best(self._workdir)
    # Kept whatever their age: the best step, and until the mark has moved on, the one before it.
    self.kept_steps = set() if self._best is None else {self._best["step"]}
    self._saving: int | None = None
    self._failed = False
    policies = [checkpoint_managers.LatestN(keep), _KeepBest(self)]
    self._manager = _Manager(
      self._workdir / checkpoint.STEPS_FOLDER,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        cleanup_tmp_directories=True,
      ),
    )

  def latest_step(self) -> int | None:
    """Return the newest checkpoint's step, damaged or not, or None."""
    steps = checkpoint.steps_in(self._workdir)
    return steps[-1] if steps else None

  @property
  def best_step(self) -> int | None:
    """The step of the best checkpoint, or None where nothing was validated."""
    return None if self._best is None else self._best["step"]

  def save(
    self,
    step: int,
    state: TrainState,
    notes: Mapping[str, Any],
    validation: Mapping[str, float] | None = None,
  ) -> None:
    """Write a checkpoint; it is marked best when its validation is the best so far.

    Args:
      notes: what else to keep, as in JSON.
      validation: what validating this state gave, `iou` and perhaps `ao` among it.

    Raises:
      CheckpointError: this or the checkpoint before could not be written, the disk being full or else.
    """
    score = None
    if validation:
      metric = "ao" if "ao" in validation else "iou"
      score = {"step": step, metric: validation[metric]}
    own = {"config": self._config, "score": score}
    sums = checkpoint.checksums(vars(state))
    with self._errors_in_words():
      self._manager.wait_until_finished()
      self._saving = step
      # The checkpoint carries its own score: a kill between it and the mark loses neither.
      best = score if self._is_best(score) else None
      if best:
        self.kept_steps.add(step)
      self._manager.save(
        step,
        args=ocp.args.Composite(
          **{
            checkpoint.STATE: ocp.args.StandardSave(state),
            checkpoint.NOTES: ocp.args.JsonSave({**notes, **own, "checksums": sums}),
          }
        ),
      )
      if best:
        # The mark must never name a checkpoint that is not whole.
        self._manager.wait_until_finished()
        self._mark(best)

  def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Return the state of the newest whole checkpoint, placed as `like` is, and its notes.

    Damaged ones that are newer are reported and moved aside, to `damaged-<step>`.

    Raises:
      ValueError: none is whole.
    """
    step = self._newest_whole()
    targets = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
    )
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        **{
          checkpoint.STATE: ocp.args.StandardRestore(targets),
          checkpoint.NOTES: ocp.args.JsonRestore(),
        }
      ),
    )
    notes = restored[checkpoint.NOTES]
    if self._best and self._best["step"] not in checkpoint.steps_in(self._workdir):
      self._best, self.kept_steps = None, set()
    if self._is_best(notes["score"]):
      self._mark(notes["score"])
    return restored[checkpoint.STATE], notes

  def _newest_whole(self) -> int:
    """Find the step to resume from and move what is newer and damaged aside."""
    chosen, damaged = -1, {}
    # One process looks, so that all agree.
    if jax.process_index() == 0:
      for step in reversed(checkpoint.steps_in(self._workdir)):
        try:
          checkpoint.read_step(self._workdir, step)
        except ValueError as error:
          damaged[step] = str(error)
        else:
          chosen = step
          break
      for step, reason in damaged.items() if chosen >= 0 else ():
        aside = self._move_aside(step)
        tqdm.tqdm.write(
          f"WARNING: the checkpoint of step {step} is damaged and was moved to {aside}; going on from "
          f"step {chosen} ({reason})"
        )
    chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    if chosen < 0:
      raise ValueError(
        f"no checkpoint in {self._workdir / checkpoint.STEPS_FOLDER} is whole"
        f"{'; '.join(['', *damaged.values()])}; choose another --workdir to start anew"
      )
    self._manager.reload()
    return chosen

  def _move_aside(self, step: int) -> pathlib.Path:
    folder = self._workdir / checkpoint.STEPS_FOLDER
    names = (f"damaged-{step}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    aside = next(folder / name for name in names if not (folder / name).exists())
    return (folder / str(step)).rename(aside)

  def _is_best(self, score: Mapping[str, Any] | None) -> bool:
    if score is None or self._best is None:
      return score is not None
    metric = "ao" if "ao" in score else "iou"
    return score[metric] > self._best.get(metric, float("-inf"))

  def _mark(self, score: Mapping[str, Any]) -> None:
    self._best = dict(score)
    if jax.process_index() == 0:
      temporary = self._workdir / f".{_BEST}.tmp"
      temporary.write_text(json.dumps(self._best) + "\n")
      temporary.replace(self._workdir / _BEST)
    self.kept_steps = {score["step"]}

  def wait(self) -> None:
    """Return when everything saved is on disk; raises CheckpointError as `save` does."""
    with self._errors_in_words():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Finish and release the folder; raises CheckpointError as `save` does."""
    with self._errors_in_words():
      self._manager.close()

  @contextlib.contextmanager
  def _errors_in_words(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      if self._failed:
        # Told already; orbax raises it again at each call.
        return
      self._failed, step = True, self._saving
      is_full = getattr(error, "errno", None) in _FULL_DISK_ERRORS
      is_full = is_full or any(words in str(error) for words in _FULL_DISK)
      whole = [other for other in checkpoint.steps_in(self._workdir) if other != step]
      rest = f"that of step {whole[-1]} is whole" if whole else "there is none before it"
      reason = "the disk is full" if is_full else f"{type(error).__name__}: {error}"
      raise CheckpointError(
        f"the checkpoint of step {step} could not be written to {self._workdir}: {reason}; {rest}. "
        f"{'Make room' if is_full else 'Mend that'} and start the same command again"
      ) from error


class _Manager(ocp.CheckpointManager):
  def reached_preemption(self, step: int) -> bool:
    """Leave the question to the loop: asked late, for a step gone by, it would confuse the answer."""
    del step
    return False


class _KeepBest(checkpoint_managers.PreservationPolicy):
  def __init__(self, store: CheckpointStore):
    self._store = store

  def should_preserve(self, checkpoints, context):
    del context
    return [saved.step in self._store.kept_steps for saved in checkpoints]


def _read_best(workdir: pathlib.Path) -> dict[str, Any] | None:
  path = workdir / _BEST
  if not path.exists():
    return None
  try:
    best = json.loads(path.read_text())
  except ValueError:
    best = None
  if not isinstance(best, dict) or type(best.get("step")) is not int:
    raise ValueError(f"{path} does not name a step; remove it, and the next validation marks anew")
  return best
