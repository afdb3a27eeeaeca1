"""What the layouts of the video data sets share: numbered frames, marks a frame, lists with gaps."""

import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from data_pipelines.builders.raw_data import RawSequence, Target
from ostrack_jax import annotations

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_NAMED = 3


def first_names(names: Sequence[str]) -> str:
  """Name the first few of many, for a message."""
  return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def without_missing(
  listed: Sequence[str], missing: Sequence[str], where: str, allow_missing: bool
) -> list[str]:
  """Return the listed names that are there, with a note on those that are not, if they may be missing.

  Args:
    listed: every name of an official list, in order. missing: those that were not found.
    where: the list and the place that was searched, in words.

  Raises:
    FileNotFoundError: names are missing and may not be, or all are.
  """
  if missing:
    text = f"{len(missing)} of {len(listed)} {where} are missing: {first_names(missing)}"
    if len(missing) == len(listed):
      raise FileNotFoundError(f"{text}; check the raw folder")
    if not allow_missing:
      raise FileNotFoundError(
        f"{text}; complete the folder, or pass --allow_missing to go on with those that are there"
      )
    logging.warning("%s; they are left out", text)
  absent = set(missing)
  return [name for name in listed if name not in absent]


def numbered_frames(
  folder: pathlib.Path, digits: int, first: int, count: int, sequence: str, annotation: pathlib.Path
) -> tuple[pathlib.Path, ...]:
  """Return `count` frames named by number, `digits` wide, from `first` on.

  Raises:
    FileNotFoundError: no such folder.
    ValueError: a frame is missing, or there are more JPEG files than boxes.
  """
  if not folder.is_dir():
    raise FileNotFoundError(f"sequence {sequence}: no folder {folder} with its frames")
  found = {path.name for path in folder.iterdir() if path.suffix == ".jpg" and path.name[0] != "."}
  names = [f"{number:0{digits}d}.jpg" for number in range(first, first + count)]
  missing = [name for name in names if name not in found]
  if missing or len(found) > count:
    problem = (
      f"{missing[0]} is missing" if missing else f"{min(found - set(names))} is one too many"
    )
    raise ValueError(
      f"sequence {sequence}: {count} boxes in {annotation} but {len(found)} frames in {folder} "
      f"({problem}); every frame needs its box"
    )
  return tuple(folder / name for name in names)


def read_marks(path: pathlib.Path, count: int, sequence: str) -> np.ndarray:
  """Read one number a frame, one a line or all in one line, as [count].

  Raises:
    FileNotFoundError: no such file.
    ValueError: another number of marks, or something that is no number.
  """
  if not path.is_file():
    raise FileNotFoundError(f"sequence {sequence}: no file {path}")
  marks = annotations.read_rows(path).ravel()
  if len(marks) != count:
    raise ValueError(f"sequence {sequence}: {len(marks)} marks in {path} but {count} boxes")
  return marks


def read_rectangles(path: pathlib.Path, sequence: str) -> np.ndarray:
  """Read an annotation file of x y w h a frame, [n, 4] px, as written.

  Raises:
    FileNotFoundError: no such file.
    ValueError: other than four columns, or see ostrack_jax.annotations.read_rows.
  """
  if not path.is_file():
    raise FileNotFoundError(f"sequence {sequence}: no file {path}")
  boxes_xywh = annotations.read_rows(path)
  if boxes_xywh.shape[1] != 4:
    raise ValueError(
      f"sequence {sequence}: {boxes_xywh.shape[1]} columns in {path}; expected x y w h"
    )
  return boxes_xywh


def one_target(
  name: str,
  frames: tuple[pathlib.Path, ...],
  boxes_xywh: np.ndarray,
  hidden: np.ndarray,
  annotation: pathlib.Path,
) -> RawSequence:
  """Return a video of one target, visible where it is not hidden and its box has width and height.

  Raises:
    ValueError: NaN where the target is not marked as hidden: these sets write 0 for no box.
  """
  (unknown,) = np.nonzero(np.isnan(boxes_xywh).any(axis=1) & ~hidden)
  if len(unknown):
    raise ValueError(
      f"sequence {name}: NaN in {annotation}, line {unknown[0] + 1}, where the target is not marked as "
      "hidden; write 0,0,0,0 if it has no box there"
    )
  boxes_xywh = np.nan_to_num(boxes_xywh)
  visible = ~hidden & (boxes_xywh[:, 2:] > 0).all(axis=1)
  boxes_xywh = np.where(visible[:, None], boxes_xywh, 0.0)
  return RawSequence(name, frames, (Target(name, boxes_xywh, visible),))
