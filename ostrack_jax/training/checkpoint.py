"""Trees of arrays on disk, by orbax. Only this module and checkpoint_store know it."""

import os
import pathlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

STEPS_FOLDER = "checkpoints"
# A step's items: the training state, and a JSON object of what else a run knows (checkpoint_store).
STATE, NOTES = "state", "notes"


def save_variables(path: str | os.PathLike, variables: dict[str, Any]) -> None:
  """Write a tree of arrays to a folder that must not exist yet; it appears only when complete."""
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(pathlib.Path(path).resolve(), jax.tree.map(np.asarray, variables))


def restore_variables(path: str | os.PathLike) -> dict[str, Any]:
  """Read a tree of arrays, as numpy.

  Raises:
    FileNotFoundError: the folder is not there.
    ValueError: it holds no complete checkpoint.
  """
  path = pathlib.Path(path).resolve()
  if not path.is_dir():
    raise FileNotFoundError(f"there is no folder {path}")
  try:
    return _restore(path)
  # A damaged checkpoint surfaces as whatever the layer below met: missing files, JSON, checksums.
  except Exception as error:
    raise ValueError(f"{path} holds no complete checkpoint; write it again") from error


def steps_in(workdir: str | os.PathLike) -> list[int]:
  """Return the steps of a training workdir's checkpoints, damaged ones too, in ascending order."""
  folder = pathlib.Path(workdir) / STEPS_FOLDER
  return (
    sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []
  )


def restore_step_variables(workdir: str | os.PathLike, step: int | None = None) -> dict[str, Any]:
  """Read {"params", "batch_stats"} of a training workdir's checkpoint, as numpy.

  Where the run averages its weights (train.ema_decay), these are the averages.

  Args:
    step: None for the newest.

  Raises:
    FileNotFoundError: no finished checkpoint is there, or not that step.
    ValueError: it is damaged.
  """
  workdir = pathlib.Path(workdir).resolve()
  steps = steps_in(workdir)
  if not steps:
    raise FileNotFoundError(f"{workdir} holds no finished checkpoint; train first, or name another")
  if step is not None and step not in steps:
    raise FileNotFoundError(
      f"{workdir} holds no checkpoint of step {step}; there are {', '.join(map(str, steps))}"
    )
  step = steps[-1] if step is None else step
  entries, _ = read_step(workdir, step, ("params", "batch_stats", "ema_variables"))
  return entries.pop("ema_variables", None) or entries


def read_step(
  workdir: pathlib.Path, step: int, names: Iterable[str] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Read a checkpoint's state and notes and compare them with the checksums taken when it was saved.

  Args:
    names: the state's entries to read, where it has them; None for all.

  Returns:
    (the entries as numpy, the notes). Namedtuples come back as dicts.

  Raises:
    ValueError: something is missing, cannot be read, or is not what was saved; the message says what.
  """
  folder = workdir.resolve() / STEPS_FOLDER / str(step)
  try:
    entries, notes = _restore(folder / STATE, names), read_notes(workdir, step)
  except Exception as error:
    raise ValueError(
      f"{folder} holds no complete checkpoint; {_first_line(error)}; name another step or workdir"
    ) from error
  for name, value in checksums(entries).items():
    if notes["checksums"].get(name) != value:
      raise ValueError(
        f"{folder} holds no complete checkpoint: {name} is not what was saved; name another step or workdir"
      )
  return entries, notes


def read_notes(workdir: pathlib.Path, step: int) -> dict[str, Any]:
  """Read what a checkpoint says besides its state; raises whatever a damaged file leads to."""
  folder = workdir.resolve() / STEPS_FOLDER / str(step) / NOTES
  handler = ocp.JsonCheckpointHandler()
  try:
    return dict(handler.restore(epath.Path(folder)))
  finally:
    handler.close()


def checksums(entries: Mapping[str, Any]) -> dict[str, int]:
  """Return a checksum of the arrays of each entry that has some.

  orbax compresses arrays without one: a flipped bit on disk would come back as another number. The
  order of the arrays does not count, since namedtuples come back as dicts.
  """
  return {
    name: sum(zlib.crc32(np.ravel(x).data) for x in map(_as_numpy, leaves)) % 2**32
    for name, tree in entries.items()
    if (leaves := jax.tree.leaves(tree))
  }


def _as_numpy(array) -> np.ndarray:
  is_key = isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)
  return np.asarray(jax.random.key_data(array) if is_key else array)


def _first_line(error: Exception) -> str:
  lines = str(error).splitlines() or [type(error).__name__]
  return lines[0][:200]


def _restore(path: pathlib.Path, names: Iterable[str] | None = None) -> dict[str, Any]:
  """Read a tree, or only the named ones of its top-level entries."""
  # The handler alone: a checkpointer around it warns of metadata that a manager's items do not have.
  handler = ocp.PyTreeCheckpointHandler()
  folder = epath.Path(path)
  try:
    tree = handler.metadata(folder).tree
    wanted = tree if names is None else {name: tree[name] for name in names if name in tree}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    return handler.restore(
      folder,
      args=ocp.args.PyTreeRestore(
        item=wanted, restore_args=as_numpy, partial_restore=names is not None
      ),
    )
  finally:
    handler.close()
