"""Files of weights are recognised by their content; encoders come out in the official names."""

import jax.numpy as jnp
import numpy as np
import pytest

from ostrack_jax.models import self_attention
from ostrack_jax.weights import pretrained
from ostrack_jax.weights.pretrained import Weights, backbone_state, read_weights
from ostrack_jax.weights.torch_file import write_torch_file

_WIDTH, _HEADS, _DEPTH = 16, 2, 2


def _draw(seed=0):
  rng = np.random.default_rng(seed)
  return lambda *shape: rng.standard_normal(shape).astype(np.float32)


def _torch_encoder(patch=16):
  """An encoder in MAE's layout."""
  draw, width = _draw(), _WIDTH
  state = {
    "cls_token": draw(1, 1, width),
    "pos_embed": draw(1, 197, width),
    "patch_embed.proj.weight": draw(width, 3, patch, patch),
    "patch_embed.proj.bias": draw(width),
    "norm.weight": draw(width),
    "norm.bias": draw(width),
  }
  for i in range(_DEPTH):
    for name, shape in {
      "norm1": (width,),
      "attn.qkv": (3 * width, width),
      "attn.proj": (width, width),
      "norm2": (width,),
      "mlp.fc1": (4 * width, width),
      "mlp.fc2": (width, 4 * width),
    }.items():
      state[f"blocks.{i}.{name}.weight"] = draw(*shape)
      state[f"blocks.{i}.{name}.bias"] = draw(shape[0])
  return state


def _augreg(grid=14, patch=16):
  """An encoder in the layout of Google's .npz files, classifier included."""
  draw, width, per_head = _draw(1), _WIDTH, _WIDTH // _HEADS
  arrays = {
    "cls": draw(1, 1, width),
    "embedding/kernel": draw(patch, patch, 3, width),
    "embedding/bias": draw(width),
    "Transformer/posembed_input/pos_embedding": draw(1, grid * grid + 1, width),
    "Transformer/encoder_norm/scale": draw(width),
    "Transformer/encoder_norm/bias": draw(width),
    "pre_logits/kernel": draw(width, width),
    "pre_logits/bias": draw(width),
    "head/kernel": draw(width, 5),
    "head/bias": draw(5),
  }
  for i in range(_DEPTH):
    block = f"Transformer/encoderblock_{i}"
    attention = f"{block}/MultiHeadDotProductAttention_1"
    for part in ("query", "key", "value"):
      arrays[f"{attention}/{part}/kernel"] = draw(width, _HEADS, per_head)
      arrays[f"{attention}/{part}/bias"] = draw(_HEADS, per_head)
    arrays[f"{attention}/out/kernel"] = draw(_HEADS, per_head, width)
    arrays[f"{attention}/out/bias"] = draw(width)
    for layer in ("LayerNorm_0", "LayerNorm_2"):
      arrays[f"{block}/{layer}/scale"] = draw(width)
      arrays[f"{block}/{layer}/bias"] = draw(width)
    arrays[f"{block}/MlpBlock_3/Dense_0/kernel"] = draw(width, 4 * width)
    arrays[f"{block}/MlpBlock_3/Dense_0/bias"] = draw(4 * width)
    arrays[f"{block}/MlpBlock_3/Dense_1/kernel"] = draw(4 * width, width)
    arrays[f"{block}/MlpBlock_3/Dense_1/bias"] = draw(width)
  return arrays


def _npz(tmp_path, arrays):
  np.savez(tmp_path / "encoder.npz", **arrays)
  return tmp_path / "encoder.npz"


def _pth(tmp_path, state):
  write_torch_file(tmp_path / "encoder.pth", {"model": state})
  return tmp_path / "encoder.pth"


def test_an_encoder_of_pytorch_is_recognised_and_its_classifier_dropped(tmp_path):
  state = _torch_encoder()
  extra = {"head.weight": np.zeros((5, _WIDTH)), "head.bias": np.zeros(5)}
  weights = read_weights(_pth(tmp_path, state | extra))
  assert (weights.kind, weights.num_heads, weights.dropped) == ("mae", None, tuple(extra))
  assert list(weights.state) == list(state)


def test_the_decoder_of_a_full_mae_file_is_dropped(tmp_path):
  extra = {"mask_token": np.zeros((1, 1, 8)), "decoder_blocks.0.norm1.weight": np.zeros(8)}
  weights = read_weights(_pth(tmp_path, _torch_encoder() | extra))
  assert weights.dropped == tuple(extra)


def test_names_that_data_parallel_training_prefixed_are_read(tmp_path):
  state = {f"module.{name}": array for name, array in _torch_encoder().items()}
  assert list(read_weights(_pth(tmp_path, state)).state) == list(_torch_encoder())


def test_a_distilled_deit_is_refused(tmp_path):
  state = _torch_encoder() | {"dist_token": np.zeros((1, 1, _WIDTH))}
  with pytest.raises(ValueError, match=r"encoder\.pth is a distilled DeiT"):
    read_weights(_pth(tmp_path, state))


def test_another_patch_size_is_refused_in_either_format(tmp_path):
  for path in (_pth(tmp_path, _torch_encoder(patch=14)), _npz(tmp_path, _augreg(patch=14))):
    with pytest.raises(ValueError, match=r"patches of 14 x 14 pixels; only .* patch size 16"):
      read_weights(path)


def test_a_state_dict_of_something_else_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"neither an OSTrack model .* first tensor is 'fc.weight'"):
    read_weights(_pth(tmp_path, {"fc.weight": np.zeros(3)}))


def test_an_augreg_file_is_recognised_with_its_heads(tmp_path):
  weights = read_weights(_npz(tmp_path, _augreg()))
  assert (weights.kind, weights.num_heads) == ("augreg", _HEADS)
  assert {name: a.shape for name, a in weights.state.items()} == {
    name: a.shape for name, a in _torch_encoder().items()
  }
  assert weights.dropped == ("pre_logits/kernel", "pre_logits/bias", "head/kernel", "head/bias")


def _flax_attention(arrays, block, tokens):
  """Attention as Google's code computes it, with an axis for the heads."""
  prefix = f"Transformer/encoderblock_{block}/MultiHeadDotProductAttention_1"
  q, k, v = (
    np.einsum("nd,dhe->nhe", tokens, arrays[f"{prefix}/{part}/kernel"])
    + arrays[f"{prefix}/{part}/bias"]
    for part in ("query", "key", "value")
  )
  logits = np.einsum("nhe,mhe->hnm", q, k) / np.sqrt(q.shape[-1])
  weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
  weights /= weights.sum(axis=-1, keepdims=True)
  mixed = np.einsum("hnm,mhe->nhe", weights, v)
  return (
    np.einsum("nhe,hed->nd", mixed, arrays[f"{prefix}/out/kernel"]) + arrays[f"{prefix}/out/bias"]
  )


@pytest.mark.parametrize("block", range(_DEPTH))
def test_augreg_attention_computes_the_same_in_our_network(block, tmp_path):
  arrays = _augreg()
  state = read_weights(_npz(tmp_path, arrays)).state
  tokens = 0.3 * _draw(2)(7, _WIDTH)
  params = {
    name: {
      "kernel": state[f"blocks.{block}.attn.{name}.weight"].T,
      "bias": state[f"blocks.{block}.attn.{name}.bias"],
    }
    for name in ("qkv", "proj")
  }
  attention = self_attention.Attention(_WIDTH, _HEADS, jnp.dtype("float32"))
  branch, _ = attention.apply({"params": params}, tokens[None])
  found = (branch.product + branch.shift)[0]
  np.testing.assert_allclose(found, _flax_attention(arrays, block, tokens), atol=2e-5)


def test_augreg_patches_and_mlp_compute_the_same_in_pytorchs_layout(tmp_path):
  arrays = _augreg()
  state = read_weights(_npz(tmp_path, arrays)).state
  patch, vector = _draw(3)(16, 16, 3), _draw(4)(_WIDTH)
  np.testing.assert_allclose(
    np.einsum("yxc,dcyx->d", patch, state["patch_embed.proj.weight"]),
    np.einsum("yxc,yxcd->d", patch, arrays["embedding/kernel"]),
    rtol=1e-3,
  )
  block = "Transformer/encoderblock_1"
  hidden = state["blocks.1.mlp.fc1.weight"] @ vector + state["blocks.1.mlp.fc1.bias"]
  layer = f"{block}/MlpBlock_3/Dense_0"
  np.testing.assert_allclose(
    hidden, vector @ arrays[f"{layer}/kernel"] + arrays[f"{layer}/bias"], atol=1e-5
  )
  layer = f"{block}/MlpBlock_3/Dense_1"
  np.testing.assert_allclose(
    state["blocks.1.mlp.fc2.weight"] @ hidden, hidden @ arrays[f"{layer}/kernel"], atol=1e-4
  )
  for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
    np.testing.assert_array_equal(
      state[f"blocks.1.{ours}.weight"], arrays[f"{block}/{theirs}/scale"]
    )
    np.testing.assert_array_equal(state[f"blocks.1.{ours}.bias"], arrays[f"{block}/{theirs}/bias"])


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"embedding/bias": None}, "lacks the array 'embedding/bias'"),
    ({"Transformer/encoderblock_1/LayerNorm_2/bias": None}, "lacks the array .*LayerNorm_2/bias"),
    ({"embedding/kernel": np.zeros((16, 16))}, r"has shape \(16, 16\); expected rank 4"),
    ({"conv_root/kernel": np.zeros(3)}, "has the array 'conv_root/kernel', which a plain ViT"),
  ],
)
def test_arrays_that_do_not_fit_are_named(change, words, tmp_path):
  arrays = {name: array for name, array in (_augreg() | change).items() if array is not None}
  with pytest.raises(ValueError, match=rf"encoder\.npz.* {words}"):
    read_weights(_npz(tmp_path, arrays))


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_truncated_npz_is_named(share, tmp_path):
  path = _npz(tmp_path, _augreg())
  data = path.read_bytes()
  path.write_bytes(data[: int(share * len(data))])
  with pytest.raises(ValueError, match=r"encoder\.npz is a truncated or damaged"):
    read_weights(path)


def test_object_arrays_of_an_npz_are_not_unpickled(tmp_path):
  np.savez(tmp_path / "encoder.npz", cls=np.array([{"a": 1}], dtype=object))
  with pytest.raises(ValueError, match=r"damaged \.npz archive .*allow_pickle"):
    read_weights(tmp_path / "encoder.npz")


def test_the_class_tokens_row_is_not_a_position():
  state = _torch_encoder()
  state["pos_embed"][0, 0] = 1e6
  backbone = backbone_state(Weights("mae", state, None, ()), 224, 224, "f.pth")
  for name in ("backbone.pos_embed_z", "backbone.pos_embed_x"):
    np.testing.assert_allclose(backbone[name], state["pos_embed"][:, 1:], atol=1e-6)
  np.testing.assert_array_equal(backbone["backbone.pos_embed"], state["pos_embed"])
  assert {name.removeprefix("backbone.") for name in backbone} == {
    *state,
    "pos_embed_z",
    "pos_embed_x",
  }


def test_tables_are_made_for_both_sizes_and_a_foreign_grid_is_not_kept():
  state = _torch_encoder() | {"pos_embed": _draw()(1, 24 * 24 + 1, _WIDTH)}
  backbone = backbone_state(Weights("mae", state, None, ()), 128, 256, "f.pth")
  assert backbone["backbone.pos_embed_z"].shape == (1, 64, _WIDTH)
  assert backbone["backbone.pos_embed_x"].shape == (1, 256, _WIDTH)
  assert "backbone.pos_embed" not in backbone


@pytest.mark.parametrize("shape", [(1, 196, _WIDTH), (1, 197, 3), (2, 197, _WIDTH), (1, 1, _WIDTH)])
def test_a_position_table_of_another_shape_is_named(shape):
  state = _torch_encoder() | {"pos_embed": np.zeros(shape, np.float32)}
  with pytest.raises(ValueError, match=r"f\.pth: 'pos_embed' has shape .*; expected \(1, n \* n"):
    backbone_state(Weights("mae", state, None, ()), 128, 256, "f.pth")


@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "pos_embed"])
def test_an_encoder_without_its_parts_is_named(name):
  state = _torch_encoder()
  del state[name]
  with pytest.raises(ValueError, match=f"'{name}' is None; expected one of rank"):
    pretrained.encoder_dimensions(state, "f.pth")


def test_an_encoder_without_blocks_is_named():
  state = {n: a for n, a in _torch_encoder().items() if not n.startswith("blocks.")}
  with pytest.raises(ValueError, match=r"lacks the tensor 'blocks\.0\.norm1\.weight'"):
    pretrained.encoder_dimensions(state, "f.pth")
