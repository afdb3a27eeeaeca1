"""Checkpoints from whatever holds one: converted folders, training work folders, official files."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ostrack_jax import description as description_lib
from ostrack_jax import output_folder, weight_files
from ostrack_jax.evaluation import run_folder
from ostrack_jax.models.attention import has_kernels
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.tracking import confidence
from ostrack_jax.training import checkpoint as checkpoint_lib
from ostrack_jax.weight_files import FileOptions
from ostrack_jax.weights import names

_VARIABLES = "variables"
_SHIPPED = pathlib.Path(__file__).parent / "pretrained"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A network with its weights.

  Attributes:
    model: the OSTrack module.
    variables: {"params", "batch_stats"} for model.apply; "unused" holds tensors of the source file
      that the network does not use.
    description: what description.json says: model fields, tracker factors, source, and whether the
      head is trained (`complete`).
    calibrator: of its confidence; None where it was not calibrated.
  """

  model: OSTrack
  variables: dict[str, Any]
  description: dict[str, Any]
  calibrator: confidence.Calibrator | None = None


def load(
  path: str | os.PathLike,
  num_heads: int | None = None,
  dtype: str | None = None,
  *,
  keep_ratios: float | Sequence[float] | None = None,
  elimination_layers: Sequence[int] | None = None,
) -> Checkpoint:
  """Load a checkpoint.

  Args:
    path: a converted folder, a training work folder (its best step if one is marked, else the last) or
      one of its steps, WORKDIR/checkpoints/STEP, an official OSTrack file, or the name of a checkpoint
      that ships with the package: `ostrack_tiny`.
    num_heads: attention heads where width / 64 is wrong; files do not say.
    dtype: to compute in, `float32`, `bfloat16` or `float16`; None for what the checkpoint says, which for files is
      float32; but float16 on CUDA, from Ampere on, where it says bfloat16. The weights are kept as they are.
    keep_ratios, elimination_layers: in place of the checkpoint's, see change_elimination. As with dtype,
      the description stays the checkpoint's own.

  A calibrator that lies in the folder comes along. One that was fitted for other weights, or for another
  elimination, is left aside with a warning.

  Raises:
    FileNotFoundError: there is nothing at the path.
    ValueError: what is there is not a checkpoint, or does not fit the other arguments; says what to do.
  """
  checkpoint = _load(pathlib.Path(path), num_heads)
  model = change_elimination(checkpoint.model, keep_ratios, elimination_layers)
  dtype = _default_dtype(model.dtype) if dtype is None else dtype
  if dtype != model.dtype:
    model = model.clone(dtype=dtype)
  checkpoint = dataclasses.replace(checkpoint, model=model)
  if checkpoint.calibrator is None:
    return checkpoint
  calibrator = confidence.kept(checkpoint.calibrator, calibration_subject(checkpoint))
  return dataclasses.replace(checkpoint, calibrator=calibrator)


def _default_dtype(described: str) -> str:
  """Return what to compute in where nobody says it.

  Training in bfloat16 is for the range of gradients. Tracking has none, and float16 is eight times as fine, at the
  same speed of products.
  """
  return "float16" if described == "bfloat16" and has_kernels(jnp.float16) else described


def calibration_subject(checkpoint: Checkpoint) -> dict[str, Any]:
  """Return what of a checkpoint a calibrator is fitted for; any change of it makes the calibrator stale."""
  model = checkpoint.model
  return {
    "digest": run_folder.checkpoint_digest(checkpoint.variables, checkpoint.description),
    "elimination": [list(model.elimination_layers), list(model.keep_ratios)],
    "features": list(confidence.evidence_signs(model)),
  }


def change_elimination(
  model: OSTrack,
  keep_ratios: float | Sequence[float] | None = None,
  elimination_layers: Sequence[int] | None = None,
) -> OSTrack:
  """Return the model with candidates eliminated elsewhere, or other shares of them kept; its weights still fit.

  Args:
    keep_ratios: one for all stages, or one for each; None for the model's. Where all are 1 nothing is
      eliminated, and the result is that of no stages.
    elimination_layers: blocks, from 0, that eliminate; () for none, None for the model's.

  Raises:
    ValueError: the model is two-stream, it has no stages that keep_ratios could be for, there are not as
      many ratios as stages, a ratio lies outside (0, 1], or layers are not increasing blocks of the model.
  """
  if keep_ratios is None and elimination_layers is None:
    return model
  if model.is_two_stream:
    raise ValueError(
      f"relation {model.relation!r} has no candidates to eliminate; leave keep_ratios and "
      "elimination_layers away"
    )
  layers = tuple(model.elimination_layers if elimination_layers is None else elimination_layers)
  if keep_ratios is None:
    same = len(set(model.keep_ratios)) == 1 and elimination_layers is not None
    ratios = model.keep_ratios[:1] if same else model.keep_ratios
    ratios = ratios if layers else ()
  else:
    ratios = (keep_ratios,) if isinstance(keep_ratios, int | float) else tuple(keep_ratios)
  keeps_all = bool(ratios) and all(ratio == 1 for ratio in ratios)
  if ratios and not layers and not (keeps_all and len(ratios) == 1):
    raise ValueError(
      f"keep_ratios {ratios} are for no stage; give elimination_layers, such as 3,6,9, too"
    )
  if len(ratios) == 1:
    ratios *= len(layers)
  if len(ratios) != len(layers):
    raise ValueError(
      f"keep_ratios {ratios} do not fit elimination_layers {layers}; give one ratio for all stages, or "
      "one for each"
    )
  # Even where nothing is eliminated, the layers must be blocks that there are.
  changed = model.clone(elimination_layers=layers, keep_ratios=ratios)
  return changed.clone(elimination_layers=(), keep_ratios=()) if keeps_all else changed


def _load(path: pathlib.Path, num_heads: int | None) -> Checkpoint:
  if _is_step(path):
    return _load_folder(path.parent.parent, num_heads, int(path.name))
  if path.is_dir():
    return _load_folder(path, num_heads)
  if is_shipped(path):
    return _load_folder(_SHIPPED / path, num_heads)
  if not path.exists():
    raise FileNotFoundError(
      f"there is no checkpoint {path}; give a folder or file that exists, or what ships with the package "
      f"({', '.join(shipped_names())}); official files, such as OSTrack_ep0300.pth.tar of "
      "vitb_256_mae_ce_32x4_ep300, are linked from https://github.com/botaoye/OSTrack, may lie anywhere, and load as "
      "they are or, converted once (python -m ostrack_jax.convert --input=FILE --output=DIR), from that folder"
    )
  return Checkpoint(
    *weight_files.read_file(path, FileOptions(num_heads=num_heads), allow_encoder=False)
  )


def is_shipped(path: str | os.PathLike) -> bool:
  """Return whether `load` would read a checkpoint that ships with the package."""
  return (_SHIPPED / path).is_dir() and not pathlib.Path(path).exists()


def shipped_names() -> list[str]:
  """Return the names of the checkpoints that ship with the package."""
  return sorted(folder.name for folder in _SHIPPED.iterdir() if folder.is_dir())


def is_folder(path: str | os.PathLike) -> bool:
  """Return whether `load` would read a checkpoint folder: one at the path, or one that ships."""
  return pathlib.Path(path).is_dir() or (_SHIPPED / path).is_dir()


def label(path: str | os.PathLike) -> str:
  """Return what to call a checkpoint: its folder's or file's name, for a step the run's name and the step."""
  resolved = pathlib.Path(path).resolve()
  if _is_step(resolved):
    return f"{resolved.parent.parent.name}-{resolved.name}"
  # A folder's name has no suffix: what stands behind its point is part of it, as in `vitb.v2`.
  return resolved.name if is_folder(path) else resolved.stem


def _is_step(path: pathlib.Path) -> bool:
  # A converted folder may have such a path, too.
  is_converted = (path / description_lib.FILE_NAME).exists()
  return (
    path.parent.name == checkpoint_lib.STEPS_FOLDER and path.name.isdecimal() and not is_converted
  )


def _load_folder(path: pathlib.Path, num_heads: int | None, step: int | None = None) -> Checkpoint:
  description = description_lib.read_description(path)
  model = description_lib.build_model(description["model"], str(path / description_lib.FILE_NAME))
  ours = model.dimensions()["num_heads"]
  if num_heads not in (None, ours):
    raise ValueError(
      f"{path} has {ours} attention heads, not {num_heads}; leave num_heads away, or convert the "
      "original file again"
    )
  if (path / _VARIABLES).exists():
    # Shipped checkpoints are stored in half precision, to be small.
    variables = jax.tree.map(
      lambda x: x.astype(np.float32) if x.dtype == np.float16 else x,
      checkpoint_lib.restore_variables(path / _VARIABLES),
    )
  elif (path / checkpoint_lib.STEPS_FOLDER).is_dir():
    if step is None:
      step = _best_step(path)
      if not (path / checkpoint_lib.STEPS_FOLDER / str(step)).is_dir():
        step = None
    variables = checkpoint_lib.restore_step_variables(path, step)
  else:
    raise ValueError(
      f"{path} has a {description_lib.FILE_NAME} but neither {_VARIABLES}/ nor checkpoints/"
    )
  names.check_variables(variables, model, str(path))
  file = path / confidence.FILE_NAME
  calibrator = confidence.read(file) if file.is_file() else None
  return Checkpoint(model, variables, description, calibrator)


def _best_step(workdir: pathlib.Path) -> int | None:
  file = workdir / "best.json"
  if not file.is_file():
    return None
  step = description_lib.read_json(file).get("step")
  if type(step) is not int:
    raise ValueError(f"{file} marks step {step!r}; expected a whole number")
  return step


def load_file(path: str | os.PathLike, options: FileOptions | None = None) -> Checkpoint:
  """Make a checkpoint of a file of weights, encoders included; see weight_files.read_file."""
  return Checkpoint(*weight_files.read_file(path, options))


def check_output(folder: str | os.PathLike, overwrite: bool) -> None:
  """Raise FileExistsError where a checkpoint folder must not be written.

  An empty folder may be, and with `overwrite` one that holds a converted checkpoint and nothing else.
  """
  ours = {description_lib.FILE_NAME, _VARIABLES, confidence.FILE_NAME}
  output_folder.check(folder, overwrite, ours.__contains__, "a converted checkpoint")


def write_folder(
  checkpoint: Checkpoint, folder: str | os.PathLike, overwrite: bool = False
) -> None:
  """Write a checkpoint, with its calibrator, as a converted folder, which appears only when it is complete.

  Raises FileExistsError as check_output does.
  """
  folder = pathlib.Path(folder).absolute()
  check_output(folder, overwrite)
  folder.parent.mkdir(parents=True, exist_ok=True)
  with output_folder.written_whole(folder) as temporary:
    checkpoint_lib.save_variables(temporary / _VARIABLES, checkpoint.variables)
    text = json.dumps(checkpoint.description, indent=2)
    (temporary / description_lib.FILE_NAME).write_text(text + "\n")
    if checkpoint.calibrator is not None:
      (temporary / confidence.FILE_NAME).write_text(checkpoint.calibrator.to_json())
