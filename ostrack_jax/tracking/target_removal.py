"""The target taken out of annotated video, as if it had left: no frame of most sets is truly without it."""

from typing import Protocol

import numpy as np

from ostrack_jax import boxes

# The removed part's side over the box's: targets reach beyond their boxes, by shadows and blur.
_REMOVED_MARGIN = 1.2


class Frames(Protocol):
  """Frames [H, W, 3] RGB uint8, decoded on access."""

  def __len__(self) -> int: ...

  def __getitem__(self, frame: int, /) -> np.ndarray: ...


class Sequenced(Protocol):
  """An annotated video; boxes_xywh [n, 4] pixels, visible [n] bool: those where the target is annotated."""

  @property
  def name(self) -> str: ...

  @property
  def frames(self) -> Frames: ...

  @property
  def boxes_xywh(self) -> np.ndarray: ...

  @property
  def visible(self) -> np.ndarray: ...


def without_target(sequence: Sequenced, frame: int, rng: np.random.Generator) -> np.ndarray | None:
  """Return a frame whose target is covered by what a random other frame shows at the same place.

  That is one whose own target lies elsewhere; where there is none, as where the camera follows the target,
  what lies beside the target in another frame. A moving camera leaves a seam. None where the target is in
  no known place, or is too large for its frame.
  """
  image, box = sequence.frames[frame], sequence.boxes_xywh[frame]
  usable = usable_frames(sequence)
  if frame not in usable:
    return None
  grown = _whole_pixels(box, image.shape[:2])
  far = [t for t in usable if not do_overlap(grown, sequence.boxes_xywh[t])]
  chosen = int(rng.choice(far or usable))
  other = sequence.frames[chosen]
  if other.shape != image.shape:
    return None
  place = grown if far else _place_beside(grown, sequence.boxes_xywh[chosen], image.shape[:2], rng)
  if place is None:
    return None
  (x, y, w, h), (left, top) = grown, place[:2]
  image = image.copy()
  image[y : y + h, x : x + w] = other[top : top + h, left : left + w]
  return image


def _whole_pixels(box_xywh, frame_size: tuple[int, int]) -> np.ndarray:
  """Return a box grown by the margin, as whole pixels inside the frame."""
  x, y, w, h = boxes.xywh_to_cxcywh(np.asarray(box_xywh, np.float64))
  sides = np.array([w, h]) * _REMOVED_MARGIN
  limits = np.array(frame_size[::-1])
  first = np.clip(np.floor(np.array([x, y]) - 0.5 * sides), 0, limits - 1).astype(int)
  last = np.clip(np.ceil(np.array([x, y]) + 0.5 * sides), first + 1, limits).astype(int)
  return np.concatenate([first, last - first])


def _place_beside(
  patch_xywh: np.ndarray, box_xywh, frame_size: tuple[int, int], rng: np.random.Generator
) -> np.ndarray | None:
  """Move a patch to one of the four sides of a box, in the frame; None where there is room on none."""
  taken = _whole_pixels(box_xywh, frame_size)
  sides = []
  for axis in (0, 1):
    length, limit = patch_xywh[2 + axis], frame_size[1 - axis]
    for start in (taken[axis] - length, taken[axis] + taken[2 + axis]):
      if 0 <= start <= limit - length:
        moved = patch_xywh.copy()
        moved[axis] = start
        sides.append(moved)
  return sides[int(rng.integers(len(sides)))] if sides else None


def usable_frames(sequence: Sequenced) -> np.ndarray:
  """Return the numbers of the frames in which the target is annotated, with a box of a pixel or more."""
  is_box = np.isfinite(sequence.boxes_xywh).all(axis=1) & (sequence.boxes_xywh[:, 2:] >= 1).all(
    axis=1
  )
  return np.flatnonzero(sequence.visible & is_box)


def do_overlap(a_xywh: np.ndarray, b_xywh: np.ndarray) -> bool:
  """Return whether two boxes [4] share any area."""
  a, b = (boxes.xywh_to_xyxy(np.asarray(one, np.float64)) for one in (a_xywh, b_xywh))
  return bool((np.maximum(a[:2], b[:2]) < np.minimum(a[2:], b[2:])).all())
