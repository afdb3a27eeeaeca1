"""Crops cut on the device, so that the next frame's needs no box on the host."""

import functools

import jax
import jax.numpy as jnp

# OpenCV's weights of 8-bit images have 11 bits.
_WEIGHT_ONE = 2048


def _neighbours(side, output_size: int):
  """Return for every pixel of a resized side the pixel before it, unclipped, and the next one's weight."""
  # (i + 0.5) * side / output_size - 0.5, over a common denominator.
  over = (2 * jnp.arange(output_size, dtype=jnp.int32) + 1) * side - output_size
  under = 2 * output_size
  first = jnp.floor_divide(over, under)
  rest = over - first * under
  return first, (2 * _WEIGHT_ONE * rest + under) // (2 * under)


@functools.partial(jax.jit, static_argnums=(2, 3))
def crop_square(frame, box_xywh, factor: float, output_size: int):
  """Cut the square around a box as crop.crop_square does, to the last bit of every pixel.

  Args:
    frame: [H, W, 3] uint8.
    box_xywh: [4] float32 pixels, finite, of positive size.
    factor: crop side over sqrt(w * h).
    output_size: side of the result in pixels.

  Returns:
    The crop [output_size, output_size, 3] uint8, and its side in frame pixels, float32. The square's
    place and side are found in float32, crop.crop_square's in float64: where they are all but half of a
    pixel, and all but whole pixels, they may be rounded otherwise. Above 2048 pixels of side a weight may
    differ by 1 / 2048 where output_size is no power of two.
  """
  height, width = frame.shape[:2]
  x, y, w, h = box_xywh
  side = jnp.maximum(jnp.ceil(jnp.sqrt(w * h) * factor), 1).astype(jnp.int32)
  half = 0.5 * side.astype(jnp.float32)
  x1, y1 = (
    jnp.round(start + 0.5 * extent - half).astype(jnp.int32) for start, extent in ((x, w), (y, h))
  )

  def inside(pixel, start, length):
    # As CropWindow.padding, which loses the last row and column.
    lost = jnp.maximum(start + side - length + 1, 0)
    return (pixel + start >= 0) & (pixel < side - lost)

  # The same for rows and columns, since both sides are equal.
  first, weight = _neighbours(side, output_size)
  near = [jnp.clip(first + step, 0, side - 1) for step in (0, 1)]

  def pixels(row, column):
    shown = inside(row, y1, height)[:, None] & inside(column, x1, width)[None, :]
    at_row = jnp.clip(row + y1, 0, height - 1)[:, None]
    at_column = jnp.clip(column + x1, 0, width - 1)[None, :]
    return jnp.where(shown[..., None], frame[at_row, at_column], 0).astype(jnp.int32)

  def blended(row):
    before, behind = (pixels(row, column) for column in near)
    return before * (_WEIGHT_ONE - weight)[None, :, None] + behind * weight[None, :, None]

  above, below = (blended(row) >> 4 for row in near)
  down = weight[:, None, None]
  mixed = ((above * (_WEIGHT_ONE - down)) >> 16) + ((below * down) >> 16)
  return ((mixed + 2) >> 2).astype(jnp.uint8), side.astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=(2, 3))
def crop_squares(frame, boxes_xywh, factor: float, output_size: int):
  """Do what crop_square does around several boxes [b, 4] of one frame; everything gets a first axis b."""
  return jax.vmap(lambda box_xywh: crop_square(frame, box_xywh, factor, output_size))(boxes_xywh)
