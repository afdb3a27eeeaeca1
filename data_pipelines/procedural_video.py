"""Procedural video: a textured target among look-alikes, made of numbers alone."""

import dataclasses

import cv2
import numpy as np

from data_pipelines import procedural_appearance as appearance
from data_pipelines import procedural_layers as layers
from data_pipelines import procedural_motion as motion


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProceduralVideoSettings:
  """What a procedural sequence looks like; sizes in pixels, probabilities per sequence.

  `usual_speed` (drawn between its ends) and `max_speed` are displacements from frame to frame over
  the target's sqrt(w * h). A frame counts as visible when at least `min_visible_share` of the
  target is neither covered nor outside the frame.
  """

  width: int = 240
  height: int = 180
  length: int = 60
  min_target_size: float = 18.0
  max_target_size: float = 60.0
  usual_speed: tuple[float, float] = (0.02, 0.22)
  max_speed: float = 0.45
  min_distractors: int = 1
  max_distractors: int = 4
  crossing_probability: float = 0.4
  occlusion_probability: float = 0.6
  low_contrast_probability: float = 0.25
  deformation_probability: float = 0.5
  rotation_probability: float = 0.5
  camera_probability: float = 0.7
  min_visible_share: float = 0.25

  def __post_init__(self):
    if self.length < 2 or min(self.width, self.height) < 32:
      raise ValueError(
        f"procedural video of {self.length} frames of {self.width}x{self.height}: it needs at least 2 frames of 32x32"
      )
    if not 4 <= self.min_target_size <= self.max_target_size <= min(self.width, self.height) / 2:
      raise ValueError(
        f"target sizes {self.min_target_size} to {self.max_target_size} do not fit {self.width}x{self.height}: "
        "they must lie between 4 and half of the shorter side"
      )


class _Scene:
  """Everything of one sequence that is decided before the first frame is drawn."""

  def __init__(self, rng: np.random.Generator, settings: ProceduralVideoSettings):
    self.settings = settings
    n, frame_size = settings.length, (settings.width, settings.height)
    self._camera(rng)
    self.colours = self._target_colours(rng)
    resolution = int(min(96, settings.max_target_size * 1.5))
    self.resolution = resolution
    sprite = appearance.draw_object(rng, resolution, self.colours)
    sizes = self._sizes(rng, settings.min_target_size, settings.max_target_size)
    speed = rng.uniform(*settings.usual_speed)
    path = motion.wander(rng, sizes, frame_size, speed, settings.max_speed)
    smear = rng.uniform(0.3, 0.8) if rng.random() < 0.25 else 0.0
    self.target = self._layer(rng, sprite, path, sizes, smear)
    self.behind: list[layers.Layer] = []
    self.front: list[layers.Layer] = []
    self._distractors(rng, n)
    if rng.random() < settings.occlusion_probability:
      for _ in range(int(rng.integers(1, 4))):
        self._occluder(rng, n)
    spread = rng.choice([0.0, 2.0, 5.0, 9.0], p=[0.25, 0.35, 0.25, 0.15])
    grain = rng.normal(0, 1, (2, settings.height + 16, settings.width + 16, 3)) * spread
    self.grain = (
      [np.clip(g, 0, 40).astype(np.uint8) for g in (grain[0], grain[1])] if spread else None
    )
    self.blur = rng.uniform(0.5, 1.1) if rng.random() < 0.25 else 0.0
    flicker = rng.choice([0.0, 0.1, 0.3])
    self.light = rng.uniform(0.8, 1.15) * (1 + flicker * motion.smooth_wave(rng, n, 15))
    self.offsets = rng.integers(0, 16, (n, 2, 2))

  def _camera(self, rng):
    settings = self.settings
    n, reach = settings.length, 0.2
    margin_x, margin_y = int(reach * settings.width), int(reach * settings.height)
    self.canvas = appearance.draw_background(
      rng, settings.height + 2 * margin_y, settings.width + 2 * margin_x
    )
    moves = rng.random() < settings.camera_probability
    period = rng.choice([20, 60, 120])
    pan = np.stack([motion.smooth_wave(rng, n, period) for _ in range(2)], axis=1)
    self.pan = pan * (margin_x, margin_y) * rng.uniform(0.1, 0.9) * moves
    self.zoom = np.exp(0.12 * motion.smooth_wave(rng, n, 60) * moves)

  def _target_colours(self, rng):
    if rng.random() < self.settings.low_contrast_probability:
      y, x = (int(rng.integers(side)) for side in self.canvas.shape[:2])
      return appearance.draw_palette(rng, 5, self.canvas[y, x].astype(np.float32), 35)
    return appearance.draw_palette(rng, 5)

  def _sizes(self, rng, low: float, high: float) -> np.ndarray:
    """Draw widths and heights [n, 2] px; sqrt(w * h) stays between `low` and `high`."""
    n = self.settings.length
    reach = rng.choice([0.1, 0.25, 0.47])
    grow = reach * motion.smooth_wave(rng, n, rng.choice([25, 60, 120]))
    side = np.clip(np.exp(rng.uniform(np.log(low), np.log(high)) + grow), low, high)
    aspect = np.clip(rng.normal(0, 0.35), -0.8, 0.8)
    stretch = np.exp(aspect + rng.choice([0.03, 0.15]) * motion.smooth_wave(rng, n, 15))
    return np.stack([side * np.sqrt(stretch), side / np.sqrt(stretch)], axis=1)

  def _layer(self, rng, sprite, centres, sizes, smear=0.0, deforms=True) -> layers.Layer:
    settings, n = self.settings, self.settings.length
    angles = np.full(n, rng.uniform(-0.2, 0.2))
    if rng.random() < settings.rotation_probability:
      angles = angles + rng.choice([0.3, 0.8, 2.5]) * motion.smooth_wave(rng, n, 25)
    gains = 1 + rng.choice([0.0, 0.12, 0.3]) * motion.smooth_wave(rng, n, 20)
    warp = None
    if deforms and rng.random() < settings.deformation_probability:
      warp = layers.make_warp(rng, len(sprite.rgba), n)
    return layers.Layer(sprite, centres, sizes, angles, gains, warp, smear)

  def _distractors(self, rng, n):
    settings = self.settings
    count = int(rng.integers(settings.min_distractors, settings.max_distractors + 1))
    side = np.sqrt(self.target.sizes.prod(axis=1).mean())
    for index in range(count):
      sprite = appearance.draw_look_alike(rng, self.target.sprite, self.colours)
      low = max(side * 0.7, settings.min_target_size)
      sizes = self._sizes(rng, low, max(min(side * 1.4, settings.max_target_size), low + 1))
      speed = rng.uniform(*settings.usual_speed)
      frame_size = (settings.width, settings.height)
      path = motion.wander(rng, sizes, frame_size, speed, settings.max_speed)
      if index == 0 and n >= 20 and rng.random() < settings.crossing_probability:
        offset = rng.uniform(0.3, 1.2) * side * _direction(rng)
        meeting = int(rng.integers(n // 3, n))
        path = motion.bend_towards(path, self.target.centres, meeting, rng.uniform(3, 8), offset)
      side_of_target = self.front if rng.random() < 0.3 else self.behind
      side_of_target.append(self._layer(rng, sprite, path, sizes))

  def _occluder(self, rng, n):
    settings, target = self.settings, self.target
    meeting = int(rng.integers(min(8, n - 1), n))
    around = target.sizes[meeting]
    r = self.resolution
    if rng.random() < 0.6:  # a piece of the scene
      y, x = (int(rng.integers(side - r)) for side in self.canvas.shape[:2])
      rgb = self.canvas[y : y + r, x : x + r]
    else:
      rgb = appearance.draw_texture(rng, r, r, appearance.draw_palette(rng, 4))
    mask = np.zeros((r, r), np.uint8)
    pole = rng.random() < 0.35
    outline = appearance.draw_outline(rng, 30.0 if pole else None)
    if pole:
      mask[3:-3, 3:-3] = 255
    else:
      cv2.fillPoly(mask, [np.round((outline * 0.46 + 0.5) * r).astype(np.int32)], 255, cv2.LINE_AA)
    sprite = appearance.make_sprite(mask, np.ascontiguousarray(rgb))
    offset = rng.uniform(-0.4, 0.4, 2) * around
    if pole:
      size = np.array([around[0] * rng.uniform(0.25, 0.8), 3.0 * settings.height])
      if rng.random() < 0.3:
        size = np.array([3.0 * settings.width, around[1] * rng.uniform(0.25, 0.8)])
      path = np.broadcast_to(target.centres[meeting] + offset, (n, 2)).copy()
    else:
      size = around * rng.uniform(0.5, 1.1, 2)
      path = motion.pass_over(
        rng, target.centres, meeting, rng.uniform(0.05, 0.4) * np.sqrt(around.prod()), offset
      )
    layer = self._layer(rng, sprite, path, np.broadcast_to(size, (n, 2)), deforms=not pole)
    if pole:
      layer.angles[:] = rng.uniform(-0.15, 0.15)
    self.front.append(layer)

  def draw(self, frame: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Draw one frame; return it, the target's box xywh [4] px, and its visible share."""
    settings = self.settings
    width, height = settings.width, settings.height
    image = self._draw_background(frame)
    for layer in self.behind:
      layers.blend(image, layer.patch(frame, width, height))
    patch = self.target.patch(frame, width, height)
    box, remaining, whole = np.zeros(4), None, 1.0
    corner = (0, 0)
    if patch is not None:
      corner, rgba = patch
      remaining = rgba[..., 3].astype(np.float32) / 255
      box = layers.extent(remaining, corner)
      scale = self.target.sizes[frame] / self.target.sprite.extent
      whole = max(self.target.sprite.area * scale.prod(), 1.0)
      layers.blend(image, patch)
    for layer in self.front:
      patch = layer.patch(frame, width, height)
      layers.blend(image, patch)
      if patch is not None and remaining is not None:
        layers.cover(remaining, corner, patch)
    share = 0.0 if remaining is None else min(float(remaining.sum()) / whole, 1.0)
    return self._finish(image, frame), box, share

  def _draw_background(self, frame: int) -> np.ndarray:
    settings = self.settings
    zoom = self.zoom[frame]
    height, width = self.canvas.shape[:2]
    centre = np.array([width, height]) / 2 + self.pan[frame]
    size = np.array([settings.width, settings.height])
    matrix = np.column_stack([np.eye(2) * zoom, size / 2 - centre * zoom])
    return cv2.warpAffine(
      self.canvas, matrix, (settings.width, settings.height), borderMode=cv2.BORDER_REFLECT
    )

  def _finish(self, image: np.ndarray, frame: int) -> np.ndarray:
    if self.blur:
      image = cv2.GaussianBlur(image, (3, 3), self.blur)
    image = cv2.convertScaleAbs(image, alpha=float(self.light[frame]))
    if self.grain is not None:
      height, width = image.shape[:2]
      for combine, grain, (y, x) in zip((cv2.add, cv2.subtract), self.grain, self.offsets[frame]):
        image = combine(image, grain[y : y + height, x : x + width])
    return image


def _direction(rng) -> np.ndarray:
  angle = rng.uniform(0, 2 * np.pi)
  return np.array([np.cos(angle), np.sin(angle)])


def render_sequence(seed, settings: ProceduralVideoSettings | None = None):
  """Render one sequence.

  Args:
    seed: an integer or a sequence of integers; the same seed and settings give the same pixels.
    settings: None for the defaults.

  Returns:
    frames: list of [height, width, 3] uint8 RGB.
    boxes_xywh: [n, 4] float32 pixels, extent of the target as if nothing covered it, cut at the
      frame's border; zeros when it is outside.
    visible: [n] bool; true in the first frame.
  """
  settings = settings or ProceduralVideoSettings()
  rng = np.random.default_rng(seed)
  for _ in range(100):
    scene = _Scene(rng, settings)
    if scene.draw(0)[2] > 0.9:
      break
  else:
    raise RuntimeError(f"no start with a target in sight for {settings}; use fewer distractors")
  frames, boxes, shares = zip(*[scene.draw(i) for i in range(settings.length)])
  visible = np.array(shares) >= settings.min_visible_share
  return list(frames), np.asarray(boxes, np.float32), visible


def encode_sequence(task) -> tuple[list[bytes], np.ndarray, np.ndarray]:
  """Render one sequence as JPEG; `task` is (seed, settings, quality), one argument for worker pools.

  Returns (list of JPEG bytes, boxes_xywh [n, 4], visible [n]).
  """
  seed, settings, quality = task
  cv2.setNumThreads(1)
  frames, boxes_xywh, visible = render_sequence(seed, settings)
  options = [cv2.IMWRITE_JPEG_QUALITY, quality]
  jpegs = [cv2.imencode(".jpg", f[..., ::-1], options)[1].tobytes() for f in frames]
  return jpegs, boxes_xywh, visible
