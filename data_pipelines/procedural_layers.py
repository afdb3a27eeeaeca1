"""Layers of procedural video: placing a sprite in a frame, blending it, and measuring what shows."""

import dataclasses

import cv2
import numpy as np

from data_pipelines import procedural_appearance as appearance
from data_pipelines import procedural_motion as motion


@dataclasses.dataclass
class Layer:
  """One object over the whole sequence; `sizes` and `centres` [n, 2] px, `angles` and `gains` [n]."""

  sprite: appearance.Sprite
  centres: np.ndarray
  sizes: np.ndarray
  angles: np.ndarray
  gains: np.ndarray
  warp: tuple | None = None
  smear: float = 0.0

  def patch(self, frame: int, width: int, height: int):
    """Return (top-left corner, rgba) of the part inside the frame, or None."""
    source = self.sprite.rgba
    resolution = len(source)
    if self.warp is not None:
      grid, fields, amounts = self.warp
      flow = grid + amounts[0, frame] * fields[0] + amounts[1, frame] * fields[1]
      # pyrefly: ignore[no-matching-overload]  # None is right where one array holds both maps
      source = cv2.remap(source, flow, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    scale = self.sizes[frame] / self.sprite.extent
    if scale.max() < 0.5:
      source = cv2.resize(source, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
      scale, resolution = scale * 2, len(source)
    cosine, sine = np.cos(self.angles[frame]), np.sin(self.angles[frame])
    matrix = np.array([[cosine, -sine], [sine, cosine]]) * scale
    reach = np.abs(matrix).sum(axis=1) * resolution / 2 + 2
    centre = self.centres[frame]
    x1, y1 = np.maximum(np.floor(centre - reach), 0).astype(int)
    x2, y2 = np.minimum(np.ceil(centre + reach), (width, height)).astype(int)
    if x2 <= x1 or y2 <= y1:
      return None
    # Pixel (i, j) covers i..i+1, so the centre of index space is half a pixel before ours.
    shift = centre - 0.5 - matrix @ np.full(2, (resolution - 1) / 2) - (x1, y1)
    rgba = cv2.warpAffine(source, np.column_stack([matrix, shift]), (int(x2 - x1), int(y2 - y1)))
    if self.smear:
      step = self.centres[frame] - self.centres[max(frame - 1, 0)]
      rgba = _motion_blur(rgba, step * self.smear)
    if self.gains[frame] != 1:
      rgba[..., :3] = cv2.convertScaleAbs(rgba[..., :3], alpha=self.gains[frame])
    return (int(x1), int(y1)), rgba


def _motion_blur(rgba: np.ndarray, step: np.ndarray) -> np.ndarray:
  length = np.hypot(*step)
  if length < 1.5:
    return rgba
  radius = int(np.ceil(min(length, 9) / 2))
  kernel = np.zeros((2 * radius + 1, 2 * radius + 1), np.float32)
  ends = [
    tuple(round(float(radius + sign * v * radius / length)) for v in step) for sign in (-1, 1)
  ]
  cv2.line(kernel, ends[0], ends[1], 1.0)
  return cv2.filter2D(rgba, -1, kernel / kernel.sum(), borderType=cv2.BORDER_CONSTANT)


def extent(alpha: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
  """Return the box xywh [4] px of alpha float [h, w] > 0.5, edges between pixels interpolated."""
  edges = []
  for axis in (0, 1):
    profile = alpha.max(axis=axis)
    opaque = np.flatnonzero(profile > 0.5)
    if not len(opaque):
      return np.zeros(4)
    first, last = opaque[0], opaque[-1]
    before = profile[first - 1] if first else 1.0  # at the frame's border the box ends there
    after = profile[last + 1] if last + 1 < len(profile) else 1.0
    low = first + 0.5 - _crossing(profile[first], before)
    high = last + 0.5 + _crossing(profile[last], after)
    edges.append((low, high))
  (x1, x2), (y1, y2) = edges
  return np.array([corner[0] + x1, corner[1] + y1, x2 - x1, y2 - y1])


def _crossing(inside: float, outside: float) -> float:
  return 0.5 if outside > 0.5 else (inside - 0.5) / (inside - outside)


def make_warp(rng: np.random.Generator, resolution: int, length: int):
  """Draw a smooth wobble of a sprite: (pixel grid, two fields [R, R, 2] px, their amounts [2, n])."""
  grid = np.stack(np.meshgrid(*[np.arange(resolution, dtype=np.float32)] * 2), axis=-1)
  amplitude = resolution * rng.uniform(0.04, 0.12)
  fields = [
    np.stack(
      [appearance.smooth_noise(rng, resolution, resolution, 2, 1) - 0.5 for _ in range(2)], axis=-1
    )
    * np.float32(2 * amplitude)
    for _ in range(2)
  ]
  period = rng.uniform(8, 30)
  amounts = np.stack([motion.smooth_wave(rng, length, period) for _ in range(2)])
  return grid, fields, amounts.astype(np.float32)


def blend(image: np.ndarray, patch) -> None:
  """Paint a patch, as Layer.patch gives it, over an image in place; None paints nothing."""
  if patch is None:
    return
  (x, y), rgba = patch
  height, width = rgba.shape[:2]
  under = image[y : y + height, x : x + width]
  weight = rgba[..., 3:].astype(np.float32) * np.float32(1 / 255)
  under[:] = (under + (rgba[..., :3] - under.astype(np.float32)) * weight + 0.5).astype(np.uint8)


def cover(remaining: np.ndarray, corner: tuple[int, int], patch) -> None:
  """Take from `remaining`, alpha of the target's patch at `corner`, what a patch in front hides."""
  (x, y), rgba = patch
  height, width = rgba.shape[:2]
  x1, y1 = max(x, corner[0]), max(y, corner[1])
  x2 = min(x + width, corner[0] + remaining.shape[1])
  y2 = min(y + height, corner[1] + remaining.shape[0])
  if x2 > x1 and y2 > y1:
    over = rgba[y1 - y : y2 - y, x1 - x : x2 - x, 3].astype(np.float32) / 255
    remaining[y1 - corner[1] : y2 - corner[1], x1 - corner[0] : x2 - corner[0]] *= 1 - over
