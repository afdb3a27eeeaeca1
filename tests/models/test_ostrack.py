"""The model as its users call it: fields, shapes, masks, counts, types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ostrack_jax.models.ostrack import OSTrack, normalise_images

SMALL = dict(
  variant="custom",
  width=32,
  depth=4,
  num_heads=2,
  template_size=48,
  search_size=96,
  head_channels=8,
  elimination_layers=(1, 2),
  keep_ratios=(0.7, 0.7),
)


def _inputs(batch=2, template=48, search=96):
  keys = jax.random.split(jax.random.key(7), 2)
  return jax.random.normal(keys[0], (batch, template, template, 3)), jax.random.normal(
    keys[1], (batch, search, search, 3)
  )


def _variables(model, **kwargs):
  template, search = _inputs(1, model.template_size, model.search_size)
  return model.lazy_init(jax.random.key(0), template, search, **kwargs)


@pytest.fixture(scope="module")
def variables():
  """Parameters of the small model; none of its options changes their shapes."""
  return _variables(OSTrack(**SMALL))


def _apply(model, variables, template, search, **kwargs):
  static = {
    name: kwargs.pop(name) for name in ("attention_layers", "train", "mutable") if name in kwargs
  }
  return jax.jit(lambda v, t, s, k: model.apply(v, t, s, **k, **static))(
    variables, template, search, kwargs
  )


@pytest.mark.parametrize(
  ("variant", "width", "depth", "heads"),
  [("ti", 192, 12, 3), ("s", 384, 12, 6), ("l", 1024, 24, 16)],
)
def test_variants_have_the_backbones_of_their_names(variant, width, depth, heads):
  model = OSTrack(variant=variant)
  assert model.dimensions() == dict(width=width, depth=depth, num_heads=heads)
  variables = jax.eval_shape(lambda: _variables(model))
  backbone = sum(x.size for x in jax.tree.leaves(variables["params"]["backbone"]))
  blocks = depth * (12 * width**2 + 13 * width)
  patches, positions, norm = 3 * 16 * 16 * width + width, (64 + 256) * width, 2 * width
  assert backbone == blocks + patches + positions + norm


def test_vit_b_has_the_official_parameter_count():
  variables = jax.eval_shape(lambda: _variables(OSTrack()))
  count = sum(x.size for x in jax.tree.leaves(variables["params"]))
  # The official 92,518,533 include the class token and the 14 x 14 table, which nothing uses.
  assert count == 92_518_533 - 768 - 197 * 768


def test_output_shapes_and_ranges(variables):
  model = OSTrack(**SMALL)
  output = _apply(model, variables, *_inputs())
  assert output.score_map.shape == (2, 6, 6, 1)
  assert output.size_map.shape == output.offset_map.shape == (2, 6, 6, 2)
  assert output.boxes_cxcywh.shape == (2, 4)
  assert output.features.shape == (2, 9 + 36, 32)
  assert [r.shape for r in output.removed] == [(2, 36 - 26), (2, 26 - 19)]
  assert output.attention == ()
  for name in ("score_map", "size_map"):
    values = getattr(output, name)
    assert values.min() >= 1e-4 and values.max() <= 1 - 1e-4


def test_eliminated_cells_are_zero_and_only_those(variables):
  model = OSTrack(**SMALL)
  output = _apply(model, variables, *_inputs())
  zero = np.all(np.asarray(output.features[:, 9:]) == 0, axis=-1)
  for sample in range(2):
    removed = np.concatenate([r[sample] for r in output.removed])
    assert sorted(removed.tolist()) == np.flatnonzero(zero[sample]).tolist()


def test_keep_counts_through_masks_equal_static_shapes(variables):
  static = OSTrack(**{**SMALL, "keep_ratios": (0.85, 0.85)})
  masked = OSTrack(**{**SMALL, "keep_ratios": (1.0, 1.0)})
  counts = jnp.asarray(static.stage_counts(), jnp.int32)
  want = _apply(static, variables, *_inputs())
  got = jax.jit(lambda c: masked.apply(variables, *_inputs(), keep_counts=c))(counts)
  for name in ("score_map", "size_map", "offset_map", "features"):
    np.testing.assert_allclose(getattr(got, name), getattr(want, name), atol=2e-5)
  for stage in range(2):
    for sample in range(2):
      cells = set(np.asarray(got.removed[stage][sample]).tolist()) - {-1}
      assert cells == set(np.asarray(want.removed[stage][sample]).tolist())


def test_one_compilation_serves_every_keep_count(variables):
  model = OSTrack(**{**SMALL, "keep_ratios": (1.0, 1.0)})
  traces = []

  @jax.jit
  def run(counts):
    traces.append(1)
    return model.apply(variables, *_inputs(), keep_counts=counts).score_map

  results = [run(jnp.asarray(c, jnp.int32)) for c in [(36, 36), (30, 25), (26, 19)]]
  assert len(traces) == 1
  assert np.abs(results[0] - results[2]).max() > 0


def test_attention_rows_come_from_the_chosen_token_on_the_grid(variables):
  model = OSTrack(**{**SMALL, "template_tokens": "all"})
  output = _apply(model, variables, *_inputs(), attention_layers=(0, 2, 3))
  assert [a.shape for a in output.attention] == [(2, 2, 9, 45)] * 3
  for rows in output.attention:
    np.testing.assert_allclose(rows.sum(axis=-1), 1.0, atol=1e-5)
  # Layer 2 attends before it eliminates: what layer 1 dropped is zero there, what it drops itself is not.
  first = np.asarray(output.removed[0][0])
  second = np.asarray(output.removed[1][0])
  assert np.all(np.asarray(output.attention[1][0])[..., 9 + first] == 0)
  assert np.all(np.asarray(output.attention[1][0])[..., 9 + second] > 0)
  assert np.all(np.asarray(output.attention[2][0])[..., 9 + second] == 0)
  # The lowest-ranked tokens are the ones that leave.
  scores = np.asarray(output.attention[1][0])[..., 9:].mean(axis=(0, 1))
  kept = np.setdiff1d(np.arange(36), np.concatenate([first, second]))
  assert scores[second].max() <= scores[kept].min()


def test_ground_truth_box_mask_works_per_sample_in_a_batch(variables):
  model = OSTrack(**{**SMALL, "template_tokens": "ground_truth_box"})
  template, search = _inputs()
  mask = np.zeros((2, 9), bool)
  mask[0, [3, 4]] = True
  mask[1, 8] = True
  both = _apply(model, variables, template, search, template_mask=mask)
  for i in range(2):
    alone = _apply(
      model, variables, template[i : i + 1], search[i : i + 1], template_mask=mask[i : i + 1]
    )
    np.testing.assert_allclose(both.score_map[i], alone.score_map[0], atol=1e-5)
    np.testing.assert_array_equal(both.removed[0][i], alone.removed[0][0])


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.005)])
def test_half_precision_keeps_parameters_and_outputs_in_float32(variables, dtype, tolerance):
  model = OSTrack(**{**SMALL, "dtype": dtype})
  shapes = jax.eval_shape(lambda: _variables(model))
  assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
  output = _apply(model, variables, *_inputs())
  for name in ("score_map", "size_map", "offset_map", "boxes_cxcywh"):
    assert getattr(output, name).dtype == jnp.float32
  exact = _apply(OSTrack(**SMALL), variables, *_inputs())
  assert (output.score_map != exact.score_map).any()
  np.testing.assert_allclose(output.score_map, exact.score_map, atol=tolerance)
  assert output.score_map.max() <= 1 - 1e-4


def test_drop_path_drops_whole_samples_and_keeps_the_mean(variables):
  model = OSTrack(**{**SMALL, "drop_path_rate": 0.5, "elimination_layers": (), "keep_ratios": ()})
  template, search = (jnp.tile(x[:1], (64, 1, 1, 1)) for x in _inputs())

  def features(train, key=0):
    out = _apply(
      model,
      variables,
      template,
      search,
      train=train,
      rngs={"drop_path": jax.random.key(key)},
      mutable=["batch_stats"],
    )
    return np.asarray(out[0].features)

  still, noisy = features(False), features(True)
  assert np.abs(still - still[:1]).max() < 1e-5
  # Identical samples: outcomes differ between samples by whole dropped branches, so they repeat.
  distinct = len({row.round(3).tobytes() for row in noisy})
  assert 2 <= distinct < 64
  assert np.abs(features(True, 1) - noisy).max() > 0


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(variant="xl"), "variant 'xl' is unknown"),
    (dict(variant="custom"), "needs width, depth and num_heads"),
    (dict(num_heads=7), "not divisible by num_heads 7"),
    (dict(search_size=250), "search_size 250 must be a positive multiple"),
    (dict(keep_ratios=(0.7,)), "need as many keep_ratios"),
    (dict(elimination_layers=(3, 6, 12)), "must lie in 0..11"),
    (dict(elimination_layers=(6, 3, 9)), "must be increasing"),
    (dict(keep_ratios=(0.7, 0.0, 0.7)), r"must lie in \(0, 1\]"),
    (dict(template_tokens="middle"), "'middle' is unknown"),
    (dict(dtype="float64"), "'float64' is not supported"),
    (dict(head_channels=0), "must be a positive multiple of 8"),
    (dict(num_heads=0), "must be positive whole numbers"),
    (dict(search_size="256"), "must be a positive multiple"),
    (dict(drop_path_rate=1.5), r"must lie in \[0, 1\)"),
    (dict(head_channels=20), "must be a positive multiple of 8"),
  ],
)
def test_bad_fields_are_refused_in_words(fields, message):
  with pytest.raises(ValueError, match=message):
    OSTrack(**fields)


def test_wrong_inputs_are_refused_in_words(variables):
  model = OSTrack(**SMALL)
  template, search = _inputs()
  with pytest.raises(ValueError, match=r"search has shape .* takes \[b, 96, 96, 3\]"):
    _apply(model, variables, template, search[:, :90])
  with pytest.raises(ValueError, match="search is uint8; give normalised floats"):
    _apply(model, variables, template, search.astype(np.uint8))
  with pytest.raises(ValueError, match=r"keep_counts has shape \(3,\); this model takes \[2\]"):
    _apply(model, variables, template, search, keep_counts=np.array([9, 9, 9]))
  with pytest.raises(ValueError, match=r"attention_layers \(4,\) must lie in 0..3"):
    _apply(model, variables, template, search, attention_layers=(4,))
  with pytest.raises(ValueError, match="2 templates and 1 search regions"):
    _apply(model, variables, template, search[:1])
  with pytest.raises(ValueError, match="template_mask is not used"):
    _apply(model, variables, template, search, template_mask=np.ones((2, 9), bool))
  with pytest.raises(ValueError, match="template_mask is missing"):
    _apply(model.clone(template_tokens="ground_truth_box"), variables, template, search)


def test_images_are_normalised_as_trained():
  images = np.array([[[[0, 127, 255]]]], np.uint8)
  want = (np.array([0, 127, 255]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  np.testing.assert_allclose(normalise_images(images)[0, 0, 0], want, rtol=1e-5)
  bright = normalise_images(images, jnp.array([1.2]))[0, 0, 0]
  want = (np.minimum(np.array([0, 127, 255]) * 1.2 / 255, 1) - [0.485, 0.456, 0.406]) / [
    0.229,
    0.224,
    0.225,
  ]
  np.testing.assert_allclose(bright, want, rtol=1e-5)
