"""What can be wrong with the boxes of a raw sequence."""

import pathlib

import numpy as np

from data_pipelines.builders.raw_data import Target
from data_pipelines.builders.sequence_folder import ANNOTATION_FILES
from data_pipelines.raw_findings import Finding, Place
from ostrack_jax import annotations

# A tracker that was right in one frame has lost what is further away in the next: the search region
# reaches 2 sizes from the centre at factor 4.
JUMP_SIZES = 3.0
JUMP_AREA = 5.0
TINY_PX = 2.0
STILL_FRAMES = 50
# Boxes counted from 1, or to the last pixel inclusive, reach a pixel over the border.
_BORDER_PX = 1.0
# From this share of boxes over the border on, it is no longer the target that leaves the frame.
_MANY_OVER = 0.3


def check_boxes(place: Place, target: Target, sizes_wh: np.ndarray) -> list[Finding]:
  """Check a target's boxes against its frames.

  Args:
    sizes_wh: [n, 2] pixels of the frames, NaN where not known.
  """
  boxes, visible = np.asarray(target.boxes_xywh, np.float64), np.asarray(target.visible, bool)
  whose = _whose(place, target)
  usable = np.all(np.isfinite(boxes), axis=1) & np.all(boxes[:, 2:] > 0, axis=1)
  seen = visible & usable
  # Placeholders where there is no box, so that nothing below has to think of it.
  safe = np.where(usable[:, None], boxes, [0.0, 0.0, 1.0, 1.0])
  left_top, right_bottom = safe[:, :2], safe[:, :2] + safe[:, 2:]
  # NaN, an unknown size, compares false.
  outside = seen & ((left_top >= sizes_wh) | (right_bottom <= 0)).any(axis=1)
  over = (left_top < -_BORDER_PX) | (right_bottom > sizes_wh + _BORDER_PX)
  partly = seen & ~outside & over.any(axis=1)
  found: list[Finding] = []

  def add(kind: str, marks: np.ndarray, predicate: str) -> None:
    frames = np.flatnonzero(marks)
    if len(frames):
      numbers = ", ".join(f"{v:.6g}" for v in boxes[frames[0]])
      text = f"the box{whose} of frame {frames[0]}, [{numbers}], {predicate}"
      found.append(place.finding(kind, text, frames, boxes))

  add(
    "impossible_box",
    visible & ~usable,
    "needs finite numbers and a positive width and height, since the target is marked visible",
  )
  small = np.all(right_bottom <= 1.5, axis=1) & np.all(sizes_wh > 16, axis=1)
  if seen.any() and small[seen].all():
    # Every other check would only say the same in other words.
    add("fractions", seen, "looks like fractions of the frame: boxes are x, y, w, h in pixels")
    return found
  if _are_corners(boxes[seen], sizes_wh[seen], (partly | outside)[seen]):
    add("corners", seen, "looks like x1, y1, x2, y2: as x, y, w, h boxes leave the frame, so not")
  add("outside", outside, f"lies wholly outside the frame of {_size(sizes_wh, outside)} pixels")
  if partly.any():
    inner = np.minimum(right_bottom, sizes_wh) - np.maximum(left_top, 0)
    lost = 1 - np.prod(inner[partly], axis=1) / np.prod(safe[partly, 2:], axis=1)
    most = f"; at most {lost.max():.0%} of a box" if partly.sum() > 1 else f" by {lost.max():.0%}"
    add("partly_outside", partly, f"leaves the frame of {_size(sizes_wh, partly)} pixels{most}")
  add(
    "tiny_box",
    seen & (safe[:, 2:].min(axis=1) < TINY_PX),
    f"is below {TINY_PX:g} pixels wide or high",
  )
  return found + _jumps(place, safe, seen & ~outside, whose) + _still(place, safe, seen, whose)


def _whose(place: Place, target: Target) -> str:
  return f" of {target.name}" if target.name != place.sequence.name else ""


def _size(sizes_wh: np.ndarray, marks: np.ndarray) -> str:
  """Name the size of the first marked frame."""
  return "{:g} x {:g}".format(*sizes_wh[marks][0]) if marks.any() else ""


def _are_corners(boxes: np.ndarray, sizes_wh: np.ndarray, over: np.ndarray) -> bool:
  """Return whether boxes, many of which leave the frame, would all lie in it as x1, y1, x2, y2."""
  if not len(boxes) or over.mean() < _MANY_OVER:
    return False
  ordered = (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all()
  return bool(ordered and (boxes[:, 2:] <= sizes_wh + _BORDER_PX).all())


def _jumps(place: Place, boxes: np.ndarray, seen: np.ndarray, whose: str) -> list[Finding]:
  """Find where the target moves by many of its sizes, or changes size, from one frame to the next."""
  centres, areas = boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:].prod(axis=1)
  moved = np.hypot(*np.diff(centres, axis=0).T) / np.sqrt(areas[:-1])
  grown = areas[1:] / areas[:-1]
  changed = (grown > JUMP_AREA) | (grown < 1 / JUMP_AREA)
  frames = np.flatnonzero(seen[1:] & seen[:-1] & ((moved > JUMP_SIZES) | changed)) + 1
  if not len(frames):
    return []
  i = int(frames[0])
  text = (
    f"from frame {i - 1} to frame {i} the box{whose} moves by {moved[i - 1]:.1f} times its size and its "
    f"area becomes {grown[i - 1]:.2g} times what it was"
  )
  return [place.finding("jump", text, frames, boxes, beside=i - 1)]


def _still(place: Place, boxes: np.ndarray, seen: np.ndarray, whose: str) -> list[Finding]:
  """Find boxes that stay the same, to the last digit, over many frames."""
  same = (boxes[1:] == boxes[:-1]).all(axis=1) & seen[1:] & seen[:-1]
  edges = np.flatnonzero(np.diff(np.concatenate([[0], same.astype(np.int8), [0]])))
  runs = [(int(a), int(b)) for a, b in edges.reshape(-1, 2) if b - a + 1 >= STILL_FRAMES]
  if not runs:
    return []
  first, last = runs[0]
  text = f"the box{whose} is exactly the same from frame {first} to frame {last}"
  return [place.finding("still_box", text, [start for start, _ in runs], boxes, beside=last)]


def check_presence(
  place: Place, target: Target, written: np.ndarray | None, is_video: bool
) -> list[Finding]:
  """Say where a target is not visible, and why, as far as its annotation file tells.

  Args:
    written: [n, 4] boxes as `written_boxes` found them, if it did.
  """
  found = []
  if written is not None and len(written) == len(target.visible):
    # NaN compares false.
    negative = np.flatnonzero((written[:, 2:] < 0).any(axis=1))
    if len(negative):
      numbers = ", ".join(f"{v:g}" for v in written[negative[0]])
      text = f"the box of frame {negative[0]} is written as [{numbers}]; it is taken as not visible"
      found.append(place.finding("negative_size", text, negative))
  hidden = np.flatnonzero(~np.asarray(target.visible, bool))
  if not len(hidden):
    return found
  if not is_video:
    text = f"target {target.name} has no width or height and is left out"
    return [*found, place.finding("absent", text, hidden)]
  reasons = ""
  if written is not None and len(written) == len(target.visible):
    unknown = np.any(np.isnan(written), axis=1)
    empty = ~unknown & np.any(written[:, 2:] <= 0, axis=1)
    counts = {
      "NaN or flagged as lost": int(unknown.sum()),
      "without size": int(empty.sum()),
      "marked as hidden": int((~(unknown | empty))[hidden].sum()),
    }
    reasons = f" ({', '.join(f'{n} {why}' for why, n in counts.items() if n)})"
  text = (
    f"the target{_whose(place, target)} is not visible in {len(hidden)} of {len(target.visible)} frames"
    f"{reasons}, first in frame {hidden[0]}"
  )
  # The sentence has the count, and frames without a target show nothing.
  return [*found, place.finding("absent", text)]


def written_boxes(frame: pathlib.Path | bytes) -> np.ndarray | None:
  """Read a video's boxes as its annotation file has them, [n, 4], from the layouts in use.

  The builders turn NaN, negative sizes and lost targets into zeros. None where there is no such file
  or it cannot be read as boxes: whether that is wrong is for the builder to say.
  """
  if not isinstance(frame, pathlib.Path):
    return None
  folder = frame.parent
  places = [inner / name for inner in (folder, folder.parent) for name in ANNOTATION_FILES]
  # TrackingNet's.
  places.append(folder.parent.parent / "anno" / f"{folder.name}.txt")
  for path in places:
    if path.is_file():
      try:
        return annotations.read_boxes(path).boxes_xywh
      except ValueError:
        return None
  return None
