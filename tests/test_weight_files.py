"""Networks made of files of weights: what is read off the shapes, and what is new."""

import hashlib

import jax
import numpy as np
import pytest

from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.weight_files import FileOptions, elimination_layers, read_file
from ostrack_jax.weights import names
from ostrack_jax.weights.torch_file import read_state_dict, write_torch_file


def _official(path, **fields):
  """Write an official file of random weights for a network of these fields."""
  fields = dict(width=64, depth=1, template_size=32, search_size=64, head_channels=8) | fields
  model = OSTrack(variant="custom", num_heads=1, elimination_layers=(), keep_ratios=(), **fields)
  rng = np.random.default_rng(0)
  state = {
    name: np.array(0) if not shape else rng.standard_normal(shape).astype(np.float32)
    for name, shape in names.torch_shapes(model).items()
  }
  write_torch_file(path, {"net": state})
  return path


def test_an_official_file_tells_its_sizes_and_where_it_came_from(tmp_path):
  path = _official(tmp_path / "ours.pth.tar", depth=4)
  model, variables, description = read_file(path)
  assert description["model"] == {
    "variant": "custom",
    "width": 64,
    "depth": 4,
    "num_heads": 1,
    "template_size": 32,
    "search_size": 64,
    "head_channels": 8,
    "elimination_layers": [1, 2, 3],
    "keep_ratios": [0.7, 0.7, 0.7],
    "template_tokens": "centre_point",
    "drop_path_rate": 0.1,
    "score_bias": None,
    "relation": "one_stream",
    "relation_layers": None,
    "head": "center",
    "identity_embeddings": False,
    "relative_positions": False,
    "dtype": "float32",
  }
  assert description["source"] == {
    "file": "ours.pth.tar",
    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    "kind": "ostrack",
    "left_out": [],
  }
  assert description["complete"] is True
  assert description["tracker"] == {"template_factor": 2.0, "search_factor": 4.0}
  names.check_variables(variables, model, "variables")
  np.testing.assert_array_equal(
    variables["params"]["backbone"]["pos_embed_x"],
    read_state_dict(path).tensors["backbone.pos_embed_x"],
  )


@pytest.mark.parametrize(("width", "variant"), [(192, "custom"), (64, "custom")])
def test_a_width_alone_does_not_make_a_variant(width, variant, tmp_path):
  path = _official(tmp_path / "f.pth", width=width)
  assert read_file(path)[2]["model"]["variant"] == variant


def test_a_network_of_a_known_size_is_named(tmp_path):
  path = _official(tmp_path / "f.pth", width=192, depth=12)
  model = read_file(path)[0]
  assert (model.variant, model.num_heads, model.elimination_layers) == ("ti", 3, (3, 6, 9))
  assert read_file(path, FileOptions(num_heads=6))[0].variant == "custom"


def test_the_search_factor_is_five_from_384_pixels_on(tmp_path):
  path = _official(tmp_path / "f.pth", template_size=192, search_size=384)
  assert read_file(path)[2]["tracker"] == {"template_factor": 2.0, "search_factor": 5.0}
  options = FileOptions(search_factor=4, template_factor=1.5)
  tracker = read_file(path, options)[2]["tracker"]
  assert tracker == {"template_factor": 1.5, "search_factor": 4.0}


def test_elimination_can_be_off(tmp_path):
  path = _official(tmp_path / "f.pth", depth=4)
  model = read_file(path, FileOptions(elimination=False))[0]
  assert (model.elimination_layers, model.keep_ratios) == ((), ())


@pytest.mark.parametrize(
  ("depth", "layers"),
  [(12, (3, 6, 9)), (24, (6, 12, 18)), (4, (1, 2, 3)), (6, (1, 3, 4)), (2, (1,)), (1, ())],
)
def test_elimination_is_spread_evenly(depth, layers):
  assert elimination_layers(depth) == layers


@pytest.mark.parametrize(
  ("options", "words"),
  [
    (FileOptions(num_heads=5), "width 64 is not divisible by num_heads 5"),
    (FileOptions(num_heads=0), "num_heads 0 must be positive"),
    (FileOptions(search_size=128), "of search_size 64, not 128"),
    (FileOptions(template_size=64), "of template_size 32, not 64"),
    (FileOptions(search_factor=0.5), "search_factor 0.5 must lie between 1 and 100"),
    (FileOptions(template_factor=float("nan")), "template_factor nan must lie"),
  ],
)
def test_options_that_contradict_the_file_are_refused(options, words, tmp_path):
  with pytest.raises(ValueError, match=words):
    read_file(_official(tmp_path / "f.pth"), options)


def test_a_width_that_does_not_tell_the_heads_asks_for_them(tmp_path):
  path = _official(tmp_path / "f.pth", width=96)
  with pytest.raises(ValueError, match="width 96, not a multiple of 64; give num_heads"):
    read_file(path)
  assert read_file(path, FileOptions(num_heads=6))[0].num_heads == 6


def test_a_missing_block_is_named(tmp_path):
  state = read_state_dict(_official(tmp_path / "f.pth", depth=3)).tensors
  state = {n: a for n, a in state.items() if not n.startswith("backbone.blocks.1.")}
  write_torch_file(tmp_path / "f.pth", {"net": state})
  words = r"f\.pth lacks the tensor 'backbone.blocks.1.norm1.weight' .*and 11 more"
  with pytest.raises(ValueError, match=words):
    read_file(tmp_path / "f.pth")


@pytest.fixture
def encoder(tmp_path):
  """A file in MAE's layout, and its tensors."""
  state = read_state_dict(_official(tmp_path / "f.pth", depth=2)).tensors
  state = {
    name.removeprefix("backbone."): array
    for name, array in state.items()
    if name.startswith("backbone.") and not name.startswith("backbone.pos_embed_")
  }
  write_torch_file(tmp_path / "encoder.pth", {"model": state | {"head.bias": np.zeros(3)}})
  return tmp_path / "encoder.pth", state


def test_an_encoder_gets_a_new_head_and_keeps_its_backbone(encoder):
  path, state = encoder
  options = FileOptions(template_size=48, search_size=96, head_channels=8)
  model, variables, description = read_file(path, options)
  assert description["complete"] is False
  assert description["source"]["kind"] == "mae"
  assert description["source"]["left_out"] == ["head.bias"]
  sizes = (model.width, model.depth, model.template_size, model.search_size, model.head_channels)
  assert sizes == (64, 2, 48, 96, 8)
  names.check_variables(variables, model, "variables")
  back = names.torch_from_variables(variables, model, "variables")
  for name, array in state.items():
    np.testing.assert_array_equal(back[f"backbone.{name}"], array)
  images = np.zeros((1, 48, 48, 3), np.float32), np.zeros((1, 96, 96, 3), np.float32)
  variables.pop("unused")
  wanted = jax.eval_shape(model.init, jax.random.key(0), *images)
  assert jax.tree.map(np.shape, variables) == jax.tree.map(lambda x: x.shape, wanted)


def test_the_seed_decides_the_new_head(encoder):
  def kernel(seed):
    options = FileOptions(seed=seed, head_channels=8)
    return read_file(encoder[0], options)[1]["params"]["box_head"]["conv1_ctr"]["conv"]["kernel"]

  np.testing.assert_array_equal(kernel(3), kernel(3))
  assert np.abs(kernel(3) - kernel(4)).max() > 0.01


def test_encoder_sizes_must_be_multiples_of_sixteen(encoder):
  with pytest.raises(ValueError, match="search_size 250 must be a positive multiple"):
    read_file(encoder[0], FileOptions(search_size=250))


@pytest.mark.parametrize(("suffix", "sizes"), [("256", (128, 256)), ("384", (192, 384))])
def test_the_backbone_of_a_real_encoder_file_computes_as_officially(suffix, sizes, golden):
  expected = np.load(golden("mae_tiny_expected.npz"))
  if f"feat_{suffix}" not in expected:
    pytest.skip("the project's own copy has only the position tables")
  options = FileOptions(num_heads=4, template_size=sizes[0], search_size=sizes[1], head_channels=8)
  model, variables, _ = read_file(golden("mae_tiny.pth"), options)
  model = model.clone(elimination_layers=(1,), keep_ratios=(0.7,))
  template, search = (np.transpose(expected[f"{n}_{suffix}"], (0, 2, 3, 1)) for n in "zx")
  with jax.default_matmul_precision("highest"):
    features = jax.jit(model.apply)(variables, template, search).features
  np.testing.assert_allclose(features, expected[f"feat_{suffix}"], rtol=1e-3, atol=1e-4)
