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

from ostrack_jax.models import head
from ostrack_jax.models.attention import suits_batches

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
    [3, c_in, 2] float32; the score's second output is zero. Biases [3, c_out] float32. The 9 c_in inputs
    are ordered by row, column and channel. Inputs come first: on CPUs the other way round costs a
    twentieth of the network, for turning the first kernel in every call.
  """
  folded: dict[str, dict[str, np.ndarray]] = {}
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
    folded[f"conv{layer}"] = {
      "kernel": kernel.astype(np.float32).astype(dtype),
      "bias": np.stack(biases).astype(np.float32),
    }
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
  folded: Mapping[str, Mapping[str, jax.Array]], features
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Map [b, F, F, d] to (score_map [b,F,F,1], size_map [b,F,F,2], offset_map [b,F,F,2]), as CenterHead."""
  batch, grid = features.shape[:2]
  dtype = folded["conv1"]["kernel"].dtype
  branches = len(head.BRANCHES)
  # As products of gathered neighbourhoods, but for batches on a GPU, where those cost more than they save.
  layer_of = _convolve if suits_batches(batch, dtype) else _multiply
  kernel = folded["conv1"]["kernel"]
  x = layer_of(features.astype(dtype)[None], kernel[None])[0]
  x = x.reshape(batch, grid, grid, branches, -1).transpose(3, 0, 1, 2, 4)
  for layer in range(1, _LAYERS + 1):
    if layer > 1:
      x = layer_of(x, folded[f"conv{layer}"]["kernel"])
    bias = folded[f"conv{layer}"]["bias"][:, None, None, None, :]
    x = jax.nn.relu(x.astype(jnp.float32) + bias).astype(dtype)
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
