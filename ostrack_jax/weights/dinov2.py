"""DINOv2 encoders (Oquab et al. 2023) as the plain ViTs of patch size 16 that OSTrack is made of.

Facebook's and timm's names (`blocks.0.ls1.gamma`) are read, and Hugging Face's
(`encoder.layer.0.layer_scale1.lambda1`), with or without a prefix before them.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from ostrack_jax.weights import names, position_tables

_SCALE_ENDINGS = (".ls1.gamma", ".layer_scale1.lambda1")
_REGISTER_ENDINGS = ("register_tokens", "reg_token")
_GATED_PARTS = (".mlp.w12.", ".mlp.weights_in.")
# What each branch of a block ends with, and the scale behind it.
_SCALED = {"attn.proj": "ls1.gamma", "mlp.fc2": "ls2.gamma"}

_ANCHOR = "embeddings.position_embeddings"
_ENCODER_PARTS = ("embeddings.", "encoder.", "layernorm.")
_HUGGING_FACE = {
  "embeddings.cls_token": "cls_token",
  "embeddings.mask_token": "mask_token",
  _ANCHOR: "pos_embed",
  "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
  "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
  "layernorm.weight": "norm.weight",
  "layernorm.bias": "norm.bias",
}
_HUGGING_FACE_BLOCK = {
  "norm1": "norm1",
  "attention.output.dense": "attn.proj",
  "norm2": "norm2",
  "mlp.fc1": "mlp.fc1",
  "mlp.fc2": "mlp.fc2",
}


def is_dinov2(tensor_names: Iterable[str]) -> bool:
  """Return whether tensors of these names make a ViT with LayerScale."""
  return any(name.endswith(_SCALE_ENDINGS) for name in tensor_names)


def plain_state(
  state: Mapping[str, np.ndarray], source: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """Bring a DINOv2 state dict into the names of a plain ViT and fold its LayerScale.

  Args:
    state: arrays in PyTorch's layouts.
    source: what error messages call the origin.

  Returns:
    The state in float32, patch kernel and position table as they were, and the names of what does
    not belong to the encoder (another network's parts in front of or behind it, the mask token).

  Raises:
    ValueError: a scale is missing or has another shape; or the encoder has register tokens or a
      gated MLP. Registers are refused rather than dropped: their patches were trained to leave there
      what without them stands in a few patches, so that the plain file is the better start.
  """
  for name in state:
    if name.endswith(_REGISTER_ENDINGS):
      raise ValueError(
        f"{source} is a DINOv2 with register tokens ({name!r}), which OSTrack has no place for; use the "
        "file without them"
      )
    if any(part in name for part in _GATED_PARTS):
      raise ValueError(
        f"{source} is a DINOv2 with a gated MLP ({name!r}), as ViT-g has; use ViT-S, B or L"
      )
  anchors = [name for name in state if name.endswith(_ANCHOR)]
  dropped: tuple[str, ...] = ()
  if anchors:
    prefix = anchors[0].removesuffix(_ANCHOR)
    own = tuple(prefix + part for part in _ENCODER_PARTS)
    dropped = tuple(name for name in state if not name.startswith(own))
    state = _from_hugging_face(
      {name.removeprefix(prefix): array for name, array in state.items() if name not in dropped},
      source,
    )
  dropped += tuple(name for name in state if name.startswith(("mask_token", "head.")))
  kept = {n: np.asarray(a, np.float32) for n, a in state.items() if n not in dropped}
  return fold_layer_scale(kept, source), dropped


def _from_hugging_face(state: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
  """Rename Hugging Face's tensors, and join query, key and value."""
  renamed = dict(_HUGGING_FACE)
  joined = {}
  for index in range(names.count_blocks(state, "encoder.layer.")):
    theirs, ours = f"encoder.layer.{index}", f"blocks.{index}"
    for kind in ("weight", "bias"):
      parts = [f"{theirs}.attention.attention.{part}.{kind}" for part in ("query", "key", "value")]
      absent = [name for name in parts if name not in state]
      if absent:
        raise ValueError(f"{source} lacks the tensor {absent[0]!r}; expected a DINOv2 encoder")
      joined[f"{ours}.attn.qkv.{kind}"] = np.concatenate([state[name] for name in parts])
      renamed |= {name: "" for name in parts}
      for part, our_part in _HUGGING_FACE_BLOCK.items():
        renamed[f"{theirs}.{part}.{kind}"] = f"{ours}.{our_part}.{kind}"
    for number in (1, 2):
      renamed[f"{theirs}.layer_scale{number}.lambda1"] = f"{ours}.ls{number}.gamma"
  # An unknown name is kept: whoever fills the network says that it does not belong there.
  ours = {renamed.get(name, name): array for name, array in state.items()} | joined
  return {name: array for name, array in ours.items() if name}


def fold_layer_scale(state: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
  """Multiply each block's scales into the linear layers before them; exact but for rounding.

  tokens + gamma * (W x + b) = tokens + (diag(gamma) W) x + gamma * b. Raises ValueError naming the
  source and the tensor that is missing or has another shape.
  """
  folded = dict(state)
  for index in range(names.count_blocks(state, "blocks.")):
    for linear, scale in _SCALED.items():
      wanted = [f"blocks.{index}.{part}" for part in (scale, f"{linear}.weight", f"{linear}.bias")]
      absent = [name for name in wanted if name not in state]
      if absent:
        raise ValueError(f"{source} lacks the tensor {absent[0]!r}; expected a DINOv2 encoder")
      gamma, weight, bias = (state[name] for name in wanted)
      if weight.ndim != 2 or gamma.shape != bias.shape or gamma.shape != weight.shape[:1]:
        raise ValueError(
          f"{source}: {wanted[0]!r} has shape {gamma.shape}, {wanted[1]!r} {weight.shape} and "
          f"{wanted[2]!r} {bias.shape}; expected (n,), (n, m) and (n,)"
        )
      del folded[wanted[0]]
      folded[wanted[1]] = gamma[:, None] * weight
      folded[wanted[2]] = gamma * bias
  return folded


def resample_patch_kernel(kernel: np.ndarray, side: int) -> np.ndarray:
  """Resample a patch embedding's kernel to patches of another side.

  Bicubic as PyTorch's (no antialiasing), times (n / side)^2: a kernel adds up over its patch, and
  with more pixels in it the response to a patch of constant grey would grow by (side / n)^2; the
  factor keeps it. It does so exactly for constant kernels; in others single pixels weigh up to 1.5 %
  more or less than before, which moves DINOv2 ViT-S's response to a white patch by 5 %, against 25 %
  without the factor.

  Args:
    kernel: [width, channels, n, n].
    side: pixels wanted.

  Returns:
    [width, channels, side, side] float32; the kernel itself where n is side already.
  """
  size = kernel.shape[-1]
  if size == side:
    return kernel.astype(np.float32)
  matrix = position_tables.bicubic_matrix(size, side) * (size / side)
  resampled = np.einsum(
    "yi,xj,dcij->dcyx", matrix, matrix, kernel.astype(np.float64), optimize=True
  )
  return resampled.astype(np.float32)
