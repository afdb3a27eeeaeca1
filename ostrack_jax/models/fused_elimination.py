"""Candidate elimination behind fused blocks: one kernel a stage, where XLA takes nine, and one at the end, for four.

Of several samples XLA adds up the heads' looks before. One ranks the candidates by where the template token looks, and moves what stays: the same tokens as with
candidates.select, in the same order, up to the rounding of scores. The last normalises, and puts everything back
on its cell.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ostrack_jax.models.fused_norm import by_sample
from ostrack_jax.models.fused_products import EPSILON, RowSums, row_mean

# Tokens that a program moves, and of how many columns at once at most: of eight on an H200 the fastest for 64 samples and
# for one of 576 candidates, and near it for one of 256.
_ROWS = 8
_COLUMNS = 256
_WARPS = 2


class Kept(NamedTuple):
  """What elimination leaves.

  Attributes:
    tokens: [b, Nz + capacity, d], sums theirs.
    index: [b, capacity] int32 cells of the search tokens that stay, the best first.
    removed: [b, n - capacity] int32 cells of the others.
  """

  tokens: jax.Array
  sums: RowSums
  index: jax.Array
  removed: jax.Array


class _Share(NamedTuple):
  """What a program has of a sample: the columns of some of its rows, so many at once, a power of two."""

  columns: int
  chunks: int

  def rows(self) -> jax.Array:
    return pl.program_id(1) * _ROWS + jnp.arange(_ROWS, dtype=jnp.int32)

  def column_chunks(self) -> list[jax.Array]:
    first = pl.program_id(2) * self.chunks
    lanes = jnp.arange(self.columns, dtype=jnp.int32)
    return [(first + number) * self.columns + lanes for number in range(self.chunks)]


def _share(batch: int, width: int) -> _Share:
  """Return what a program has: of one sample few columns, so that all processors have some; of many, all of a row's."""
  columns = min(_COLUMNS, width & -width)
  return _Share(columns, width // columns if batch > 1 else 1)


class _Array(NamedTuple):
  """What a kernel reads, or the shape of what it writes, and which of its axes counts samples; none if it serves all."""

  what: jax.Array | jax.ShapeDtypeStruct
  samples: int | None = 0

  def spec(self) -> pl.BlockSpec:
    """Return the spec by which a program sees all of its sample."""
    shape, axis = self.what.shape, self.samples

    def place(sample, *_):
      return tuple(sample if number == axis else 0 for number in range(len(shape)))

    return pl.BlockSpec(
      tuple(None if number == axis else size for number, size in enumerate(shape)), place
    )


def _shape(shape, dtype, samples: int = 0) -> _Array:
  return _Array(jax.ShapeDtypeStruct(shape, dtype), samples)


def _call(kernel, name: str, rows: int, width: int, inputs, results, interpret: bool):
  """Run a kernel that shares out so many rows of a width, of each sample that the first input has."""
  batch = len(inputs[0].what)
  share = _share(batch, width)
  return pl.pallas_call(
    functools.partial(kernel, share=share),
    grid=(batch, pl.cdiv(rows, _ROWS), width // (share.columns * share.chunks)),
    in_specs=[array.spec() for array in inputs],
    out_specs=[array.spec() for array in results],
    out_shape=[array.what for array in results],
    compiler_params=triton.CompilerParams(num_warps=_WARPS),
    interpret=interpret,
    name=name,
  )(*(array.what for array in inputs))


def _move_kernel(looks_ref, index_ref, tokens_ref, *refs, num_z: int, share: _Share):
  *sums_refs, kept_index_ref, removed_ref, kept_ref = refs[:5]
  kept_sums_refs = refs[5:]
  heads, total = looks_ref.shape
  count, capacity = total - num_z, kept_index_ref.shape[0]
  rows, chunks = share.rows(), share.column_chunks()
  # Read before it is known where they go, or whether they stay.
  is_inside = (rows < total)[:, None]
  tokens = [
    triton.load(tokens_ref.at[rows[:, None], columns[None, :]], mask=is_inside, other=0.0)
    for columns in chunks
  ]

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
  place = jnp.where(stays, num_z + rank, jnp.where(position < 0, rows, num_z + capacity))
  is_placed = stays | (position < 0)
  for values, columns in zip(tokens, chunks, strict=True):
    at = kept_ref.at[place[:, None], columns[None, :]]
    triton.store(at, values, mask=is_placed[:, None])

  # Once for all columns.
  is_first = pl.program_id(2) == 0
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


@functools.cache
def _eliminate_call(capacity: int, interpret: bool):
  """Return the function from (looks, index, tokens, sums, squares) to (index, removed, tokens, sums, squares)."""

  def call(looks, index, tokens, *sums):
    batch, total, width = tokens.shape
    count, parts = index.shape[1], len(sums[0])
    left = total - count + capacity
    if batch > 1:
      # Summed by every program anew, that would take longer than moving the tokens.
      looks = looks.sum(axis=1, keepdims=True)
    kept_index, removed, kept, *kept_sums = _call(
      functools.partial(_move_kernel, num_z=total - count),
      "eliminate",
      total,
      width,
      [
        _Array(looks[:, :, 0]),
        _Array(index),
        _Array(tokens),
        *(_Array(one.reshape(parts, batch, total), 1) for one in sums),
      ],
      [
        _shape((batch, capacity), jnp.int32),
        _shape((batch, count - capacity), jnp.int32),
        _shape((batch, left, width), tokens.dtype),
        *[_shape((parts, batch, left), jnp.float32, 1)] * 2,
      ],
      interpret,
    )
    return kept_index, removed, kept, *(one.reshape(parts, batch * left) for one in kept_sums)

  operands = ("b h t n", "b c", "b n d", "p (b n)", "p (b n)")
  results = ("b k", "b r", "b m d", "p (b m)", "p (b m)")
  return by_sample(call, operands, results)


def eliminate(tokens, sums: RowSums, looks, index, capacity: int, *, interpret: bool) -> Kept:
  """Keep the candidates that the template token looks at most, ties to the lower position.

  Args:
    tokens: [b, Nz + n, d], template first; d a multiple of 64.
    sums: of these tokens, [parts, b (Nz + n)] sample by sample.
    looks: [b, h, 1, Nz + n] float32, of candidates.template_attention.
    index: [b, n] int32 cells of the search grid that the candidates stand for.
    capacity: how many stay, less than n.
    interpret: run the kernel's steps as plain operations, on any device; for tests.
  """
  call = _eliminate_call(capacity, interpret)
  kept_index, removed, kept, *kept_sums = call(looks, index, tokens, *sums)
  return Kept(kept, RowSums(*kept_sums), kept_index, removed)


def _restore_kernel(
  tokens_ref, index_ref, sums_ref, squares_ref, ends_ref, z_ref, x_ref, *, share: _Share
):
  (num_z, width), (num_cells, _) = z_ref.shape, x_ref.shape
  kept = index_ref.shape[0]
  rows = share.rows()
  places = jnp.arange(pl.next_power_of_2(kept), dtype=jnp.int32)
  # Of places beyond the last no cell.
  cells = triton.load(index_ref.at[places], mask=places < kept, other=-1)
  is_mine = cells[None, :] == (rows - num_z)[:, None]
  place = jnp.where(is_mine, places[None, :], 0).sum(axis=1)
  is_kept = is_mine.astype(jnp.int32).sum(axis=1) > 0
  is_template = rows < num_z
  is_cell = ~is_template & (rows < num_z + num_cells)
  source = jnp.where(is_template, rows, num_z + place)
  is_filled = is_template | is_kept
  mean, square = (
    row_mean(ref, source, width, is_filled[None, :]) for ref in (sums_ref, squares_ref)
  )
  factor = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + EPSILON)
  for columns in share.column_chunks():
    at = tokens_ref.at[source[:, None], columns[None, :]]
    tokens = triton.load(at, mask=is_filled[:, None], other=0.0).astype(jnp.float32)
    scale, bias = (triton.load(ends_ref.at[end, columns])[None, :] for end in (1, 2))
    normed = (tokens - mean[:, None]) * factor[:, None] * scale + bias
    filled = jnp.where(is_filled[:, None], normed, 0.0).astype(x_ref.dtype)
    triton.store(z_ref.at[rows[:, None], columns[None, :]], filled, mask=is_template[:, None])
    at = x_ref.at[jnp.where(is_cell, rows - num_z, num_cells)[:, None], columns[None, :]]
    triton.store(at, filled, mask=is_cell[:, None])


@functools.cache
def _restore_call(num_cells: int, interpret: bool):
  """Return the function from (tokens, index, sums, squares, ends) to template tokens and others on their cells."""

  def call(tokens, index, *sums_and_ends):
    batch, total, width = tokens.shape
    num_z = total - index.shape[1]
    *sums, ends = sums_and_ends
    parted = (_Array(one.reshape(-1, batch, total), 1) for one in sums)
    return _call(
      _restore_kernel,
      "restore",
      num_z + num_cells,
      width,
      [_Array(tokens), _Array(index), *parted, _Array(ends, None)],
      [_shape((batch, count, width), tokens.dtype) for count in (num_z, num_cells)],
      interpret,
    )

  operands = ("b n d", "b k", "p (b n)", "p (b n)", "e d")
  return by_sample(call, operands, ("b z d", "b m d"))


def restore(tokens, sums: RowSums, index, ends, num_cells: int, *, interpret: bool) -> jax.Array:
  """Normalise what is left and put search tokens back on their cells, with zeros where none is.

  Args:
    tokens: [b, Nz + n, d], template first; d a multiple of 64.
    sums: of these tokens, [parts, b (Nz + n)] sample by sample.
    index: [b, n] int32 cells of the search tokens, each another.
    ends: of fused_blocks.fold.
    num_cells: of the search grid.
    interpret: run the kernel's steps as plain operations, on any device; for tests.

  Returns:
    [b, Nz + num_cells, d] of tokens' type.
  """
  # Of what is put together here XLA takes the head's part, the search tokens, as it is; of one result it would copy it.
  parts = _restore_call(num_cells, interpret)(tokens, index, *sums, ends)
  return jnp.concatenate(parts, axis=1)
