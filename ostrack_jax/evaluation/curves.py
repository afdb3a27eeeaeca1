"""Success and precision curves, and the numbers that are read from them (numpy only)."""

import numpy as np

SUCCESS_THRESHOLDS = np.linspace(0.0, 1.0, 21)
PRECISION_THRESHOLDS = np.arange(51.0)
NORMALISED_THRESHOLDS = np.arange(51) / 100.0
# Both precision scores are read at position 20 of these: 20 px, and 0.20 of the target.
SCORE_POSITION = 20


def success_curve(overlaps: np.ndarray, thresholds: np.ndarray = SUCCESS_THRESHOLDS) -> np.ndarray:
  """Return the share of frames whose overlap exceeds each threshold (strict).

  Every entry of overlaps [m] counts, NaN as a failure. The mean of the curve is the AUC. Raises
  ValueError for no frames.
  """
  return (_some(overlaps)[:, None] > thresholds).mean(axis=0)


def precision_curve(
  centre_errors: np.ndarray, thresholds: np.ndarray = PRECISION_THRESHOLDS
) -> np.ndarray:
  """Return the share of frames whose centre error is within each threshold of pixels.

  Every entry of centre_errors [m] counts, NaN as a failure. Raises ValueError for no frames.
  """
  return (_some(centre_errors)[:, None] <= thresholds).mean(axis=0)


def normalised_precision_curve(
  normalised_errors: np.ndarray, thresholds: np.ndarray = NORMALISED_THRESHOLDS
) -> np.ndarray:
  """Return the share of frames whose normalised error is within each threshold.

  Every entry of normalised_errors [m] counts, NaN as a failure. Raises ValueError for no frames.
  """
  return (_some(normalised_errors)[:, None] <= thresholds).mean(axis=0)


def _some(values: np.ndarray) -> np.ndarray:
  if not len(values):
    raise ValueError("no frame counts: every frame is absent; expected at least one usable box")
  return np.asarray(values, dtype=np.float64)


def area(curve: np.ndarray) -> float:
  """Return the area under a curve by the trapezoidal rule, its thresholds spread over [0, 1]."""
  return float(np.trapezoid(curve, np.linspace(0.0, 1.0, len(curve))))


def average_overlap(overlaps: np.ndarray) -> float:
  """Return AO, the mean of the overlaps [m] of metrics.got10k_overlaps; NaN for none."""
  return float(np.mean(overlaps)) if len(overlaps) else float("nan")


def success_rate(overlaps: np.ndarray, threshold: float) -> float:
  """Return SR, the share of overlaps [m] above a threshold; NaN for none."""
  return float(np.mean(overlaps > threshold)) if len(overlaps) else float("nan")
