"""Paths, sizes and turns of objects in procedural video."""

import numpy as np


def smooth_wave(rng: np.random.Generator, count: int, period: float) -> np.ndarray:
  """Draw a smooth signal in [-1, 1], float [count]: three sines of periods from `period` upwards."""
  frames = np.arange(count)
  periods = period * rng.uniform(1.0, 4.0, 3)
  weights = rng.dirichlet(np.ones(3))
  phases = rng.uniform(0, 2 * np.pi, 3)
  return np.sin(2 * np.pi * frames[:, None] / periods + phases) @ weights


def wander(
  rng: np.random.Generator,
  sizes: np.ndarray,
  frame_size: tuple[int, int],
  speed: float,
  max_speed: float,
) -> np.ndarray:
  """Draw a path that accelerates, halts, turns and bounces off the border.

  Args:
    sizes: [n, 2] width and height of the object in pixels.
    frame_size: (width, height) in pixels.
    speed: usual displacement from frame to frame, as a share of the object's sqrt(w * h).
    max_speed: largest displacement, in the same unit.

  Returns:
    [n, 2] centres in pixels. Part of the object, up to a third, may stick out of the frame.
  """
  count = len(sizes)
  inset = rng.uniform(0.2, 0.6)
  side = np.sqrt(sizes.prod(axis=1))
  bounds = np.asarray(frame_size, np.float64)
  low = inset * sizes
  high = np.maximum(bounds - low, low + 1)
  position = rng.uniform(low[0], high[0])
  heading = rng.uniform(0, 2 * np.pi)
  velocity = speed * side[0] * np.array([np.cos(heading), np.sin(heading)])
  agility = rng.choice([0.05, 0.15, 0.4])
  turn_probability = rng.choice([0.0, 0.03, 0.08])
  halts = rng.random() < 0.2
  pace = np.ones(count)
  if halts:
    pace = np.clip(0.6 + 1.2 * smooth_wave(rng, count, 20), 0, 1)
  path = np.empty((count, 2))
  for i in range(count):
    path[i] = position
    velocity = velocity + agility * speed * side[i] * rng.normal(size=2)
    if rng.random() < turn_probability:
      heading = rng.uniform(0, 2 * np.pi)
      velocity = speed * side[i] * np.array([np.cos(heading), np.sin(heading)])
    length = np.hypot(*velocity)
    # Pull back to the usual speed, so that neither drift nor standstill becomes a habit.
    wanted = np.clip(length, 0.5 * speed * side[i], min(2 * speed, max_speed) * side[i])
    velocity = velocity * (wanted / max(length, 1e-6))
    position = position + velocity * pace[i]
    for axis in range(2):
      if not low[i, axis] <= position[axis] <= high[i, axis]:
        velocity[axis] = abs(velocity[axis]) * (1 if position[axis] < low[i, axis] else -1)
        position[axis] = np.clip(position[axis], low[i, axis], high[i, axis])
  return path


def pass_over(
  rng: np.random.Generator, target_path: np.ndarray, meeting: int, speed: float, offset: np.ndarray
) -> np.ndarray:
  """Draw a straight path [n, 2] px that meets a target, `offset` px from its centre, at one frame."""
  heading = rng.uniform(0, 2 * np.pi)
  steps = np.arange(len(target_path))[:, None] - meeting
  direction = np.array([np.cos(heading), np.sin(heading)])
  return target_path[meeting] + offset + steps * speed * direction


def bend_towards(
  path: np.ndarray, target_path: np.ndarray, meeting: int, frames: float, offset: np.ndarray
) -> np.ndarray:
  """Return a path [n, 2] px bent so that around one frame it runs `offset` px beside a target."""
  steps = np.arange(len(path)) - meeting
  weight = np.exp(-0.5 * (steps / frames) ** 2)[:, None]
  return path + weight * (target_path + offset - path)
