"""Read the box annotations that tracking benchmarks use: text files, and masks (numpy only)."""

import dataclasses
import os
import pathlib
import re

import numpy as np

_SEPARATORS = re.compile(r"[\s,;]+")
_COLUMNS = {4: "x y w h", 6: "frame x y w h is_lost", 8: "the corners of a polygon"}


@dataclasses.dataclass(frozen=True)
class AnnotatedBoxes:
  """Boxes of one sequence, a row a frame.

  boxes_xywh: [n, 4] float64 pixels, as written: neither shifted nor clipped; NaN where the file
    says NaN or flags the target as lost.
  absent: [n] bool, true where a frame has no usable box: NaN, or no width or height.
  """

  boxes_xywh: np.ndarray
  absent: np.ndarray


def read_rows(path: str | os.PathLike[str]) -> np.ndarray:
  """Read a table of numbers, separated by commas, semicolons, tabs or blanks, as [n, c] float64.

  Empty lines at the end are ignored. Raises FileNotFoundError for a missing file and ValueError,
  naming the file and the line, for text that is no number, infinity, rows of unequal length, an
  empty line between rows, or no rows at all.
  """
  path = pathlib.Path(path)
  try:
    text = path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not a text file; expected one row of numbers a frame") from error
  rows: list[list[float]] = []
  for number, line in enumerate(text.rstrip().splitlines(), start=1):
    fields = _SEPARATORS.split(line.strip(" \t,;"))
    try:
      row = [float(field) for field in fields]
    except ValueError:
      raise ValueError(f"{path}, line {number}: {line!r} is not a row of numbers") from None
    if np.isinf(row).any():
      raise ValueError(f"{path}, line {number}: {line!r} holds an infinite number")
    if rows and len(row) != len(rows[0]):
      raise ValueError(
        f"{path}, line {number}: {len(row)} columns, but line 1 has {len(rows[0])}; "
        "every row needs the same columns"
      )
    rows.append(row)
  if not rows:
    raise ValueError(f"{path} is empty; expected one row of numbers a frame")
  return np.array(rows, dtype=np.float64)


def read_boxes(path: str | os.PathLike[str]) -> AnnotatedBoxes:
  """Read an annotation file of one row a frame; see read_rows for separators and errors.

  Columns: 4 are x y w h; 6 are frame x y w h is_lost (TinyTLP); 8 are the corners of a polygon
  (VOT), of which the upright extent is taken. Raises ValueError for another number of columns, and
  where the frame numbers of 6 columns do not rise by one.
  """
  rows = read_rows(path)
  match rows.shape[1]:
    case 4:
      boxes_xywh = rows
    case 6:
      (jumps,) = np.nonzero(np.diff(rows[:, 0]) != 1)
      if len(jumps):
        raise ValueError(
          f"{path}, line {jumps[0] + 2}: frame {rows[jumps[0] + 1, 0]:g} follows frame "
          f"{rows[jumps[0], 0]:g}; expected one row for every frame"
        )
      boxes_xywh = np.where(rows[:, 5:] != 0, np.nan, rows[:, 1:5])
    case 8:
      corners = rows.reshape(-1, 4, 2)
      top_left = corners.min(axis=1)
      boxes_xywh = np.concatenate([top_left, corners.max(axis=1) - top_left], axis=1)
    case columns:
      expected = ", ".join(f"{count} ({meaning})" for count, meaning in _COLUMNS.items())
      raise ValueError(f"{path} has {columns} columns; expected one of {expected}")
  absent = np.isnan(boxes_xywh.sum(axis=1)) | (boxes_xywh[:, 2:].min(axis=1) <= 0)
  return AnnotatedBoxes(boxes_xywh=boxes_xywh, absent=absent)


def mask_extents(image: np.ndarray) -> dict[int, tuple[int, int, int, int]]:
  """Return the box of every object in a mask, as colour to x, y, w, h in pixels.

  Args:
    image: [h, w, 3] RGB uint8. Every colour but black is an object.

  A box reaches from the first to past the last pixel. A colour is blue * 65536 + green * 256 + red:
  DAVIS's palette rises by it with the number of the object, for the 7 that it can tell by full
  colours, and so do numbers written as grey.
  """
  colours = image.astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)
  flat = colours.ravel()
  # Each colour begins somewhere, and there are far fewer beginnings than pixels to sort.
  begins = np.flatnonzero(np.diff(flat, prepend=flat[:1] - 1))
  extents = {}
  for colour in np.unique(flat[begins]):
    if colour:
      where = colours == colour
      rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
      x, y = int(columns[0]), int(rows[0])
      extents[int(colour)] = (x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y)
  return extents
