"""Elimination in two kernels, run step by step, keeps what candidates.select keeps."""

import jax.numpy as jnp
import numpy as np
import pytest

from ostrack_jax.models import attention, candidates, fused_elimination, fused_products

_ON_HOPPER = pytest.mark.skipif(not attention.is_hopper(), reason="needs a Hopper GPU")
_HEADS = 3


def _looks(total: int, seed: int = 0, coarse: bool = False):
  draw = np.random.default_rng(seed)
  # Eighths add up exactly in any order, and tie often.
  shape = (1, _HEADS, 1, total)
  return jnp.asarray(draw.integers(0, 3, shape) / 8 if coarse else draw.random(shape), jnp.float32)


def _check_elimination(num_z, count, capacity, width, dtype, coarse, interpret):
  draw = np.random.default_rng(1)
  tokens = jnp.asarray(draw.normal(size=(1, num_z + count, width)), dtype)
  # In parts that no power of two counts, as products leave them.
  wide = np.asarray(tokens, np.float32)[0].reshape(num_z + count, 3, -1)
  sums = fused_products.RowSums(
    jnp.asarray(wide.sum(axis=2).T), jnp.asarray((wide**2).sum(axis=2).T)
  )
  index = jnp.asarray(draw.permutation(2 * count)[None, :count], jnp.int32)
  looks = _looks(num_z + count, coarse=coarse)
  found = fused_elimination.eliminate(tokens, sums, looks, index, capacity, interpret=interpret)

  alive = candidates.Candidates(index=index, valid=None)
  scores = candidates.candidate_scores(looks[..., num_z:])
  order, kept, removed = candidates.select(alive, scores, capacity)
  rows = np.concatenate([np.arange(num_z), num_z + np.asarray(order[0])])
  np.testing.assert_array_equal(found.index, kept.index)
  np.testing.assert_array_equal(found.removed, removed)
  np.testing.assert_array_equal(found.tokens[0], tokens[0, rows])
  np.testing.assert_array_equal(found.sums.sums, sums.sums[:, rows])
  np.testing.assert_array_equal(found.sums.squares, sums.squares[:, rows])


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize(("num_z", "count", "capacity"), [(16, 64, 45), (9, 50, 1), (4, 33, 32)])
def test_what_stays_and_in_which_order(num_z, count, capacity, coarse):
  _check_elimination(num_z, count, capacity, 192, jnp.float32, coarse, interpret=True)


def _check_restored(num_z, count, num_cells, width, dtype, interpret):
  draw = np.random.default_rng(3)
  tokens = jnp.asarray(2 * draw.normal(size=(1, num_z + count, width)) + 0.3, dtype)
  sums = fused_products.row_sums(tokens)
  index = jnp.asarray(draw.permutation(num_cells)[None, :count], jnp.int32)
  ends = jnp.asarray(draw.normal(size=(3, width)), jnp.float32)
  found = fused_elimination.restore(tokens, sums, index, ends, num_cells, interpret=interpret)
  x = np.asarray(tokens[0], np.float64)
  x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-6)
  x = x * np.asarray(ends[1]) + np.asarray(ends[2])
  want = np.zeros((num_z + num_cells, width))
  want[:num_z] = x[:num_z]
  want[num_z + np.asarray(index[0])] = x[num_z:]
  # A token's mean may be rounded, as its sum of squares; the rest is of the type.
  tolerance = max(2e-5, 4 * float(jnp.finfo(dtype).eps))
  np.testing.assert_allclose(np.asarray(found[0], np.float64), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("num_z", "count", "num_cells"), [(16, 45, 64), (9, 1, 49), (4, 33, 33)])
def test_what_is_left_returns_to_its_cells(num_z, count, num_cells):
  _check_restored(num_z, count, num_cells, 128, jnp.float32, interpret=True)


@_ON_HOPPER
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize(
  ("num_z", "count", "capacity"), [(64, 256, 180), (64, 126, 89), (144, 576, 404), (144, 283, 199)]
)
def test_the_compiled_kernels_do_the_same(num_z, count, capacity, dtype):
  for coarse in (False, True):
    _check_elimination(num_z, count, capacity, 768, dtype, coarse, interpret=False)
  _check_restored(num_z, capacity, count, 768, dtype, interpret=False)


def test_scores_that_are_no_numbers_still_give_every_candidate_a_place():
  tokens = jnp.broadcast_to(jnp.arange(24.0)[None, :, None], (1, 24, 64))
  looks = jnp.full((1, _HEADS, 1, 24), jnp.nan, jnp.float32)
  index = jnp.arange(16, dtype=jnp.int32)[None]
  sums = fused_products.row_sums(tokens)
  found = fused_elimination.eliminate(tokens, sums, looks, index, 10, interpret=True)
  np.testing.assert_array_equal(found.tokens[0, :, 0], np.arange(18))
  np.testing.assert_array_equal(found.index[0], np.arange(10))
  np.testing.assert_array_equal(found.removed[0], np.arange(10, 16))
