"""Result files: one `<name>.txt` of boxes a sequence, and `<name>_time.txt` of seconds."""

import dataclasses
import os
import pathlib

import numpy as np

from ostrack_jax import annotations

_TIME_SUFFIX = "_time"


@dataclasses.dataclass(frozen=True)
class RecordedResult:
  """What a tracker said about one sequence.

  boxes_xywh: [n, 4] pixels, row 0 the box it was started with. seconds: [n] spent on each frame,
  row 0 the start; None where unknown.
  """

  boxes_xywh: np.ndarray
  seconds: np.ndarray | None = None

  def frames_per_second(self) -> float:
    """Return tracked frames over the seconds they took, the start left out; NaN where unknown."""
    if self.seconds is None or len(self.seconds) < 2:
      return float("nan")
    total = float(np.sum(self.seconds[1:]))
    return (len(self.seconds) - 1) / total if total > 0 else float("nan")


def write_text(path: pathlib.Path, text: str) -> None:
  """Write a text file under a temporary name, then rename it, so that no half file is left."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def write_result(folder: pathlib.Path, name: str, result: RecordedResult) -> None:
  """Write the boxes as comma-separated float pixels, one row a frame, and the seconds.

  The official code truncates to whole pixels, which costs a little accuracy; this does not.
  """
  rows = ("{:.4f},{:.4f},{:.4f},{:.4f}\n".format(*box) for box in result.boxes_xywh.tolist())
  if result.seconds is not None:
    seconds = "".join(f"{value:.6f}\n" for value in result.seconds.tolist())
    write_text(folder / f"{name}{_TIME_SUFFIX}.txt", seconds)
  write_text(folder / f"{name}.txt", "".join(rows))


def read_result(folder: pathlib.Path, name: str) -> RecordedResult:
  """Read `<name>.txt` (x y w h with any usual separator) and, where it exists, its seconds.

  Raises FileNotFoundError for missing boxes and ValueError, naming the file, for what is not four
  columns of numbers.
  """
  path = folder / f"{name}.txt"
  boxes_xywh = annotations.read_rows(path)
  if boxes_xywh.shape[1] != 4:
    raise ValueError(f"{path} has {boxes_xywh.shape[1]} columns; a result needs 4: x, y, w, h")
  time_path = folder / f"{name}{_TIME_SUFFIX}.txt"
  seconds = annotations.read_rows(time_path)[:, 0] if time_path.is_file() else None
  return RecordedResult(boxes_xywh=boxes_xywh, seconds=seconds)


def names_in(folder: pathlib.Path) -> list[str]:
  """Return the sorted names of the sequences that have a `<name>.txt` in a folder.

  Raises FileNotFoundError for a missing folder or one without such files.
  """
  if not folder.is_dir():
    raise FileNotFoundError(f"{folder} is not a folder; expected one <sequence>.txt a sequence")
  names = sorted(path.stem for path in folder.glob("*.txt") if not path.name.startswith("."))
  kept = [name for name in names if not name.endswith(_TIME_SUFFIX)]
  if not kept:
    raise FileNotFoundError(f"{folder} holds no <sequence>.txt file")
  return kept
