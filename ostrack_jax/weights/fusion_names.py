"""What the tensors between a two-stream backbone and the head are called in PyTorch files.

The names are those of STARK-S and SwinTrack (see models.stark and models.swintrack for the versions), whose
released weights have other backbones and so do not fit. STARK's projection is a linear layer here, its kernel
without the two axes of a 1 x 1 convolution.
"""

from collections.abc import Iterable

from ostrack_jax.weights.entries import Entry, affine, linear

STARK_CHANNELS = 256
_STARK_HIDDEN = 2048
_SWINTRACK_HEADS = 8
_ROOT = ("params", "fusion")
# What the names of their encoders' layers begin with.
ENCODERS = {"stark": "transformer.encoder.layers.", "swintrack": "encoder.layers."}


def relation_of(names: Iterable[str]) -> str:
  """Return the relation that a file's tensors belong to."""
  for name in names:
    for relation, prefix in ENCODERS.items():
      if name.startswith(prefix):
        return relation
  return "one_stream"


def table(relation: str, layers: int, width: int, grids: tuple[int, int]) -> list[Entry]:
  """Return every tensor of a relation's modules; none for `one_stream`.

  Args:
    layers: of the encoder.
    width: the backbone's.
    grids: tokens per side of template and search region.
  """
  if relation == "stark":
    return _stark(layers, width)
  return _swintrack(layers, width, grids) if relation == "swintrack" else []


def _attention(name: str, path: tuple[str, ...]) -> list[Entry]:
  size = STARK_CHANNELS
  return [
    Entry(f"{name}.in_proj_weight", (3 * size, size), (*path, "in_proj", "kernel"), "linear"),
    Entry(f"{name}.in_proj_bias", (3 * size,), (*path, "in_proj", "bias"), "same"),
    *linear(f"{name}.out_proj", (*path, "out_proj"), size, size),
  ]


def _stark(layers: int, width: int) -> list[Entry]:
  size = STARK_CHANNELS
  entries = [Entry("query_embed.weight", (1, size), (*_ROOT, "query_embed"), "same")]
  entries += linear("bottleneck", (*_ROOT, "bottleneck"), width, size)
  for part, attentions, norms in (
    ("encoder", ("self_attn",), 2),
    ("decoder", ("self_attn", "multihead_attn"), 3),
  ):
    for number in range(layers):
      name, path = f"transformer.{part}.layers.{number}", (*_ROOT, f"{part}_{number}")
      for attention in attentions:
        entries += _attention(f"{name}.{attention}", (*path, attention))
      entries += linear(f"{name}.linear1", (*path, "linear1"), size, _STARK_HIDDEN)
      entries += linear(f"{name}.linear2", (*path, "linear2"), _STARK_HIDDEN, size)
      for norm in range(1, norms + 1):
        entries += affine(f"{name}.norm{norm}", (*path, f"norm{norm}"), size)
  return entries + affine("transformer.decoder.norm", (*_ROOT, "decoder_norm"), size)


def _positions(part: str, width: int, grids: tuple[int, int]) -> list[Entry]:
  entries = []
  here = (*_ROOT, f"{part}_positions")
  for image, grid in zip("zx", grids):
    name, path = f"{part}.{image}_untied_pos_enc", (*here, f"{image}_untied_pos_enc")
    for axis in ("w_pos", "h_pos"):
      entries.append(Entry(f"{name}.pos.{axis}", (grid, width), (*path, axis), "same"))
    entries += affine(f"{name}.norm", (*path, "norm"), width)
    if part == "encoder" or image == "x":
      entries += linear(f"{name}.pos_q_linear", (*path, "pos_q_linear"), width, width)
    entries += linear(f"{name}.pos_k_linear", (*path, "pos_k_linear"), width, width)
  # Every offset within and between the two images, for queries of both or of the search region alone.
  count = count_offsets(grids if part == "encoder" else grids[1:], grids)
  name = f"{part}.rpe_bias_table.relative_position_bias_table"
  shape = (_SWINTRACK_HEADS, count)
  return [*entries, Entry(name, shape, (*here, "rpe_bias_table"), "same")]


def count_offsets(queries: tuple[int, ...], keys: tuple[int, ...]) -> int:
  """Return how many offsets there are from grids of so many tokens a side to others, image by image."""
  return sum((mine + other - 1) ** 2 for mine in queries for other in keys)


def _swintrack(layers: int, width: int, grids: tuple[int, int]) -> list[Entry]:
  entries = []
  for part, count in (("encoder", layers), ("decoder", 1)):
    entries += _positions(part, width, grids)
    for number in range(count):
      name, path = f"{part}.layers.{number}", (*_ROOT, f"{part}_{number}")
      norms, products = ("norm1",), {"qkv": 3 * width}
      if part == "decoder":
        norms, products = ("norm1_q", "norm1_kv"), {"q": width, "kv": 2 * width}
      for norm in (*norms, "norm2"):
        entries += affine(f"{name}.{norm}", (*path, norm), width)
      for product, outputs in {**products, "proj": width}.items():
        entries += linear(f"{name}.attn.{product}", (*path, product), width, outputs)
      entries += linear(f"{name}.mlp.fc1", (*path, "mlp", "fc1"), width, 4 * width)
      entries += linear(f"{name}.mlp.fc2", (*path, "mlp", "fc2"), 4 * width, width)
  return entries + affine("out_norm", (*_ROOT, "out_norm"), width)
