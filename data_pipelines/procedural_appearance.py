"""Textures, shapes and backgrounds for procedural video."""

import dataclasses

import cv2
import numpy as np

# Sharpness of the blend between two colours of a texture: soft shading up to a hard edge.
_HARDNESS = (0.8, 2.0, 6.0, 20.0)


@dataclasses.dataclass(frozen=True)
class Sprite:
  """A textured object on a square canvas.

  `rgba` is uint8 [R, R, 4], alpha 0 at the border; `extent` the (width, height) in canvas pixels of
  what is opaque, centred on the canvas; `area` its number of opaque pixels.
  """

  rgba: np.ndarray
  extent: tuple[float, float]
  area: float


def draw_palette(rng: np.random.Generator, count: int, near=None, spread: float = 30.0):
  """Draw `count` RGB colours, float32 [count, 3] in 0..255; `near` a colour, they stay close to it."""
  if near is not None:
    return np.clip(near + rng.normal(0, spread, (count, 3)), 0, 255).astype(np.float32)
  colours = rng.uniform(0, 255, (count, 3))
  grey = colours.mean(axis=1, keepdims=True)
  # Real video is mostly muted: half of the palettes lose most of their saturation.
  saturation = rng.uniform(0.1, 0.5) if rng.random() < 0.5 else rng.uniform(0.6, 1.0)
  return (grey + (colours - grey) * saturation).astype(np.float32)


def smooth_noise(rng: np.random.Generator, height: int, width: int, cells: float, octaves: int = 3):
  """Draw multi-octave noise, float32 [height, width] in about 0..1; `cells` along the longer side."""
  total = np.zeros((height, width), np.float32)
  weight, norm = 1.0, 0.0
  falloff = rng.uniform(0.4, 0.75)
  for _ in range(octaves):
    step = max(height, width) / cells
    rows, columns = (int(np.ceil(side / step)) + 3 for side in (height, width))
    grid = rng.random((rows, columns), np.float32)
    total += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    norm += weight
    weight *= falloff
    cells = min(cells * 2, max(height, width) / 2)
  return (total / norm - 0.5) * 1.8 + 0.5


def _field(rng: np.random.Generator, kind: str, height: int, width: int) -> np.ndarray:
  side = max(height, width)
  v, u = np.meshgrid(
    np.linspace(-height / side, height / side, height, dtype=np.float32),
    np.linspace(-width / side, width / side, width, dtype=np.float32),
    indexing="ij",
  )
  angle = rng.uniform(0, np.pi)
  along = u * np.float32(np.cos(angle)) + v * np.float32(np.sin(angle))
  if kind == "gradient":
    return 0.5 + 0.5 * along
  if kind == "halves":
    return 0.5 + 4 * (along - np.float32(rng.uniform(-0.4, 0.4)))
  if kind == "noise":
    return smooth_noise(rng, height, width, rng.uniform(2, 14), octaves=int(rng.integers(2, 5)))
  if kind == "cells":
    seeds = rng.uniform(-1, 1, (int(rng.integers(4, 12)), 2)).astype(np.float32)
    levels = rng.random(len(seeds), np.float32)
    distance = np.stack([(u - x) ** 2 + (v - y) ** 2 for x, y in seeds])
    return levels[distance.argmin(axis=0)]
  if kind == "spots":
    spots = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(4, 25))):
      centre = (int(rng.integers(width)), int(rng.integers(height)))
      radius = int(side * rng.uniform(0.03, 0.12)) + 1
      cv2.circle(spots, centre, radius, float(rng.uniform(0.6, 1.0)), -1, cv2.LINE_AA)
    return spots
  frequency = rng.uniform(1.0, 6.0)
  bend = rng.uniform(0, 0.25) * (smooth_noise(rng, height, width, 3, 1) - 0.5)
  if kind == "rings":
    centre = rng.uniform(-0.5, 0.5, 2).astype(np.float32)
    along = np.hypot(u - centre[0], v - centre[1])
  wave = np.sin(2 * np.pi * (frequency * (along + bend)) + rng.uniform(0, 6.3))
  if kind == "checks":
    across = v * np.float32(np.cos(angle)) - u * np.float32(np.sin(angle))
    wave = wave * np.sin(2 * np.pi * frequency * (across + bend))
  return 0.5 + 0.5 * wave


_KINDS = ("stripes", "checks", "rings", "spots", "cells", "noise", "noise", "gradient", "halves")


def draw_texture(rng: np.random.Generator, height: int, width: int, colours: np.ndarray):
  """Draw a texture from a palette, uint8 [height, width, 3]: two patterns, then fine grain and shade."""
  image = np.full((height, width, 3), colours[0], np.float32)
  for colour in colours[1 : 1 + int(rng.integers(1, 3))]:
    field = _field(rng, str(rng.choice(_KINDS)), height, width)
    hardness = rng.choice(_HARDNESS)
    blend = np.clip((field - 0.5) * hardness + 0.5, 0, 1).astype(np.float32)[..., None]
    image = image + (colour - image) * blend
  shade = _field(rng, "gradient", height, width)
  grain = smooth_noise(rng, height, width, max(height, width) / rng.uniform(2, 6), 2)
  gain = 1 + rng.uniform(0, 0.6) * (shade - 0.5) + rng.uniform(0.05, 0.5) * (grain - 0.5)
  return np.clip(image * gain[..., None], 0, 255).astype(np.uint8)


def draw_outline(rng: np.random.Generator, roundness: float | None = None) -> np.ndarray:
  """Draw a closed outline as float [m, 2] points that just fill the square from -1 to 1."""
  kind = str(rng.choice(["blob", "blob", "polygon", "ellipse", "rectangle", "star"]))
  angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
  if kind == "polygon":
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(4, 9))))
  radius = np.ones_like(angles)
  if kind == "blob":
    for order in range(2, 6):
      radius = radius + rng.normal(0, 0.35 / order) * np.cos(order * angles + rng.uniform(0, 6.3))
  elif kind == "star":
    radius = 1 + rng.uniform(0.1, 0.4) * np.cos(int(rng.integers(3, 7)) * angles)
  elif kind == "rectangle":
    power = roundness or rng.uniform(3, 30)
    radius = (np.abs(np.cos(angles)) ** power + np.abs(np.sin(angles)) ** power) ** (-1 / power)
  points = np.maximum(radius, 0.25)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
  low, high = points.min(axis=0), points.max(axis=0)
  return 2 * (points - low) / np.maximum(high - low, 1e-3) - 1


def _fill(mask: np.ndarray, points: np.ndarray) -> np.ndarray:
  return cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)


def make_sprite(mask: np.ndarray, rgb: np.ndarray) -> Sprite:
  """Join a mask uint8 [R, R] and a texture uint8 [R, R, 3], moved so that the mask is centred."""
  ys, xs = np.where(mask.max(axis=1) > 127)[0], np.where(mask.max(axis=0) > 127)[0]
  resolution = len(mask)
  shift = [(resolution - 1) / 2 - (i[0] + i[-1]) / 2 for i in (xs, ys)]
  rgba = np.dstack([rgb, mask])
  if max(map(abs, shift)) >= 0.5:
    move = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
    rgba = cv2.warpAffine(rgba, move, (resolution, resolution), borderMode=cv2.BORDER_REFLECT)
  extent = (float(xs[-1] - xs[0] + 1), float(ys[-1] - ys[0] + 1))
  return Sprite(rgba, extent, float(mask.sum(dtype=np.float64)) / 255)


def draw_object(rng: np.random.Generator, resolution: int, colours: np.ndarray) -> Sprite:
  """Draw an object of one to four parts, each with an outline and a texture of the palette."""
  half = resolution / 2
  mask = np.zeros((resolution, resolution), np.uint8)
  # A main part of any proportion; sprites are stretched to their final aspect when placed.
  main = rng.uniform(0.55, 0.85)
  _fill(mask, draw_outline(rng) * half * main + half)
  rgb = draw_texture(rng, resolution, resolution, colours)
  for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.35, 0.3, 0.2, 0.15]))):
    part = np.zeros_like(mask)
    size = rng.uniform(0.2, 0.5, 2) * half * 0.9
    centre = half + rng.uniform(-0.55, 0.55, 2) * half
    centre = np.clip(centre, size + 3, resolution - size - 3)
    _fill(part, draw_outline(rng) * size + centre)
    colour = colours[rng.permutation(len(colours))]
    cv2.copyTo(draw_texture(rng, resolution, resolution, colour), part, rgb)
    if rng.random() < 0.6:  # the part sticks out; else it is a marking on the main part
      mask = np.maximum(mask, part)
  mask[[0, 1, -2, -1]] = 0
  mask[:, [0, 1, -2, -1]] = 0
  return make_sprite(mask, rgb)


def draw_look_alike(rng: np.random.Generator, target: Sprite, colours: np.ndarray) -> Sprite:
  """Draw a distractor: a changed copy of the target, its texture in another shape, or its palette."""
  rgb, mask = target.rgba[..., :3], target.rgba[..., 3]
  resolution = len(mask)
  kind = rng.random()
  if kind < 0.35:  # a copy of another hue or brightness, mirrored
    turned = rgb[:, ::-1].astype(np.float32) + rng.normal(0, 35, 3).astype(np.float32)
    rgb = np.clip(turned * rng.uniform(0.7, 1.3), 0, 255).astype(np.uint8)
    return make_sprite(np.ascontiguousarray(mask[:, ::-1]), rgb)
  if kind < 0.65:  # the same texture in another shape
    return make_sprite(draw_object(rng, resolution, colours).rgba[..., 3], rgb)
  return draw_object(
    rng, resolution, draw_palette(rng, 1, colours[0], 25).repeat(4, 0) * 0.3 + colours[:4] * 0.7
  )


def draw_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
  """Draw a cluttered scene, uint8 [height, width, 3]: texture, then shapes of many sizes over it."""
  colours = draw_palette(rng, 6)
  scene = draw_texture(rng, height, width, colours)
  fills = [draw_texture(rng, height, width, colours[rng.permutation(6)]) for _ in range(2)]
  fills.append(draw_texture(rng, height, width, draw_palette(rng, 4)))
  mask = np.zeros((height, width), np.uint8)
  count = int(rng.choice([0, 8, 25, 60], p=[0.15, 0.3, 0.3, 0.25]))
  # Sizes follow a power law, as in dead-leaves images: they have the statistics of photographs.
  sizes = np.clip(6 / rng.random(count) ** 0.7, 6, 0.5 * height)
  for size in sizes:
    mask[:] = 0
    stretch = size * np.exp(rng.normal(0, 0.5, 2))
    centre = rng.uniform(0, 1, 2) * (width, height)
    turn = rng.uniform(0, np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    _fill(mask, draw_outline(rng) * stretch @ rotation + centre)
    if rng.random() < 0.5:
      cv2.copyTo(fills[int(rng.integers(3))], mask, scene)
    else:
      scene[mask > 127] = draw_palette(rng, 1)[0] * 0.5 + colours[int(rng.integers(6))] * 0.5
  if count and rng.random() < 0.5:
    grain = smooth_noise(rng, height, width, width / 3, 2)
    scene = np.clip(scene * (0.75 + 0.5 * grain[..., None]), 0, 255).astype(np.uint8)
  if rng.random() < 0.35:
    scene = cv2.GaussianBlur(scene, (0, 0), rng.uniform(0.6, 2.5))
  return scene
