"""Read weights by looking at the file: whole OSTrack models, and encoders to start from.

Encoders are MAE and DeiT (PyTorch files), Google's AugReg ViTs (numpy archives, Steiner et al. 2021)
and DINOv2 (either). All come out in the official names, the encoders as the backbone part of them.
"""

import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ostrack_jax.weights import dinov2, names, position_tables, torch_file
from ostrack_jax.weights.names import PATCH_SIZE

# The classifier or decoder behind the encoder, which tracking has no use for.
_DROPPED_FROM_TORCH = ("head.", "mask_token", "decoder_")
_DROPPED_FROM_AUGREG = ("head/", "pre_logits/")


class Weights(NamedTuple):
  """What a file holds.

  Attributes:
    kind: `ostrack`, `mae` (any encoder in MAE's and DeiT's layout), `augreg` or `dinov2`.
    state: arrays in PyTorch's layouts under official names; an encoder's without `backbone.`, with
      patches of 16 pixels and its own position table.
    num_heads: where the file tells it, else None.
    dropped: names of tensors in the file that were left out.
    note: what a file that this project wrote says of the network, else None.
    patch_size: of the file's own patch kernel.
  """

  kind: str
  state: dict[str, np.ndarray]
  num_heads: int | None
  dropped: tuple[str, ...]
  note: str | None = None
  patch_size: int = PATCH_SIZE


def read_weights(path: str | os.PathLike) -> Weights:
  """Read a file of weights, whatever its kind.

  Raises FileNotFoundError without such a file, and ValueError, one sentence naming the file and what
  was expected, for all that is not an OSTrack model, a ViT encoder of patch size 16 or a DINOv2.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"there is no file {path}")
  if _is_numpy_archive(path):
    arrays = _read_numpy_archive(path)
    read_arrays = _from_dinov2 if dinov2.is_dinov2(arrays) else _from_augreg
    return read_arrays(arrays, str(path))
  read = torch_file.read_state_dict(path)
  state = read.tensors
  if state and all(name.startswith("module.") for name in state):
    state = {name.removeprefix("module."): array for name, array in state.items()}
  if dinov2.is_dinov2(state):
    return _from_dinov2(state, str(path))
  if any(name.startswith("backbone.") for name in state):
    return Weights("ostrack", state, None, (), read.note)
  if "cls_token" in state or "patch_embed.proj.weight" in state:
    return _from_torch_encoder(state, str(path))
  raise ValueError(
    f"{path} holds neither an OSTrack model (backbone.*, box_head.*) nor a ViT encoder (cls_token, "
    f"pos_embed, blocks.*); its first tensor is {next(iter(state))!r}"
  )


def _is_numpy_archive(path: pathlib.Path) -> bool:
  try:
    with zipfile.ZipFile(path) as archive:
      return any(name.endswith(".npy") for name in archive.namelist())
  except torch_file.ZIP_ERRORS:
    return path.suffix == ".npz"


def _read_numpy_archive(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
      return {name: archive[name] for name in archive.files}
  except (ValueError, *torch_file.ZIP_ERRORS) as error:
    raise ValueError(f"{path} is a truncated or damaged .npz archive ({error})") from error


def _split(state: Mapping[str, np.ndarray], prefixes: tuple[str, ...]):
  dropped = tuple(name for name in state if name.startswith(prefixes))
  return {name: array for name, array in state.items() if name not in dropped}, dropped


def _check_patch(shape: tuple[int, ...], sides: tuple[int, ...], source: str) -> None:
  if len(shape) == 4 and sides != (PATCH_SIZE, PATCH_SIZE):
    raise ValueError(
      f"{source} has patches of {' x '.join(map(str, sides))} pixels; only encoders of patch size "
      f"{PATCH_SIZE} can be read"
    )


def _from_torch_encoder(state: Mapping[str, np.ndarray], source: str) -> Weights:
  if "dist_token" in state:
    raise ValueError(
      f"{source} is a distilled DeiT (it has a dist_token); use the DeiT file without distillation"
    )
  kept, dropped = _split(state, _DROPPED_FROM_TORCH)
  patch = kept.get("patch_embed.proj.weight", np.zeros(0))
  _check_patch(patch.shape, patch.shape[2:], source)
  return Weights("mae", kept, None, dropped)


def _from_dinov2(state: Mapping[str, np.ndarray], source: str) -> Weights:
  plain, dropped = dinov2.plain_state(state, source)
  name = "patch_embed.proj.weight"
  kernel = plain.get(name, np.zeros(0))
  if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3]:
    raise ValueError(
      f"{source}: the tensor {name!r} is {kernel.shape}; expected (width, 3, n, n) of a DINOv2 encoder"
    )
  plain[name] = dinov2.resample_patch_kernel(kernel, PATCH_SIZE)
  return Weights("dinov2", plain, None, dropped, patch_size=kernel.shape[-1])


def _from_augreg(arrays: Mapping[str, np.ndarray], source: str) -> Weights:
  """Bring AugReg's arrays into PyTorch's names and layouts; heads have an axis of their own there."""
  arrays, dropped = _split(arrays, _DROPPED_FROM_AUGREG)
  taken = set()

  def take(name: str, rank: int) -> np.ndarray:
    if name not in arrays:
      raise ValueError(
        f"{source} lacks the array {name!r}; expected a ViT in the layout of Google's AugReg files"
      )
    if arrays[name].ndim != rank:
      raise ValueError(f"{source}: {name!r} has shape {arrays[name].shape}; expected rank {rank}")
    taken.add(name)
    return arrays[name]

  patch = take("embedding/kernel", 4)
  _check_patch(patch.shape, patch.shape[:2], source)
  state = {
    "cls_token": take("cls", 3),
    "pos_embed": take("Transformer/posembed_input/pos_embedding", 3),
    "patch_embed.proj.weight": patch.transpose(3, 2, 0, 1),
    "patch_embed.proj.bias": take("embedding/bias", 1),
    "norm.weight": take("Transformer/encoder_norm/scale", 1),
    "norm.bias": take("Transformer/encoder_norm/bias", 1),
  }
  num_heads = None
  for index in range(names.count_blocks(arrays, "Transformer/encoderblock_")):
    theirs, ours = f"Transformer/encoderblock_{index}", f"blocks.{index}"
    attention = f"{theirs}/MultiHeadDotProductAttention_1"
    kernels = [take(f"{attention}/{part}/kernel", 3) for part in ("query", "key", "value")]
    biases = [take(f"{attention}/{part}/bias", 2) for part in ("query", "key", "value")]
    num_heads = kernels[0].shape[1]
    state[f"{ours}.attn.qkv.weight"] = np.concatenate([k.reshape(len(k), -1).T for k in kernels])
    state[f"{ours}.attn.qkv.bias"] = np.concatenate([bias.reshape(-1) for bias in biases])
    out = take(f"{attention}/out/kernel", 3)
    state[f"{ours}.attn.proj.weight"] = out.reshape(-1, out.shape[2]).T
    state[f"{ours}.attn.proj.bias"] = take(f"{attention}/out/bias", 1)
    for norm, layer in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
      state[f"{ours}.{norm}.weight"] = take(f"{theirs}/{layer}/scale", 1)
      state[f"{ours}.{norm}.bias"] = take(f"{theirs}/{layer}/bias", 1)
    for linear, layer in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
      state[f"{ours}.mlp.{linear}.weight"] = take(f"{theirs}/MlpBlock_3/{layer}/kernel", 2).T
      state[f"{ours}.mlp.{linear}.bias"] = take(f"{theirs}/MlpBlock_3/{layer}/bias", 1)
  unexpected = sorted(set(arrays) - taken)
  if unexpected:
    raise ValueError(
      f"{source} has the array {unexpected[0]!r}, which a plain ViT of AugReg does not have"
    )
  return Weights("augreg", state, num_heads, dropped)


def encoder_dimensions(state: Mapping[str, np.ndarray], source: str) -> tuple[int, int]:
  """Return width and depth of an encoder; ValueError naming what its state lacks."""
  for name, rank in (("patch_embed.proj.weight", 4), ("pos_embed", 3)):
    found = state[name].shape if name in state else None
    if found is None or len(found) != rank:
      raise ValueError(f"{source}: the tensor {name!r} is {found}; expected one of rank {rank}")
  depth = names.count_blocks(state, "blocks.")
  if not depth:
    raise ValueError(f"{source} lacks the tensor 'blocks.0.norm1.weight'; expected a ViT encoder")
  return state["patch_embed.proj.weight"].shape[0], depth


def backbone_state(
  weights: Weights, template_size: int, search_size: int, source: str
) -> dict[str, np.ndarray]:
  """Turn an encoder's weights into the `backbone.` part of an official state.

  The position table loses the class token's row and is resampled to both grids; as in official files
  the original is kept beside them where it has their 14 x 14 positions. DINOv2's 37 x 37 positions
  are so many more that plain bicubic resampling would skip most of them: they are antialiased.
  """
  state = weights.state
  width, _ = encoder_dimensions(state, source)
  positions = state["pos_embed"]
  grid = round(max(positions.shape[1] - 1, 0) ** 0.5)
  if positions.shape != (1, grid * grid + 1, width) or not grid:
    raise ValueError(
      f"{source}: 'pos_embed' has shape {positions.shape}; expected (1, n * n + 1, {width}), the "
      "class token's row first"
    )
  backbone = {f"backbone.{name}": array for name, array in state.items()}
  if grid != 14:
    del backbone["backbone.pos_embed"]
  for suffix, size in (("z", template_size), ("x", search_size)):
    backbone[f"backbone.pos_embed_{suffix}"] = position_tables.resample(
      positions[:, 1:], size // PATCH_SIZE, antialias=weights.kind == "dinov2"
    )
  return backbone
