"""Batches over devices."""

import jax
import numpy as np
import pytest

from ostrack_jax import sharding


def test_batch_is_split_and_state_is_copied():
  mesh = sharding.make_mesh()
  batch = sharding.put_batch(mesh, {"x": np.arange(8 * mesh.size).reshape(-1, 2)})
  assert {s.data.shape for s in batch["x"].addressable_shards} == {(4, 2)}
  np.testing.assert_array_equal(batch["x"], np.arange(8 * mesh.size).reshape(-1, 2))
  copied = jax.device_put(np.arange(3), sharding.replicated(mesh))
  assert all(s.data.shape == (3,) for s in copied.addressable_shards)


def test_batch_that_does_not_divide_is_refused_with_the_cure():
  mesh = sharding.make_mesh()
  if mesh.size == 1:
    pytest.skip("every batch divides over one device")
  with pytest.raises(
    ValueError, match=r"batch size 6 is not divisible by \d devices; set config.train.batch_size"
  ):
    sharding.check_batch_size(mesh, 6)
  assert sharding.check_batch_size(mesh, 8) == 8
