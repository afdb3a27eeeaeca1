"""The table of names: the official state dict, in both directions."""

import itertools

import jax
import numpy as np
import pytest

from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.weights import names
from ostrack_jax.weights.torch_file import read_state_dict

_TINY = OSTrack(
  variant="custom",
  width=8,
  depth=2,
  num_heads=2,
  template_size=32,
  search_size=64,
  head_channels=8,
  elimination_layers=(1,),
  keep_ratios=(0.7,),
)


def _official_shapes(width, depth, positions_z, positions_x, head_widths):
  """Names and shapes of the official state dict, written down from its modules."""
  shapes = {
    "backbone.cls_token": (1, 1, width),
    "backbone.pos_embed": (1, 197, width),
    "backbone.pos_embed_z": (1, positions_z, width),
    "backbone.pos_embed_x": (1, positions_x, width),
    "backbone.patch_embed.proj.weight": (width, 3, 16, 16),
    "backbone.patch_embed.proj.bias": (width,),
  }
  for i in range(depth):
    for name, shape in {
      "norm1.weight": (width,),
      "norm1.bias": (width,),
      "attn.qkv.weight": (3 * width, width),
      "attn.qkv.bias": (3 * width,),
      "attn.proj.weight": (width, width),
      "attn.proj.bias": (width,),
      "norm2.weight": (width,),
      "norm2.bias": (width,),
      "mlp.fc1.weight": (4 * width, width),
      "mlp.fc1.bias": (4 * width,),
      "mlp.fc2.weight": (width, 4 * width),
      "mlp.fc2.bias": (width,),
    }.items():
      shapes[f"backbone.blocks.{i}.{name}"] = shape
  shapes |= {"backbone.norm.weight": (width,), "backbone.norm.bias": (width,)}
  for branch, outputs in (("ctr", 1), ("offset", 2), ("size", 2)):
    for i, (before, after) in enumerate(itertools.pairwise(head_widths)):
      block = f"box_head.conv{i + 1}_{branch}"
      shapes |= {f"{block}.0.weight": (after, before, 3, 3), f"{block}.0.bias": (after,)}
      for name in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"{block}.1.{name}"] = (after,)
      shapes[f"{block}.1.num_batches_tracked"] = ()
    last = f"box_head.conv5_{branch}"
    shapes |= {f"{last}.weight": (outputs, head_widths[-1], 1, 1), f"{last}.bias": (outputs,)}
  return shapes


@pytest.mark.parametrize(
  ("sizes", "positions", "parameters"),
  [((128, 256), (64, 256), 92_518_533), ((192, 384), (144, 576), 92_825_733)],
)
def test_the_table_has_the_242_tensors_of_the_official_models(sizes, positions, parameters):
  model = OSTrack(template_size=sizes[0], search_size=sizes[1])
  shapes = names.torch_shapes(model)
  assert shapes == _official_shapes(768, 12, *positions, (768, 256, 128, 64, 32))
  assert len(shapes) == 242
  buffers = ("running_mean", "running_var", "num_batches_tracked")
  assert parameters == sum(
    int(np.prod(shape)) for name, shape in shapes.items() if not name.endswith(buffers)
  )


def test_the_table_starts_in_the_official_order():
  assert list(names.torch_shapes(_TINY))[:5] == [
    "backbone.cls_token",
    "backbone.pos_embed",
    "backbone.pos_embed_z",
    "backbone.pos_embed_x",
    "backbone.patch_embed.proj.weight",
  ]


def _state(seed=0):
  rng = np.random.default_rng(seed)
  return {
    name: np.array(rng.integers(1000))
    if name.endswith("num_batches_tracked")
    else rng.standard_normal(shape).astype(np.float32)
    for name, shape in names.torch_shapes(_TINY).items()
  }


def test_imported_variables_are_exactly_those_of_the_model():
  images = np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 64, 64, 3), np.float32)
  wanted = jax.eval_shape(_TINY.init, jax.random.key(0), *images)
  found = names.variables_from_torch(_state(), _TINY, "a file")
  found.pop("unused")
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(
    lambda x: (x.shape, x.dtype), wanted
  )


def test_linear_layers_and_convolutions_compute_what_pytorchs_layouts_say():
  state = _state()
  variables = names.variables_from_torch(state, _TINY, "a file")["params"]
  vector = np.arange(8.0)
  np.testing.assert_allclose(
    vector @ variables["backbone"]["blocks_1"]["mlp"]["fc1"]["kernel"],
    state["backbone.blocks.1.mlp.fc1.weight"] @ vector,
    rtol=1e-5,
  )
  patch = np.random.default_rng(1).standard_normal((16, 16, 3))
  np.testing.assert_allclose(
    np.einsum("yxc,yxcd->d", patch, variables["backbone"]["patch_embed"]["proj"]["kernel"]),
    np.einsum("yxc,dcyx->d", patch, state["backbone.patch_embed.proj.weight"]),
    rtol=1e-5,
  )


def test_a_round_trip_gives_every_tensor_back():
  state = _state()
  back = names.torch_from_variables(
    names.variables_from_torch(state, _TINY, "a file"), _TINY, "a folder"
  )
  assert list(back) == list(state)
  for name, array in state.items():
    assert back[name].dtype == array.dtype, name
    assert back[name].flags.c_contiguous
    np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_what_the_network_does_not_use_is_written_as_zeros_where_it_is_unknown():
  variables = names.variables_from_torch(_state(), _TINY, "a file")
  del variables["unused"]
  back = names.torch_from_variables(variables, _TINY, "a folder")
  assert {n: a.shape for n, a in back.items()} == names.torch_shapes(_TINY)
  for name in ("backbone.cls_token", "backbone.pos_embed"):
    assert not back[name].any()
  assert back["box_head.conv1_ctr.1.num_batches_tracked"].dtype == np.int64


def test_variables_share_no_memory_with_the_state():
  state = _state()
  variables = names.variables_from_torch(state, _TINY, "a file")
  before = jax.tree.map(np.copy, variables)
  for array in state.values():
    array[...] = 0
  jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_half_precision_is_widened():
  state = _state()
  name = "backbone.norm.weight"
  state[name] = state[name].astype(np.float16)
  found = names.variables_from_torch(state, _TINY, "f")["params"]["backbone"]["norm"]["scale"]
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, state[name].astype(np.float32))


_QKV = "backbone.blocks.1.attn.qkv.weight"


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({_QKV: None}, r"^f\.pth lacks the tensor '.*qkv.weight' of shape \(24, 8\)$"),
    (
      {_QKV: None, "backbone.norm.bias": None},
      r"lacks the tensor .*qkv.weight.* \(and 1 more such tensors\)",
    ),
    ({_QKV: np.zeros((8, 24), np.float32)}, r"shape \(8, 24\); expected \(24, 8\)"),
    ({_QKV: np.zeros((24, 8), np.int32)}, "type int32; expected floating point"),
    ({"neck.weight": np.zeros(3, np.float32)}, r"'neck.weight' of shape \(3,\), which OSTrack"),
  ],
)
def test_tensors_that_do_not_fit_are_named(change, words):
  state = {name: array for name, array in (_state() | change).items() if array is not None}
  with pytest.raises(ValueError, match=words):
    names.variables_from_torch(state, _TINY, "f.pth")


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda v: v["params"]["backbone"].pop("norm"), "norm/scale should .* found nothing"),
    (lambda v: v["batch_stats"].update(extra=np.zeros(1)), "batch_stats/extra is not a variable"),
    (
      lambda v: v["params"]["backbone"]["norm"].update(scale=np.zeros(9)),
      r"norm/scale should have shape \(8,\), found shape \(9,\)",
    ),
  ],
)
def test_variables_that_do_not_fit_are_named(change, words):
  variables = names.variables_from_torch(_state(), _TINY, "f.pth")
  change(variables)
  with pytest.raises(ValueError, match=f"^folder: .*{words}"):
    names.check_variables(variables, _TINY, "folder")


def test_dimensions_are_read_off_the_shapes():
  assert names.torch_dimensions(_state(), "f.pth") == (
    8,
    2,
    8,
    32,
    64,
    "one_stream",
    0,
    "center",
    False,
    0,
  )


@pytest.mark.parametrize(
  ("name", "array", "words"),
  [
    ("backbone.pos_embed_x", np.zeros((1, 15, 8)), "has 15 positions; expected a square grid"),
    ("backbone.pos_embed_z", np.zeros((4, 8)), r"has shape \(4, 8\); expected rank 3"),
    ("box_head.conv1_ctr.0.weight", None, "lacks the tensor 'box_head.conv1_ctr.0.weight'"),
  ],
)
def test_shapes_that_say_nothing_are_named(name, array, words):
  state = _state() | {name: array}
  if array is None:
    del state[name]
  with pytest.raises(ValueError, match=words):
    names.torch_dimensions(state, "f.pth")


@pytest.mark.parametrize("name", ["ostrack_tiny256.pth.tar", "ostrack_tiny384.pth.tar"])
def test_official_files_survive_the_round_trip(name, golden):
  state = read_state_dict(golden(name)).tensors
  dimensions = names.torch_dimensions(state, name)
  model = OSTrack(
    variant="custom",
    width=dimensions.width,
    depth=dimensions.depth,
    num_heads=4,
    template_size=dimensions.template_size,
    search_size=dimensions.search_size,
    head_channels=dimensions.head_channels,
  )
  back = names.torch_from_variables(names.variables_from_torch(state, model, name), model, name)
  assert len(back) == 242
  assert list(back) == list(state)
  for key, array in state.items():
    assert back[key].dtype == array.dtype
    np.testing.assert_array_equal(back[key], array, err_msg=key)
