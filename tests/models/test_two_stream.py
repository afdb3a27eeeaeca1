"""The two-stream trackers aligned with OSTrack: what they compute, and that the shared commands serve them."""

import math

import cv2
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_network import make_images, make_model

from ostrack_jax import convert, loading
from ostrack_jax.description import describe
from ostrack_jax.initial_weights import read_initial_weights
from ostrack_jax.models import head, relative_positions, stark
from ostrack_jax.models.ostrack import OSTrack, normalise_images
from ostrack_jax.sharding import batch_sharding, make_mesh, replicated
from ostrack_jax.tracking import cutting, motion, tracker, weights
from ostrack_jax.tracking.lane import LaneSequence
from ostrack_jax.tracking.lanes import LaneTracker
from ostrack_jax.training import run_summary
from ostrack_jax.training.losses import LossWeights
from ostrack_jax.training.state import create_state, init_variables
from ostrack_jax.training.step import make_train_step

RELATIONS = ("stark", "swintrack")


def _model(relation: str, **fields) -> OSTrack:
  without = dict(elimination_layers=(), keep_ratios=())
  return make_model(**{"relation": relation, "relation_layers": 1, **without, **fields})


def _count(tree) -> int:
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def test_parameters_are_as_many_as_the_papers_networks_have():
  counts = {}
  for relation in RELATIONS:
    model = OSTrack(relation=relation, elimination_layers=(), keep_ratios=())
    params = jax.eval_shape(lambda model=model: init_variables(model, 0))["params"]
    counts[relation] = _count(params["fusion"])
    assert run_summary.count_parameters(params)["fusion"] == counts[relation]
    assert _count(params["backbone"]) == 85_892_352
  attention, norm = 4 * 256 * 256 + 4 * 256, 2 * 256
  feed_forward = 2 * 256 * 2048 + 2048 + 256
  encoder, decoder = attention + feed_forward + 2 * norm, 2 * attention + feed_forward + 3 * norm
  projection, query = 768 * 256 + 256, 256
  assert counts["stark"] == 6 * (encoder + decoder) + norm + projection + query
  width, norm = 768, 2 * 768
  linear = width * width + width
  block = 4 * linear + 2 * norm + 8 * width * width + 5 * width

  def positions_of(grid, linears):
    return 2 * grid * width + norm + linears * linear

  # Offsets within the template, within the search region, and either way between them.
  tables = 8 * (15**2 + 31**2 + 2 * 23**2) + 8 * (31**2 + 23**2)
  positions = positions_of(8, 2) + positions_of(16, 2) + positions_of(8, 1) + positions_of(16, 2)
  assert counts["swintrack"] == 5 * block + norm + positions + tables + norm


@pytest.mark.parametrize("relation", RELATIONS)
def test_template_and_search_region_meet_behind_the_backbone_alone(relation):
  model = _model(relation)
  variables = init_variables(model, 0)
  template, search = make_images()
  run = jax.jit(model.apply)
  output, other = run(variables, template, search), run(variables, template[::-1], search)
  assert output.score_map.shape == (2, 4, 4, 1) and output.boxes_cxcywh.shape == (2, 4)
  assert output.features.shape == (2, 4 + 16, 64)
  np.testing.assert_array_equal(output.features[:, 4:], other.features[:, 4:])
  assert np.abs(output.score_map - other.score_map).max() > 1e-6
  encoded = jax.jit(lambda v, t: model.apply(v, t, method=OSTrack.encode_template))(
    variables, template
  )
  np.testing.assert_array_equal(encoded, output.features[:, :4])
  again = jax.jit(lambda v, x, e: model.apply(v, None, x, encoded_template=e))(
    variables, search, encoded
  )
  np.testing.assert_allclose(again.score_map, output.score_map, rtol=1e-6, atol=1e-7)


def test_the_backbone_is_a_plain_vit_of_the_search_region():
  model = _model("stark")
  variables = init_variables(model, 0)
  template, search = make_images()
  tokens = jax.jit(model.apply)(variables, template, search).features[:, 4:]
  backbone = jax.tree.map(np.asarray, variables["params"]["backbone"])
  x = np.asarray(search, np.float64).reshape(2, 4, 16, 4, 16, 3).transpose(0, 1, 3, 2, 4, 5)
  proj = backbone["patch_embed"]["proj"]
  x = x.reshape(2, 16, -1) @ np.asarray(proj["kernel"], np.float64).reshape(-1, 64) + proj["bias"]
  x = x + np.asarray(backbone["pos_embed_x"])

  def norm(x, p):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"]

  erf = np.vectorize(math.erf)
  block = backbone["blocks_0"]
  qkv = norm(x, block["norm1"]) @ block["attn"]["qkv"]["kernel"] + block["attn"]["qkv"]["bias"]
  q, k, v = np.moveaxis(qkv.reshape(2, 16, 3, 2, 32), (2, 3), (0, 1))
  logits = q @ k.swapaxes(-1, -2) / math.sqrt(32)
  shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  mixed = np.moveaxis(shares @ v, 0, 2).reshape(2, 16, 64)
  x = x + mixed @ block["attn"]["proj"]["kernel"] + block["attn"]["proj"]["bias"]
  hidden = norm(x, block["norm2"]) @ block["mlp"]["fc1"]["kernel"] + block["mlp"]["fc1"]["bias"]
  hidden = 0.5 * hidden * (1 + erf(hidden / math.sqrt(2)))
  x = x + hidden @ block["mlp"]["fc2"]["kernel"] + block["mlp"]["fc2"]["bias"]
  np.testing.assert_allclose(tokens, norm(x, backbone["norm"]), atol=2e-5)


def test_sine_positions():
  positions = stark.sine_positions(8)
  assert positions.shape == (64, 256)
  angle = 2 * math.pi * 3 / (8 + 1e-6)  # the third of eight
  row, column = positions[2 * 8 + 5], positions[5 * 8 + 2]
  np.testing.assert_allclose(row[:2], [math.sin(angle), math.cos(angle)], atol=1e-6)
  np.testing.assert_allclose(column[128:130], row[:2], atol=1e-6)
  np.testing.assert_allclose(row[126], math.sin(angle / 10000 ** (126 / 128)), atol=1e-6)


def test_pytorchs_layers_give_the_numbers_of_starks():
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(1)
  tokens, positions = (rng.normal(size=(2, 5, 256)).astype(np.float32) for _ in range(2))
  layer = stark.EncoderLayer(jnp.dtype("float32"))
  variables = layer.init(jax.random.key(0), tokens, positions, False)
  ours = layer.apply(variables, tokens, positions, False)
  params = jax.tree.map(lambda x: torch.tensor(np.asarray(x)), variables["params"])
  attention = torch.nn.MultiheadAttention(256, 8, batch_first=True)
  attention.in_proj_weight.data = params["self_attn"]["in_proj"]["kernel"].T
  attention.in_proj_bias.data = params["self_attn"]["in_proj"]["bias"]
  attention.out_proj.weight.data = params["self_attn"]["out_proj"]["kernel"].T
  attention.out_proj.bias.data = params["self_attn"]["out_proj"]["bias"]
  x, placed = torch.tensor(tokens), torch.tensor(tokens + positions)

  def norm(x, p):
    return torch.nn.functional.layer_norm(x, (256,), p["scale"], p["bias"], 1e-5)

  x = norm(x + attention(placed, placed, x)[0], params["norm1"])
  hidden = torch.relu(x @ params["linear1"]["kernel"] + params["linear1"]["bias"])
  x = norm(x + hidden @ params["linear2"]["kernel"] + params["linear2"]["bias"], params["norm2"])
  np.testing.assert_allclose(ours, x.detach().numpy(), atol=1e-5)


def test_offsets_are_numbered_by_image_and_distance():
  index, count = relative_positions.offset_index(2, 3, search_only=False)
  assert index.shape == (13, 13) and count == 3**2 + 5**2 + 2 * 4**2
  # Cell (0, 0) to (1, 1) is as far within the template as within the search region, and yet another offset.
  assert index[0, 3] != index[4, 8] and index[4, 8] == index[8, 12] == index[5, 9]
  assert index[0, 8] == index[0, 4 + 4] != index[4, 4 + 4]
  index, count = relative_positions.offset_index(2, 3, search_only=True)
  assert index.shape == (9, 13) and count == 5**2 + 4**2
  assert sorted(set(index.ravel())) == list(range(count))


def _batch(model: OSTrack, batch: int = 4):
  rng = np.random.default_rng(2)
  images = {
    name: rng.integers(0, 256, (batch, size, size, 3), np.uint8)
    for name, size in (("template", model.template_size), ("search", model.search_size))
  }
  return images | {"search_box_xywh": rng.uniform(0.2, 0.5, (batch, 4)).astype(np.float32)}


def _train(model, variables, batch, mesh, steps):
  # Compiles in a third of the time that Adam takes.
  optimizer = optax.sgd(1e-3, momentum=0.9)
  step = make_train_step(model, optimizer, LossWeights(), batch_norm_shards=mesh.size)
  step = jax.jit(
    step,
    in_shardings=(replicated(mesh), batch_sharding(mesh)),
    out_shardings=replicated(mesh),
  )
  # Placed now, lest the second step compile anew for a state that is.
  state, losses = jax.device_put(create_state(variables, optimizer, 0), replicated(mesh)), []
  for _ in range(steps):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
  return state, losses


@pytest.mark.parametrize("relation", RELATIONS)
def test_training_reaches_every_parameter_and_devices_change_nothing(relation):
  model = _model(relation)
  variables = init_variables(model, 0)
  batch = _batch(model)
  devices = jax.devices()
  state, losses = _train(model, variables, batch, make_mesh(devices[:1]), 6)
  assert losses[-1] < losses[0]
  # Momentum sums up gradients, which may be too small to change a parameter visibly.
  gradients = flax.traverse_util.flatten_dict(state.opt_state[0].trace)
  idle = [
    path
    for path, gradient in gradients.items()
    # What a convolution adds to all cells, the normalisation behind it takes away.
    if not np.abs(gradient).max() > 0 and path[-2:] != ("conv", "bias")
  ]
  # The first layer's target is zero, and one query attends to itself whatever its projections say.
  first = ("fusion", "decoder_0", "self_attn", "in_proj", "kernel")
  assert idle == ([first] if relation == "stark" else [])
  _, spread = _train(model, variables, batch, make_mesh(devices[:2]), 3)
  np.testing.assert_allclose(spread, losses[:3], rtol=1e-4)


def _checkpoint(relation: str) -> loading.Checkpoint:
  model = _model(relation)
  variables = jax.tree.map(np.asarray, init_variables(model, 3))
  factors = {"template_factor": 2.0, "search_factor": 4.0}
  about = describe(model, factors, {"kind": "random", "file": "", "sha256": ""}, complete=True)
  return loading.Checkpoint(model, variables, about)


@pytest.mark.parametrize("relation", RELATIONS)
def test_files_and_folders_keep_all_of_it(relation, tmp_path):
  checkpoint = _checkpoint(relation)
  loading.write_folder(checkpoint, tmp_path / "folder")
  convert.export_file(tmp_path / "folder", tmp_path / "file.pth")
  back = convert.import_file(tmp_path / "file.pth", tmp_path / "back")
  assert back.model == checkpoint.model
  for name in ("params", "batch_stats"):
    jax.tree.map(np.testing.assert_array_equal, back.variables[name], checkpoint.variables[name])
  assert f"{relation}, 1 layers" in convert.summarise(back)
  for path in (tmp_path / "file.pth", tmp_path / "folder"):
    fresh = init_variables(checkpoint.model, 9)
    start = read_initial_weights(path, checkpoint.model, fresh)
    jax.tree.map(
      np.testing.assert_array_equal, start.variables["params"], checkpoint.variables["params"]
    )
    # Another relation finds the backbone alone.
    other = _model("one_stream", relation_layers=None)
    fresh = init_variables(other, 9)
    start = read_initial_weights(path, other, fresh)
    assert "left random: head" in start.summary
    for part, expected in (
      ("backbone", checkpoint.variables["params"]["backbone"]),
      ("box_head", fresh["params"]["box_head"]),
    ):
      jax.tree.map(np.testing.assert_array_equal, start.variables["params"][part], expected)


@pytest.mark.parametrize("relation", RELATIONS)
def test_tracking_computes_the_template_once_and_lanes_agree(relation, monkeypatch, tmp_path):
  checkpoint = _checkpoint(relation)
  rng = np.random.default_rng(4)
  frames = list(rng.integers(0, 256, (4, 60, 80, 3), np.uint8))
  paths = [tmp_path / f"{number}.png" for number in range(len(frames))]
  for path, frame in zip(paths, frames):
    cv2.imwrite(str(path), frame[..., ::-1])
  calls = []
  encode = tracker._encode_template
  monkeypatch.setattr(tracker, "_encode_template", lambda *a: calls.append(1) or encode(*a))
  single = tracker.Tracker(checkpoint)
  single.init(frames[0], (20, 15, 24, 20))
  found = [single.update(frame).box_xywh for frame in frames[1:]]
  assert len(calls) == 1
  follower = tracker.Tracker(checkpoint)
  follower.init(frames[0], (20, 15, 24, 20))
  followed = [result.box_xywh for result in follower.follow(frames[1:])]
  np.testing.assert_allclose(followed[0], found[0], atol=1e-3)
  sequence = LaneSequence(name="a", frames=paths, init_box_xywh=np.array([20.0, 15, 24, 20]))
  lanes = LaneTracker(checkpoint, batch_size=2, groups=1, threads=1, processes=0, devices=jax.devices()[:1])  # fmt: skip
  (result,) = lanes.track([[sequence]])
  np.testing.assert_allclose(result.boxes_xywh[1], found[0], atol=1e-3)
  # The network itself, on the crops that it was given.
  model = checkpoint.model
  template, _, box, size = cutting.cut_template(frames[0], (20, 15, 24, 20), 32, 2.0)
  search, resize_factor = cutting.cut_search(frames[1], box, 64, 4.0, size)
  output = jax.jit(model.apply)(
    checkpoint.variables, *(normalise_images(x[None]) for x in (template, search))
  )
  cell = np.asarray(output.boxes_near(head.hann_window(model.search_grid)))[0]
  expected = motion.next_box(cell, box, resize_factor, 64, *size)
  np.testing.assert_allclose(found[0], expected, atol=1e-3)


def test_weights_for_tracking_keep_what_is_computed_in_float32():
  checkpoint = _checkpoint("swintrack")
  prepared = weights.prepare(checkpoint.model.clone(dtype="bfloat16"), checkpoint.variables)
  types = {
    path[1:]: str(array.dtype) for path, array in zip(prepared.layout.paths, prepared.arrays)
  }
  positions = ("fusion", "encoder_positions", "x_untied_pos_enc", "pos_q_linear", "kernel")
  assert types[positions] == "float32"
  assert types["fusion", "encoder_0", "qkv", "kernel"] == "bfloat16"


def test_a_start_of_another_size_leaves_what_knows_the_size_random(tmp_path):
  loading.write_folder(_checkpoint("swintrack"), tmp_path / "folder")
  larger = _model("swintrack", search_size=96)
  start = read_initial_weights(tmp_path / "folder", larger, init_variables(larger, 1))
  assert "left random: swintrack and head" in start.summary


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(relation="siamese"), "relation 'siamese' is unknown; choose one of one_stream, stark"),
    (dict(elimination_layers=(0,), keep_ratios=(0.7,)), "has no candidates to eliminate"),
    (dict(relation_layers=0), "relation_layers 0 must be a positive whole number"),
    (dict(relation_layers=1.5), "relation_layers 1.5 must be a positive whole number"),
    (dict(relation="one_stream"), "relation_layers 1 must be .*, and None with"),
    (dict(width=60), "width 60 is not divisible by swintrack's 8 heads"),
  ],
)
def test_what_does_not_fit_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    _model("swintrack", **fields) if "relation" not in fields else _model(**fields)


def test_one_stream_takes_no_encoded_template_and_two_streams_no_schedule():
  model = _model("one_stream", relation_layers=None)
  template, search = make_images()
  variables = init_variables(model, 0)
  with pytest.raises(ValueError, match="which is 'one_stream'"):
    model.apply(variables, None, search, encoded_template=jnp.zeros((2, 4, 64)))
  model = _model("stark")
  with pytest.raises(ValueError, match="neither keep_counts nor attention_layers"):
    model.apply(init_variables(model, 0), template, search, attention_layers=(0,))


def test_folded_blocks_are_of_one_stream_alone():
  model = make_model(relation="stark", elimination_layers=(), keep_ratios=())
  with pytest.raises(ValueError, match="blocks_folded is of one-stream trackers alone"):
    jax.eval_shape(lambda: model.init(jax.random.key(0), *make_images(1), blocks_folded={}))
