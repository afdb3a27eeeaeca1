"""Blocks of few kernels, run step by step, equal the model's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_layers import added_by_hand, make_layers, make_tokens, normed_by_hand
from small_network import make_images, make_model

from ostrack_jax.models import attention, fused_blocks, fused_products
from ostrack_jax.models.fused_products import Tile
from ostrack_jax.training.state import init_variables


def _with_all_parameters_at_work(model):
  variables = init_variables(model, 0)
  draw = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: x + draw.normal(0, 0.2, x.shape).astype(np.float32), variables["params"]
  )
  return {"params": params, "batch_stats": variables["batch_stats"]}


@pytest.mark.parametrize(
  ("batch", "depth", "stages", "changes"),
  [
    (1, 3, (), {}),
    (1, 3, (0, 1), {}),
    (1, 3, (0, 1), {"identity_embeddings": True}),
    # Of a template of 2 x 2 tokens the others are not the first.
    (1, 3, (0, 1), {"template_tokens": "centre_point_paper"}),
    # Several tokens look, of which the kernels of elimination know nothing.
    (1, 3, (0, 1), {"template_tokens": "all"}),
    # By other kernels.
    (3, 2, (0, 1), {"identity_embeddings": True}),
    (2, 2, (0,), {"template_tokens": "ground_truth_box"}),
  ],
)
def test_the_network_is_the_same(batch, depth, stages, changes):
  keep_ratios = (0.5, 0.6)[: len(stages)]
  model = make_model(depth=depth, elimination_layers=stages, keep_ratios=keep_ratios, **changes)
  variables = _with_all_parameters_at_work(model)
  images = make_images(batch)
  options: dict = dict(attention_layers=(0, depth - 1), feature_layers=(1,))
  if model.template_tokens == "ground_truth_box":
    options["template_mask"] = jnp.arange(4)[None, :] <= jnp.arange(batch)[:, None]
  want = jax.jit(lambda: model.apply(variables, *images, **options))()
  backbone = variables["params"]["backbone"]
  folded = fused_blocks.fold(backbone, depth, jnp.float32)
  # Nothing else is read of the backbone itself.
  rest = {name: value for name, value in backbone.items() if "pos_embed" in name}
  variables["params"]["backbone"] = rest
  found = jax.jit(lambda: model.apply(variables, *images, blocks_folded=folded, **options))()
  assert len(want.removed) == len(stages)
  # The batch's GELU is exact to 4e-5, which later layers may enlarge.
  atol = 3e-5 if batch == 1 else 5e-4
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), found, want)


def test_columns_behind_a_normalisation_sum_to_zero():
  model = make_model(depth=2)
  variables = _with_all_parameters_at_work(model)
  folded = fused_blocks.fold(variables["params"]["backbone"], 2, jnp.float32)
  assert {name: value.shape for name, value in folded.items()} == {
    "qkv": (2, 64, 192),
    "proj": (2, 64, 64),
    "fc1": (2, 64, 256),
    "fc2": (2, 256, 64),
    "shifts": (2, 9 * 64),
    "patches": (1, 768, 64),
    "positions": (1, 20, 64),
    "ends": (3, 64),
  }
  for name in ("qkv", "fc1"):
    np.testing.assert_allclose(folded[name].sum(axis=1), 0, atol=1e-5)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("count", [64, 70])
def test_a_product_behind_a_normalisation(count, gelu):
  tokens, layers = (
    make_tokens((1, count, 128), jnp.float32, 0),
    make_layers(128, 192, 7, jnp.float32),
  )
  sums = fused_products.row_sums(tokens)
  found = fused_products.normed_product(tokens, sums, layers, 1, gelu=gelu, interpret=True)
  np.testing.assert_allclose(found, normed_by_hand(tokens, layers, gelu), atol=1e-5)


def test_a_product_that_ends_a_branch_and_its_sums():
  stream, x = make_tokens((1, 70, 64), jnp.float32, 0), make_tokens((1, 70, 192), jnp.float32, 1)
  layers = make_layers(192, 64, 3, jnp.float32)
  found, sums = fused_products.added_product(stream, x, layers, 1, interpret=True)
  np.testing.assert_allclose(found, added_by_hand(stream, x, layers), atol=1e-5)
  whole = fused_products.row_sums(found)
  # In as many parts as there are tiles of columns.
  assert len(sums.sums) == 2 and len(whole.sums) == 1
  for parts, want in zip(sums, whole):
    np.testing.assert_allclose(parts.sum(axis=0), want[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
  ("kind", "rows", "inputs", "outputs", "want"),
  [
    # 5 x 24 programs; with 12 rows of tiles none of 32 or 64 columns would run at once.
    ("added", 320, 768, 768, Tile(64, 32, 128, 4, 6)),
    ("added", 720, 3072, 768, Tile(64, 128, 128, 4, 4)),
    ("normed", 320, 768, 2304, Tile(64, 128, 64, 4, 4)),
    ("normed", 720, 768, 2304, Tile(128, 128, 64, 4, 4)),
    # 12 x 24 are too many in any tile: the last.
    ("normed_gelu", 720, 768, 3072, Tile(64, 128, 64, 8, 3)),
    # Widths that no larger tile divides.
    ("normed", 320, 192, 576, Tile(64, 64, 64, 4, 4)),
    ("added", 320, 192, 192, Tile(64, 32, 64, 4, 6)),
  ],
)
def test_all_programs_run_at_once_where_they_can(kind, rows, inputs, outputs, want):
  assert fused_products._tile(kind, rows, inputs, outputs) == want


def test_these_blocks_run_on_hopper_alone_for_one_sample_or_a_batch_in_half_precision(monkeypatch):
  monkeypatch.setattr(attention, "_capability", lambda: 9.0)
  assert fused_blocks.suits(1, jnp.float16, 768, 12)
  assert fused_blocks.suits(8, jnp.bfloat16, 768, 12)
  assert not fused_blocks.suits(2, jnp.float16, 768, 12)
  assert not fused_blocks.suits(8, jnp.float32, 768, 12)
  assert not fused_blocks.suits(1, jnp.float32, 768, 12)
  # What the tiles do not divide.
  assert not fused_blocks.suits(1, jnp.float16, 96, 3)
  for other in (8.0, 8.9, 12.0, 0.0):
    monkeypatch.setattr(attention, "_capability", lambda other=other: other)
    assert not fused_blocks.suits(1, jnp.float16, 768, 12)


def test_the_last_block_may_eliminate_and_hides_no_number_that_is_not_finite():
  model = make_model(depth=2, elimination_layers=(0, 1), keep_ratios=(0.5, 0.6))
  variables = init_variables(model, 0)
  folded = fused_blocks.fold(variables["params"]["backbone"], 2, jnp.float32)
  template, search = make_images(1)
  search = search.at[0, 3, 5, 1].set(jnp.nan)
  found = jax.jit(lambda: model.apply(variables, template, search, blocks_folded=folded))()
  assert np.isnan(found.boxes_cxcywh).all()


def test_what_these_blocks_cannot_do_is_refused():
  narrow = init_variables(make_model(width=32), 0)["params"]["backbone"]
  with pytest.raises(ValueError, match="not 32"):
    fused_blocks.fold(narrow, 1, jnp.float32)
  folded = fused_blocks.fold(init_variables(make_model(), 0)["params"]["backbone"], 1, jnp.float32)
  block = fused_blocks.FusedBlock(folded, 0, 2)
  tokens = make_tokens((1, 20, 64), jnp.float32, 0)
  with pytest.raises(ValueError, match="key_valid"):
    block.attend(tokens, None, rows=None, key_valid=jnp.ones((1, 20), bool))
  with pytest.raises(ValueError, match="leave out keep_counts"):
    jax.eval_shape(
      lambda: make_model().apply(
        init_variables(make_model(), 0),
        *make_images(1),
        blocks_folded=folded,
        keep_counts=jnp.full(1, 3),
      )
    )
  with pytest.raises(ValueError, match="scale"):
    block.feed_forward(tokens, None, scale=jnp.ones((1, 1, 1)))


_ON_HOPPER = pytest.mark.skipif(not attention.is_hopper(), reason="needs a Hopper GPU")


@_ON_HOPPER
@pytest.mark.parametrize(
  ("width", "count", "dtype"),
  [(768, count, jnp.float16) for count in (1, 153, 320, 427, 548, 720)]
  + [(384, 190, jnp.bfloat16), (192, 64, jnp.float16)],
)
def test_compiled_products_equal_those_by_hand(width, count, dtype):
  # Of the type's rounding, relative to what is added up.
  tolerance = dict(rtol=4 * float(jnp.finfo(dtype).eps), atol=4 * float(jnp.finfo(dtype).eps))
  tokens = make_tokens((1, count, width), dtype, 0)
  sums = fused_products.row_sums(tokens)
  for outputs, gelu in ((3 * width, False), (4 * width, True)):
    layers = make_layers(width, outputs, 5, dtype)
    found = fused_products.normed_product(tokens, sums, layers, 1, gelu=gelu, interpret=False)
    np.testing.assert_allclose(
      np.asarray(found, np.float64), normed_by_hand(tokens, layers, gelu), **tolerance
    )
  for inputs in (width, 4 * width):
    x, layers = make_tokens((1, count, inputs), dtype, 1), make_layers(inputs, width, 5, dtype)
    found, sums = fused_products.added_product(tokens, x, layers, 1, interpret=False)
    np.testing.assert_allclose(
      np.asarray(found, np.float64), added_by_hand(tokens, x, layers), **tolerance
    )
    for parts, want in zip(sums, fused_products.row_sums(found)):
      np.testing.assert_allclose(parts.sum(axis=0), want[0], rtol=1e-4, atol=1e-2)


@_ON_HOPPER
@pytest.mark.parametrize(
  ("batch", "dtype"), [(1, "float16"), (1, "bfloat16"), (8, "float16"), (9, "bfloat16")]
)
def test_the_compiled_network_is_the_same(batch, dtype):
  # Of 320, 244, 190 and 153 tokens.
  whole = make_model(
    width=384,
    depth=4,
    num_heads=6,
    template_size=128,
    search_size=256,
    elimination_layers=(0, 1, 2),
    keep_ratios=(0.7, 0.7, 0.7),
  )
  model, variables = whole.clone(dtype=dtype), _with_all_parameters_at_work(whole)
  draw = np.random.default_rng(0)
  sizes = [(batch, side, side, 3) for side in (128, 256)]
  images = [jnp.asarray(draw.normal(size=size), jnp.float32) for size in sizes]
  folded = fused_blocks.fold(variables["params"]["backbone"], 4, jnp.dtype(dtype))
  with jax.default_matmul_precision("float32"):
    want = jax.jit(lambda: whole.apply(variables, *images))()
  plain = jax.jit(lambda: model.apply(variables, *images))()
  found = jax.jit(lambda: model.apply(variables, *images, blocks_folded=folded))()

  def apart(output):
    # Of the template's tokens, which no elimination moves.
    features = (np.asarray(x.features, np.float32)[:, :64] for x in (output, want))
    one, other = features
    return np.linalg.norm(one - other) / np.linalg.norm(other)

  # As near to float32 as the blocks that they replace.
  assert apart(found) < 1.5 * apart(plain) + 1e-4
