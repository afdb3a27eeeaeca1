"""Heads that give a box without a score map: two corners, or an MLP.

The official code declares both and can run neither; sizes and names are those that it declares. As they have no score map,
training has no focal loss and tracking no window that keeps the track near its last position.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ostrack_jax.models.head import convolve_branches, torch_bias_init

CORNERS = ("tl", "br")


class CornerHead(nn.Module):
  """Two branches of convolutions, each a probability of its corner over all cells: soft-argmax corners.

  As the official code has it, a corner is the expectation of the cells' upper left corners, and so never lies in
  the last cell. Departure: the two corners are ordered by coordinate, so that no box has a negative side.
  """

  channels: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, features, train: bool, groups: int = 1, shards: int = 1):
    """Map [b, F, F, d] to (boxes [b, 4] cxcywh in the unit square of the crop, scores [b]), float32.

    A score is the geometric mean of the largest probabilities of both corners, in (0, 1). groups, shards:
    head.normalise_row's.
    """
    branches = convolve_branches(
      CORNERS, features, self.channels, self.dtype, train, groups, shards
    )
    corners, peaks = [], []
    for corner, x in zip(CORNERS, branches):
      logits = nn.Conv(
        1,
        (1, 1),
        dtype=jnp.float32,
        kernel_init=nn.initializers.xavier_uniform(),
        bias_init=torch_bias_init(x.shape[-1]),
        name=f"conv5_{corner}",
      )(x)
      place, peak = soft_argmax(logits[..., 0])
      corners.append(place)
      peaks.append(peak)
    low, high = jnp.minimum(*corners), jnp.maximum(*corners)
    boxes_cxcywh = jnp.concatenate([(low + high) / 2, high - low], axis=1)
    return boxes_cxcywh, jnp.sqrt(peaks[0] * peaks[1])


def soft_argmax(logits) -> tuple[jax.Array, jax.Array]:
  """Return the expected place of a corner and its largest probability, of logits [b, F, F].

  Returns:
    ([b, 2] x and y in the unit square, of cells' upper left corners; [b]).
  """
  batch, grid, _ = logits.shape
  shares = jax.nn.softmax(logits.reshape(batch, -1), axis=1).reshape(batch, grid, grid)
  cells = jnp.arange(grid, dtype=jnp.float32)[None, :] / grid
  x = (shares.sum(axis=1) * cells).sum(axis=1)
  y = (shares.sum(axis=2) * cells).sum(axis=1)
  return jnp.stack([x, y], axis=1), shares.max(axis=(1, 2))


class MlpHead(nn.Module):
  """Three linear layers with ReLU on the mean of all cells.

  The official code does not say what its perceptron would see; the mean is our choice. Eliminated
  cells count in it as zeros.
  """

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, features, train: bool, groups: int = 1, shards: int = 1):
    """Map [b, F, F, d] to (boxes [b, 4] cxcywh in the unit square of the crop, scores [b]), float32.

    It has nothing that could be called a score: scores are NaN. Nothing is normalised over the batch.
    """
    del train, groups, shards
    width = features.shape[-1]
    x = features.astype(jnp.float32).mean(axis=(1, 2)).astype(self.dtype)
    for layer, outputs in enumerate((width, width, 4)):
      # The last in float32, as the other heads' are.
      dense = nn.Dense(
        outputs,
        dtype=jnp.float32 if layer == 2 else self.dtype,
        kernel_init=nn.initializers.xavier_uniform(),
        bias_init=torch_bias_init(width),
        name=f"layers_{layer}",
      )
      x = dense(x)
      x = nn.relu(x) if layer < 2 else nn.sigmoid(x)
    return x, jnp.full(x.shape[0], jnp.nan)
