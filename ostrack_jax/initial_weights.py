"""Where training starts: random weights, an encoder's with a new head, or a whole tracker's."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from ostrack_jax import loading, weight_files
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.models.vit import VARIANTS
from ostrack_jax.weights import names, position_tables, pretrained
from ostrack_jax.weights.names import PATCH_SIZE

_KEY = "config.model.pretrained"
_ONLY_SOME = (*names.IDENTITY_EMBEDDINGS, names.RELATIVE_POSITIONS)


class InitialWeights(NamedTuple):
  """Variables to start from.

  Attributes:
    variables: {"params", "batch_stats"} as init_variables gives them, float32 arrays of jax.
    summary: lines for the screen: what was loaded, resampled, left out and left random.
  """

  variables: dict[str, Any]
  summary: str


class _Found(NamedTuple):
  """What a file or folder gives: a backbone that fits, and what is trained behind it, or None."""

  kind: str
  backbone: Mapping[str, Any]
  head: Mapping[str, Mapping[str, Any]] | None
  resampled: tuple[str, ...]
  left_out: tuple[str, ...]


def read_initial_weights(
  path: str | os.PathLike, model: OSTrack, random_variables: dict[str, Any]
) -> InitialWeights:
  """Make the weights that training starts from.

  Args:
    path: whatever `ostrack_jax.convert` reads or writes: an encoder's file (MAE, DeiT, AugReg,
      DINOv2), an OSTrack file, a converted folder, a training work folder, the name of a checkpoint
      that ships with the package; or "" for random weights.
    model: the network to be trained.
    random_variables: what init_variables gave for the model. Of them come all the weights, or where
      the path holds an encoder, converted or not, the head's.

  Raises:
    FileNotFoundError: there is nothing at the path.
    ValueError: what is there cannot be read or is of another width, depth, number of heads or head
      channels; one sentence that names both. Position tables of another size are resampled.
  """
  if not os.fspath(path):
    return InitialWeights(random_variables, "initial weights: random (config.train.seed)")
  if loading.is_folder(path):
    found = _read_folder(path, model)
  elif pathlib.Path(path).exists():
    found = _read_file(path, model)
  else:
    raise FileNotFoundError(
      f"{_KEY}: there is no file or folder {path}; correct the path or fetch the weights (README, "
      f"Initial weights), name what ships with the package ({', '.join(loading.shipped_names())}), or "
      "leave it empty for random weights"
    )
  found, backbone, fresh = _fit_backbone(found, random_variables["params"]["backbone"])
  start = {
    "params": {**random_variables["params"], "backbone": backbone},
    "batch_stats": random_variables["batch_stats"],
  }
  if found.head is not None:
    start["params"] |= found.head["params"]
    start["batch_stats"] = found.head["batch_stats"]
  names.check_variables(start, model, str(path))
  return InitialWeights(jax.tree.map(jnp.asarray, start), _summarise(path, found, model, fresh))


def _fit_backbone(
  found: _Found, ours: Mapping[str, Any]
) -> tuple[_Found, dict[str, Any], list[str]]:
  """Deal with what only some backbones have.

  Returns:
    (what was found without what ours has no place for, a backbone with all that ours has, and the names of what of it
    stays random).
  """
  theirs, own = flatten_dict(found.backbone), flatten_dict(ours)
  foreign = {path for path in theirs if path[-1] in _ONLY_SOME and path not in own}
  fresh = {path for path in own if path[-1] in _ONLY_SOME and path not in theirs}
  kept = {path: leaf for path, leaf in theirs.items() if path not in foreign}
  names_of = [[n for n in _ONLY_SOME if any(p[-1] == n for p in some)] for some in (foreign, fresh)]
  left = found._replace(backbone=unflatten_dict(kept), left_out=(*found.left_out, *names_of[0]))
  return left, unflatten_dict(kept | {path: own[path] for path in fresh}), names_of[1]


def _read_folder(path: str | os.PathLike, model: OSTrack) -> _Found:
  checkpoint = loading.load(path)
  theirs, complete = checkpoint.model, checkpoint.description.get("complete", True)
  _check_network(path, theirs.dimensions(), _channels(theirs, complete, model), model)
  kind = checkpoint.description.get("source", {}).get("kind", "ostrack")
  return _found_in(path, kind, checkpoint.variables, theirs, complete, model)


def _read_file(path: str | os.PathLike, model: OSTrack) -> _Found:
  source, weights = str(path), pretrained.read_weights(path)
  if weights.kind == "ostrack":
    written = weight_files.written_description(weights.note, source) or {"model": {}}
    complete = written.get("complete", True)
    found = names.torch_dimensions(weights.state, source)
    sizes = {"width": found.width, "depth": found.depth}
    sizes["num_heads"] = written["model"].get("num_heads")
    # Which candidates it eliminates changes none of its tensors.
    theirs = model.clone(
      template_size=found.template_size,
      search_size=found.search_size,
      head_channels=found.head_channels,
      relation=found.relation,
      relation_layers=found.relation_layers or None,
      head=found.head,
      score_bias=None,
      identity_embeddings=found.identity_embeddings,
      relative_positions=bool(found.bias_heads),
      elimination_layers=(),
      keep_ratios=(),
    )
    _check_network(path, sizes, _channels(theirs, complete, model), model)
    variables = names.variables_from_torch(weights.state, theirs, source)
    return _found_in(path, "ostrack", variables, theirs, complete, model)
  width, depth = pretrained.encoder_dimensions(weights.state, source)
  sizes = {"width": width, "depth": depth, "num_heads": weights.num_heads}
  _check_network(path, sizes, None, model)
  state = pretrained.backbone_state(weights, model.template_size, model.search_size, source)
  plain = model.clone(identity_embeddings=False, relative_positions=False)
  backbone = names.variables_from_torch(state, plain, source, prefix="backbone.")
  resampled = []
  if weights.patch_size != PATCH_SIZE:
    resampled.append(f"patch kernel {weights.patch_size} to {PATCH_SIZE} pixels")
  grid = round((weights.state["pos_embed"].shape[1] - 1) ** 0.5)
  resampled += _resampled_grids((grid, grid), model)
  return _Found(
    weights.kind, backbone["params"]["backbone"], None, tuple(resampled), weights.dropped
  )


def _found_in(
  path: str | os.PathLike,
  kind: str,
  variables: Mapping[str, Any],
  theirs: OSTrack,
  complete: bool,
  model: OSTrack,
) -> _Found:
  """Take a network's variables, a tracker's position tables resampled where sizes differ.

  An encoder's are not resampled a second time: its own file gives better ones.
  """
  if not complete and _sizes(theirs) != _sizes(model):
    sizes = "template_size {} and search_size {}"
    raise ValueError(
      f"{_KEY} {os.fspath(path)!r} is an encoder converted for {sizes.format(*_sizes(theirs))}, "
      f"and config.model has {sizes.format(*_sizes(model))}; give the encoder's original file, or "
      "convert it for these"
    )
  backbone = dict(variables["params"]["backbone"])
  for name, size, other in zip(("pos_embed_z", "pos_embed_x"), _sizes(model), _sizes(theirs)):
    if size != other:
      backbone[name] = position_tables.resample(backbone[name], size // PATCH_SIZE)
  left_out: tuple[str, ...] = ()
  if theirs.relative_positions and _sizes(theirs) != _sizes(model):
    # Their offsets are those of other grids.
    flat = flatten_dict(backbone)
    backbone = unflatten_dict({p: x for p, x in flat.items() if p[-1] != names.RELATIVE_POSITIONS})
    left_out = (names.RELATIVE_POSITIONS,)
  head = None
  # What another relation has learnt behind its backbone has no place here.
  if complete and _relate_alike(theirs, model):
    behind = {name: tree for name, tree in variables["params"].items() if name != "backbone"}
    head = {"params": behind, "batch_stats": variables["batch_stats"]}
  grids = tuple(size // PATCH_SIZE for size in _sizes(theirs))
  return _Found(kind, backbone, head, tuple(_resampled_grids(grids, model)), left_out)


def _channels(theirs: OSTrack, complete: bool, model: OSTrack) -> int | None:
  """Return the channels of a head that ours is to be filled from, None where it is not or has none."""
  fills = complete and _relate_alike(theirs, model) and theirs.head != "mlp"
  return theirs.head_channels if fills else None


def _relate_alike(theirs: OSTrack, model: OSTrack) -> bool:
  """Return whether what one has learnt behind its backbone fits the other."""
  # Its positions are those of its grids.
  if model.relation == "swintrack" and _sizes(theirs) != _sizes(model):
    return False
  return all(
    getattr(theirs, name) == getattr(model, name) for name in ("relation", "fusion_layers", "head")
  )


def _sizes(model: OSTrack) -> tuple[int, int]:
  return model.template_size, model.search_size


def _resampled_grids(theirs: tuple[int, ...], model: OSTrack) -> list[str]:
  ours = (size // PATCH_SIZE for size in _sizes(model))
  return [
    f"{part} positions {there} x {there} to {here} x {here}"
    for part, there, here in zip(("template", "search"), theirs, ours)
    if there != here
  ]


def _check_network(
  path: str | os.PathLike, theirs: Mapping[str, int | None], channels: int | None, model: OSTrack
) -> None:
  """Refuse another network; what a file does not say (None) is taken to fit."""
  ours = model.dimensions()
  if any(theirs[name] not in (None, ours[name]) for name in ours):
    known = {name: size for name, size in theirs.items() if size is not None}
    fitting = [
      name
      for name, sizes in VARIANTS.items()
      if all(sizes[part] == size for part, size in known.items())
    ]
    cure = f"set config.model.variant to {fitting[0]!r}" if fitting else "set these in config.model"
    raise ValueError(
      f"{_KEY} {os.fspath(path)!r} has {_words(known)}, and config.model (variant "
      f"{model.variant!r}) has {_words(ours)}; {cure}, or give weights of that size"
    )
  if channels not in (None, model.head_channels):
    raise ValueError(
      f"{_KEY} {os.fspath(path)!r} has a head of {channels} channels, and config.model.head_channels "
      f"is {model.head_channels}; set it to {channels}"
    )


def _words(sizes: Mapping[str, int]) -> str:
  return ", ".join(f"{name} {sizes[name]}" for name in sizes)


def _summarise(path: str | os.PathLike, found: _Found, model: OSTrack, fresh: Sequence[str]) -> str:
  behind = f"{model.relation} and head" if model.is_two_stream else "head"
  loaded = jax.tree.leaves(found.backbone)
  loaded += [] if found.head is None else jax.tree.leaves(found.head["params"])
  parts = "backbone" if found.head is None else f"backbone and {behind}"
  random = [*fresh, *([behind] if found.head is None else [])]
  rows = {
    "loaded": f"{parts}, {sum(leaf.size for leaf in loaded):,} parameters",
    "resampled": "; ".join(found.resampled),
    "left out": ", ".join(found.left_out[:4])
    + (f" and {len(found.left_out) - 4} more" if len(found.left_out) > 4 else ""),
    "left random": f"{', '.join(random)} (config.train.seed)" if random else "",
  }
  lines = [f"initial weights: {os.fspath(path)} ({found.kind})"]
  return "\n".join(lines + [f"  {name}: {text}" for name, text in rows.items() if text])
