"""DINOv2 encoders come out as plain ViTs that compute the same features."""

import functools

import cv2
import jax
import numpy as np
import pytest
import scipy.special

from ostrack_jax.models import fused_norm, vit
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.weights import dinov2, names, pretrained
from ostrack_jax.weights.pretrained import read_weights
from ostrack_jax.weights.torch_file import write_torch_file

_WIDTH, _HEADS, _DEPTH, _GRID = 16, 2, 2, 5


def _state(patch=14):
  """An encoder in Facebook's layout, scales far from one."""
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.standard_normal(shape).astype(np.float32)

  state = {
    "cls_token": draw(1, 1, _WIDTH),
    "pos_embed": draw(1, _GRID**2 + 1, _WIDTH),
    "mask_token": draw(1, _WIDTH),
    "patch_embed.proj.weight": draw(_WIDTH, 3, patch, patch) / 10,
    "patch_embed.proj.bias": draw(_WIDTH),
  }
  shapes = {
    "norm1": (_WIDTH,),
    "attn.qkv": (3 * _WIDTH, _WIDTH),
    "attn.proj": (_WIDTH, _WIDTH),
    "norm2": (_WIDTH,),
    "mlp.fc1": (4 * _WIDTH, _WIDTH),
    "mlp.fc2": (_WIDTH, 4 * _WIDTH),
  }
  for i in range(_DEPTH):
    for name, shape in shapes.items():
      state[f"blocks.{i}.{name}.weight"] = draw(*shape) / 2
      state[f"blocks.{i}.{name}.bias"] = draw(shape[0])
    for scale in ("ls1", "ls2"):
      state[f"blocks.{i}.{scale}.gamma"] = 3 * draw(_WIDTH)
  return state | {"norm.weight": draw(_WIDTH), "norm.bias": draw(_WIDTH)}


def _hugging_face(state, prefix=""):
  """The same encoder under Hugging Face's names."""
  renamed = {
    "embeddings.cls_token": state["cls_token"],
    "embeddings.mask_token": state["mask_token"],
    "embeddings.position_embeddings": state["pos_embed"],
    "layernorm.weight": state["norm.weight"],
    "layernorm.bias": state["norm.bias"],
  }
  for kind in ("weight", "bias"):
    renamed[f"embeddings.patch_embeddings.projection.{kind}"] = state[f"patch_embed.proj.{kind}"]
  for i in range(_DEPTH):
    ours, theirs = f"blocks.{i}", f"encoder.layer.{i}"
    for number in (1, 2):
      renamed[f"{theirs}.layer_scale{number}.lambda1"] = state[f"{ours}.ls{number}.gamma"]
    for kind in ("weight", "bias"):
      thirds = np.split(state[f"{ours}.attn.qkv.{kind}"], 3)
      for part, third in zip(("query", "key", "value"), thirds):
        renamed[f"{theirs}.attention.attention.{part}.{kind}"] = third
      renamed[f"{theirs}.attention.output.dense.{kind}"] = state[f"{ours}.attn.proj.{kind}"]
      for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
        renamed[f"{theirs}.{part}.{kind}"] = state[f"{ours}.{part}.{kind}"]
  return {f"{prefix}{name}": array for name, array in renamed.items()}


def _pth(tmp_path, state):
  write_torch_file(tmp_path / "dinov2.pth", state)
  return tmp_path / "dinov2.pth"


def _npz(tmp_path, state):
  np.savez(tmp_path / "dinov2.npz", **state)
  return tmp_path / "dinov2.npz"


def _assert_same(found, expected):
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_scales_are_folded_by_hand():
  state = {
    "blocks.0.ls1.gamma": np.array([2.0, -1.0]),
    "blocks.0.attn.proj.weight": np.array([[1.0, 2.0], [3.0, 4.0]]),
    "blocks.0.attn.proj.bias": np.array([5.0, 6.0]),
    "blocks.0.ls2.gamma": np.array([0.5, 10.0]),
    "blocks.0.mlp.fc2.weight": np.array([[1.0, 2.0, 4.0], [3.0, 5.0, 6.0]]),
    "blocks.0.mlp.fc2.bias": np.array([2.0, 0.1]),
    "blocks.0.mlp.fc1.bias": np.array([7.0]),
  }
  expected = {
    "blocks.0.attn.proj.weight": [[2.0, 4.0], [-3.0, -4.0]],
    "blocks.0.attn.proj.bias": [10.0, -6.0],
    "blocks.0.mlp.fc2.weight": [[0.5, 1.0, 2.0], [30.0, 50.0, 60.0]],
    "blocks.0.mlp.fc2.bias": [1.0, 1.0],
    "blocks.0.mlp.fc1.bias": [7.0],
  }
  _assert_same(dinov2.fold_layer_scale(state, "f.pth"), expected)


def _embed(state, images):
  """Cut [b, h, w, 3] into patches, project them, put the class token before and positions on."""
  kernel = state["patch_embed.proj.weight"].astype(np.float32)
  side = kernel.shape[-1]
  batch, height, width, _ = images.shape
  patches = images.reshape(batch, height // side, side, width // side, side, 3)
  tokens = np.einsum("byixjc,dcij->byxd", patches, kernel, optimize=True)
  tokens = tokens.reshape(batch, -1, len(kernel)) + state["patch_embed.proj.bias"]
  first = np.broadcast_to(state["cls_token"], (batch, 1, len(kernel)))
  return np.concatenate([first, tokens], axis=1) + state["pos_embed"]


def _layer_norm(tokens, state, name):
  centred = tokens - tokens.mean(axis=-1, keepdims=True)
  deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
  return centred / deviation * state[f"{name}.weight"] + state[f"{name}.bias"]


def _unfolded_features(state, tokens, num_heads):
  """DINOv2's blocks as its authors wrote them: the scale behind each branch; in numpy."""

  def linear(x, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

  batch, count, width = tokens.shape
  for i in range(names.count_blocks(state, "blocks.")):
    block = f"blocks.{i}"
    packed = linear(_layer_norm(tokens, state, f"{block}.norm1"), f"{block}.attn.qkv")
    packed = packed.reshape(batch, count, 3, num_heads, -1).transpose(2, 0, 3, 1, 4)
    queries, keys, values = packed
    logits = queries @ keys.swapaxes(-1, -2) / np.sqrt(width // num_heads)
    mixed = (scipy.special.softmax(logits, axis=-1) @ values).swapaxes(1, 2)
    mixed = linear(mixed.reshape(batch, count, width), f"{block}.attn.proj")
    tokens = tokens + state[f"{block}.ls1.gamma"] * mixed
    hidden = linear(_layer_norm(tokens, state, f"{block}.norm2"), f"{block}.mlp.fc1")
    hidden = hidden * 0.5 * (1 + scipy.special.erf(hidden / np.sqrt(2)))
    tokens = tokens + state[f"{block}.ls2.gamma"] * linear(hidden, f"{block}.mlp.fc2")
  return _layer_norm(tokens, state, "norm")


def _folded_features(state, tokens, num_heads):
  """Run the project's blocks with a plain state, as the tracker's backbone does."""
  width, depth = tokens.shape[-1], names.count_blocks(state, "blocks.")
  model = OSTrack(
    variant="custom",
    width=width,
    depth=depth,
    num_heads=num_heads,
    elimination_layers=(),
    keep_ratios=(),
  )
  blocks = {f"backbone.{n}": a for n, a in state.items() if n.startswith("blocks.")}
  variables = names.variables_from_torch(blocks, model, "state", prefix="backbone.blocks.")
  block = vit.Block(width, num_heads, np.dtype(np.float32))

  @jax.jit
  def run(params, x):
    apply = functools.partial(block.apply, {"params": params})
    x, branch, _ = apply(x, None, rows=None, key_valid=None, method="attend")
    return fused_norm.add(*apply(x, branch, method="feed_forward"))

  tokens = np.asarray(tokens, np.float32)
  for i in range(depth):
    tokens = run(variables["params"]["backbone"][f"blocks_{i}"], tokens)
  return _layer_norm(np.asarray(tokens), state, "norm")


def test_our_blocks_with_folded_weights_compute_what_the_unfolded_do():
  state = _state()
  plain, dropped = dinov2.plain_state(state, "f.pth")
  assert dropped == ("mask_token",)
  images = np.random.default_rng(1).standard_normal((2, 70, 70, 3)).astype(np.float32)
  expected = _unfolded_features(state, _embed(state, images), _HEADS)
  found = _folded_features(plain, _embed(plain, images), _HEADS)
  np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("prefix", ["", "backbone.", "module."])
@pytest.mark.parametrize("write", [_pth, _npz])
def test_either_layout_in_either_format_is_read_alike(write, prefix, tmp_path):
  state = _state()
  expected = read_weights(_pth(tmp_path, {"model": state}))
  assert (expected.kind, expected.num_heads, expected.patch_size) == ("dinov2", None, 14)
  assert expected.dropped == ("mask_token",)
  assert not [name for name in expected.state if ".ls" in name]
  theirs = _hugging_face(state, prefix)
  if prefix != "module.":  # which data-parallel training puts before everything
    theirs["classifier.weight"] = np.zeros((5, _WIDTH), np.float32)
  found = read_weights(write(tmp_path, theirs))
  assert (found.kind, found.patch_size) == ("dinov2", 14)
  assert [name for name in found.dropped if not name.startswith("classifier")] == ["mask_token"]
  _assert_same(found.state, expected.state)


def test_half_precision_is_folded_in_single(tmp_path):
  half = {name: array.astype(np.float16) for name, array in _state().items()}
  single = {name: array.astype(np.float32) for name, array in half.items()}
  found = read_weights(_npz(tmp_path, half)).state
  assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
  _assert_same(found, read_weights(_pth(tmp_path, single)).state)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"register_tokens": np.zeros((1, 4, _WIDTH))}, "register tokens .*; use the file without"),
    ({"reg_token": np.zeros((1, 4, _WIDTH))}, "with register tokens"),
    ({"blocks.0.mlp.w12.weight": np.zeros((8, _WIDTH))}, "gated MLP .*; use ViT-S, B or L"),
    ({"blocks.1.ls2.gamma": None}, "lacks the tensor 'blocks.1.ls2.gamma'"),
    ({"blocks.0.attn.proj.bias": None}, "lacks the tensor 'blocks.0.attn.proj.bias'"),
    ({"blocks.1.ls1.gamma": np.zeros(3)}, r"'blocks.1.ls1.gamma' has shape \(3,\)"),
    ({"patch_embed.proj.weight": None}, "'patch_embed.proj.weight' is .*expected .width, 3, n, n."),
    ({"patch_embed.proj.weight": np.zeros((_WIDTH, 3, 14, 7))}, r"is \(16, 3, 14, 7\)"),
  ],
)
def test_what_does_not_fit_is_named(change, words, tmp_path):
  state = {name: array for name, array in (_state() | change).items() if array is not None}
  with pytest.raises(ValueError, match=rf"dinov2\.pth.*{words}"):
    read_weights(_pth(tmp_path, state))


def test_a_missing_part_of_attention_is_named_as_the_file_has_it(tmp_path):
  state = _hugging_face(_state(), "backbone.")
  del state["backbone.encoder.layer.1.attention.attention.key.bias"]
  with pytest.raises(ValueError, match=r"'encoder\.layer\.1\.attention\.attention\.key\.bias'"):
    read_weights(_npz(tmp_path, state))


def test_a_patch_kernel_of_the_same_size_is_left_alone():
  kernel = _state(patch=16)["patch_embed.proj.weight"]
  np.testing.assert_array_equal(dinov2.resample_patch_kernel(kernel, 16), kernel)


def test_a_constant_kernel_answers_grey_patches_of_either_size_alike():
  values = np.array([[1.0, -2.0, 0.5], [4.0, 3.0, 2.0]], np.float32)
  kernel = np.broadcast_to(values[:, :, None, None], (2, 3, 14, 14))
  resampled = dinov2.resample_patch_kernel(kernel, 16)
  assert resampled.shape == (2, 3, 16, 16)
  np.testing.assert_allclose(resampled.sum(axis=(2, 3)), kernel.sum(axis=(2, 3)), rtol=1e-6)


def test_a_patch_kernel_is_resampled_as_by_pytorch():
  torch = pytest.importorskip("torch")
  kernel = _state()["patch_embed.proj.weight"]
  expected = torch.nn.functional.interpolate(torch.from_numpy(kernel), size=16, mode="bicubic")
  found = dinov2.resample_patch_kernel(kernel, 16)
  np.testing.assert_allclose(found, expected.numpy() * (14 / 16) ** 2, atol=1e-6)


@pytest.fixture
def released(reference_dir):
  """The released ViT-S: its path, and its arrays under Facebook's names, nothing folded."""
  path = reference_dir / "weights" / "dinov2_vits14_fp16.npz"
  if not path.exists():
    pytest.skip(f"{path} is not there")
  with np.load(path) as file:
    arrays = {n.removeprefix("backbone."): file[n].astype(np.float32) for n in file.files}
  state = {
    "cls_token": arrays["embeddings.cls_token"],
    "pos_embed": arrays["embeddings.position_embeddings"],
    "norm.weight": arrays["layernorm.weight"],
    "norm.bias": arrays["layernorm.bias"],
  }
  for kind in ("weight", "bias"):
    state[f"patch_embed.proj.{kind}"] = arrays[f"embeddings.patch_embeddings.projection.{kind}"]
  for i in range(12):
    ours, theirs = f"blocks.{i}", f"encoder.layer.{i}"
    for number in (1, 2):
      state[f"{ours}.ls{number}.gamma"] = arrays[f"{theirs}.layer_scale{number}.lambda1"]
    for kind in ("weight", "bias"):
      attention = f"{theirs}.attention.attention"
      thirds = [arrays[f"{attention}.{part}.{kind}"] for part in ("query", "key", "value")]
      state[f"{ours}.attn.qkv.{kind}"] = np.concatenate(thirds)
      state[f"{ours}.attn.proj.{kind}"] = arrays[f"{theirs}.attention.output.dense.{kind}"]
      for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
        state[f"{ours}.{part}.{kind}"] = arrays[f"{theirs}.{part}.{kind}"]
  return path, state


def test_the_released_encoder_computes_the_same_features_after_folding(released, reference_dir):
  path, state = released
  frames = reference_dir / "data/sequences/DAVIS2016/JPEGImages/480p/blackswan"
  frame = cv2.imread(str(frames / "00000.jpg"))[:, :, ::-1]
  image = cv2.resize(frame, (518, 518), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
  image = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  image = image[None].astype(np.float32)
  with np.load(path) as file:
    plain, _ = dinov2.plain_state(dict(file), str(path))
  assert plain["patch_embed.proj.weight"].shape == (384, 3, 14, 14)
  expected = _unfolded_features(state, _embed(state, image), 6)
  found = _folded_features(plain, _embed(plain, image), 6)
  assert expected.shape == (1, 1 + 37 * 37, 384)
  largest = np.abs(expected).max()
  assert np.abs(found - expected).max() <= 1e-4 * largest


def test_the_released_encoder_is_resampled_as_the_yardstick_was(released):
  torch = pytest.importorskip("torch")
  path, state = released
  interpolate = torch.nn.functional.interpolate
  backbone = pretrained.backbone_state(read_weights(path), 192, 256, str(path))
  kernel = torch.from_numpy(state["patch_embed.proj.weight"])
  np.testing.assert_allclose(
    backbone["backbone.patch_embed.proj.weight"],
    interpolate(kernel, size=(16, 16), mode="bicubic").numpy() * (14 / 16) ** 2,
    atol=1e-7,
  )
  table = torch.from_numpy(state["pos_embed"][:, 1:]).reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
  for name, grid in (("pos_embed_z", 12), ("pos_embed_x", 16)):
    expected = interpolate(table, size=(grid, grid), mode="bicubic", antialias=True)
    expected = expected.permute(0, 2, 3, 1).reshape(1, -1, 384).numpy()
    np.testing.assert_allclose(backbone[f"backbone.{name}"], expected, atol=1e-6)
  assert "backbone.pos_embed" not in backbone
