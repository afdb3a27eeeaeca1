"""Trees of arrays on disk, by orbax. Only this module and checkpoint_store know it."""

import os
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

STEPS_FOLDER = "checkpoints"


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
  return _restore(path)


def restore_step_variables(workdir: str | os.PathLike, step: int | None = None) -> dict[str, Any]:
  """Read {"params", "batch_stats"} of a training workdir's checkpoint, as numpy.

  Args:
    step: None for the newest.

  Raises:
    FileNotFoundError: no finished checkpoint is there, or not that step.
    ValueError: it is damaged.
  """
  folder = pathlib.Path(workdir).resolve() / STEPS_FOLDER
  steps = (
    sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []
  )
  if not steps:
    raise FileNotFoundError(f"{workdir} holds no finished checkpoint; train first, or name another")
  if step is not None and step not in steps:
    raise FileNotFoundError(
      f"{workdir} holds no checkpoint of step {step}; there are {', '.join(map(str, steps))}"
    )
  return _restore(folder / str(step or steps[-1]) / "state", ("params", "batch_stats"))


def _restore(path: pathlib.Path, names: tuple[str, ...] | None = None) -> dict[str, Any]:
  """Read a tree, or only the named ones of its top-level entries."""
  # The handler alone: a checkpointer around it warns of metadata that a manager's items do not have.
  handler = ocp.PyTreeCheckpointHandler()
  folder = epath.Path(path)
  try:
    tree = handler.metadata(folder).tree
    wanted = tree if names is None else {name: tree[name] for name in names}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    return handler.restore(
      folder,
      args=ocp.args.PyTreeRestore(
        item=wanted, restore_args=as_numpy, partial_restore=names is not None
      ),
    )
  # A damaged checkpoint surfaces as whatever the layer below met: missing files, JSON, checksums.
  except Exception as error:
    raise ValueError(f"{path} holds no complete checkpoint; write it again") from error
  finally:
    handler.close()
