"""What a tracker keeps of a checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ostrack_jax.models import head
from ostrack_jax.models.ostrack import normalise_images
from ostrack_jax.tracking import tracker, weights


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_the_target_is_where_the_model_finds_it(make_checkpoint, dtype, tolerance):
  checkpoint = make_checkpoint(dtype=dtype)
  model = checkpoint.model
  rng = np.random.default_rng(0)
  template, search = (
    rng.integers(0, 256, (2, side, side, 3), np.uint8)
    for side in (model.template_size, model.search_size)
  )
  window = head.hann_window(model.search_grid)
  prepared = weights.prepare(model, checkpoint.variables)
  found = tracker.locate(model, prepared, template, search, window)
  output = model.apply(checkpoint.variables, normalise_images(template), normalise_images(search))
  windowed = output.score_map * window[None, :, :, None]
  want = head.decode_boxes(windowed, output.size_map, output.offset_map)
  np.testing.assert_allclose(found[:, :4], want, atol=tolerance)
  np.testing.assert_allclose(found[:, 4], output.score_map.max(axis=(1, 2, 3)), atol=tolerance)


def test_arrays_are_cast_once_and_few(make_checkpoint):
  checkpoint = make_checkpoint(dtype="bfloat16")
  prepared = weights.prepare(checkpoint.model, checkpoint.variables)
  depth = checkpoint.model.dimensions()["depth"]
  # Of a block four kernels; the patch projection, two position tables, the head's five, and the rest.
  assert len(jax.tree.leaves(prepared)) == 4 * depth + 3 + 5 + 1
  backbone = checkpoint.variables["params"]["backbone"]
  unpacked = prepared.unpack()["params"]["backbone"]
  assert jax.tree.structure(unpacked) == jax.tree.structure(jax.tree.map(np.asarray, backbone))
  for (path, ours), theirs in zip(
    jax.tree_util.tree_leaves_with_path(unpacked), jax.tree.leaves(backbone), strict=True
  ):
    big = path[-1].key == "kernel" or path[-1].key.startswith("pos_embed")
    assert ours.dtype == (jnp.bfloat16 if big else jnp.float32)
    np.testing.assert_array_equal(ours, np.asarray(theirs).astype(ours.dtype))
