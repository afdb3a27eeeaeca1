"""What a model costs in arithmetic: multiply-adds by part, counted stage by stage; peaks and MFU.

Only products of matrices and convolutions count, as in papers; norms, softmax and the like are a few
per cent beside them. Papers print multiply-adds (MACs) under the name FLOPs; here one multiply-add is
two floating-point operations.
"""

import itertools

from ostrack_jax.models import stark
from ostrack_jax.models.candidates import PATCH_SIZE, template_token_indices
from ostrack_jax.models.head import BRANCHES
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.models.other_heads import CORNERS

# Dense peaks in FLOP/s from NVIDIA's data sheets, SXM where a chip comes in several forms: what a
# product of bfloat16 matrices reaches at most, and one of float32 matrices. On Ampere and later XLA
# multiplies float32 in TensorFloat-32 unless told otherwise, so theirs is TF32's. Chips without
# bfloat16 units have none. The first name contained in jax's device_kind wins.
_PEAKS: dict[str, dict[str, float]] = {
  "H100 PCIe": {"bfloat16": 756e12, "float32": 378e12},
  "H100 NVL": {"bfloat16": 835e12, "float32": 417e12},
  "H100": {"bfloat16": 989e12, "float32": 495e12},
  "H200 NVL": {"bfloat16": 835e12, "float32": 417e12},
  "H200": {"bfloat16": 989e12, "float32": 495e12},
  "A100": {"bfloat16": 312e12, "float32": 156e12},
  "L40S": {"bfloat16": 362e12, "float32": 183e12},
  "L4": {"bfloat16": 121e12, "float32": 60e12},
  "V100": {"float32": 15.7e12},
  "T4": {"float32": 8.1e12},
}


def forward_macs(model: OSTrack, stage_counts: tuple[int, ...] | None = None) -> dict[str, int]:
  """Return the multiply-adds of one forward pass over one pair, by part.

  Args:
    model: whose sizes count.
    stage_counts: search tokens left after each elimination stage; None for the model's own.

  Returns:
    {part: count}; the sum over parts is the model's. `attention products` are QK^T and PV, which the
    profiler of the official code leaves out; `candidate ranking` the attention rows formed once more to
    rank candidates. A stage's attention still sees the candidates that leave behind it.

  Raises:
    ValueError: stage_counts has another length than the model has stages.
  """
  counts = model.stage_counts() if stage_counts is None else tuple(stage_counts)
  if len(counts) != len(model.elimination_layers):
    raise ValueError(
      f"stage_counts {counts} must have one entry for each of the {len(model.elimination_layers)} elimination layers"
    )
  sizes = model.dimensions()
  width, grid = sizes["width"], model.template_size // PATCH_SIZE
  template, search = grid**2, model.search_grid**2
  chosen = template_token_indices(model.template_tokens, grid)
  ranking_rows = template if chosen is None else len(chosen)
  macs = {
    "patch embedding": (template + search) * 3 * PATCH_SIZE**2 * width,
    "attention projections": 0,
    "attention products": 0,
    "candidate ranking": 0,
    "mlp": 0,
    "head": _head_macs(model),
  }
  if model.is_two_stream:
    macs["fusion"] = _fusion_macs(model, template, search)
  left = search
  for layer in range(sizes["depth"]):
    tokens = template + left
    seen = template**2 + search**2 if model.is_two_stream else tokens**2
    macs["attention projections"] += 4 * tokens * width**2
    macs["attention products"] += 2 * seen * width
    if layer in model.elimination_layers:
      kept = counts[model.elimination_layers.index(layer)]
      if kept < left:
        macs["candidate ranking"] += ranking_rows * tokens * width
      left = kept
    macs["mlp"] += 8 * (template + left) * width**2
  return macs


def _fusion_macs(model: OSTrack, template: int, search: int) -> int:
  """Return the multiply-adds between a two-stream backbone and the head; template, search: tokens."""
  tokens, layers, width = template + search, model.fusion_layers, model.dimensions()["width"]
  if model.relation == "stark":
    size, hidden = stark.CHANNELS, stark.HIDDEN
    encoder = tokens * (4 * size**2 + 2 * size * hidden) + 2 * tokens**2 * size
    # One query: its own attention and feed-forward, and all tokens projected to keys and values.
    own = 4 * size**2 + 2 * size + 2 * size**2 + 2 * size * hidden
    decoder = own + 2 * tokens * size**2 + 2 * tokens * size
    return tokens * width * size + layers * (encoder + decoder) + search * size
  encoder = 12 * tokens * width**2 + 2 * tokens**2 * width
  decoder = (10 * search + 2 * tokens) * width**2 + 2 * search * tokens * width
  # Positions, the same for all samples, are computed once a batch and not counted.
  return layers * encoder + decoder


def _head_macs(model: OSTrack) -> int:
  """Return the head's multiply-adds; padding counts as if it were multiplied."""
  inputs, channels = model.head_inputs, model.head_channels
  if model.head == "mlp":
    return 2 * inputs**2 + 4 * inputs
  outputs = BRANCHES.values() if model.head == "center" else [1] * len(CORNERS)
  sizes = [inputs, *(channels // 2**layer for layer in range(4))]
  blocks = sum(9 * before * after for before, after in itertools.pairwise(sizes))
  return model.search_grid**2 * sum(blocks + sizes[-1] * count for count in outputs)


def training_flops(model: OSTrack, stage_counts: tuple[int, ...] | None = None) -> float:
  """Return the floating-point operations of one training step per pair: three forward passes.

  The backward pass multiplies twice for each product of the forward pass. What rematerialisation
  computes again, and what masked candidates cost beyond the kept ones, is not counted: MFU is about
  useful arithmetic.
  """
  return 3 * 2.0 * sum(forward_macs(model, stage_counts).values())


def peak_flops(device_kind: str, dtype: str) -> float | None:
  """Return the peak of one device in FLOP/s, None for a device or type that the table lacks.

  Args:
    device_kind: jax.Device.device_kind, such as "NVIDIA H100 80GB HBM3".
    dtype: the model's; products of float16 are as fast as those of bfloat16.
  """
  words = device_kind.replace("-", " ").split()
  # A slice of a chip reaches a share of its peak that the name alone does not tell.
  if "MIG" in words:
    return None
  for name, peaks in _PEAKS.items():
    if all(word in words for word in name.split()):
      return peaks.get("bfloat16" if dtype == "float16" else dtype)
  return None


def model_flops_utilisation(
  pairs_per_second: float, flops_per_pair: float, peak: float | None, devices: int
) -> float | None:
  """Return the share of all devices' peak that a training speed uses; None where the peak is unknown."""
  return None if peak is None else pairs_per_second * flops_per_pair / (peak * devices)
