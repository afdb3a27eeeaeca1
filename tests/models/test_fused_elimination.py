"""Elimination in two kernels, run step by step, keeps what candidates.select keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ostrack_jax.models import attention, candidates, fused_elimination, fused_products

_ON_HOPPER = pytest.mark.skipif(not attention.is_hopper(), reason="needs a Hopper GPU")
_HEADS = 3


def _looks(batch: int, total: int, coarse: bool):
  draw = np.random.default_rng(0)
  # Eighths add up exactly in any order, and tie often.
  shape = (batch, _HEADS, 1, total)
  return jnp.asarray(draw.integers(0, 3, shape) / 8 if coarse else draw.random(shape), jnp.float32)


def _sums_in_parts(tokens, parts: int):
  """Return sums in parts that no power of two counts, as products leave them."""
  wide = np.asarray(tokens, np.float32).reshape(-1, parts, tokens.shape[2] // parts)
  return fused_products.RowSums(
    jnp.asarray(wide.sum(axis=2).T), jnp.asarray((wide**2).sum(axis=2).T)
  )


def _indices(batch: int, cells: int, count: int):
  """Return for each sample some of the cells, [batch, count]."""
  draw = np.random.default_rng(2)
  return jnp.asarray([draw.permutation(cells)[:count] for _ in range(batch)], jnp.int32)


def _check_elimination(batch, num_z, count, capacity, width, dtype, coarse, interpret):
  draw = np.random.default_rng(1)
  total = num_z + count
  tokens = jnp.asarray(draw.normal(size=(batch, total, width)), dtype)
  sums = _sums_in_parts(tokens, 3)
  index = _indices(batch, 2 * count, count)
  looks = _looks(batch, total, coarse)
  found = fused_elimination.eliminate(tokens, sums, looks, index, capacity, interpret=interpret)

  alive = candidates.Candidates(index=index, valid=None)
  scores = candidates.candidate_scores(looks[..., num_z:])
  order, kept, removed = candidates.select(alive, scores, capacity)
  np.testing.assert_array_equal(found.index, kept.index)
  np.testing.assert_array_equal(found.removed, removed)
  for sample in range(batch):
    rows = np.concatenate([np.arange(num_z), num_z + np.asarray(order[sample])])
    np.testing.assert_array_equal(found.tokens[sample], tokens[sample, rows])
    for one, moved in zip(sums, found.sums, strict=True):
      left = moved.reshape(3, batch, -1)[:, sample]
      np.testing.assert_array_equal(left, one[:, sample * total + rows])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize(("num_z", "count", "capacity"), [(16, 64, 45), (9, 50, 1), (4, 33, 32)])
def test_what_stays_and_in_which_order(num_z, count, capacity, coarse, batch):
  _check_elimination(batch, num_z, count, capacity, 192, jnp.float32, coarse, interpret=True)


def _check_restored(batch, num_z, count, num_cells, width, dtype, interpret):
  draw = np.random.default_rng(3)
  tokens = jnp.asarray(2 * draw.normal(size=(batch, num_z + count, width)) + 0.3, dtype)
  sums = _sums_in_parts(tokens, 3)
  index = _indices(batch, num_cells, count)
  ends = jnp.asarray(draw.normal(size=(3, width)), jnp.float32)
  found = fused_elimination.restore(tokens, sums, index, ends, num_cells, interpret=interpret)
  x = np.asarray(tokens, np.float64)
  mean, variance = (one(axis=2, keepdims=True) for one in (x.mean, x.var))
  x = (x - mean) / np.sqrt(variance + 1e-6) * np.asarray(ends[1]) + np.asarray(ends[2])
  want = np.zeros((batch, num_z + num_cells, width))
  want[:, :num_z] = x[:, :num_z]
  for sample in range(batch):
    want[sample, num_z + np.asarray(index[sample])] = x[sample, num_z:]
  # A token's mean may be rounded, as its sum of squares; the rest is of the type.
  tolerance = max(2e-5, 4 * float(jnp.finfo(dtype).eps))
  np.testing.assert_allclose(np.asarray(found, np.float64), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("num_z", "count", "num_cells"), [(16, 45, 64), (9, 1, 49), (4, 33, 33)])
def test_what_is_left_returns_to_its_cells(num_z, count, num_cells, batch):
  _check_restored(batch, num_z, count, num_cells, 192, jnp.float32, interpret=True)


# With one sample on each device, another share of the work and all heads' looks.
@pytest.mark.parametrize("batch", [4, 8])
def test_every_device_keeps_what_its_own_samples_look_at(four_devices, batch):
  mesh = jax.sharding.Mesh(np.asarray(four_devices), ("batch",))
  samples = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
  num_z, count, capacity = 9, 50, 20
  tokens = jnp.asarray(np.random.default_rng(1).normal(size=(batch, num_z + count, 192)))
  looks, index = _looks(batch, num_z + count, True), _indices(batch, 64, count)
  ends = jnp.ones((3, 192), jnp.float32)

  def run(tokens, looks, index):
    sums = fused_products.row_sums(tokens)
    kept = fused_elimination.eliminate(tokens, sums, looks, index, capacity, interpret=True)
    cells = fused_elimination.restore(kept.tokens, kept.sums, kept.index, ends, 64, interpret=True)
    return kept, cells

  want = jax.jit(run)(tokens, looks, index)
  compiled = jax.jit(run).lower(*jax.device_put((tokens, looks, index), samples)).compile()
  found = compiled(*jax.device_put((tokens, looks, index), samples))
  jax.tree.map(np.testing.assert_array_equal, found, want)
  kept, cells = found
  assert all(one.sharding.is_equivalent_to(samples, 3) for one in (kept.tokens, cells))
  columns = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "batch"))
  assert all(one.sharding.is_equivalent_to(columns, 2) for one in kept.sums)
  text = compiled.as_text()
  assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all", "permute"))


@_ON_HOPPER
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize(
  ("num_z", "count", "capacity"), [(64, 256, 180), (64, 126, 89), (144, 576, 404), (144, 283, 199)]
)
def test_the_compiled_kernels_do_the_same(num_z, count, capacity, dtype):
  for batch in (1, 9):
    for coarse in (False, True):
      _check_elimination(batch, num_z, count, capacity, 768, dtype, coarse, interpret=False)
    _check_restored(batch, num_z, capacity, count, 768, dtype, interpret=False)


def test_a_sample_whose_scores_are_no_numbers_leaves_the_others_alone():
  tokens = jnp.asarray(np.random.default_rng(0).normal(size=(3, 24, 64)), jnp.float32)
  index, looks = _indices(3, 32, 16), _looks(3, 24, coarse=True)
  sums = fused_products.row_sums(tokens)
  want = fused_elimination.eliminate(tokens, sums, looks, index, 10, interpret=True)
  broken = looks.at[1].set(jnp.nan)
  found = fused_elimination.eliminate(tokens, sums, broken, index, 10, interpret=True)
  for sample in (0, 2):
    np.testing.assert_array_equal(found.tokens[sample], want.tokens[sample])
    np.testing.assert_array_equal(found.index[sample], want.index[sample])
  np.testing.assert_array_equal(found.tokens[1], tokens[1, :18])
  np.testing.assert_array_equal(found.removed[1], index[1, 10:])


def test_scores_that_are_no_numbers_still_give_every_candidate_a_place():
  tokens = jnp.broadcast_to(jnp.arange(24.0)[None, :, None], (1, 24, 64))
  looks = jnp.full((1, _HEADS, 1, 24), jnp.nan, jnp.float32)
  index = jnp.arange(16, dtype=jnp.int32)[None]
  sums = fused_products.row_sums(tokens)
  found = fused_elimination.eliminate(tokens, sums, looks, index, 10, interpret=True)
  np.testing.assert_array_equal(found.tokens[0, :, 0], np.arange(18))
  np.testing.assert_array_equal(found.index[0], np.arange(10))
  np.testing.assert_array_equal(found.removed[0], np.arange(10, 16))
