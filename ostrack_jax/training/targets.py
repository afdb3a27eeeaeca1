"""What the score map should show, and which candidates a training epoch keeps."""

import math

import jax
import jax.numpy as jnp

_MIN_OVERLAP = 0.7


def score_map_targets(boxes_xywh, grid: int) -> jax.Array:
  """Draw a Gaussian around each target's centre cell.

  Args:
    boxes_xywh: [b, 4] targets normalised to the search crop.
    grid: cells per side of the score map.

  Returns:
    [b, grid, grid] float32; exactly 1 at the centre cell. Without a 1 when the rounded centre lies
    outside the grid (the official jitter never lets it).

  The centre is rounded to the nearest cell (halves to even), and the radius is CornerNet's with every
  root divided by 2, as in the official code: 0 or 1 cell for targets of usual size.
  """
  boxes = jnp.asarray(boxes_xywh, jnp.float32) * grid
  width, height = boxes[:, 2], boxes[:, 3]
  centre = jnp.round(boxes[:, :2] + 0.5 * boxes[:, 2:])
  radius = jnp.floor(jnp.maximum(_corner_radius(height, width), 0.0))
  cells = jnp.arange(grid, dtype=jnp.float32)[None, :]
  dx = cells - centre[:, 0][:, None]
  dy = cells - centre[:, 1][:, None]
  squared = jnp.square(dy)[:, :, None] + jnp.square(dx)[:, None, :]
  sigma = ((2 * radius + 1) / 6)[:, None, None]
  inside = (jnp.abs(dy) <= radius[:, None])[:, :, None] & (jnp.abs(dx) <= radius[:, None])[
    :, None, :
  ]
  return jnp.where(inside, jnp.exp(-squared / (2 * jnp.square(sigma))), 0.0)


def _corner_radius(height, width):
  total, area, overlap = height + width, height * width, _MIN_OVERLAP
  c1 = area * (1 - overlap) / (1 + overlap)
  r1 = (total + jnp.sqrt(jnp.square(total) - 4 * c1)) / 2
  c2 = (1 - overlap) * area
  r2 = (2 * total + jnp.sqrt(jnp.square(2 * total) - 16 * c2)) / 2
  b3, c3 = -2 * overlap * total, (overlap - 1) * area
  r3 = (b3 + jnp.sqrt(jnp.square(b3) - 16 * overlap * c3)) / 2
  return jnp.minimum(jnp.minimum(r1, r2), r3)


def keep_ratio_at_epoch(epoch: int, *, final: float, start: int, warmup: int) -> float:
  """Return the share of candidates that each stage keeps in an epoch.

  Args:
    epoch: counted from 1.
    final: ratio from epoch `start + warmup` on.
    start: up to and including this epoch all are kept.
    warmup: epochs of the cosine in between.
  """
  if epoch < start:
    return 1.0
  if epoch >= start + warmup:
    return final
  return final + (1 - final) * (1 + math.cos(math.pi * (epoch - start) / warmup)) / 2
