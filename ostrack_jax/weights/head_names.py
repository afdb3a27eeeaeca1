"""What the tensors of the heads are called in official files: the paper's, and those it only declares."""

from collections.abc import Container

from ostrack_jax.weights.entries import Entry, affine, conv, linear

# Branches of convolutions and the outputs of each.
_BRANCHES = {"center": {"ctr": 1, "offset": 2, "size": 2}, "corner": {"tl": 1, "br": 1}}
# A tensor that tells the head.
FIRST = {
  "center": "box_head.conv1_ctr.0.weight",
  "corner": "box_head.conv1_tl.0.weight",
  "mlp": "box_head.layers.0.weight",
}


def head_of(names: Container[str]) -> str:
  """Return which head a file's tensors belong to; `center` where none is known."""
  return next((head for head, first in FIRST.items() if first in names), "center")


def table(head: str, inputs: int, channels: int) -> list[Entry]:
  """Return every tensor of a head.

  Args:
    inputs: channels that it sees. channels: of its first convolution.
  """
  if head == "mlp":
    sizes = (inputs, inputs, inputs, 4)
    return [
      entry
      for layer in range(3)
      for entry in linear(
        f"box_head.layers.{layer}",
        ("params", "box_head", f"layers_{layer}"),
        sizes[layer],
        sizes[layer + 1],
      )
    ]
  return [
    entry
    for branch, outputs in _BRANCHES[head].items()
    for entry in _branch(branch, outputs, inputs, channels)
  ]


def _branch(branch: str, outputs: int, inputs: int, channels: int) -> list[Entry]:
  entries = []
  for layer in range(4):
    features = channels // 2**layer
    here = f"conv{layer + 1}_{branch}"
    name, path = f"box_head.{here}", ("params", "box_head", here)
    entries += conv(f"{name}.0", (*path, "conv"), inputs, features, 3)
    entries += affine(f"{name}.1", (*path, "bn"), features)
    for statistic in ("mean", "var"):
      target = ("batch_stats", "box_head", here, "bn", statistic)
      entries.append(Entry(f"{name}.1.running_{statistic}", (features,), target, "same"))
    counter = ("unused", "num_batches_tracked", here)
    entries.append(Entry(f"{name}.1.num_batches_tracked", (), counter, "same"))
    inputs = features
  last = f"conv5_{branch}"
  return entries + conv(f"box_head.{last}", ("params", "box_head", last), inputs, outputs, 1)
