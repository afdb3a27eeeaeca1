"""What fields and arguments fit the network, told before anything is computed."""

from typing import TYPE_CHECKING

import jax.numpy as jnp

from ostrack_jax.models import candidates, stark, swintrack, vit

if TYPE_CHECKING:
  from ostrack_jax.models.ostrack import OSTrack

DTYPES = ("float32", "bfloat16", "float16")
# With the layers of their encoders, as in the paper.
RELATIONS = {"one_stream": 0, "stark": stark.LAYERS, "swintrack": swintrack.LAYERS}
HEADS = ("center", "corner", "mlp")


def check_fields(model: "OSTrack") -> None:
  """Raise ValueError, naming the field, the value and what is expected, where a model's fields do not fit."""
  if model.variant not in (*vit.VARIANTS, "custom"):
    raise ValueError(
      f"variant {model.variant!r} is unknown; choose one of {', '.join(vit.VARIANTS)} or custom"
    )
  sizes = model.dimensions()
  if len(sizes) < 3:
    raise ValueError(f"variant custom needs width, depth and num_heads; got {sizes}")
  if any(not isinstance(size, int) or size < 1 for size in sizes.values()):
    raise ValueError(f"width, depth and num_heads must be positive whole numbers, got {sizes}")
  if sizes["width"] % sizes["num_heads"]:
    raise ValueError(f"width {sizes['width']} is not divisible by num_heads {sizes['num_heads']}")
  for name in ("template_size", "search_size"):
    size = getattr(model, name)
    if not isinstance(size, int) or size < 16 or size % 16:
      raise ValueError(f"{name} {size} must be a positive multiple of the patch size 16")
  if not 0 <= model.drop_path_rate < 1:
    raise ValueError(f"drop_path_rate {model.drop_path_rate} must lie in [0, 1)")
  if model.head_channels < 8 or model.head_channels % 8:
    raise ValueError(f"head_channels {model.head_channels} must be a positive multiple of 8")
  if len(model.elimination_layers) != len(model.keep_ratios):
    raise ValueError(
      f"{len(model.elimination_layers)} elimination_layers {model.elimination_layers} need as many "
      f"keep_ratios, got {model.keep_ratios}"
    )
  if sorted(set(model.elimination_layers)) != list(model.elimination_layers):
    raise ValueError(f"elimination_layers {model.elimination_layers} must be increasing")
  if any(not 0 <= layer < sizes["depth"] for layer in model.elimination_layers):
    raise ValueError(
      f"elimination_layers {model.elimination_layers} must lie in 0..{sizes['depth'] - 1}"
    )
  if any(not 0 < ratio <= 1 for ratio in model.keep_ratios):
    raise ValueError(f"keep_ratios {model.keep_ratios} must lie in (0, 1]")
  if model.template_tokens not in candidates.TEMPLATE_TOKENS:
    raise ValueError(
      f"template_tokens {model.template_tokens!r} is unknown; choose one of {', '.join(candidates.TEMPLATE_TOKENS)}"
    )
  if model.relation not in tuple(RELATIONS):
    raise ValueError(
      f"relation {model.relation!r} is unknown; choose one of {', '.join(RELATIONS)}"
    )
  if model.is_two_stream and model.elimination_layers:
    raise ValueError(
      f"relation {model.relation!r} has no candidates to eliminate; set elimination_layers and keep_ratios to ()"
    )
  layers = model.relation_layers
  is_count = isinstance(layers, int) and not isinstance(layers, bool) and layers > 0
  if layers is not None and not (model.is_two_stream and is_count):
    raise ValueError(
      f"relation_layers {layers} must be a positive whole number, and None with relation one_stream"
    )
  if model.relation == "swintrack" and sizes["width"] % swintrack.NUM_HEADS:
    raise ValueError(
      f"width {sizes['width']} is not divisible by swintrack's {swintrack.NUM_HEADS} heads"
    )
  if model.dtype not in DTYPES:
    raise ValueError(f"dtype {model.dtype!r} is not supported; choose one of {', '.join(DTYPES)}")
  if model.head not in HEADS:
    raise ValueError(f"head {model.head!r} is unknown; choose one of {', '.join(HEADS)}")
  if model.score_bias is not None and model.head != "center":
    raise ValueError(f"score_bias is for head center; leave it away with head {model.head!r}")
  for name in ("identity_embeddings", "relative_positions"):
    if not isinstance(getattr(model, name), bool):
      raise ValueError(f"{name} {getattr(model, name)!r} must be True or False")
    if getattr(model, name) and model.is_two_stream:
      raise ValueError(
        f"{name} tells tokens apart that relation {model.relation!r} never joins; set it to False"
      )


def check_call(
  model: "OSTrack",
  template,
  search,
  *,
  template_mask,
  keep_counts,
  attention_layers,
  feature_layers,
  batch_norm_groups: int,
  batch_norm_shards: int,
  blocks_folded,
  encoded_template,
) -> None:
  """Raise ValueError where the arguments of OSTrack.__call__ do not fit the model or each other."""
  batch, grid = search.shape[0], model.template_size // candidates.PATCH_SIZE
  _check_images("search", search, model.search_size, batch)
  if blocks_folded is not None and model.is_two_stream:
    raise ValueError(
      f"blocks_folded is of one-stream trackers alone; relation is {model.relation!r}"
    )
  if blocks_folded is not None and keep_counts is not None:
    raise ValueError("blocks_folded has static keep ratios; leave out keep_counts")
  if (encoded_template is None) == (template is None):
    raise ValueError("give either template or encoded_template")
  if encoded_template is None:
    _check_images("template", template, model.template_size, batch)
  elif not model.is_two_stream or encoded_template.shape[:2] != (batch, grid * grid):
    raise ValueError(
      f"encoded_template has shape {encoded_template.shape}; expected [{batch}, {grid * grid}, width] "
      f"and relation stark or swintrack, which is {model.relation!r}"
    )
  if (template_mask is not None) != (model.template_tokens == "ground_truth_box"):
    state = "missing" if template_mask is None else "not used"
    raise ValueError(f"template_mask is {state} with template_tokens {model.template_tokens!r}")
  if template_mask is not None and template_mask.shape != (batch, grid * grid):
    raise ValueError(
      f"template_mask has shape {template_mask.shape}; expected {(batch, grid * grid)}"
    )
  stages = len(model.keep_ratios)
  if keep_counts is not None and jnp.shape(keep_counts) != (stages,):
    raise ValueError(f"keep_counts has shape {jnp.shape(keep_counts)}; this model takes [{stages}]")
  if batch_norm_groups < 1 or batch % batch_norm_groups:
    raise ValueError(
      f"batch_norm_groups {batch_norm_groups} must divide the batch, which has {batch} pairs"
    )
  if batch_norm_shards < 1 or batch % batch_norm_shards:
    raise ValueError(
      f"batch_norm_shards {batch_norm_shards} must divide the batch, which has {batch} pairs; give "
      "the number of devices that it lies on"
    )
  if batch_norm_groups % batch_norm_shards and batch_norm_shards % batch_norm_groups:
    raise ValueError(
      f"batch_norm_groups {batch_norm_groups} and batch_norm_shards {batch_norm_shards}: one must be "
      f"a multiple of the other; choose groups that divide {batch_norm_shards}, or multiples of it"
    )
  depth = model.dimensions()["depth"]
  for name, layers in (("attention_layers", attention_layers), ("feature_layers", feature_layers)):
    if any(not 0 <= layer < depth for layer in layers):
      raise ValueError(f"{name} {tuple(layers)} must lie in 0..{depth - 1}")
  if model.is_two_stream and (keep_counts is not None or attention_layers or feature_layers):
    raise ValueError(
      f"relation {model.relation!r} has no block that sees template and search region together, so neither "
      "keep_counts nor attention_layers nor feature_layers; leave them away"
    )


def _check_images(name: str, images, size: int, batch: int) -> None:
  if images.ndim != 4 or images.shape[1:] != (size, size, 3):
    raise ValueError(f"{name} has shape {images.shape}; this model takes [b, {size}, {size}, 3]")
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(f"{name} is {images.dtype}; give normalised floats (see normalise_images)")
  if images.shape[0] != batch:
    raise ValueError(f"{images.shape[0]} templates and {batch} search regions must be as many")
