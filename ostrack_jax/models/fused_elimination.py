"""Candidate elimination behind fused blocks: two kernels a stage, where XLA takes nine.

One reads off where the template token looks; the other ranks the candidates and moves what stays. The same
tokens as with candidates.select, in the same order, up to the rounding of scores.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ostrack_jax.models.fused_products import RowSums, whole

# Tokens that a program moves, and of how many columns.
_ROWS = 32
_COLUMNS = 64
# Of a head's columns, read in one step.
_LANES = 16
_LOOK_WARPS = 8
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


def _look_kernel(product_ref, looks_ref, *, row: int, num_heads: int):
  count, packed_width = product_ref.shape
  size = packed_width // (3 * num_heads)
  head = pl.program_id(0)
  tokens = jnp.arange(pl.next_power_of_2(count), dtype=jnp.int32)
  inside = tokens < count

  def step(number, so_far):
    lanes = head * size + number * _LANES + jnp.arange(_LANES, dtype=jnp.int32)
    query = triton.load(product_ref.at[row, lanes]).astype(jnp.float32)
    at = product_ref.at[tokens[:, None], (num_heads * size + lanes)[None, :]]
    keys = triton.load(at, mask=inside[:, None], other=0.0).astype(jnp.float32)
    return so_far + (keys * query[None, :]).sum(axis=1)

  zeros = jnp.zeros(tokens.shape, jnp.float32)
  logits = jax.lax.fori_loop(0, size // _LANES, step, zeros) * (1 / math.sqrt(size))
  logits = jnp.where(inside, logits, -jnp.inf)
  weights = jnp.exp(logits - logits.max())
  triton.store(looks_ref.at[head, tokens], weights / weights.sum(), mask=inside)


def template_looks(product, row: int, num_heads: int, *, interpret: bool) -> jax.Array:
  """Return the attention of one template token over all tokens.

  Args:
    product: [1, n, 3 h d] queries, keys and values of every head; d a multiple of 16.
    row: which token looks.
    interpret: run the kernel's steps as plain operations, on any device; for tests.

  Returns:
    [1, h, 1, n] float32, as candidates.template_attention.

  Raises:
    ValueError: d is no multiple of 16.
  """
  size = product.shape[2] // (3 * num_heads)
  if size % _LANES:
    raise ValueError(f"heads of {size} columns: fused blocks need a multiple of {_LANES}")
  packed = product.reshape(product.shape[1:])
  looks = pl.pallas_call(
    functools.partial(_look_kernel, row=row, num_heads=num_heads),
    grid=(num_heads,),
    in_specs=[whole(packed.shape)],
    out_specs=whole((num_heads, len(packed))),
    out_shape=jax.ShapeDtypeStruct((num_heads, len(packed)), jnp.float32),
    compiler_params=triton.CompilerParams(num_warps=_LOOK_WARPS),
    interpret=interpret,
    name="template_looks",
  )(packed)
  return looks[None, :, None]


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
    looks: [1, h, 1, Nz + n] float32, of template_looks.
    index: [1, n] int32 cells of the search grid that the candidates stand for.
    capacity: how many stay, less than n.
    interpret: as for template_looks.
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
