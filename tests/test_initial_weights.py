"""Training starts from whatever `convert` reads, says from what, and refuses another network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ostrack_jax import convert, loading
from ostrack_jax.description import describe
from ostrack_jax.initial_weights import read_initial_weights
from ostrack_jax.loading import Checkpoint
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.training.state import init_variables
from ostrack_jax.weight_files import FileOptions
from ostrack_jax.weights import names, position_tables
from ostrack_jax.weights.torch_file import write_torch_file

_FIELDS = dict(
  variant="custom",
  width=16,
  depth=2,
  num_heads=2,
  template_size=32,
  search_size=64,
  head_channels=8,
  elimination_layers=(),
  keep_ratios=(),
)
_MODEL = OSTrack(**_FIELDS)


def _draw(model):
  """Variables as init_variables gives them, without its compilation."""
  rng = np.random.default_rng(3)
  shapes = jax.eval_shape(lambda: init_variables(model, 0))
  return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), shapes)


@pytest.fixture(scope="module")
def random_variables():
  return _draw(_MODEL)


def _official_state(model=_MODEL):
  rng = np.random.default_rng(0)
  return {
    name: np.array(4) if not shape else rng.standard_normal(shape).astype(np.float32)
    for name, shape in names.torch_shapes(model).items()
  }


def _encoder_state(patch=16, grid=14):
  state = {
    name.removeprefix("backbone."): array
    for name, array in _official_state().items()
    if name.startswith("backbone.") and "pos_embed_" not in name
  }
  rng = np.random.default_rng(1)
  state["pos_embed"] = rng.standard_normal((1, grid**2 + 1, 16)).astype(np.float32)
  state["patch_embed.proj.weight"] = rng.standard_normal((16, 3, patch, patch)).astype(np.float32)
  return state


def _scales():
  return {f"blocks.{i}.ls{n}.gamma": np.full(16, 2, np.float32) for i in (0, 1) for n in (1, 2)}


def _write(path, state):
  write_torch_file(path, {"net": state})
  return path


def _assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    assert isinstance(a, jax.Array)
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def _tree(model=_MODEL, state=None):
  variables = names.variables_from_torch(state or _official_state(model), model, "state")
  return {name: variables[name] for name in ("params", "batch_stats")}


def test_an_empty_path_means_random(random_variables):
  start = read_initial_weights("", _MODEL, random_variables)
  assert start.variables is random_variables
  assert start.summary == "initial weights: random (config.train.seed)"


def test_an_official_file_fills_backbone_and_head(tmp_path, random_variables):
  start = read_initial_weights(
    _write(tmp_path / "f.pth", _official_state()), _MODEL, random_variables
  )
  _assert_same(start.variables, _tree())
  count = sum(leaf.size for leaf in jax.tree.leaves(start.variables["params"]))
  assert start.summary.splitlines()[1:] == [f"  loaded: backbone and head, {count:,} parameters"]


def test_a_converted_folder_and_its_way_back_fill_both(tmp_path, random_variables):
  file = _write(tmp_path / "f.pth", _official_state())
  convert.import_file(file, tmp_path / "folder", FileOptions(num_heads=2))
  convert.export_file(tmp_path / "folder", tmp_path / "back.pth")
  for path in (tmp_path / "folder", str(tmp_path / "back.pth")):
    start = read_initial_weights(path, _MODEL, random_variables)
    _assert_same(start.variables, _tree())


def test_a_shipped_checkpoint_is_found_by_its_name():
  shipped = loading.load("ostrack_tiny")
  start = read_initial_weights("ostrack_tiny", shipped.model, _draw(shipped.model))
  _assert_same(start.variables, {n: shipped.variables[n] for n in ("params", "batch_stats")})


@pytest.mark.parametrize("kind", ["mae", "dinov2"])
def test_an_encoder_fills_the_backbone_and_leaves_the_head_random(kind, tmp_path, random_variables):
  state = _encoder_state()
  if kind == "dinov2":
    state = _encoder_state(patch=14, grid=5) | _scales()
  state |= {"mask_token": np.zeros((1, 16), np.float32)}
  start = read_initial_weights(_write(tmp_path / "f.pth", state), _MODEL, random_variables)
  _assert_same(start.variables["batch_stats"], random_variables["batch_stats"])
  _assert_same(start.variables["params"]["box_head"], random_variables["params"]["box_head"])
  backbone = start.variables["params"]["backbone"]
  scale, grid = (2, 5) if kind == "dinov2" else (1, 14)
  np.testing.assert_array_equal(
    backbone["blocks_1"]["attn"]["proj"]["kernel"], scale * state["blocks.1.attn.proj.weight"].T
  )
  np.testing.assert_array_equal(
    backbone["pos_embed_x"],
    position_tables.resample(state["pos_embed"][:, 1:], 4, antialias=kind == "dinov2"),
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(backbone))
  kernel = "patch kernel 14 to 16 pixels; " if kind == "dinov2" else ""
  assert start.summary.splitlines() == [
    f"initial weights: {tmp_path / 'f.pth'} ({kind})",
    f"  loaded: backbone, {count:,} parameters",
    f"  resampled: {kernel}template positions {grid} x {grid} to 2 x 2; "
    f"search positions {grid} x {grid} to 4 x 4",
    "  left out: mask_token",
    "  left random: head (config.train.seed)",
  ]


def test_a_converted_encoder_starts_as_its_file_does(tmp_path, random_variables):
  file = _write(tmp_path / "f.pth", _encoder_state())
  options = FileOptions(num_heads=2, template_size=32, search_size=64, head_channels=16, seed=9)
  convert.import_file(file, tmp_path / "folder", options)
  convert.export_file(tmp_path / "folder", tmp_path / "back.pth")
  expected = read_initial_weights(file, _MODEL, random_variables).variables
  for path in (tmp_path / "folder", tmp_path / "back.pth"):
    start = read_initial_weights(path, _MODEL, random_variables)
    _assert_same(start.variables, expected)
    assert "left random: head" in start.summary


def test_a_tracker_of_another_size_keeps_its_head_and_resamples_its_positions(
  tmp_path, random_variables
):
  other = _MODEL.clone(template_size=48, search_size=64)
  state = _official_state(other)
  start = read_initial_weights(_write(tmp_path / "f.pth", state), _MODEL, random_variables)
  assert start.variables["params"]["backbone"]["pos_embed_z"].shape == (1, 4, 16)
  _assert_same(start.variables["params"]["box_head"], _tree(other, state)["params"]["box_head"])
  assert "resampled: template positions 3 x 3 to 2 x 2\n" in start.summary + "\n"


def test_a_converted_encoder_of_another_size_is_refused_for_its_file(tmp_path, random_variables):
  options = FileOptions(num_heads=2, template_size=48, search_size=64, head_channels=8)
  convert.import_file(_write(tmp_path / "f.pth", _encoder_state()), tmp_path / "folder", options)
  convert.export_file(tmp_path / "folder", tmp_path / "back.pth")
  words = r"template_size 48 and search_size 64, and config.model has template_size 32 and .*; give"
  for path in (tmp_path / "folder", tmp_path / "back.pth"):
    with pytest.raises(ValueError, match=words):
      read_initial_weights(path, _MODEL, random_variables)


def test_nothing_at_the_path_is_said_with_the_cure(tmp_path, random_variables):
  words = (
    r"config.model.pretrained: there is no file or folder .*absent.pth; .*\(ostrack_tiny\), or"
  )
  with pytest.raises(FileNotFoundError, match=words):
    read_initial_weights(tmp_path / "absent.pth", _MODEL, random_variables)


def _folder(path, model):
  variables = names.variables_from_torch(_official_state(model), model, "state")
  description = describe(model, {"template_factor": 2.0}, {"kind": "ostrack"}, complete=True)
  loading.write_folder(Checkpoint(model, variables, description), path)
  return path


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"width": 32}, "has width 32, depth 2.* and config.model .*custom.* has width 16, depth 2"),
    ({"depth": 1}, "has width 16, depth 1.*has width 16, depth 2, num_heads 2; set these"),
    (
      {"head_channels": 16},
      "head of 16 channels, and config.model.head_channels is 8; set it to 16",
    ),
    (
      {"num_heads": 4},
      "num_heads 4, and .*num_heads 2; set these in config.model, or give weights",
    ),
  ],
)
@pytest.mark.parametrize("make", ["file", "folder"])
def test_another_network_is_refused_naming_both(make, change, words, tmp_path, random_variables):
  other = OSTrack(**{**_FIELDS, **change})
  if make == "folder":
    path = _folder(tmp_path / "folder", other)
  else:
    path = tmp_path / "f.pth"
    _folder(tmp_path / "folder", other)
    convert.export_file(tmp_path / "folder", path)
  with pytest.raises(ValueError, match=words) as error:
    read_initial_weights(path, _MODEL, random_variables)
  assert str(error.value).startswith(f"config.model.pretrained {str(path)!r} has ")


def test_an_encoder_of_a_known_variant_is_named(tmp_path, random_variables):
  state = {
    "pos_embed": np.zeros((1, 5, 192)),
    "patch_embed.proj.weight": np.zeros((192, 3, 16, 16)),
  }
  state |= {"cls_token": np.zeros((1, 1, 192))}
  state |= {f"blocks.{i}.norm1.weight": np.zeros(192) for i in range(12)}
  with pytest.raises(
    ValueError, match=r"has width 192, depth 12, and .*set config.model.variant to 'ti'"
  ):
    read_initial_weights(_write(tmp_path / "f.pth", state), _MODEL, random_variables)
