"""Linear layers with what surrounds them, in double precision by numpy."""

import jax.numpy as jnp
import numpy as np
import scipy.special

from ostrack_jax.models.fused_products import Layers

_EPSILON = 1e-6


def make_layers(inputs: int, outputs: int, start: int, dtype) -> Layers:
  """Return two layers; each column of their kernels sums to zero."""
  draw = np.random.default_rng(2)
  kernels = draw.normal(0, inputs**-0.5, (2, inputs, outputs))
  kernels -= kernels.mean(axis=1, keepdims=True)
  shifts = draw.normal(size=(2, start + outputs))
  return Layers(jnp.asarray(kernels, dtype), jnp.asarray(shifts, jnp.float32), start)


def make_tokens(shape: tuple[int, ...], dtype, seed: int):
  """Return tokens whose mean is not zero and whose deviation is not one."""
  draw = np.random.default_rng(seed)
  return jnp.asarray(3 * draw.normal(size=shape) + 0.5, dtype)


def _linear(x, layers: Layers) -> np.ndarray:
  shift = np.asarray(layers.shifts, np.float64)[1, layers.start :]
  return x @ np.asarray(layers.kernels, np.float64)[1] + shift[: layers.kernels.shape[2]]


def normed_by_hand(tokens, layers: Layers, gelu: bool) -> np.ndarray:
  """Normalise tokens and put them through the second layer."""
  x = np.asarray(tokens, np.float64)
  x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + _EPSILON)
  found = _linear(x, layers)
  return found * scipy.special.ndtr(found) if gelu else found


def added_by_hand(stream, x, layers: Layers) -> np.ndarray:
  """Put x through the second layer and add it to the stream."""
  return np.asarray(stream, np.float64) + _linear(np.asarray(x, np.float64), layers)
