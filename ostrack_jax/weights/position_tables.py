"""Position tables for other grids: PyTorch's bicubic resampling, plain and with antialiasing.

`jax.image.resize` is the second (a = -0.5, wider kernel when shrinking, renormalised borders); for
the first, which differs on all three counts, the weights are written out.
"""

import jax
import numpy as np

_A = -0.75  # PyTorch's choice of the cubic's free parameter; Keys 1981 and others take -0.5


def bicubic_matrix(inputs: int, outputs: int) -> np.ndarray:
  """Return the [outputs, inputs] float64 matrix that resamples one axis.

  Half-pixel centres, four taps clamped to the border, no antialiasing, as
  torch.nn.functional.interpolate(mode="bicubic", align_corners=False).
  """
  matrix = np.zeros((outputs, inputs))
  for row in range(outputs):
    position = (row + 0.5) * inputs / outputs - 0.5
    base = int(np.floor(position))
    for tap in range(base - 1, base + 3):
      matrix[row, min(max(tap, 0), inputs - 1)] += _cubic(abs(position - tap))
  return matrix


def _cubic(distance: float) -> float:
  if distance <= 1:
    return ((_A + 2) * distance - (_A + 3)) * distance**2 + 1
  return ((distance - 5) * distance + 8) * distance * _A - 4 * _A


def resample(table: np.ndarray, grid: int, antialias: bool = False) -> np.ndarray:
  """Resample a position table to another square grid.

  Args:
    table: [1, n * n, width], row-major, without the class token's row.
    grid: positions a side wanted.
    antialias: as PyTorch's interpolate(antialias=True), for tables much finer than the grid.

  Returns:
    [1, grid * grid, width] float32. Follows the official code, which makes the template's and the
    search region's tables from the pretrained one separately.
  """
  _, tokens, width = table.shape
  side = round(tokens**0.5)
  if side * side != tokens:
    raise ValueError(f"a position table has {tokens} rows; expected a square number")
  if antialias:
    cells = table.reshape(side, side, width).astype(np.float32)
    resized = jax.image.resize(cells, (grid, grid, width), "cubic", antialias=True)
    return np.asarray(resized).reshape(1, grid * grid, width)
  matrix = bicubic_matrix(side, grid)
  cells = table.reshape(side, side, width).astype(np.float64)
  resampled = np.einsum("yi,xj,ijd->yxd", matrix, matrix, cells, optimize=True)
  return resampled.reshape(1, grid * grid, width).astype(np.float32)
