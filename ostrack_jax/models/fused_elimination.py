"""Candidate elimination behind fused blocks: one kernel a stage, where XLA takes nine, and one at the end, for four.

One ranks the candidates by where the template token looks, and moves what stays: the same tokens as with
candidates.select, in the same order, up to the rounding of scores. The last normalises, and puts everything back
on its cell.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ostrack_jax.models.fused_products import EPSILON, RowSums, row_mean, whole

# Tokens that a program moves, and of how many columns at most: the fastest of ten on an H200.
_ROWS = 16
_COLUMNS = 128
_WARPS = 4


class Kept(NamedTuple):
  """What elimination leaves.

  Attributes:
    tokens: [1, Nz + capacity, d], sums theirs.
    index: [1, capacity] int32 cells of the search tokens that stay, the best first.
    removed: [1, n - capacity] int32 cells of the others.
  """

  tokens: jax.Array
  sums: RowSums
  index: jax.Array
  removed: jax.Array


def _columns(width: int) -> int:
  """Return how many columns a program moves: a power of two."""
  return min(_COLUMNS, width & -width)


def _programs(rows: int, width: int) -> tuple[int, int]:
  return pl.cdiv(rows, _ROWS), width // _columns(width)


def _rows_and_columns(width: int) -> tuple[jax.Array, jax.Array]:
  """Return which rows and columns of an array this program moves."""
  columns = _columns(width)
  return (
    pl.program_id(0) * _ROWS + jnp.arange(_ROWS, dtype=jnp.int32),
    pl.program_id(1) * columns + jnp.arange(columns, dtype=jnp.int32),
  )


def _move_kernel(looks_ref, index_ref, tokens_ref, *refs, num_z: int):
  *sums_refs, kept_ref, kept_index_ref, removed_ref = refs
  sums_refs, kept_sums_refs = sums_refs[:2], sums_refs[2:]
  heads, total = looks_ref.shape
  count, capacity = total - num_z, kept_index_ref.shape[0]
  rows, columns = _rows_and_columns(kept_ref.shape[1])
  # Read before it is known where they go, or whether they stay.
  is_inside = (rows < total)[:, None]
  tokens = triton.load(tokens_ref.at[rows[:, None], columns[None, :]], mask=is_inside, other=0.0)

  others = jnp.arange(pl.next_power_of_2(count), dtype=jnp.int32)
  head = jnp.arange(pl.next_power_of_2(heads), dtype=jnp.int32)
  at = looks_ref.at[head[:, None], (num_z + others)[None, :]]
  is_look = (head < heads)[:, None] & (others < count)[None, :]
  theirs = triton.load(at, mask=is_look, other=0.0).sum(axis=0)
  # Of NaN, too, there is an order: else two candidates could have one place, and others none.
  theirs = jnp.where(jnp.isnan(theirs), -0.5, theirs)
  theirs = jnp.where(others < count, theirs, -1.0)[None, :]
  position = rows - num_z
  is_candidate = (position >= 0) & (position < count)
  # Picked from all, for a sum over heads of its own could be rounded otherwise.
  mine = jnp.where(others[None, :] == position[:, None], theirs, 0.0).sum(axis=1)[:, None]
  is_better = (theirs > mine) | ((theirs == mine) & (others[None, :] < position[:, None]))
  rank = is_better.astype(jnp.int32).sum(axis=1)
  stays = is_candidate & (rank < capacity)
  # What does not stay has no place; one outside is never written to.
  place = jnp.where(stays, num_z + rank, jnp.where(position < 0, rows, kept_ref.shape[0]))
  is_placed = stays | (position < 0)
  at = kept_ref.at[place[:, None], columns[None, :]]
  triton.store(at, tokens, mask=is_placed[:, None])

  # Once for all columns.
  is_first = pl.program_id(1) == 0
  for source, target in zip(sums_refs, kept_sums_refs, strict=True):
    parts = source.shape[0]
    part = jnp.arange(pl.next_power_of_2(parts), dtype=jnp.int32)[:, None]
    here = (part < parts) & is_placed[None, :] & is_first
    values = triton.load(source.at[part, rows[None, :]], mask=here, other=0.0)
    triton.store(target.at[part, place[None, :]], values, mask=here)
  stays, leaves = stays & is_first, is_candidate & ~stays & is_first
  cells = triton.load(index_ref.at[position], mask=stays | leaves, other=0)
  triton.store(kept_index_ref.at[jnp.where(stays, rank, capacity)], cells, mask=stays)
  at = removed_ref.at[jnp.where(leaves, rank - capacity, count - capacity)]
  triton.store(at, cells, mask=leaves)


def eliminate(tokens, sums: RowSums, looks, index, capacity: int, *, interpret: bool) -> Kept:
  """Keep the candidates that the template token looks at most, ties to the lower position.

  Args:
    tokens: [1, Nz + n, d], template first; d a multiple of 64.
    sums: of these tokens.
    looks: [1, h, 1, Nz + n] float32, of packed_attention.attend_and_look.
    index: [1, n] int32 cells of the search grid that the candidates stand for.
    capacity: how many stay, less than n.
    interpret: run the kernel's steps as plain operations, on any device; for tests.
  """
  _, total, width = tokens.shape
  count = index.shape[1]
  num_z = total - count
  left = num_z + capacity
  looks, index, tokens = looks[0, :, 0], index[0], tokens[0]
  parts = jax.ShapeDtypeStruct((len(sums.sums), left), jnp.float32)
  results = [
    parts,
    parts,
    jax.ShapeDtypeStruct((left, width), tokens.dtype),
    jax.ShapeDtypeStruct((capacity,), jnp.int32),
    jax.ShapeDtypeStruct((count - capacity,), jnp.int32),
  ]
  inputs = (looks, index, tokens, *sums)
  *kept_sums, kept, kept_index, removed = pl.pallas_call(
    functools.partial(_move_kernel, num_z=num_z),
    grid=_programs(total, width),
    in_specs=[whole(array.shape) for array in inputs],
    out_specs=[whole(result.shape) for result in results],
    out_shape=results,
    compiler_params=triton.CompilerParams(num_warps=_WARPS),
    interpret=interpret,
    name="eliminate",
  )(*inputs)
  return Kept(kept[None], RowSums(*kept_sums), kept_index[None], removed[None])


def _restore_kernel(tokens_ref, sums_ref, squares_ref, index_ref, ends_ref, out_ref, *, num_z: int):
  total, width = out_ref.shape
  kept = index_ref.shape[0]
  rows, columns = _rows_and_columns(width)
  places = jnp.arange(pl.next_power_of_2(kept), dtype=jnp.int32)
  # Of places beyond the last no cell.
  cells = triton.load(index_ref.at[places], mask=places < kept, other=-1)
  is_mine = cells[None, :] == (rows - num_z)[:, None]
  place = jnp.where(is_mine, places[None, :], 0).sum(axis=1)
  is_kept = is_mine.astype(jnp.int32).sum(axis=1) > 0
  is_template = rows < num_z
  source = jnp.where(is_template, rows, num_z + place)
  is_filled = is_template | is_kept
  mean, square = (
    row_mean(ref, source, width, is_filled[None, :]) for ref in (sums_ref, squares_ref)
  )
  factor = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + EPSILON)
  at = tokens_ref.at[source[:, None], columns[None, :]]
  tokens = triton.load(at, mask=is_filled[:, None], other=0.0).astype(jnp.float32)
  scale, bias = (triton.load(ends_ref.at[end, columns])[None, :] for end in (1, 2))
  normed = (tokens - mean[:, None]) * factor[:, None] * scale + bias
  filled = jnp.where(is_filled[:, None], normed, 0.0).astype(out_ref.dtype)
  triton.store(out_ref.at[rows[:, None], columns[None, :]], filled, mask=(rows < total)[:, None])


def restore(tokens, sums: RowSums, index, ends, num_cells: int, *, interpret: bool) -> jax.Array:
  """Normalise what is left and put search tokens back on their cells, with zeros where none is.

  Args:
    tokens: [1, Nz + n, d], template first; d a multiple of 64.
    sums: of these tokens.
    index: [1, n] int32 cells of the search tokens.
    ends: of fused_blocks.fold.
    num_cells: of the search grid.
    interpret: run the kernel's steps as plain operations, on any device; for tests.

  Returns:
    [1, Nz + num_cells, d] of tokens' type.
  """
  num_z, width = tokens.shape[1] - index.shape[1], tokens.shape[2]
  inputs = (tokens[0], *sums, index[0], ends)
  result = jax.ShapeDtypeStruct((num_z + num_cells, width), tokens.dtype)
  return pl.pallas_call(
    functools.partial(_restore_kernel, num_z=num_z),
    grid=_programs(num_z + num_cells, width),
    in_specs=[whole(array.shape) for array in inputs],
    out_specs=whole(result.shape),
    out_shape=result,
    compiler_params=triton.CompilerParams(num_warps=_WARPS),
    interpret=interpret,
    name="restore",
  )(*inputs)[None]
