"""The backbone for tracking on Hopper GPUs: five kernels a block, and few arrays.

The same numbers as vit.Backbone's, up to rounding. For a single image the device works on some 200 kernels of a few
microseconds, and half of them only add, normalise or activate; of many images each of these reads and writes all
tokens once more. See fused_products and batched_products for what becomes of them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ostrack_jax.models import attention, fused_products, packed_attention
from ostrack_jax.models.candidates import Candidates, template_attention
from ostrack_jax.models.fused_elimination import Kept, eliminate, restore
from ostrack_jax.models.fused_products import Layers, RowSums, row_sums

# Of each block, in this order: how many times its width each puts out.
_LINEAR = {"qkv": 3, "proj": 1, "fc1": 4, "fc2": 1}
# Widths must be multiples of this.
_WIDTH_STEP = 64


def suits(batch: int, dtype, width: int, num_heads: int) -> bool:
  """Return whether these blocks can and should run: on a Hopper GPU, in half precision, for one sample or a batch.

  Older GPUs have less memory in a processor than the tiles want, and newer ones were never tried.
  """
  head_size = width // num_heads
  return (
    attention.is_hopper()
    and width % _WIDTH_STEP == 0
    and (
      attention.is_fused(batch, dtype, head_size)
      or (batch == 1 and packed_attention.suits(batch, dtype, head_size))
    )
  )


def fold(params: Mapping[str, Any], depth: int, dtype) -> dict[str, np.ndarray]:
  """Fold the normalisations of a backbone's blocks into the kernels behind them, and gather the rest.

  A normalisation's scale multiplies the rows of the kernel behind it, and its bias becomes part of that layer's. A
  token's mean is a number times a vector of ones, which a kernel whose columns sum to zero maps to nothing: so
  the mean of each column is taken off, and only a token's deviation is left to be found.

  Args:
    params: of the backbone, float32.
    depth: blocks.
    dtype: that the kernels are stored in.

  Returns:
    qkv, proj, fc1, fc2: kernels [depth, k, e]. shifts: [depth, 9 d] float32, of these four one after another.
    patches: [1, 768, d] kernel of the patches. positions: [1, Nz + Nx, d], template first, in the type of kernels.
    ends: [3, d] float32: bias of the patches, scale and bias of the last normalisation.

  Raises:
    ValueError: the width is no multiple of 64.
  """
  folded: dict[str, np.ndarray] = {}
  shifts = []
  for layer in range(depth):
    block = params[f"blocks_{layer}"]
    norms = {"qkv": block["norm1"], "fc1": block["norm2"]}
    for name in _LINEAR:
      linear = block["attn" if name in ("qkv", "proj") else "mlp"][name]
      kernel, shift = (np.asarray(linear[part], np.float32) for part in ("kernel", "bias"))
      if len(kernel) % _WIDTH_STEP:
        raise ValueError(f"fused blocks need a width that is a multiple of 64, not {len(kernel)}")
      if name in norms:
        scale, bias = (np.asarray(norms[name][part], np.float32) for part in ("scale", "bias"))
        shift = shift + bias @ kernel
        kernel = kernel * scale[:, None]
        kernel -= kernel.mean(axis=0)
      if name not in folded:
        folded[name] = np.empty((depth, *kernel.shape), dtype)
      folded[name][layer] = kernel
      shifts.append(shift)
  folded["shifts"] = np.concatenate(shifts).reshape(depth, -1)
  patches, norm = params["patch_embed"]["proj"], params["norm"]
  width = len(norm["scale"])
  folded["patches"] = np.asarray(patches["kernel"]).reshape(1, -1, width).astype(dtype)
  positions = [
    params[f"pos_embed_{image}"] + params.get(f"{segment}_segment_pos_embed", 0)
    for image, segment in (("z", "template"), ("x", "search"))
  ]
  folded["positions"] = np.concatenate(positions, axis=1).astype(dtype)
  ends = patches["bias"], norm["scale"], norm["bias"]
  folded["ends"] = np.stack([np.asarray(end, np.float32) for end in ends])
  return folded


def embed(folded: Mapping[str, jax.Array], patches) -> tuple[jax.Array, RowSums | None]:
  """Return tokens [b, n, d] of patches [b, n, 768] in the kernels' type, and of one sample their sums."""
  positions = folded["positions"]
  if len(patches) == 1:
    layers = Layers(folded["patches"], folded["ends"], 0)
    interpret = not attention.has_kernels(patches.dtype)
    return fused_products.added_product(positions, patches, layers, 0, interpret=interpret)
  product = (patches @ folded["patches"][0]).astype(jnp.float32)
  shift = positions.astype(jnp.float32) + folded["ends"][0][None, None, :]
  return (product + shift).astype(patches.dtype), None


def finish(
  folded: Mapping[str, jax.Array],
  tokens,
  sums: RowSums | None,
  alive: Candidates,
  num_cells: int,
) -> jax.Array:
  """Normalise tokens [b, Nz + n, d], whose sums are taken if they are None, and put them back on their cells.

  Returns:
    [b, Nz + num_cells, d].
  """
  sums = row_sums(tokens) if sums is None else sums
  interpret = not attention.has_kernels(tokens.dtype)
  return restore(tokens, sums, alive.index, folded["ends"], num_cells, interpret=interpret)


def _batched_products():
  # Imported late: what it needs of pallas takes a fifth of a second, which every start would pay.
  from ostrack_jax.models import batched_products

  return batched_products


class FusedBlock:
  """A block with the two halves of vit.Block; what it takes and leaves pending is not a branch but the stream's RowSums.

  Args:
    folded: of fold.
    layer: which of its blocks.
    num_heads: h.
  """

  def __init__(self, folded: Mapping[str, jax.Array], layer: int, num_heads: int):
    self._layer, self._num_heads = layer, num_heads
    self._interpret = not attention.has_kernels(folded["qkv"].dtype)
    width, start = folded["proj"].shape[2], 0
    self._layers: dict[str, Layers] = {}
    for name, times in _LINEAR.items():
      self._layers[name] = Layers(folded[name], folded["shifts"], start)
      start += times * width

  def attend(self, tokens, sums: RowSums | None, *, rows, key_valid, scale=None, offset_index=None):
    """Return tokens with the attention added, their sums, and the attention rows asked for.

    Raises:
      ValueError: key_valid, scale or offset_index is given, of which these blocks know nothing.
    """
    if not (key_valid is None and scale is None and offset_index is None):
      raise ValueError(
        "fused blocks attend to all tokens alike; leave out key_valid, scale, offset_index"
      )
    sums = row_sums(tokens) if sums is None else sums
    if len(tokens) > 1:
      return self._attend_in_batches(tokens, sums, rows)
    product = self._normed("qkv", tokens, sums, gelu=False)
    if rows is not None and len(rows) == 1:
      mixed, looks = packed_attention.attend_and_look(
        product, rows[0], self._num_heads, interpret=self._interpret
      )
      return *self._added("proj", tokens, mixed), looks
    packed = packed_attention.Packed(product, None)
    mixed = packed_attention.attend_packed(self._num_heads, self._interpret, packed)
    looks = None
    if rows is not None:
      queries, keys, _ = packed_attention.split_heads(packed, self._num_heads)
      looks = template_attention(queries[:, jnp.asarray(rows)], keys)
    return *self._added("proj", tokens, mixed), looks

  def _attend_in_batches(self, tokens, sums: RowSums, rows):
    batch, count, width = tokens.shape
    parted = _batched_products().normed_product(
      tokens,
      sums,
      self._layers["qkv"],
      self._layer,
      gelu=False,
      parts=3,
      interpret=self._interpret,
    )
    heads = batch, count, self._num_heads, width // self._num_heads
    queries, keys, values = (part.reshape(heads) for part in parted)
    mixed = attention.attend(queries, keys, values).reshape(tokens.shape)
    looks = None
    if rows is not None:
      looks = template_attention(queries[:, jnp.asarray(rows)], keys)
    return *self._added("proj", tokens, mixed), looks

  def can_eliminate(self, looks) -> bool:
    """Return whether eliminate takes such looks: of one template token."""
    return looks.shape[2] == 1

  def eliminate(self, tokens, sums: RowSums, looks, index, capacity: int) -> Kept:
    """Keep the candidates that one template token looks at most; see fused_elimination.eliminate."""
    return eliminate(tokens, sums, looks, index, capacity, interpret=self._interpret)

  def feed_forward(self, tokens, sums: RowSums | None, *, scale=None):
    """Return tokens with the MLP added, and their sums."""
    if scale is not None:
      raise ValueError("fused blocks scale nothing; leave out scale")
    sums = row_sums(tokens) if sums is None else sums
    return self._added("fc2", tokens, self._normed("fc1", tokens, sums, gelu=True))

  def _normed(self, name: str, tokens, sums: RowSums, *, gelu: bool):
    layers, how = self._layers[name], dict(gelu=gelu, interpret=self._interpret)
    if len(tokens) == 1:
      return fused_products.normed_product(tokens, sums, layers, self._layer, **how)
    return _batched_products().normed_product(tokens, sums, layers, self._layer, parts=1, **how)[0]

  def _added(self, name: str, stream, x):
    products = fused_products if len(stream) == 1 else _batched_products()
    layers = self._layers[name]
    return products.added_product(stream, x, layers, self._layer, interpret=self._interpret)
