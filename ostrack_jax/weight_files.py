"""Networks from files of weights: official OSTrack models, and encoders with a new head behind them."""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ostrack_jax import description
from ostrack_jax.models import head
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.models.vit import VARIANTS
from ostrack_jax.weights import names, pretrained


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileOptions:
  """What a file of weights does not say itself.

  Attributes:
    num_heads: attention heads; None for width / 64, or what the file says.
    template_size, search_size: pixels, for encoders; None for 128 and 256. An OSTrack file's are read
      off its position tables.
    head_channels: of the new head behind an encoder; None for 256.
    seed: of the new head behind an encoder.
    elimination: whether the model eliminates candidates; no file tells.
    template_factor, search_factor: side of the crop over that of the target; None for 2, and for the
      search region 4, or 5 from 384 pixels on, as the official configurations have it.
  """

  num_heads: int | None = None
  template_size: int | None = None
  search_size: int | None = None
  head_channels: int | None = None
  seed: int = 0
  elimination: bool = True
  template_factor: float | None = None
  search_factor: float | None = None


def read_file(
  path: str | os.PathLike, options: FileOptions | None = None, allow_encoder: bool = True
) -> tuple[OSTrack, dict[str, Any], dict[str, Any]]:
  """Make model, variables and description of a file: official OSTrack, MAE or DeiT, AugReg, DINOv2.

  An encoder gets position tables for the sizes asked for and a head drawn from the seed; its
  description says `complete: false`. Without allow_encoder it is refused.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged, of another kind, or does not fit the options; one sentence.
  """
  path, options = pathlib.Path(path), options or FileOptions()
  weights = pretrained.read_weights(path)
  complete = weights.kind == "ostrack"
  if not (complete or allow_encoder):
    raise ValueError(
      f"{path} is an encoder without a trained head; convert it first: "
      f"python -m ostrack_jax.convert --input={path} --output=DIR"
    )
  source = str(path)
  written = written_description(weights.note, source)
  dimensions = _dimensions(weights, options, source)
  if written is None:
    model = _model(dimensions, weights.num_heads, options, source)
  else:
    model = description.build_model(written["model"], source)
    if not options.elimination:
      model = model.clone(elimination_layers=(), keep_ratios=())
    if options.num_heads not in (None, model.dimensions()["num_heads"]):
      raise ValueError(
        f"{source} has {model.dimensions()['num_heads']} attention heads, not {options.num_heads}"
      )
  if complete:
    variables = names.variables_from_torch(weights.state, model, source)
  else:
    state = pretrained.backbone_state(weights, model.template_size, model.search_size, source)
    variables = names.variables_from_torch(state, model, source, prefix="backbone.")
    for collection, tree in _new_head(model, options.seed).items():
      variables.setdefault(collection, {})["box_head"] = tree
  default_factor = 5.0 if model.search_size >= 384 else 4.0
  default = {"template_factor": 2.0, "search_factor": default_factor}
  default |= written["tracker"] if written else {}
  tracker = {name: _factor(name, getattr(options, name), value) for name, value in default.items()}
  origin = {
    "file": path.name,
    "sha256": _sha256(path),
    "kind": weights.kind,
    "left_out": list(weights.dropped),
  }
  # An encoder of ours stays one, even when it was written out as a whole file.
  complete = complete and (written or {}).get("complete", True)
  return model, variables, description.describe(model, tracker, origin, complete)


def written_description(note: str | None, source: str) -> dict[str, Any] | None:
  """Read what a file of this project says of its network; None for files of others."""
  if note is None:
    return None
  try:
    return description.check_description(json.loads(note), source)
  except (TypeError, json.JSONDecodeError) as error:
    raise ValueError(f"{source} holds a damaged description of its network ({error})") from error


def _dimensions(weights: pretrained.Weights, options: FileOptions, source: str) -> names.Dimensions:
  if weights.kind == "ostrack":
    dimensions = names.torch_dimensions(weights.state, source)
    for name in ("template_size", "search_size", "head_channels"):
      wanted, found = getattr(options, name), getattr(dimensions, name)
      if wanted not in (None, found):
        raise ValueError(
          f"{source} is an OSTrack model of {name} {found}, not {wanted}; only encoders take another"
        )
    return dimensions
  width, depth = pretrained.encoder_dimensions(weights.state, source)
  return names.Dimensions(
    width,
    depth,
    256 if options.head_channels is None else options.head_channels,
    128 if options.template_size is None else options.template_size,
    256 if options.search_size is None else options.search_size,
  )


def _model(
  dimensions: names.Dimensions, known_heads: int | None, options: FileOptions, source: str
) -> OSTrack:
  width, depth = dimensions.width, dimensions.depth
  known_heads = known_heads or dimensions.bias_heads or None
  num_heads = options.num_heads if known_heads is None else known_heads
  if options.num_heads not in (None, num_heads):
    raise ValueError(f"{source} has {known_heads} attention heads, not {options.num_heads}")
  if num_heads is None:
    if width % 64:
      raise ValueError(f"{source} has width {width}, not a multiple of 64; give num_heads")
    num_heads = width // 64
  if num_heads < 1:
    raise ValueError(f"num_heads {num_heads} must be positive")
  sizes = dict(width=width, depth=depth, num_heads=num_heads)
  variant = next((name for name, known in VARIANTS.items() if known == sizes), "custom")
  is_two_stream = dimensions.relation != "one_stream"
  layers = elimination_layers(depth) if options.elimination and not is_two_stream else ()
  fields = dict(
    variant=variant,
    **sizes,
    template_size=dimensions.template_size,
    search_size=dimensions.search_size,
    head_channels=dimensions.head_channels,
    elimination_layers=layers,
    keep_ratios=(0.7,) * len(layers),
    relation=dimensions.relation,
    relation_layers=dimensions.relation_layers or None,
    head=dimensions.head,
    identity_embeddings=dimensions.identity_embeddings,
    relative_positions=bool(dimensions.bias_heads),
  )
  return description.build_model(fields, source)


def elimination_layers(depth: int) -> tuple[int, ...]:
  """Return the blocks (from 0) that eliminate candidates: three quarter points, never block 0.

  (3, 6, 9) at depth 12, as released. Deeper and shallower networks, of which none is released, get
  the same spacing as far as their depth allows.
  """
  return tuple(sorted({depth * quarter // 4 for quarter in (1, 2, 3)} - {0}))


def _new_head(model: OSTrack, seed: int) -> dict[str, Any]:
  width = model.dimensions()["width"]
  module = head.CenterHead(model.head_channels, jnp.dtype("float32"), model.score_bias)
  features = np.zeros((1, 1, 1, width), np.float32)  # any grid: the head is convolutional
  return jax.tree.map(np.asarray, module.init(jax.random.key(seed), features, train=False))


def _factor(name: str, given: float | None, default: float) -> float:
  if given is None:
    return default
  if not 1 <= given <= 100:
    raise ValueError(
      f"{name} {given} must lie between 1 and 100: the crop's side over the target's"
    )
  return float(given)


def _sha256(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
