"""What a tracker keeps of a checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ostrack_jax.models import fused_blocks, head
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
  # Of a block four kernels; the patch projection, two position tables, the head's six, and the rest.
  assert len(jax.tree.leaves(prepared)) == 4 * depth + 3 + 6 + 1
  backbone = checkpoint.variables["params"]["backbone"]
  unpacked = prepared.unpack()["params"]["backbone"]
  assert jax.tree.structure(unpacked) == jax.tree.structure(jax.tree.map(np.asarray, backbone))
  for (path, ours), theirs in zip(
    jax.tree_util.tree_leaves_with_path(unpacked), jax.tree.leaves(backbone), strict=True
  ):
    big = path[-1].key == "kernel" or path[-1].key.startswith("pos_embed")
    assert ours.dtype == (jnp.bfloat16 if big else jnp.float32)
    np.testing.assert_array_equal(ours, np.asarray(theirs).astype(ours.dtype))


@pytest.fixture
def fused_for_one(monkeypatch):
  """Batches of one get fused blocks, as on a Hopper GPU; their kernels run step by step."""
  monkeypatch.setattr(fused_blocks, "suits", lambda batch, *_: batch == 1)


def test_one_target_is_found_by_fused_blocks_where_the_model_finds_it(
  fused_for_one, make_checkpoint
):
  checkpoint = make_checkpoint(width=64)
  model, draw = checkpoint.model, np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: x + draw.normal(0, 0.1, x.shape).astype(np.float32), checkpoint.variables["params"]
  )
  variables = {**checkpoint.variables, "params": params}
  crops = [
    draw.integers(0, 256, (1, side, side, 3), np.uint8)
    for side in (model.template_size, model.search_size)
  ]
  plain, fused = (weights.prepare(model, variables, batch) for batch in (None, 1))
  # Eight arrays in place of four a block and the patches' kernel.
  depth = model.dimensions()["depth"]
  assert len(fused.arrays) == len(plain.arrays) - 4 * depth - 1 + 8
  assert set(fused.unpack()["params"]["backbone"]) == {"pos_embed_z", "pos_embed_x"}
  want, found = (
    jax.jit(tracker.forward, static_argnums=0)(model, one, *crops) for one in (plain, fused)
  )
  for name in ("features", "score_map", "boxes_cxcywh"):
    np.testing.assert_allclose(getattr(found, name), getattr(want, name), atol=2e-5)
  window = head.hann_window(model.search_grid)
  told = [np.asarray(tracker.locate(model, one, *crops, window)) for one in (plain, fused)]
  np.testing.assert_allclose(told[1], told[0], atol=1e-5)


def test_batches_get_fused_blocks_where_they_are_asked_for(monkeypatch, make_checkpoint):
  monkeypatch.setattr(fused_blocks, "suits", lambda batch, *_: batch in (1, 8))
  checkpoint = make_checkpoint(width=64)
  for batch, asked, want in (
    (8, False, False),
    (8, True, True),
    (2, True, False),
    (1, False, True),
  ):
    assert weights.fuses_blocks(checkpoint.model, batch, asked) is want
    prepared = weights.prepare(
      checkpoint.model, checkpoint.variables, batch, fuse_blocks=asked
    ).unpack()
    assert ("blocks" in prepared) is want


@pytest.mark.parametrize(
  "changes",
  [
    {"relative_positions": True},
    {"relation": "stark", "elimination_layers": (), "keep_ratios": ()},
  ],
)
def test_models_that_fused_blocks_do_not_know_keep_their_own(
  fused_for_one, make_checkpoint, changes
):
  checkpoint = make_checkpoint(**changes)
  assert "blocks" not in weights.prepare(checkpoint.model, checkpoint.variables, 1).unpack()
