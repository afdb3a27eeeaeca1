"""The centre head for tracking: normalisation folded into the convolutions, and its branches side by side.

The same numbers as head.CenterHead with running statistics, up to rounding. One convolution serves the
first layer of all branches, since they see the same features, and one batched product each later layer:
for a single image, every kernel that is left out is time that the device waits.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ostrack_jax.models import attention, fused_head, head

_LAYERS = 4
_EPSILON = 1e-5


def fold(
  params: Mapping[str, Any], batch_stats: Mapping[str, Any], dtype
) -> dict[str, dict[str, np.ndarray]]:
  """Fold a CenterHead's parameters and running statistics.

  Args:
    params, batch_stats: of the head, float32.
    dtype: that the kernels are stored in, the model's.

  Returns:
    conv1: kernel [9 d, 3 c], of all branches. conv2 to conv4: kernel [3, 9 c_in, c_out]. conv5: kernel
    [3, c_in, 2] float32; the score's second output is zero. The 9 c_in inputs are ordered by row, column and
    channel. Inputs come first: on CPUs the other way round costs a twentieth of the network, for turning the
    first kernel in every call. Biases [3, c_out] float32, those of conv2 to conv4 one after another in `later`.
  """
  folded: dict[str, dict[str, np.ndarray]] = {}
  later = []
  for layer in range(1, _LAYERS + 1):
    kernels, biases = [], []
    for branch in head.BRANCHES:
      name = f"conv{layer}_{branch}"
      conv = _doubles(params[name]["conv"])
      norm, running = _doubles(params[name]["bn"]), _doubles(batch_stats[name]["bn"])
      factor = norm["scale"] / np.sqrt(running["var"] + _EPSILON)
      kernel = conv["kernel"] * factor
      kernels.append(kernel.reshape(-1, len(factor)))
      biases.append((conv["bias"] - running["mean"]) * factor + norm["bias"])
    kernel = np.concatenate(kernels, axis=1) if layer == 1 else np.stack(kernels)
    folded[f"conv{layer}"] = {"kernel": kernel.astype(np.float32).astype(dtype)}
    bias = np.stack(biases).astype(np.float32)
    if layer == 1:
      folded["conv1"]["bias"] = bias
    else:
      later.append(bias)
  folded["later"] = {"biases": np.concatenate(later, axis=1)}
  last = [_doubles(params[f"conv{_LAYERS + 1}_{branch}"]) for branch in head.BRANCHES]
  outputs = max(head.BRANCHES.values())
  kernels = [_padded(one["kernel"][0, 0], outputs) for one in last]
  biases = [_padded(one["bias"], outputs) for one in last]
  folded[f"conv{_LAYERS + 1}"] = {
    "kernel": np.stack(kernels).astype(np.float32),
    "bias": np.stack(biases).astype(np.float32),
  }
  return folded


def _doubles(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
  return {name: np.asarray(value, np.float64) for name, value in tree.items()}


def _padded(array: np.ndarray, count: int) -> np.ndarray:
  """Return an array whose last axis is filled up with zeros."""
  return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, count - array.shape[-1])])


def apply(
  folded: Mapping[str, Mapping[str, jax.Array]], features, is_fused: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Map [b, F, F, d] to (score_map [b,F,F,1], size_map [b,F,F,2], offset_map [b,F,F,2]), as CenterHead.

  Args:
    is_fused: run layers 2 to 4 of one sample as the kernels of fused_head where these can.
  """
  batch, grid = features.shape[:2]
  dtype = folded["conv1"]["kernel"].dtype
  branches = len(head.BRANCHES)
  # As products of gathered neighbourhoods, but for batches on a GPU, where those cost more than they save.
  layer_of = _convolve if attention.suits_batches(batch, dtype) else _multiply
  kernel = folded["conv1"]["kernel"]
  x = layer_of(features.astype(dtype)[None], kernel[None])[0]
  x = x.reshape(batch, grid, grid, branches, -1)
  x = _activated(x, folded["conv1"]["bias"][None, None, None], dtype)
  kernels = [folded[f"conv{layer}"]["kernel"] for layer in range(2, _LAYERS + 1)]
  biases, start = folded["later"]["biases"], 0
  if is_fused and batch == 1 and all(map(fused_head.suits, kernels)):
    cells = x.reshape(grid * grid, -1)
    interpret = not attention.has_kernels(dtype)
    for kernel in kernels:
      cells = fused_head.convolved(cells, kernel, biases, start, interpret=interpret)
      start += kernel.shape[-1]
    x = cells.reshape(*x.shape[:-1], -1).transpose(3, 0, 1, 2, 4)
  else:
    x = x.transpose(3, 0, 1, 2, 4)
    for kernel in kernels:
      bias = biases[:, None, None, None, start : start + kernel.shape[-1]]
      x = _activated(layer_of(x, kernel), bias, dtype)
      start += kernel.shape[-1]
  last = folded[f"conv{_LAYERS + 1}"]
  maps = jnp.einsum("gbhwi,gio->gbhwo", x.astype(jnp.float32), last["kernel"])
  maps = maps + last["bias"][:, None, None, None, :]
  found = {
    branch: maps[number, ..., :outputs]
    for number, (branch, outputs) in enumerate(head.BRANCHES.items())
  }
  return (
    head.clamped_sigmoid(found["ctr"]),
    head.clamped_sigmoid(found["size"]),
    found["offset"],
  )


def _activated(x, bias, dtype):
  return jax.nn.relu(x.astype(jnp.float32) + bias).astype(dtype)


def _multiply(x, kernel):
  """Convolve [g, b, F, F, i] with [g, 9 i, o] as one product, to [g, b, F, F, o] float32."""
  side = x.shape[2]
  padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
  shifted = [padded[:, :, i : i + side, j : j + side] for i in range(3) for j in range(3)]
  near = jnp.concatenate(shifted, axis=-1)
  return jnp.einsum("gbhwk,gko->gbhwo", near, kernel, preferred_element_type=jnp.float32)


def _convolve(x, kernel):
  """Convolve [g, b, F, F, i] with [g, 9 i, o], to [g, b, F, F, o]."""
  groups, _, outputs = kernel.shape
  kernel = kernel.reshape(groups, 3, 3, -1, outputs)
  return jnp.stack(
    [
      jax.lax.conv_general_dilated(
        x[g], kernel[g], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
      )
      for g in range(groups)
    ]
  )
