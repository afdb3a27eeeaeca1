"""Result files: one `<name>.txt` of boxes a sequence, and what is known of seconds and scores.

Others write seconds to `<name>_time.txt`; the evaluator writes them to one timing.json above.
"""

import dataclasses
import functools
import json
import os
import pathlib
import uuid

import numpy as np

from ostrack_jax import annotations

_TIME_SUFFIX = "_time"
TIMING_FILE = "timing.json"


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
  temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
  try:
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def write_result(
  folder: pathlib.Path, name: str, result: RecordedResult, *, integer_boxes: bool = False
) -> None:
  """Write the boxes, one row a frame, and where they are known the seconds to `<name>_time.txt`.

  Boxes are comma-separated float pixels. integer_boxes: tab-separated whole pixels truncated toward
  zero, as the official code writes them, which costs a little accuracy.
  """
  if integer_boxes:
    truncated = np.trunc(result.boxes_xywh).astype(np.int64).tolist()
    rows = ["{}\t{}\t{}\t{}\n".format(*box) for box in truncated]
  else:
    rows = ["{:.4f},{:.4f},{:.4f},{:.4f}\n".format(*box) for box in result.boxes_xywh.tolist()]
  if result.seconds is not None:
    seconds = "".join(f"{value:.6f}\n" for value in result.seconds.tolist())
    write_text(folder / f"{name}{_TIME_SUFFIX}.txt", seconds)
  write_text(folder / f"{name}.txt", "".join(rows))


def write_scores(folder: pathlib.Path, name: str, scores: np.ndarray) -> None:
  """Write `<name>.txt`: the score of each frame, `nan` for the first."""
  write_text(folder / f"{name}.txt", "".join(f"{value:.6f}\n" for value in scores.tolist()))


def read_result(folder: pathlib.Path, name: str) -> RecordedResult:
  """Read `<name>.txt` (x y w h with any usual separator) and, where they are known, its seconds.

  Seconds come from `<name>_time.txt`, else from the evaluator's timing.json in the folder or one of the
  two above it; it has them of runs one by one, not of lanes, where sequences share the time.

  Raises FileNotFoundError for missing boxes and ValueError, naming the file, for what is not four
  columns of numbers.
  """
  path = folder / f"{name}.txt"
  boxes_xywh = annotations.read_rows(path)
  if boxes_xywh.shape[1] != 4:
    raise ValueError(f"{path} has {boxes_xywh.shape[1]} columns; a result needs 4: x, y, w, h")
  time_path = folder / f"{name}{_TIME_SUFFIX}.txt"
  if time_path.is_file():
    seconds = annotations.read_rows(time_path)[:, 0]
  else:
    seconds = _timed_seconds(folder, name)
  return RecordedResult(boxes_xywh=boxes_xywh, seconds=seconds)


def read_timing(path: pathlib.Path) -> dict:
  """Return what timing.json says; an empty one where there is none. ValueError where it is damaged."""
  if not path.is_file():
    return {}
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} is not readable JSON ({error}); remove it") from error
  if not isinstance(content, dict) or not isinstance(content.get("per_sequence", {}), dict):
    raise ValueError(f"{path} is not a {TIMING_FILE} of the evaluator; remove it")
  return content


def _timed_seconds(folder: pathlib.Path, name: str) -> np.ndarray | None:
  for above in (folder, *folder.absolute().parents[:2]):
    path = above / TIMING_FILE
    if path.is_file():
      entry = _unchanged_timing(path, path.stat().st_mtime_ns).get("per_sequence", {}).get(name)
      seconds = (entry or {}).get("seconds")
      return None if seconds is None else np.array(seconds, dtype=np.float64)
  return None


@functools.lru_cache(maxsize=2)
def _unchanged_timing(path: pathlib.Path, modified: int) -> dict:
  # A benchmark's sequences are read one after another, and share this file.
  del modified
  return read_timing(path)


def locate(folder: pathlib.Path) -> pathlib.Path:
  """Return where a tracker's result files are: in the folder, or where the evaluator wrote them below.

  That is results/ or, for GOT-10k and TrackingNet, a folder in it. Raises FileNotFoundError where there are
  none, ValueError where several folders could be meant.
  """
  if not folder.is_dir():
    raise FileNotFoundError(f"{folder} is not a folder; expected one <sequence>.txt a sequence")
  inside = folder / "results" if (folder / "results").is_dir() else folder
  for places in ([folder], [inside], [path for path in inside.iterdir() if path.is_dir()]):
    found = sorted(place for place in places if any(place.glob("*.txt")))
    if len(found) > 1:
      raise ValueError(
        f"{folder} holds results in {', '.join(path.name for path in found)}; name one of these folders"
      )
    if found:
      return found[0]
  raise FileNotFoundError(f"{folder} holds no <sequence>.txt file")


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
