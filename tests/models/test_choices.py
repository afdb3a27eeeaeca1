"""Choices inside the network that the paper leaves out: embeddings, positions, heads."""

import contextlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_network import make_images, make_model

from ostrack_jax import Tracker, convert, loading
from ostrack_jax.description import describe
from ostrack_jax.initial_weights import read_initial_weights
from ostrack_jax.models import other_heads, relative_positions
from ostrack_jax.models.ostrack import OSTrack, normalise_images
from ostrack_jax.tracking import motion
from ostrack_jax.tracking.cutting import cut_search, cut_template
from ostrack_jax.training import checkpoint, cost, run_summary
from ostrack_jax.training.checkpoint_store import CheckpointStore
from ostrack_jax.training.losses import LossWeights
from ostrack_jax.training.state import create_state, init_variables
from ostrack_jax.training.step import make_train_step

_IDLE = [(f"conv5_{corner}", "bias") for corner in other_heads.CORNERS]
# Two networks that have all of them.
CHOICES = {
  "identity and corner": dict(identity_embeddings=True, head="corner"),
  "relative and mlp": dict(relative_positions=True, head="mlp"),
}


def _run(model, variables, *images, attention_layers=(), **arguments):
  """Apply, compiled: op by op takes minutes."""
  run = jax.jit(lambda v, *x, **a: model.apply(v, *x, attention_layers=attention_layers, **a))
  return run(variables, *images, **arguments)


def _spread(tree, seed: int):
  """Fill what starts near zero, so that it counts."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), tree)


def _without(variables, *names):
  flat = flax.traverse_util.flatten_dict(variables["params"])
  kept = {path: leaf for path, leaf in flat.items() if path[-1] not in names}
  return {**variables, "params": flax.traverse_util.unflatten_dict(kept)}


_IDENTITY = ("template_segment_pos_embed", "search_segment_pos_embed")
_TABLE = "relative_position_bias_table"
_TABLE_PATH = ("backbone", "blocks_0", "attn", _TABLE)


def test_identity_embeddings_are_position_tables_that_all_tokens_of_an_image_share():
  plain, ours = make_model(), make_model(identity_embeddings=True)
  variables = init_variables(ours, 0)
  backbone = dict(variables["params"]["backbone"])
  assert {name: backbone[name].shape for name in _IDENTITY} == dict.fromkeys(_IDENTITY, (1, 1, 64))
  for name in _IDENTITY:
    backbone[name] = _spread(backbone[name], len(name))
  variables = {**variables, "params": {**variables["params"], "backbone": backbone}}
  moved = dict(_without(variables, *_IDENTITY)["params"]["backbone"])
  for name, table in zip(_IDENTITY, ("pos_embed_z", "pos_embed_x")):
    moved[table] = moved[table] + backbone[name]
  moved = {**variables, "params": {**variables["params"], "backbone": moved}}
  template, search = make_images()
  np.testing.assert_allclose(
    _run(ours, variables, template, search).score_map,
    _run(plain, moved, template, search).score_map,
    atol=1e-5,
  )


def test_relative_positions_stand_for_offsets_of_the_tokens_that_are_left():
  index, count = relative_positions.offset_index(2, 4, search_only=False)
  table = np.random.default_rng(0).normal(size=(2, count)).astype(np.float32)
  whole = np.asarray(relative_positions.position_bias(jnp.asarray(table), index[None]))
  assert whole.shape == (1, 2, 20, 20)
  # From search cell (1, 1) to (2, 3), and from (0, 0) to (1, 2): one row and two columns either way.
  assert whole[0, 0, 4 + 5, 4 + 11] == whole[0, 0, 4, 4 + 6] != whole[0, 0, 4 + 11, 4 + 5]
  cells = np.array([[7, 2, 9], [0, 15, 3]], np.int32)
  left = relative_positions.offsets_left(index, 4, jnp.asarray(cells))
  some = relative_positions.position_bias(jnp.asarray(table), left)
  for sample, own in enumerate(cells):
    tokens = [0, 1, 2, 3, *(4 + own)]
    np.testing.assert_array_equal(some[sample], whole[0][:, tokens][:, :, tokens])


def test_relative_positions_move_attention_and_follow_candidates():
  ours, plain = make_model(relative_positions=True), make_model()
  variables = init_variables(ours, 0)
  template, search = make_images()

  def with_table(table):
    flat = flax.traverse_util.flatten_dict(variables["params"])
    params = flax.traverse_util.unflatten_dict({**flat, _TABLE_PATH: table})
    return {**variables, "params": params}

  table = _spread(variables["params"]["backbone"]["blocks_0"]["attn"][_TABLE], 3)
  bare = _run(plain, _without(variables, _TABLE), template, search, attention_layers=(0,))
  level = _run(ours, with_table(jnp.ones_like(table)), template, search)
  # The same for all keys, it is none.
  np.testing.assert_allclose(level.score_map, bare.score_map, atol=1e-5)
  output = _run(ours, with_table(table), template, search, attention_layers=(0,))
  assert np.abs(output.score_map - bare.score_map).max() > 1e-4
  # Attention itself: the logarithm moves by the bias, but for what is common to a row.
  plain_rows = bare.attention[0]
  index, _ = relative_positions.offset_index(2, 4, search_only=False)
  bias = np.asarray(table)[:, index[0]]
  moved = np.log(output.attention[0][:, :, 0]) - np.log(plain_rows[:, :, 0])
  moved = moved - bias[None]
  np.testing.assert_allclose(moved - moved[..., :1], np.zeros_like(moved), atol=1e-4)
  # Candidates that are masked and candidates that have left give the same numbers.
  masked = ours.clone(keep_ratios=(1.0,))
  counts = jnp.asarray(ours.stage_counts(), jnp.int32)
  again = _run(masked, with_table(table), template, search, keep_counts=counts)
  np.testing.assert_allclose(again.score_map, output.score_map, atol=1e-5)


def test_soft_argmax_is_the_expected_corner():
  logits = np.full((1, 4, 4), -50.0, np.float32)
  logits[0, 1, 3] = logits[0, 2, 3] = 0.0
  place, peak = other_heads.soft_argmax(jnp.asarray(logits))
  np.testing.assert_allclose(place, [[3 / 4, 1.5 / 4]], atol=1e-6)
  np.testing.assert_allclose(peak, [0.5], atol=1e-6)


def test_corners_are_ordered_and_scored_by_both_peaks():
  model = make_model(head="corner")
  variables = init_variables(model, 0)
  template, search = make_images()
  params = dict(variables["params"]["box_head"])
  # Every cell is as good as any other.
  for corner in other_heads.CORNERS:
    params[f"conv5_{corner}"] = jax.tree.map(jnp.zeros_like, params[f"conv5_{corner}"])
  variables = {**variables, "params": {**variables["params"], "box_head": params}}
  output = _run(model, variables, template, search)
  assert output.score_map is None and output.size_map is None and output.offset_map is None
  np.testing.assert_allclose(output.boxes_cxcywh, [[0.375, 0.375, 0, 0]] * 2, atol=1e-6)
  np.testing.assert_allclose(output.scores, [1 / 16] * 2, atol=1e-6)
  np.testing.assert_array_equal(output.boxes_near(np.ones((4, 4))), output.boxes_cxcywh)
  # The corners' weights exchanged, the box is the same.
  first = init_variables(model, 0)["params"]["box_head"]
  swapped = {name.translate(str.maketrans("tlbr", "brtl")): tree for name, tree in first.items()}
  found = []
  for own in (first, swapped):
    own = {**variables, "params": {**variables["params"], "box_head": own}}
    found.append(_run(model, own, template, search).boxes_cxcywh)
  assert (found[0][:, 2:] > 0).all()
  np.testing.assert_allclose(*found, atol=1e-6)


def test_mlp_sees_the_mean_of_all_cells():
  head = other_heads.MlpHead(jnp.dtype("float32"))
  features = np.random.default_rng(1).normal(size=(3, 4, 4, 8)).astype(np.float32)
  variables = head.init(jax.random.key(0), features, False)
  boxes_cxcywh, scores = head.apply(variables, features, False)
  x = features.mean(axis=(1, 2))
  for layer in range(3):
    dense = variables["params"][f"layers_{layer}"]
    x = x @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    x = np.maximum(x, 0) if layer < 2 else 1 / (1 + np.exp(-x))
  np.testing.assert_allclose(boxes_cxcywh, x, atol=1e-6)
  assert np.isnan(scores).all()


def _trained(model, tmp_path):
  """Train a step, through a checkpoint."""
  # Without weight decay, which moves what has no gradient.
  optimizer = optax.adam(1e-2)
  rng = np.random.default_rng(2)
  template, search = (rng.integers(0, 256, (2, s, s, 3), np.uint8) for s in (32, 64))
  boxes = np.array([[0.2, 0.3, 0.4, 0.3], [0.5, 0.4, 0.3, 0.2]], np.float32)
  batch = {"template": template, "search": search, "search_box_xywh": boxes}
  step = jax.jit(make_train_step(model, optimizer, LossWeights()))
  state = create_state(init_variables(model, 0), optimizer, 0, averaged=True)
  before = state.params
  state, metrics = step(state, batch)
  state, _ = step(state, batch)
  with contextlib.closing(CheckpointStore(tmp_path / "run", keep=1)) as store:
    store.save(2, state, {"data": {}, "seconds_trained": 0.0})
  return before, state, metrics


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_trains_saves_converts_and_tracks(choice, tmp_path):
  model = make_model(**CHOICES[choice])
  before, state, metrics = _trained(model, tmp_path)
  assert (float(metrics["focal"]) == 0) == (model.head != "center")
  assert np.isfinite(float(metrics["loss"]))
  changed = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, state.params)
  # A softmax does not see what is added to all of it; rounding may.
  moved = {p: c for p, c in flax.traverse_util.flatten_dict(changed).items() if p[1:] not in _IDLE}
  assert min(moved.values()) > 1e-3
  restored = checkpoint.restore_step_variables(tmp_path / "run", None)
  jax.tree.map(np.testing.assert_array_equal, restored["params"], state.ema_variables["params"])
  variables = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
  factors = {"template_factor": 2.0, "search_factor": 4.0}
  about = describe(model, factors, {"kind": "random", "file": "", "sha256": ""}, complete=True)
  network = loading.Checkpoint(model, variables, about)
  loading.write_folder(network, tmp_path / "folder")
  convert.export_file(tmp_path / "folder", tmp_path / "file.pth")
  back = convert.import_file(tmp_path / "file.pth", tmp_path / "back")
  assert back.model == model
  jax.tree.map(np.testing.assert_array_equal, back.variables["params"], variables["params"])
  # Trackers use folded or packed weights; they say what the network itself says of the same crops.
  frame = np.random.default_rng(4).integers(0, 256, (90, 120, 3), np.uint8)
  tracker = Tracker(loading.load(tmp_path / "back"))
  tracker.init(frame, (40, 30, 20, 24))
  template, _, box, size = cut_template(frame, (40, 30, 20, 24), 32, 2.0)
  search, resize_factor = cut_search(frame, box, 64, 4.0, size)
  result = tracker.update(frame)
  output = _run(model, variables, *(normalise_images(x[None]) for x in (template, search)))
  expected = motion.next_box(
    np.asarray(output.boxes_near(tracker._window))[0], box, resize_factor, 64, *size
  )
  np.testing.assert_allclose(result.box_xywh, expected, atol=1e-3)
  np.testing.assert_allclose(result.score, output.scores[0], rtol=1e-4)


def test_files_have_the_official_names():
  from ostrack_jax.weights import names

  def shapes(**fields):
    return names.torch_shapes(make_model(**fields))

  corner = shapes(head="corner")
  assert corner["box_head.conv1_tl.0.weight"] == (16, 64, 3, 3)
  assert corner["box_head.conv4_br.1.running_mean"] == (2,)
  assert corner["box_head.conv5_br.weight"] == (1, 2, 1, 1)
  assert not any("ctr" in name for name in corner)
  assert shapes(head="mlp")["box_head.layers.2.weight"] == (4, 64)
  assert shapes(identity_embeddings=True)["backbone.search_segment_pos_embed"] == (1, 1, 64)
  relative = shapes(relative_positions=True)
  offsets = 3**2 + 7**2 + 2 * 5**2
  assert relative["backbone.blocks.0.attn.relative_position_bias_table"] == (2, offsets)


def test_what_a_start_lacks_is_left_random_and_what_it_has_beyond_is_left_out(tmp_path):
  theirs = make_model(identity_embeddings=True, head="corner")
  variables = jax.tree.map(np.asarray, init_variables(theirs, 1))
  about = describe(
    theirs, {"template_factor": 2.0, "search_factor": 4.0}, {"kind": "ostrack"}, complete=True
  )
  loading.write_folder(loading.Checkpoint(theirs, variables, about), tmp_path / "folder")
  ours = make_model(relative_positions=True)
  fresh = init_variables(ours, 2)
  start = read_initial_weights(tmp_path / "folder", ours, fresh)
  assert "left out: template_segment_pos_embed, search_segment_pos_embed" in start.summary
  assert f"left random: {_TABLE}, head (config.train.seed)" in start.summary
  backbone = start.variables["params"]["backbone"]
  random = fresh["params"]["backbone"]["blocks_0"]["attn"][_TABLE]
  np.testing.assert_array_equal(backbone["blocks_0"]["attn"][_TABLE], random)
  theirs_x = variables["params"]["backbone"]["pos_embed_x"]
  np.testing.assert_array_equal(backbone["pos_embed_x"], theirs_x)


def test_the_default_network_has_none_of_it():
  params = jax.eval_shape(lambda: init_variables(OSTrack(), 0))["params"]
  names = set(params["backbone"])
  assert {n for n in names if not n.startswith("blocks_")} == {
    "norm",
    "patch_embed",
    "pos_embed_x",
    "pos_embed_z",
  }
  assert len(params["box_head"]) == 15
  assert sum(run_summary.count_parameters(params).values()) == sum(
    int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params)
  )


def test_costs_of_heads_by_hand():
  base = make_model()
  macs = {head: cost.forward_macs(base.clone(head=head))["head"] for head in ("corner", "mlp")}
  blocks = 9 * (64 * 16 + 16 * 8 + 8 * 4 + 4 * 2)
  assert macs == {"corner": 16 * 2 * (blocks + 2), "mlp": 2 * 64 * 64 + 4 * 64}


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(head="centre"), "head 'centre' is unknown; choose one of center, corner, mlp"),
    (dict(head="mlp", score_bias=-4.0), "score_bias is for head center"),
    (
      dict(relation="stark", elimination_layers=(), keep_ratios=(), relative_positions=True),
      "relative_positions tells tokens apart that relation 'stark' never joins",
    ),
  ],
)
def test_what_does_not_fit_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    make_model(**fields)
