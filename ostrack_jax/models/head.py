"""The centre head: score map, offsets and sizes, and the box they decode to.

Follows OSTrack, Ye et al. 2022, Sec. 3.3. Convolutions run in the compute type; normalisation and the
last, 1 x 1 convolutions in float32 (in bfloat16 the clamp to 1 - 1e-4 rounds to 1, and the focal loss
takes the logarithm of 0).
"""

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

  @nn.compact
  def __call__(self, x, train: bool, groups: int = 1):
    channels = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (channels,))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
    running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
    x = x.astype(jnp.float32)
    grouped = x.reshape(groups, -1, channels)
    if train:
      mean = grouped.mean(axis=1)
      var = jnp.square(grouped - mean[:, None, :]).mean(axis=1)
      if not self.is_initializing():
        count = grouped.shape[1]
        unbiased = var.mean(axis=0) * (count / max(count - 1, 1))
        running_mean.value = 0.9 * running_mean.value + 0.1 * mean.mean(axis=0)
        running_var.value = 0.9 * running_var.value + 0.1 * unbiased
    else:
      mean, var = running_mean.value[None, :], running_var.value[None, :]
    factor = scale[None, :] * jax.lax.rsqrt(var + 1e-5)
    normal = grouped * factor[:, None, :] + (bias[None, :] - mean * factor)[:, None, :]
    return normal.reshape(x.shape)


def _torch_bias_init(fan_in: int):
  """PyTorch's default for convolution biases: uniform within 1 / sqrt(fan_in)."""
  bound = fan_in**-0.5
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class ConvBlock(nn.Module):
  """3 x 3 convolution (with bias, as released), BatchNorm, ReLU."""

  features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, train: bool, groups: int = 1):
    x = nn.Conv(
      self.features,
      (3, 3),
      padding=1,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      bias_init=_torch_bias_init(9 * x.shape[-1]),
      name="conv",
    )(x)
    return nn.relu(BatchNorm(name="bn")(x, train, groups))


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
  def __call__(self, features, train: bool, groups: int = 1):
    """Map [b, F, F, d] to (score_map [b,F,F,1], size_map [b,F,F,2], offset_map [b,F,F,2]), float32.

    Score and size are sigmoids clamped to [1e-4, 1 - 1e-4] with no gradient outside; offsets are raw.
    groups: BatchNorm's, in training.
    """
    maps = {}
    for branch, outputs in BRANCHES.items():
      x = features
      for layer in range(4):
        x = ConvBlock(self.channels // 2**layer, self.dtype, name=f"conv{layer + 1}_{branch}")(
          x, train, groups
        )
      bias_init = _torch_bias_init(x.shape[-1])
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
