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
  side = (search_size / np.asarray(resize_factor, np.float64))[..., None]
  previous = np.asarray(previous_box_xywh, np.float64)
  return moved(np.asarray(box_cxcywh, np.float64), previous, side)


def moved(box_cxcywh, previous_box_xywh, side):
  """Do what box_in_frame does, given the sides [..., 1] of the crops in frame pixels."""
  xp = previous_box_xywh.__array_namespace__()
  found = box_cxcywh * side
  centre = previous_box_xywh[..., :2] + 0.5 * previous_box_xywh[..., 2:] - 0.5 * side
  corner = centre + found[..., :2] - 0.5 * found[..., 2:]
  return xp.concatenate([corner, found[..., 2:]], axis=-1)


def next_box(
  box_cxcywh, previous_box_xywh, resize_factor, search_size: int, height, width
) -> np.ndarray:
  """Map boxes from their search crops to the frame as box_in_frame does, and clip them to it.

  height, width: [...] of the frames in pixels. Every side of the result is at least 10 pixels.
  """
  moved = box_in_frame(box_cxcywh, previous_box_xywh, resize_factor, search_size)
  return boxes.clip_box_xywh(moved, height, width, cutting.MARGIN_PX)
