"""What is cut out of frames for the network, and around which boxes. Needs no jax: other processes cut."""

import numpy as np

from ostrack_jax import crop
from ostrack_jax.tracking.frames import rgb_frame

# The official tracker never lets a box get smaller, or its visible part narrower, than this.
MARGIN_PX = 10
# A larger first box is a mistake of unit, and its crop could fill the memory.
_LARGEST_SHARE_OF_FRAME = 2.0


def checked_box(box_xywh, frame_size: tuple[int, int]) -> np.ndarray:
  """Return a box as [4] float64 if a track can start from it.

  Args:
    box_xywh: four numbers, pixels of the frame.
    frame_size: (height, width).

  Raises:
    ValueError: not four finite numbers, smaller than a pixel, far larger than the frame, or outside.
  """
  try:
    box = np.array(box_xywh, np.float64)
  except (TypeError, ValueError):
    box = np.empty(0)
  if box.shape != (4,) or not np.isfinite(box).all():
    raise ValueError(f"box_xywh {box_xywh!r} must be four finite numbers: left, top, width, height")
  height, width = frame_size
  x, y, w, h = box.tolist()
  frame = f"the frame of {width} x {height} pixels"
  if w < 1 or h < 1:
    raise ValueError(
      f"box_xywh {box.tolist()} is smaller than a pixel; expected width, height >= 1"
    )
  if w > _LARGEST_SHARE_OF_FRAME * width or h > _LARGEST_SHARE_OF_FRAME * height:
    raise ValueError(f"box_xywh {box.tolist()} is more than twice as large as {frame}")
  if x >= width or y >= height or x + w <= 0 or y + h <= 0:
    raise ValueError(f"box_xywh {box.tolist()} lies outside {frame}")
  return box


def starting_boxes(boxes_xywh, frame_size: tuple[int, int]) -> np.ndarray:
  """Return boxes to search around: one that no track could start from repeats the one before.

  Args:
    boxes_xywh: [n, 4] annotated pixels, NaN where the target is absent, the first one usable.
    frame_size: (height, width).
  """
  boxes_xywh = np.array(boxes_xywh, np.float64)
  for row in range(1, len(boxes_xywh)):
    try:
      checked_box(boxes_xywh[row], frame_size)
    except ValueError:
      boxes_xywh[row] = boxes_xywh[row - 1]
  return boxes_xywh


def cut_template(
  frame, box_xywh, template_size: int, template_factor: float
) -> tuple[np.ndarray, float, np.ndarray, tuple[int, int]]:
  """Cut what a track remembers of its first frame.

  Args:
    frame, box_xywh: as for Tracker.init, which also says what is raised.

  Returns:
    Template [Z, Z, 3] uint8; template pixels per frame pixel; the box [4] float64; and the frame's
    (height, width).
  """
  frame = rgb_frame(frame)
  height, width = frame.shape[:2]
  if min(height, width) < MARGIN_PX:
    raise ValueError(
      f"frame of {width} x {height} pixels is too small; expected at least {MARGIN_PX} on each side"
    )
  box = checked_box(box_xywh, (height, width))
  template, resize_factor = crop.crop_square(frame, box, template_factor, template_size)
  return template, resize_factor, box, (height, width)


def checked_frame(frame, frame_size: tuple[int, int]) -> np.ndarray:
  """Return a frame as [H, W, 3] uint8; raises ValueError where it cannot be used or has another size."""
  frame = rgb_frame(frame)
  if frame.shape[:2] != frame_size:
    height, width = frame_size
    raise ValueError(
      f"frame of {frame.shape[1]} x {frame.shape[0]} pixels follows frames of {width} x {height}; "
      "resize the frames or start anew"
    )
  return frame


def cut_search(
  frame,
  box_xywh,
  search_size: int,
  search_factor: float,
  frame_size: tuple[int, int],
  out: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
  """Cut the search region around a box: [S, S, 3] uint8, and crop pixels per frame pixel; out as for crop_square.

  Raises:
    ValueError: as checked_frame.
  """
  frame = checked_frame(frame, frame_size)
  return crop.crop_square(frame, box_xywh, search_factor, search_size, out)
