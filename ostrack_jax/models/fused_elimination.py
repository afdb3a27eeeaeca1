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

# Tokens that a program moves, and of how many columns.
_ROWS = 32
_COLUMNS = 64
_MOVE_WARPS = 4


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


def _move_kernel(looks_ref, index_ref, tokens_ref, *refs, num_z: int):
  *sums_refs, kept_ref, kept_index_ref, removed_ref = refs
  sums_refs, kept_sums_refs = sums_refs[:2], sums_refs[2:]
  heads, total = looks_ref.shape
  count, capacity = total - num_z, kept_index_ref.shape[0]
  rows = pl.program_id(0) * _ROWS + jnp.arange(_ROWS, dtype=jnp.int32)
  position = rows - num_z
  is_candidate = (position >= 0) & (position < count)
  others = jnp.arange(pl.next_power_of_2(count), dtype=jnp.int32)

  def scores(positions, inside):
    # Head by head, so that the same sums come out for a program's own candidates and for all: a reduction may
    # add in an order that depends on how many there are.
    found = jnp.zeros(positions.shape, jnp.float32)
    for head in range(heads):
      found += triton.load(looks_ref.at[head, num_z + positions], mask=inside, other=0.0)
    # Of NaN, too, there is an order: else two candidates could have one place, and others none.
    found = jnp.where(jnp.isnan(found), -0.5, found)
    return jnp.where(inside, found, -1.0)

  mine = scores(position, is_candidate)[:, None]
  theirs = scores(others, others < count)[None, :]
  is_better = (theirs > mine) | ((theirs == mine) & (others[None, :] < position[:, None]))
  rank = is_better.astype(jnp.int32).sum(axis=1)
  stays = is_candidate & (rank < capacity)
  # What does not stay has no place; one outside is never written to.
  place = jnp.where(stays, num_z + rank, jnp.where(position < 0, rows, kept_ref.shape[0]))
  is_placed = stays | (position < 0)

  columns = pl.program_id(1) * _COLUMNS + jnp.arange(_COLUMNS, dtype=jnp.int32)
  moved = triton.load(
    tokens_ref.at[rows[:, None], columns[None, :]], mask=is_placed[:, None], other=0.0
  )
  triton.store(kept_ref.at[place[:, None], columns[None, :]], moved, mask=is_placed[:, None])

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
    grid=(pl.cdiv(total, _ROWS), width // _COLUMNS),
    in_specs=[whole(array.shape) for array in inputs],
    out_specs=[whole(result.shape) for result in results],
    out_shape=results,
    compiler_params=triton.CompilerParams(num_warps=_MOVE_WARPS),
    interpret=interpret,
    name="eliminate",
  )(*inputs)
  return Kept(kept[None], RowSums(*kept_sums), kept_index[None], removed[None])


def _restore_kernel(tokens_ref, sums_ref, squares_ref, index_ref, ends_ref, out_ref, *, num_z: int):
  total, width = out_ref.shape
  kept = index_ref.shape[0]
  rows = pl.program_id(0) * _ROWS + jnp.arange(_ROWS, dtype=jnp.int32)
  columns = pl.program_id(1) * _COLUMNS + jnp.arange(_COLUMNS, dtype=jnp.int32)
  places = jnp.arange(pl.next_power_of_2(kept), dtype=jnp.int32)
  cells = triton.load(index_ref.at[places], mask=places < kept, other=total)
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
    grid=(pl.cdiv(num_z + num_cells, _ROWS), width // _COLUMNS),
    in_specs=[whole(array.shape) for array in inputs],
    out_specs=whole(result.shape),
    out_shape=result,
    compiler_params=triton.CompilerParams(num_warps=_MOVE_WARPS),
    interpret=interpret,
    name="restore",
  )(*inputs)[None]
