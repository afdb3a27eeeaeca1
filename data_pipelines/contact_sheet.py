"""Pictures with a line of words below them, side by side on a sheet."""

from collections.abc import Sequence

import cv2
import numpy as np

from ostrack_jax import visualization

_FONT, _SCALE, _LINE_PX = cv2.FONT_HERSHEY_SIMPLEX, 0.38, 15
_PAPER, _INK = 255, (40, 40, 40)


def beside(images: Sequence[np.ndarray], gap: int = 4) -> np.ndarray:
  """Return images of any height next to each other, uint8 [H, W, 3], aligned at the top on white."""
  height = max(image.shape[0] for image in images)
  width = sum(image.shape[1] for image in images) + gap * (len(images) - 1)
  strip = np.full((height, width, 3), _PAPER, np.uint8)
  left = 0
  for image in images:
    strip[: image.shape[0], left : left + image.shape[1]] = image
    left += image.shape[1] + gap
  return strip


def captioned(image: np.ndarray, lines: Sequence[str]) -> np.ndarray:
  """Return an image with lines of text below it, each cut to its width."""
  height, width = image.shape[:2]
  result = np.full((height + _LINE_PX * len(lines) + 3, width, 3), _PAPER, np.uint8)
  result[:height] = image
  for i, line in enumerate(lines):
    # OpenCV's fonts know ASCII only.
    text = line.encode("ascii", "replace").decode()
    while text and cv2.getTextSize(text, _FONT, _SCALE, 1)[0][0] > width - 2:
      text = text[:-1]
    at = (1, height + _LINE_PX * (i + 1) - 3)
    cv2.putText(result, text, at, _FONT, _SCALE, _INK, 1, cv2.LINE_AA)
  return result


def fitted(image: np.ndarray, width: int, height: int) -> np.ndarray:
  """Return an image shrunk or enlarged to fit, in the middle of a light grey [height, width] field."""
  scale = min(width / image.shape[1], height / image.shape[0])
  inner = [max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))]
  method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
  field = np.full((height, width, 3), 232, np.uint8)
  left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
  field[top : top + inner[1], left : left + inner[0]] = cv2.resize(
    image, inner, interpolation=method
  )
  return field


def sheet(tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
  """Return tiles of one size in rows."""
  return visualization.frame_strip(list(tiles), columns)
