"""Cut crops from stored frames, whole or context crops, as if from the full frame."""

import threading

import cv2
import numpy as np

from data_pipelines.sources import StoredFrame
from ostrack_jax import crop

_scratch = threading.local()


def cut(stored: StoredFrame, window: crop.CropWindow, output_size: int) -> np.ndarray:
  """Cut a square, pad with black where the frame ends, and resize.

  Args:
    stored: a frame or the part of it that a context record holds.
    window: the square of the full frame.
    output_size: side of the result in pixels.

  Returns:
    The crop [output_size, output_size, 3] uint8. Frame pixels that are not stored (missing_share) repeat
    the edge of what is. Of a stored region at full resolution the crop is the full frame's, bit for bit
    but for its JPEG coding; of a shrunk one it has the same geometry, to 1/64 of a stored pixel.
    Follows the official `sample_target`, its padding included: see ostrack_jax.crop.
  """
  x1, y1, x2, y2 = _shown_part(stored, window)
  if x2 <= x1 or y2 <= y1:
    return np.zeros((output_size, output_size, 3), np.uint8)
  rx1, ry1, rx2, ry2 = stored.region_xyxy
  is_stored = rx1 <= x1 and ry1 <= y1 and x2 <= rx2 and y2 <= ry2
  if is_stored and stored.is_full_resolution:
    width, height = stored.frame_wh
    left, top, right, bottom = window.padding(height, width)
    part = stored.image[y1 - ry1 : y2 - ry1, x1 - rx1 : x2 - rx1]
    square = _padded(part, left, top, window.side) if left or top or right or bottom else part
    return cv2.resize(square, (output_size, output_size))
  return _warp(stored, window, (x1, y1, x2, y2), output_size)


def _shown_part(stored: StoredFrame, window: crop.CropWindow) -> tuple[int, int, int, int]:
  """Return what a crop shows of the frame, frame pixels, end exclusive; empty where that is nothing."""
  width, height = stored.frame_wh
  left, top, right, bottom = window.padding(height, width)
  return (
    window.x1 + left,
    window.y1 + top,
    window.x1 + window.side - right,
    window.y1 + window.side - bottom,
  )


def missing_share(stored: StoredFrame, window: crop.CropWindow) -> float:
  """Return the share, 0 to 1, of the frame pixels in a crop's square that are not stored."""
  x1, y1, x2, y2 = _shown_part(stored, window)
  if x2 <= x1 or y2 <= y1:
    return 0.0
  rx1, ry1, rx2, ry2 = stored.region_xyxy
  inside = max(min(x2, rx2) - max(x1, rx1), 0) * max(min(y2, ry2) - max(y1, ry1), 0)
  return 1.0 - inside / ((x2 - x1) * (y2 - y1))


def cut_warped(
  stored: StoredFrame,
  window: crop.CropWindow,
  output_size: int,
  warp: np.ndarray,
  centre_xy: np.ndarray,
) -> np.ndarray:
  """Cut a square, warped about a point, in one bilinear reading of what is stored.

  Args:
    stored, output_size: as for `cut`.
    window: the square.
    warp: [2, 2] where a displacement from the point goes, in crop pixels.
    centre_xy: [2] the point, which stays, pixels of the crop.

  Returns:
    The crop [output_size, output_size, 3] uint8; black where the frame or what is stored of it ends.
  """
  rx1, ry1, rx2, ry2 = stored.region_xyxy
  height, width = stored.image.shape[:2]
  scale = np.array([width / (rx2 - rx1), height / (ry2 - ry1)])
  side = window.side / output_size
  # Continuous positions: crop, unwarped crop, frame, stored image; a pixel's centre is half a pixel in.
  backwards = np.linalg.inv(warp)
  matrix = scale[:, None] * side * backwards
  origin = (window.x1, window.y1) + side * (centre_xy - backwards @ centre_xy) - (rx1, ry1)
  offset = scale * origin + matrix @ (0.5, 0.5) - 0.5
  return cv2.warpAffine(
    stored.image,
    np.column_stack([matrix, offset]),
    (output_size, output_size),
    flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
    borderMode=cv2.BORDER_CONSTANT,
  )


def _padded(part: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
  """Return the part in a black square, in memory that the thread's next call takes again.

  Squares reach many megabytes, and fresh memory of that size costs more than copying into it.
  """
  buffer = getattr(_scratch, "buffer", None)
  size = side * side * 3
  if buffer is None or buffer.size < size:
    buffer = _scratch.buffer = np.empty(size, np.uint8)
  square = buffer[:size].reshape(side, side, 3)
  bottom, right = top + part.shape[0], left + part.shape[1]
  square[:top] = 0
  square[bottom:] = 0
  square[top:bottom, :left] = 0
  square[top:bottom, right:] = 0
  square[top:bottom, left:right] = part
  return square


def _shown(positions: np.ndarray, first: float, last: float, side_range) -> np.ndarray:
  """Return how much of each sample, [n] in 0..1, comes from the frame and not from the padding.

  A bilinear sample between the outermost frame pixel and black weighs the pixel by its nearness.
  """
  low, high = side_range
  at = np.minimum(np.maximum(positions, low), high)
  return np.minimum(np.maximum(np.minimum(at - first, last - at) + 1, 0), 1)


def _warp(stored: StoredFrame, window: crop.CropWindow, shown_xyxy, output_size: int) -> np.ndarray:
  """Sample a shrunk region where the full frame would have been sampled."""
  x1, y1, x2, y2 = shown_xyxy
  rx1, ry1, rx2, ry2 = stored.region_xyxy
  step = window.side / output_size
  grid = (np.arange(output_size) + 0.5) * step - 0.5
  weights = [
    _shown(start + grid, first, last - 1, (start, start + window.side - 1))
    for start, first, last in ((window.x1, x1, x2), (window.y1, y1, y2))
  ]
  spans = [np.flatnonzero(weight) for weight in weights]
  (i1, i2), (j1, j2) = ((int(s[0]), int(s[-1]) + 1) for s in spans)
  height, width = stored.image.shape[:2]
  scale_x, scale_y = width / (rx2 - rx1), height / (ry2 - ry1)
  # Positions in the stored image, in 1/32 pixels, as cv2.remap wants them; cv2.warpAffine takes twice as long.
  x = (window.x1 + grid[i1:i2] + 0.5 - rx1) * scale_x - 0.5
  y = (window.y1 + grid[j1:j2] + 0.5 - ry1) * scale_y - 0.5
  fixed_x, fixed_y = (np.rint(32 * v).astype(np.int32) for v in (x, y))
  whole = np.empty((j2 - j1, i2 - i1, 2), np.int16)
  whole[..., 0] = fixed_x >> 5
  whole[..., 1] = (fixed_y >> 5)[:, None]
  parts = ((fixed_y & 31) << 5).astype(np.uint16)[:, None] + (fixed_x & 31).astype(np.uint16)
  image = cv2.remap(stored.image, whole, parts, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
  for axis, weight in enumerate((weights[0][i1:i2], weights[1][j1:j2])):
    for k in np.flatnonzero(weight < 1):
      line = image[:, k] if axis == 0 else image[k]
      line[...] = np.rint(line * weight[k])
  if image.shape[:2] == (output_size, output_size):
    return image
  square = np.zeros((output_size, output_size, 3), np.uint8)
  square[j1:j2, i1:i2] = image
  return square
