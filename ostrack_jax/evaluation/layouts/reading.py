"""What the layouts share: lists of names, numbered frames, flags and boxes, a row a frame.

Paths are given below the root, so that messages name what is missing as the benchmark names it.
"""

import csv
import importlib.resources
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from ostrack_jax import annotations
from ostrack_jax.tracking import frames as frame_files

_SPLITS = importlib.resources.files("ostrack_jax.evaluation") / "splits"


def split_names(file: str) -> list[str]:
  """Return the names of an installed list, one a line."""
  return (_SPLITS / file).read_text(encoding="utf-8").split()


def split_table(file: str) -> list[dict[str, str]]:
  """Return the rows of an installed table of sequences."""
  with (_SPLITS / file).open(encoding="utf-8") as opened:
    return list(csv.DictReader(opened))


def listed_names(path: pathlib.Path) -> list[str]:
  """Read a benchmark's own list of names, one a line; raises ValueError for repeated ones."""
  names = path.read_text(encoding="utf-8-sig").split()
  repeated = sorted({name for name in names if names.count(name) > 1})
  if repeated:
    raise ValueError(f"{path} names {', '.join(repeated[:5])} more than once")
  return names


def subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
  """Return the folders in a folder in natural order, without hidden ones and __MACOSX."""
  children = (
    path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))
  )
  return sorted(children, key=frame_files.natural_order)


def images_in(folder: pathlib.Path) -> list[pathlib.Path]:
  """Return the images in a folder in natural order; none where there is no folder."""
  if not folder.is_dir():
    return []
  found = (
    path
    for path in folder.iterdir()
    if path.suffix.lower() in frame_files.IMAGE_SUFFIXES and path.name[0] != "."
  )
  return sorted(found, key=frame_files.natural_order)


def named_frames(
  root: pathlib.Path, relative: str, names: Sequence[str]
) -> tuple[pathlib.Path, ...]:
  """Return the frames of these names; raises FileNotFoundError for a missing folder or frame."""
  folder = root / relative
  if not folder.is_dir():
    raise FileNotFoundError(f"no folder {relative}")
  present = {path.name for path in folder.iterdir()}
  absent = [name for name in names if name not in present]
  if absent:
    raise FileNotFoundError(
      f"{len(absent)} of {len(names)} frames are missing, the first {absent[0]}"
    )
  return tuple(folder / name for name in names)


def numbers(first: int, last: int, digits: int, extension: str = "jpg") -> list[str]:
  """Return file names that are numbers from first to last, padded with zeros to `digits`."""
  return [f"{number:0{digits}d}.{extension}" for number in range(first, last + 1)]


def all_numbered_frames(
  root: pathlib.Path, relative: str, *, first: int, digits: int, count: int | None = None
) -> tuple[pathlib.Path, ...]:
  """Return every JPEG file of a folder, which are numbered from `first` without a gap.

  Args:
    count: how many there must be; as many as there are if None.

  Raises FileNotFoundError for a missing folder or frame, ValueError for frames beyond `count`.
  """
  folder = root / relative
  if not folder.is_dir():
    raise FileNotFoundError(f"no folder {relative}")
  found = [path for path in images_in(folder) if path.suffix == ".jpg"]
  if not found:
    raise FileNotFoundError(f"no .jpg frame in {relative}")
  names = numbers(first, first + (len(found) if count is None else count) - 1, digits)
  frames = named_frames(root, relative, names)
  if len(found) > len(frames):
    extra = next(path.name for path in found if path.name not in set(names))
    raise ValueError(
      f"{relative} has {len(found)} frames for {count} boxes, {extra} is one too many"
    )
  return frames


def existing_file(root: pathlib.Path, relative: str) -> pathlib.Path:
  """Return a file below the root; raises FileNotFoundError if it is not there."""
  path = root / relative
  if not path.is_file():
    raise FileNotFoundError(f"no file {relative}")
  return path


def boxes(root: pathlib.Path, relative: str) -> np.ndarray:
  """Read boxes as xywh pixels [n, 4]; raises as existing_file and annotations.read_boxes do."""
  return annotations.read_boxes(existing_file(root, relative)).boxes_xywh


def first_box(root: pathlib.Path, relative: str) -> np.ndarray:
  """Read the only box, xywh pixels [4], of a sequence whose other boxes are held back.

  Raises ValueError for more than one row.
  """
  rows = boxes(root, relative)
  if len(rows) != 1:
    raise ValueError(f"{relative} has {len(rows)} rows; expected the first frame's box alone")
  return rows[0]


def flags(root: pathlib.Path, relative: str, count: int) -> np.ndarray:
  """Read one number a frame, in one line or one a line, as [count] float64.

  Raises FileNotFoundError for a missing file and ValueError for another count.
  """
  values = annotations.read_rows(existing_file(root, relative)).ravel()
  if len(values) != count:
    raise ValueError(f"{relative} has {len(values)} values for {count} frames")
  return values


def marked(names: Sequence[str], values: Iterable[float]) -> tuple[str, ...]:
  """Return the names whose value is not 0."""
  return tuple(name for name, value in zip(names, values, strict=True) if value)
