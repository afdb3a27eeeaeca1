"""Square crops around a box, as the official code cuts them, and the map into the crop."""

import dataclasses
import math

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropWindow:
  """A square of the frame: integer top-left corner and side, in pixels; it may leave the frame."""

  x1: int
  y1: int
  side: int

  def padding(self, height: int, width: int) -> tuple[int, int, int, int]:
    """Return how many pixels at the left, top, right and bottom come from outside the frame.

    The official code counts one pixel too many at the right and bottom border, so the last column
    or row of a frame turns black in a crop that reaches it. Released weights were trained so; it is
    kept.
    """
    left, top = max(0, -self.x1), max(0, -self.y1)
    right = max(self.x1 + self.side - width + 1, 0)
    bottom = max(self.y1 + self.side - height + 1, 0)
    return left, top, right, bottom


def crop_window(box_xywh, factor: float) -> CropWindow:
  """Return the square around a box whose side is `factor` times the root of the box's area.

  Args:
    box_xywh: four numbers, pixels of the frame.
    factor: crop side over sqrt(w * h); template 2, search region 4 or 5.

  Raises:
    ValueError: the box is not finite, or the square would be smaller than a pixel.
  """
  x, y, w, h = (float(v) for v in box_xywh)
  if not all(math.isfinite(v) for v in (x, y, w, h)) or w <= 0 or h <= 0:
    raise ValueError(
      f"cannot crop around box_xywh {[x, y, w, h]}: it needs finite numbers and positive width and height"
    )
  side = math.ceil(math.sqrt(w * h) * factor)
  return CropWindow(
    x1=round(x + 0.5 * w - 0.5 * side), y1=round(y + 0.5 * h - 0.5 * side), side=side
  )


def crop_square(
  image: np.ndarray, box_xywh, factor: float, output_size: int, out: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
  """Cut the square around a box, pad with black, and resize.

  Args:
    image: [H, W, 3] uint8 RGB frame.
    box_xywh: four numbers, pixels of the frame.
    factor: crop side over sqrt(w * h).
    output_size: side of the result in pixels.
    out: where to write the crop, contiguous; None for a new array.

  Returns:
    The crop [output_size, output_size, 3] uint8, and the resize factor (crop pixels per frame pixel).
    Follows the official `sample_target` (OpenCV bilinear on uint8, zero padding).
  """
  window = crop_window(box_xywh, factor)
  height, width = image.shape[:2]
  left, top, right, bottom = window.padding(height, width)
  inner = image[
    window.y1 + top : max(window.y1 + window.side - bottom, 0),
    window.x1 + left : max(window.x1 + window.side - right, 0),
  ]
  if out is None:
    out = np.empty((output_size, output_size, 3), np.uint8)
  if inner.size == 0:
    out[:] = 0
    return out, output_size / window.side
  if left or top or right or bottom:
    inner = cv2.copyMakeBorder(inner, top, bottom, left, right, cv2.BORDER_CONSTANT, value=0)
  return cv2.resize(inner, (output_size, output_size), dst=out), output_size / window.side


def crop_padding_mask(window: CropWindow, height: int, width: int) -> np.ndarray:
  """Return [side, side] bool, true where the crop shows nothing of the frame."""
  left, top, right, bottom = window.padding(height, width)
  mask = np.ones((window.side, window.side), bool)
  mask[top : max(window.side - bottom, 0), left : max(window.side - right, 0)] = False
  return mask


def box_in_crop(
  box_xywh, centre_box_xywh, resize_factor: float, output_size: int, half_pixel: bool = True
) -> np.ndarray:
  """Map a frame box into the crop that was cut around another box, as training labels need it.

  Args:
    box_xywh: [4] pixels of the frame.
    centre_box_xywh: [4] the box the crop was cut around, pixels of the frame.
    resize_factor: crop pixels per frame pixel.
    output_size: side of the crop in pixels.
    half_pixel: put the centre at (size - 1) / 2, while tracking uses size / 2: an inconsistency of the
      official code, half a crop pixel wide, on which the released weights rest. False: size / 2.

  Returns:
    [4] xywh normalised to the crop.
  """
  box, around = np.asarray(box_xywh, np.float64), np.asarray(centre_box_xywh, np.float64)
  centre = (output_size - half_pixel) / 2 + (
    box[:2] + 0.5 * box[2:] - around[:2] - 0.5 * around[2:]
  ) * resize_factor
  size = box[2:] * resize_factor
  return np.concatenate([centre - 0.5 * size, size]) / output_size
