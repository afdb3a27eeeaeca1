"""From where the target is in a search region to where it is in the frame."""

import numpy as np

from ostrack_jax import boxes
from ostrack_jax.tracking import cutting


def box_in_frame(box_cxcywh, previous_box_xywh, resize_factor, search_size: int) -> np.ndarray:
  """Map boxes from their search crops to the frame.

  Args:
    box_cxcywh: [..., 4] in the unit square of the crop.
    previous_box_xywh: [..., 4] the box the crop was cut around, pixels of the frame.
    resize_factor: [...] crop pixels per frame pixel.
    search_size: side of the crop in pixels.

  Returns:
    [..., 4] float64 xywh, pixels of the frame, not clipped. As in the official tracker the crop's
    centre counts as the previous box's centre, although the crop was cut at whole pixels.
  """
  side = search_size / np.asarray(resize_factor, np.float64)
  previous = np.asarray(previous_box_xywh, np.float64)
  return moved(np.asarray(box_cxcywh, np.float64), previous, side)


def moved(box_cxcywh, previous_box_xywh, side):
  """Do what box_in_frame does, given the sides [...] of the crops in frame pixels."""
  xp = previous_box_xywh.__array_namespace__()
  found, previous = ([box[..., i] for i in range(4)] for box in (box_cxcywh, previous_box_xywh))
  return xp.stack(_placed(found, previous, side), axis=-1)


def _placed(found_cxcywh, previous_xywh, side):
  """Return x, y, w, h in the frame; everything plain numbers, or arrays."""
  cx, cy, w, h = (value * side for value in found_cxcywh)
  before_x, before_y, before_w, before_h = previous_xywh
  x = before_x + 0.5 * before_w - 0.5 * side + cx - 0.5 * w
  y = before_y + 0.5 * before_h - 0.5 * side + cy - 0.5 * h
  return x, y, w, h


def next_box(
  box_cxcywh, previous_box_xywh, resize_factor, search_size: int, height, width
) -> np.ndarray:
  """Map boxes from their search crops to the frame as box_in_frame does, and clip them to it.

  height, width: [...] of the frames in pixels. Every side of the result is at least 10 pixels.
  """
  moved = box_in_frame(box_cxcywh, previous_box_xywh, resize_factor, search_size)
  return boxes.clip_box_xywh(moved, height, width, cutting.MARGIN_PX)


def next_box_of_one(
  box_cxcywh: np.ndarray,
  previous_box_xywh: np.ndarray,
  resize_factor: float,
  search_size: int,
  frame_size: tuple[int, int],
) -> np.ndarray:
  """Do what next_box does for one target [4], to the last bit, and several times faster: without arrays.

  Args:
    box_cxcywh: finite.
    frame_size: (height, width).
    Others as for next_box.
  """
  side = search_size / resize_factor
  x, y, w, h = _placed(box_cxcywh.tolist(), previous_box_xywh.tolist(), side)
  height, width = frame_size
  return np.array(boxes.clip_sides(x, y, w, h, height, width, cutting.MARGIN_PX), np.float64)
