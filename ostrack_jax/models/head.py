"""The centre head: score map, offsets and sizes, and the box they decode to.

Follows OSTrack, Ye et al. 2022, Sec. 3.3. Convolutions run in the compute type; normalisation and the
last, 1 x 1 convolutions in float32 (in bfloat16 the clamp to 1 - 1e-4 rounds to 1, and the focal loss
takes the logarithm of 0).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

BRANCHES = {"ctr": 1, "offset": 2, "size": 2}
_CLAMP = 1e-4


class BatchNorm(nn.Module):
  """Batch normalisation with PyTorch's running statistics (momentum 0.1, unbiased variance).

  Under jit over a mesh the mean is taken over the global batch; the official code normalised over the
  32 images of each GPU, which `groups` equal parts of the batch do here (the running statistics are then
  those of the parts' mean; officially those of the first GPU alone). flax.linen's layer keeps the biased
  variance.
  """

  channels: int

  def setup(self):
    shape = (self.channels,)
    self.scale = self.param("scale", nn.initializers.ones, shape)
    self.bias = self.param("bias", nn.initializers.zeros, shape)
    self.running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
    self.running_var = self.variable("batch_stats", "var", jnp.ones, shape)

  def __call__(self, x, train: bool, groups: int = 1, shards: int = 1):
    """Normalise [b, ..., channels]; groups and shards are normalise_row's."""
    return normalise_row([self], [x], train, groups, shards)[0]

  def running(self):
    """Return the running mean and variance, [1, channels] each."""
    return self.running_mean.value[None, :], self.running_var.value[None, :]

  def follow(self, mean, var, count: int):
    """Move the running statistics towards a mean and biased variance [channels] of `count` values."""
    if not self.is_initializing():
      unbiased = var * (count / max(count - 1, 1))
      self.running_mean.value = 0.9 * self.running_mean.value + 0.1 * mean
      self.running_var.value = 0.9 * self.running_var.value + 0.1 * unbiased

  def affine(self, mean, var):
    """Return the factor and the offset [g, channels] that normalise, from statistics [g, channels]."""
    factor = self.scale[None, :] * jax.lax.rsqrt(var + 1e-5)
    return factor, self.bias[None, :] - mean * factor


def normalise_row(
  layers: Sequence[BatchNorm], inputs: Sequence[jax.Array], train: bool, groups: int, shards: int
) -> list[jax.Array]:
  """Normalise arrays of equal shape [b, ..., c], each by its own layer.

  In training all that devices tell each other is one small array, and one more in the backward pass:
  waiting for each other costs them far more than the bytes do.

  Args:
    groups: equal runs of the batch that are normalised apart, in training.
    shards: equal runs of the batch that lie on different devices. More of them than groups, and the
      statistics of each are combined, which changes numbers by no more than rounding.

  Returns:
    The normalised arrays, float32.
  """
  runs = max(groups, shards)
  parts = [x.astype(jnp.float32).reshape(runs, -1, x.shape[-1]) for x in inputs]
  crosses = train and shards > groups
  if train:
    moments = [_moments(x) for x in parts]
    if crosses:
      moments = _unstacked(_combined(_stacked(moments), groups))
    count = parts[0].shape[1] * runs // groups
    for layer, (mean, var) in zip(layers, moments):
      layer.follow(mean.mean(axis=0), var.mean(axis=0), count)
  else:
    moments = [layer.running() for layer in layers]
  affine = [layer.affine(mean, var) for layer, (mean, var) in zip(layers, moments)]
  if crosses:
    affine = _unstacked(_spread(_stacked(affine), shards))
  return [
    (part * factor[:, None, :] + offset[:, None, :]).reshape(x.shape)
    for x, part, (factor, offset) in zip(inputs, parts, affine)
  ]


def _moments(x) -> tuple[jax.Array, jax.Array]:
  """Return the mean and the biased variance [r, c] of each run in [r, n, c]."""
  mean = x.mean(axis=1)
  return mean, jnp.square(x - mean[:, None, :]).mean(axis=1)


def _stacked(pairs: Sequence[tuple[jax.Array, jax.Array]]) -> jax.Array:
  """Stack l pairs of [r, c] to [r, l, 2, c]."""
  return jnp.stack([jnp.stack(pair, axis=1) for pair in pairs], axis=1)


def _unstacked(array) -> list[tuple[jax.Array, jax.Array]]:
  """Undo _stacked."""
  return [(array[:, i, 0], array[:, i, 1]) for i in range(array.shape[1])]


def _combined(moments, groups: int) -> jax.Array:
  """Combine moments [shards, l, 2, c] of equal runs to those of groups of them, [groups, l, 2, c]."""
  shards = moments.shape[0]
  # Each shard puts its moments into its own row of zeros, so one sum tells every device those of all.
  # Sums of squares would be smaller to send, but lose the variance beside a large mean.
  own = jnp.eye(shards)[:, :, None, None, None]
  known = (own * moments[:, None]).sum(axis=0).reshape(groups, -1, *moments.shape[1:])
  means, variances = known[..., 0, :], known[..., 1, :]
  mean = means.mean(axis=1)
  var = (variances + jnp.square(means - mean[:, None])).mean(axis=1)
  return jnp.stack([mean, var], axis=-2)


def _spread(array, shards: int) -> jax.Array:
  """Give [groups, l, 2, c] to the shards of each group: [shards, l, 2, c]."""
  groups = array.shape[0]
  # A product, not a repetition: its gradient is one sum over all shards however many groups there are.
  own = jnp.repeat(jnp.eye(groups), shards // groups, axis=0)[:, :, None, None, None]
  return (own * array[None]).sum(axis=1)


def torch_bias_init(fan_in: int):
  """PyTorch's default for convolution biases: uniform within 1 / sqrt(fan_in)."""
  bound = fan_in**-0.5
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class ConvBlock(nn.Module):
  """3 x 3 convolution (with bias, as released) and BatchNorm, which normalise_row applies."""

  inputs: int
  features: int
  dtype: jnp.dtype

  def setup(self):
    self.conv = nn.Conv(
      self.features,
      (3, 3),
      padding=1,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      bias_init=torch_bias_init(9 * self.inputs),
    )
    self.bn = BatchNorm(self.features)


def convolve_branches(
  branches: Sequence[str], features, channels: int, dtype, train: bool, groups: int, shards: int
) -> list[jax.Array]:
  """Apply four convolution blocks a branch, of halving channels; inside a compact method of a head.

  Args:
    features: [b, F, F, d]. groups, shards: normalise_row's.

  Returns:
    Of each branch [b, F, F, channels / 8] float32.
  """
  row = [features] * len(branches)
  for layer in range(4):
    blocks = [
      ConvBlock(row[0].shape[-1], channels // 2**layer, dtype, name=f"conv{layer + 1}_{branch}")
      for branch in branches
    ]
    convolved = [block.conv(x) for block, x in zip(blocks, row)]
    norms = [block.bn for block in blocks]
    row = [nn.relu(x) for x in normalise_row(norms, convolved, train, groups, shards)]
  return row


class CenterHead(nn.Module):
  """Three branches of four convolution blocks and a 1 x 1 convolution.

  `score_bias` replaces the initial bias of the score branch's last convolution; None keeps
  PyTorch's default, as the official code does. A value of about -4 (few cells are positive) helps
  short trainings from random weights.
  """

  channels: int
  dtype: jnp.dtype
  score_bias: float | None = None

  @nn.compact
  def __call__(self, features, train: bool, groups: int = 1, shards: int = 1):
    """Map [b, F, F, d] to (score_map [b,F,F,1], size_map [b,F,F,2], offset_map [b,F,F,2]), float32.

    Score and size are sigmoids clamped to [1e-4, 1 - 1e-4] with no gradient outside; offsets are raw.
    groups, shards: normalise_row's.
    """
    row = convolve_branches(
      list(BRANCHES), features, self.channels, self.dtype, train, groups, shards
    )
    maps = {}
    for (branch, outputs), x in zip(BRANCHES.items(), row):
      bias_init = torch_bias_init(x.shape[-1])
      if branch == "ctr" and self.score_bias is not None:
        bias_init = nn.initializers.constant(self.score_bias)
      maps[branch] = nn.Conv(
        outputs,
        (1, 1),
        dtype=jnp.float32,
        kernel_init=nn.initializers.xavier_uniform(),
        bias_init=bias_init,
        name=f"conv5_{branch}",
      )(x.astype(jnp.float32))
    return clamped_sigmoid(maps["ctr"]), clamped_sigmoid(maps["size"]), maps["offset"]


def clamped_sigmoid(x):
  """Return sigmoid clamped to [1e-4, 1 - 1e-4]; the gradient is zero outside."""
  return jnp.clip(nn.sigmoid(x), _CLAMP, 1 - _CLAMP)


def decode_boxes(score_map, size_map, offset_map) -> jax.Array:
  """Decode the box at the first maximum of a score map.

  Args:
    score_map: [b, F, F, 1], raw or weighted by a window.
    size_map: [b, F, F, 2] width and height as shares of the search crop.
    offset_map: [b, F, F, 2] x and y offsets in cells.

  Returns:
    [b, 4] cxcywh in the unit square of the search crop. No gradient flows through the choice of cell.
  """
  batch, grid = score_map.shape[:2]
  peak = jnp.argmax(score_map.reshape(batch, -1), axis=1)
  cell = jnp.stack([peak % grid, peak // grid], axis=1).astype(jnp.float32)

  def at_peak(values):
    return jnp.take_along_axis(values.reshape(batch, grid * grid, 2), peak[:, None, None], axis=1)[
      :, 0
    ]

  return jnp.concatenate([(cell + at_peak(offset_map)) / grid, at_peak(size_map)], axis=1)


def hann_window(grid: int) -> np.ndarray:
  """Return the [grid, grid] float32 window that keeps the track near the last position.

  Half a cosine whose ends are not zero: the inner part of a (grid + 2)-point Hann window.
  """
  ramp = 0.5 * (1 - np.cos(2 * np.pi * np.arange(1, grid + 1) / (grid + 1)))
  return np.outer(ramp, ramp).astype(np.float32)
