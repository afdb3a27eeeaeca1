"""A checkpoint's variables made ready to track: cast once, folded, and in few arrays.

A jitted call takes a microsecond or two for every array that it is given, as long as the work of a small
kernel; a checkpoint has more than two hundred.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from ostrack_jax.models import folded_head, fused_blocks
from ostrack_jax.models.ostrack import OSTrack

Path = tuple[str, ...]
# What is made of parts of the variables.
_FOLDED = ("head", "blocks")


class TrackableCheckpoint(Protocol):
  """What a Tracker needs: the model, {"params", "batch_stats"}, and the description as in JSON."""

  @property
  def model(self) -> OSTrack: ...

  @property
  def variables(self) -> Mapping[str, Any]: ...

  @property
  def description(self) -> Mapping[str, Any]: ...


class Layout:
  """Where arrays belong in a tree of variables. Hashed once, since jit asks for it in every call.

  Attributes:
    paths: of TrackingWeights.arrays.
    packed: path and shape of what TrackingWeights.packed holds.
  """

  def __init__(
    self, paths: tuple[Path, ...], packed: tuple[tuple[Path, tuple[int, ...]], ...]
  ) -> None:
    self.paths, self.packed = paths, packed
    self._hash = hash((paths, packed))

  def __hash__(self) -> int:
    return self._hash

  def __eq__(self, other) -> bool:
    return self is other or (
      isinstance(other, Layout) and (self.paths, self.packed) == (other.paths, other.packed)
    )


class TrackingWeights(flax.struct.PyTreeNode):
  """What tracker.locate needs of a checkpoint.

  Attributes:
    arrays: kernels and position tables, in the model's type but for what it computes in float32, heads that
      cannot be folded, and the biases of fused blocks and of a folded head's layers 2 to 4.
    packed: [n] float32, all other biases and scales one after another.
    layout: whose these are.
  """

  arrays: tuple[jax.Array | np.ndarray, ...]
  packed: jax.Array | np.ndarray
  layout: Layout = flax.struct.field(pytree_node=False)

  def unpack(self) -> dict[str, Any]:
    """Return variables for model.apply, under "head" what folded_head.fold made, and under "blocks" what
    fused_blocks.fold made; for use under jit.

    What was not folded is among the variables instead.
    """
    flat, start = dict(zip(self.layout.paths, self.arrays)), 0
    for path, shape in self.layout.packed:
      size = int(np.prod(shape))
      flat[path] = self.packed[start : start + size].reshape(shape)
      start += size
    return flax.traverse_util.unflatten_dict(flat)


def _keeps_its_type(path: Path) -> bool:
  # What is folded is of its types already; SwinTrack's positions and the last layers of heads are float32.
  return (
    path[0] in _FOLDED or "box_head" in path or any(part.endswith("_positions") for part in path)
  )


def fuses_blocks(model: OSTrack, batch: int | None, fuse_blocks: bool = False) -> bool:
  """Return whether prepare makes fused blocks; arguments as for it."""
  sizes = model.dimensions()
  return (
    batch is not None
    and (batch == 1 or fuse_blocks)
    and not model.is_two_stream
    and not model.relative_positions
    and fused_blocks.suits(batch, jnp.dtype(model.dtype), sizes["width"], sizes["num_heads"])
  )


def prepare(
  model: OSTrack, variables, batch: int | None = None, *, fuse_blocks: bool = False
) -> TrackingWeights:
  """Return what tracker.locate needs of {"params", "batch_stats"}, as numpy.

  Kernels and position tables, which the model casts to its type in every call, are cast here. Results
  are those of the model with the original variables; in half precision the head and fused blocks round less.

  Args:
    batch: crops of each device in every call, or None where their number varies; one may get fused blocks, see
      fused_blocks.suits.
    fuse_blocks: give them to 8 and more, too. On an H200 a call of 16 takes a tenth less time then, of 64 a fifth, and the
      first some 15 seconds more, at least 8 of them also with compiled programs at hand.
  """
  variables = jax.tree.map(
    np.asarray, {name: variables[name] for name in ("params", "batch_stats")}
  )
  dtype = jnp.dtype(model.dtype)
  params = dict(variables["params"])
  parts: dict[str, Any] = {**variables, "params": params}
  if model.head == "center":
    running = parts.pop("batch_stats")["box_head"]
    parts["head"] = folded_head.fold(params.pop("box_head"), running, dtype)
  if fuses_blocks(model, batch, fuse_blocks):
    backbone = params.pop("backbone")
    parts["blocks"] = fused_blocks.fold(backbone, model.dimensions()["depth"], dtype)
    # The model asks for position tables, also where it takes the folded ones.
    params["backbone"] = {name: value for name, value in backbone.items() if "pos_embed" in name}
  arrays, small = {}, {}
  for path, value in sorted(flax.traverse_util.flatten_dict(parts).items()):
    if path[0] == "blocks" or path[-1] in ("kernel", "biases") or path[-1].startswith("pos_embed"):
      arrays[path] = value if _keeps_its_type(path) else value.astype(dtype)
    else:
      small[path] = value
  packed = np.concatenate([value.reshape(-1) for value in small.values()])
  layout = Layout(tuple(arrays), tuple((path, value.shape) for path, value in small.items()))
  return TrackingWeights(arrays=tuple(arrays.values()), packed=packed, layout=layout)
