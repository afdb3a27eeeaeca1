"""Variations of crops beyond the official ones, for training on little video: rotation and stretch, colours,
blur, pasted distractors. All off in the official configurations."""

import functools
import math

import cv2
import numpy as np

from data_pipelines.sources import StoredFrame

# Luma, as OpenCV has it.
_GREY = np.array([0.299, 0.587, 0.114])
_MIDDLE = 128.0
_COARSEST = 0.25
# The longest motion blur over the crop's side.
_LONGEST_BLUR = 0.06
# Of distractors: the log of their side over the target's; of the target, what they may cover at most.
_LOG_SIDE = (-0.7, 0.5)
_MOST_COVERED = 0.3
_PLACES_TRIED = 10
_SMALLEST_PATCH = 8
_LARGEST_SHARE = 0.6


def draw_warp(
  rng: np.random.Generator, rotation_degrees: float, aspect_jitter: float
) -> np.ndarray:
  """Draw a linear map [2, 2] of crop pixels: stretched, keeping areas, then rotated.

  Args:
    rng: consumed.
    rotation_degrees: the largest angle to either side.
    aspect_jitter: deviation of the log of the stretch of width over height.
  """
  angle = math.radians(rotation_degrees) * (2 * rng.random() - 1)
  stretch = math.exp(0.5 * aspect_jitter * rng.standard_normal())
  cos, sin = math.cos(angle), math.sin(angle)
  return np.array([[cos * stretch, -sin / stretch], [sin * stretch, cos / stretch]])


def warp_box(box_xywh: np.ndarray, warp: np.ndarray) -> np.ndarray:
  """Return the box [4] around a target that was warped about its centre.

  The target counts as the ellipse inside its box: exact for stretches and quarter turns, and between
  them tighter than the corners of the turned box, which targets seldom fill.
  """
  x, y, w, h = np.asarray(box_xywh, np.float64).tolist()
  new_w, new_h = np.hypot(warp[:, 0] * w, warp[:, 1] * h).tolist()
  return np.array([x + 0.5 * (w - new_w), y + 0.5 * (h - new_h), new_w, new_h])


def vary_colours(rng: np.random.Generator, image: np.ndarray, strength: float) -> np.ndarray:
  """Return the image, uint8 RGB, with contrast and saturation in 1 +- strength, and each channel's gain
  in 1 +- half of it. Black stays black: that is how the border of a frame is told."""
  contrast, saturation, *gains = (1 + strength * (2 * rng.random(5) - 1)).tolist()
  mixing = saturation * np.eye(3) + (1 - saturation) * _GREY
  matrix = contrast * 0.5 * (1 + np.array(gains))[:, None] * mixing
  offset = np.full((3, 1), (1 - contrast) * _MIDDLE)
  varied = cv2.transform(image, np.hstack([matrix, offset]))
  black = cv2.inRange(image, (0, 0, 0), (0, 0, 0))
  return cv2.copyTo(varied, cv2.bitwise_not(black))


def blur(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
  """Return the square image at a lower resolution, as small targets have it, or smeared by motion along an axis."""
  size = image.shape[0]
  if rng.random() < 0.5:
    coarse = max(1, round(size * _COARSEST ** rng.random()))
    small = cv2.resize(image, (coarse, coarse), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR)
  reach = 1 + int(_LONGEST_BLUR * size * rng.random())
  kernel = (reach, 1) if rng.random() < 0.5 else (1, reach)
  return cv2.blur(image, kernel, borderType=cv2.BORDER_REPLICATE)


@functools.cache
def _soft_ellipse() -> np.ndarray:
  """Return weights [64, 64] float32: 1 inside, falling to 0 at the ellipse that fills the square."""
  axis = np.linspace(-1, 1, 64)
  radius = np.hypot(axis[:, None], axis[None, :])
  return np.clip((1 - radius) / 0.15, 0, 1).astype(np.float32)


def _patch(stored: StoredFrame, box_xywh: np.ndarray) -> np.ndarray | None:
  """Return the part of a stored frame inside a box, or None where there is hardly any."""
  x1, y1, x2, y2 = stored.region_xyxy
  height, width = stored.image.shape[:2]
  scale = np.array([width / (x2 - x1), height / (y2 - y1)])
  x, y, w, h = np.asarray(box_xywh, np.float64).tolist()
  low = np.rint((np.array([x, y]) - (x1, y1)) * scale).astype(int)
  high = np.rint((np.array([x + w, y + h]) - (x1, y1)) * scale).astype(int)
  low, high = np.maximum(low, 0), np.minimum(high, (width, height))
  if (high - low < _SMALLEST_PATCH).any():
    return None
  return stored.image[low[1] : high[1], low[0] : high[0]]


def paste_distractor(
  rng: np.random.Generator,
  image: np.ndarray,
  target_xywh: np.ndarray,
  stored: StoredFrame,
  distractor_xywh: np.ndarray,
) -> bool:
  """Paste another target into a crop, beside this one or over a part of it, with a soft rim.

  Args:
    rng: consumed.
    image: the crop, uint8 [S, S, 3], changed.
    target_xywh: [4] the crop's own target, pixels of the crop.
    stored: the frame that shows the other target.
    distractor_xywh: [4] where, pixels of its full frame.

  Returns:
    Whether there was something to paste and a place that leaves the target visible.
  """
  patch = _patch(stored, distractor_xywh)
  if patch is None:
    return False
  size = image.shape[0]
  x, y, w, h = np.asarray(target_xywh, np.float64).tolist()
  side = math.sqrt(w * h) * math.exp(rng.uniform(*_LOG_SIDE))
  aspect = math.sqrt(patch.shape[1] / patch.shape[0])
  width, height = (
    int(min(max(side * a, _SMALLEST_PATCH), _LARGEST_SHARE * size)) for a in (aspect, 1 / aspect)
  )
  for _ in range(_PLACES_TRIED):
    left, top = (rng.random(2) * (size - width, size - height)).astype(int).tolist()
    covered_w = max(min(x + w, left + width) - max(x, left), 0)
    covered_h = max(min(y + h, top + height) - max(y, top), 0)
    if covered_w * covered_h <= _MOST_COVERED * w * h:
      break
  else:
    return False
  patch = cv2.resize(patch, (width, height), interpolation=cv2.INTER_AREA)
  weights = cv2.resize(_soft_ellipse(), (width, height))[:, :, None]
  under = image[top : top + height, left : left + width]
  mixed = under + (patch.astype(np.float32) - under) * weights
  under[...] = np.rint(mixed).astype(np.uint8)
  return True
