"""What each tensor of the official state dict is called here: one table, read in both directions.

Linear weights are transposed, convolutions go from OIHW to HWIO; everything else keeps its layout.
Tensors that official files carry and the network does not use (class token, 14 x 14 position table,
batch counters) live under `unused`, so that a file survives the round trip.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ostrack_jax.weights import entries as entries_lib
from ostrack_jax.weights import fusion_names, head_names
from ostrack_jax.weights.entries import Entry

PATCH_SIZE = 16
# The names of the official code, which has them switched off.
IDENTITY_EMBEDDINGS = ("template_segment_pos_embed", "search_segment_pos_embed")
RELATIVE_POSITIONS = "relative_position_bias_table"
# Official files carry them beside each such table; ours are the same, and computed.
_NUMBERS_OF_OFFSETS = ".attn.relative_position_index"
_PRETRAINED_TOKENS = 14 * 14 + 1
_AXES_FROM_TORCH = {"same": None, "linear": (1, 0), "conv": (2, 3, 1, 0)}
_AXES_TO_TORCH = {"same": None, "linear": (1, 0), "conv": (3, 2, 0, 1)}


class Dimensions(NamedTuple):
  """What names and shapes of an official state dict say; sizes in pixels; the rest as OSTrack has it.

  bias_heads: attention heads of the table of relative positions, 0 where there is none.
  """

  width: int
  depth: int
  head_channels: int
  template_size: int
  search_size: int
  relation: str = "one_stream"
  relation_layers: int = 0
  head: str = "center"
  identity_embeddings: bool = False
  bias_heads: int = 0


def dimensions_of(model: Any) -> Dimensions:
  """Return the dimensions of an OSTrack module."""
  sizes = model.dimensions()
  return Dimensions(
    sizes["width"],
    sizes["depth"],
    model.head_channels,
    model.template_size,
    model.search_size,
    model.relation,
    model.fusion_layers,
    model.head,
    model.identity_embeddings,
    sizes["num_heads"] if model.relative_positions else 0,
  )


def table(dimensions: Dimensions) -> list[Entry]:
  """Return every tensor of the official model, in its registration order."""
  is_stark = dimensions.relation == "stark"
  inputs = fusion_names.STARK_CHANNELS if is_stark else dimensions.width
  head = head_names.table(dimensions.head, inputs, dimensions.head_channels)
  return _backbone(dimensions) + _fusion(dimensions) + head


def _fusion(dimensions: Dimensions) -> list[Entry]:
  grids = (dimensions.template_size // PATCH_SIZE, dimensions.search_size // PATCH_SIZE)
  return fusion_names.table(
    dimensions.relation, dimensions.relation_layers, dimensions.width, grids
  )


def _backbone(dimensions: Dimensions) -> list[Entry]:
  width = dimensions.width
  root = ("params", "backbone")
  entries = [
    Entry("backbone.cls_token", (1, 1, width), ("unused", "cls_token"), "same"),
    Entry("backbone.pos_embed", (1, _PRETRAINED_TOKENS, width), ("unused", "pos_embed"), "same"),
  ]
  grids = (dimensions.template_size // PATCH_SIZE, dimensions.search_size // PATCH_SIZE)
  tables: dict[str, tuple[int, ...]] = {
    f"pos_embed_{image}": (1, grid**2, width) for image, grid in zip("zx", grids)
  }
  if dimensions.identity_embeddings:
    tables |= dict.fromkeys(IDENTITY_EMBEDDINGS, (1, 1, width))
  for name, shape in tables.items():
    entries.append(Entry(f"backbone.{name}", shape, (*root, name), "same"))
  entries += entries_lib.conv(
    "backbone.patch_embed.proj", (*root, "patch_embed", "proj"), 3, width, PATCH_SIZE
  )
  for index in range(dimensions.depth):
    block, path = f"backbone.blocks.{index}", (*root, f"blocks_{index}")
    entries += entries_lib.affine(f"{block}.norm1", (*path, "norm1"), width)
    if dimensions.bias_heads:
      shape = (dimensions.bias_heads, fusion_names.count_offsets(grids, grids))
      name = f"{block}.attn.{RELATIVE_POSITIONS}"
      entries.append(Entry(name, shape, (*path, "attn", RELATIVE_POSITIONS), "same"))
    entries += entries_lib.linear(f"{block}.attn.qkv", (*path, "attn", "qkv"), width, 3 * width)
    entries += entries_lib.linear(f"{block}.attn.proj", (*path, "attn", "proj"), width, width)
    entries += entries_lib.affine(f"{block}.norm2", (*path, "norm2"), width)
    entries += entries_lib.linear(f"{block}.mlp.fc1", (*path, "mlp", "fc1"), width, 4 * width)
    entries += entries_lib.linear(f"{block}.mlp.fc2", (*path, "mlp", "fc2"), 4 * width, width)
  return entries + entries_lib.affine("backbone.norm", (*root, "norm"), width)


def torch_shapes(model: Any) -> dict[str, tuple[int, ...]]:
  """Return name and shape of every tensor in the official state dict of an OSTrack module."""
  return {entry.name: entry.shape for entry in table(dimensions_of(model))}


def torch_dimensions(state: Mapping[str, np.ndarray], source: str) -> Dimensions:
  """Read width, depth, head channels and image sizes off the shapes of an official state dict.

  Raises ValueError naming the source and the tensor that is missing or has no such shape.
  """

  def shape(name: str, rank: int) -> tuple[int, ...]:
    if name not in state:
      raise ValueError(f"{source} lacks the tensor {name!r}; expected an OSTrack state dict")
    if state[name].ndim != rank:
      raise ValueError(f"{source}: {name!r} has shape {state[name].shape}; expected rank {rank}")
    return state[name].shape

  width = shape("backbone.patch_embed.proj.weight", 4)[0]
  sizes = []
  for suffix in ("z", "x"):
    tokens = shape(f"backbone.pos_embed_{suffix}", 3)[1]
    grid = round(tokens**0.5)
    if grid * grid != tokens or not grid:
      raise ValueError(
        f"{source}: 'backbone.pos_embed_{suffix}' has {tokens} positions; expected a square grid"
      )
    sizes.append(grid * PATCH_SIZE)
  head = head_names.head_of(state)
  first = head_names.FIRST[head]
  # Of an MLP all layers but the last are as wide as what it sees.
  channels = 256 if head == "mlp" else shape(first, 4)[0]
  relation = fusion_names.relation_of(state)
  layers = count_blocks(state, fusion_names.ENCODERS[relation]) if relation != "one_stream" else 0
  depth = count_blocks(state, "backbone.blocks.")
  template, search = sizes
  identity = any(f"backbone.{name}" in state for name in IDENTITY_EMBEDDINGS)
  offsets = f"backbone.blocks.0.attn.{RELATIVE_POSITIONS}"
  heads = shape(offsets, 2)[0] if offsets in state else 0
  return Dimensions(
    width, depth, channels, template, search, relation, layers, head, identity, heads
  )


def count_blocks(names: Iterable[str], prefix: str) -> int:
  """Return one more than the highest block number that follows the prefix in any name."""
  matches = (re.match(re.escape(prefix) + r"(\d+)[./]", name) for name in names)
  return 1 + max((int(match[1]) for match in matches if match), default=-1)


def _may_be_absent(entry: Entry) -> bool:
  return entry.path[0] == "unused"


def _and_more(count: int) -> str:
  return f" (and {count - 1} more such tensors)" if count > 1 else ""


def variables_from_torch(
  state: Mapping[str, np.ndarray], model: Any, source: str, prefix: str = ""
) -> dict[str, Any]:
  """Turn an official state dict into variables.

  Args:
    state: arrays in PyTorch's names and layouts.
    model: the OSTrack module that they are for.
    source: what error messages call the origin, usually the file's path.
    prefix: take only names that start so, `backbone.` for instance; the others must be absent.

  Returns:
    {"params", "batch_stats", "unused"}, nested dicts of float32 arrays that share no memory with the
    state; collections without a tensor are left out. Counters of batches are int32.

  Raises:
    ValueError: a tensor is missing, unexpected or has another shape or type; one sentence naming it.
  """
  entries = [e for e in table(dimensions_of(model)) if e.name.startswith(prefix)]
  missing = [e for e in entries if e.name not in state and not _may_be_absent(e)]
  if missing:
    raise ValueError(
      f"{source} lacks the tensor {missing[0].name!r} of shape {missing[0].shape}"
      f"{_and_more(len(missing))}"
    )
  known = {entry.name for entry in entries}
  unexpected = sorted(name for name in set(state) - known if not name.endswith(_NUMBERS_OF_OFFSETS))
  if unexpected:
    raise ValueError(
      f"{source} has the tensor {unexpected[0]!r} of shape {state[unexpected[0]].shape}, which "
      f"OSTrack does not have{_and_more(len(unexpected))}"
    )
  variables: dict[str, Any] = {} if prefix else {"batch_stats": {}}
  for entry in entries:
    if entry.name not in state:
      continue
    array = state[entry.name]
    counter = entry.name.endswith("num_batches_tracked")
    if array.shape != entry.shape:
      raise ValueError(f"{source}: {entry.name!r} has shape {array.shape}; expected {entry.shape}")
    if array.dtype.kind not in ("iu" if counter else "f"):
      raise ValueError(
        f"{source}: {entry.name!r} has type {array.dtype}; expected "
        f"{'an integer' if counter else 'floating point'}"
      )
    _put(variables, entry, array.astype(np.int32 if counter else np.float32))
  return variables


def torch_from_variables(variables: Mapping[str, Any], model: Any, source: str) -> dict:
  """Turn variables into the official state dict, every tensor of it; the reverse of the above.

  What the official model has and `unused` does not hold becomes zeros. Raises ValueError for
  variables that are missing, of another shape, or unknown, naming the source and the path.
  """
  check_variables(variables, model, source)
  state = {}
  for entry in table(dimensions_of(model)):
    counter = entry.name.endswith("num_batches_tracked")
    array = _get(variables, entry.path)
    if array is None:
      array = np.zeros(_our_shape(entry))
    axes = _AXES_TO_TORCH[entry.layout]
    array = np.asarray(array) if axes is None else np.transpose(np.asarray(array), axes)
    state[entry.name] = array.astype(np.int64 if counter else np.float32, order="C")
  return state


def check_variables(variables: Mapping[str, Any], model: Any, source: str) -> None:
  """Raise ValueError unless variables are exactly those of the model; `unused` may be absent."""
  entries = {entry.path: entry for entry in table(dimensions_of(model))}
  for path, entry in entries.items():
    array = _get(variables, path)
    if array is None and _may_be_absent(entry):
      continue
    found = "nothing" if array is None else f"shape {np.shape(array)}"
    if array is None or np.shape(array) != _our_shape(entry):
      raise ValueError(
        f"{source}: {'/'.join(path)} should have shape {_our_shape(entry)}, found {found}"
      )
  unknown = sorted(set(_paths(variables)) - set(entries))
  if unknown:
    raise ValueError(f"{source}: {'/'.join(unknown[0])} is not a variable of this model")


def _our_shape(entry: Entry) -> tuple[int, ...]:
  axes = _AXES_FROM_TORCH[entry.layout]
  return entry.shape if axes is None else tuple(entry.shape[axis] for axis in axes)


def _put(variables: dict[str, Any], entry: Entry, array: np.ndarray) -> None:
  axes = _AXES_FROM_TORCH[entry.layout]
  if axes is not None:
    array = np.ascontiguousarray(np.transpose(array, axes))
  node = variables
  for key in entry.path[:-1]:
    node = node.setdefault(key, {})
  node[entry.path[-1]] = array


def _get(variables: Mapping[str, Any], path: tuple[str, ...]) -> Any:
  node: Any = variables
  for key in path:
    if not isinstance(node, Mapping) or key not in node:
      return None
    node = node[key]
  return node


def _paths(variables: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
  for key, value in variables.items():
    if isinstance(value, Mapping):
      yield from ((key, *rest) for rest in _paths(value))
    else:
      yield (key,)
