"""Offsets between tokens of template and search region, and what they add to attention logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def offset_index(template_grid: int, search_grid: int, search_only: bool) -> tuple[np.ndarray, int]:
  """Number the offsets between tokens [template; search].

  Two pairs of tokens share a number where both lie in the same images and are equally far apart, counted in
  cells of each image's own grid, rows and columns.

  Args:
    search_only: number those from search tokens alone, as in the decoder.

  Returns:
    ([m, n] int32 numbers of the offset from each token to each, how many there are).
  """
  cells = [np.stack(np.divmod(np.arange(g * g), g), axis=1) for g in (template_grid, search_grid)]
  image = np.repeat([0, 1], [len(c) for c in cells])
  places = np.concatenate(cells)
  offsets = places[:, None] - places[None]
  images = np.broadcast_arrays(image[:, None], image[None])
  pairs = np.concatenate([offsets, np.stack(images, axis=-1)], axis=-1)
  if search_only:
    pairs = pairs[template_grid**2 :]
  _, index = np.unique(pairs.reshape(-1, 4), axis=0, return_inverse=True)
  index = index.reshape(pairs.shape[:2]).astype(np.int32)
  # It is kept for the next call.
  index.setflags(write=False)
  return index, int(index.max()) + 1


def offsets_left(index: np.ndarray, num_z: int, cells) -> jax.Array:
  """Return the offsets between the tokens that are left, [b, Nz + n, Nz + n] int32.

  Args:
    index: [Nz + Nx, Nz + Nx] of offset_index; num_z is Nz.
    cells: [b, n] int32, the search-grid cells that are left, in the order of their tokens.
  """
  known = jnp.asarray(index)

  def of_sample(own_cells):
    tokens = jnp.concatenate([jnp.arange(num_z, dtype=jnp.int32), num_z + own_cells])
    return known[tokens[:, None], tokens[None, :]]

  return jax.vmap(of_sample)(cells)


def position_bias(table, index) -> jax.Array:
  """Return what offsets [b, n, n] add to attention logits, [b, h, n, n] float32, by a table [h, offsets]."""
  return jax.vmap(lambda own: table[:, own])(jnp.asarray(index))
