"""Fit a logistic regression to evidence, and measure how far its probabilities and order can be believed."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special

_BINS = 15
# Of groups, for a spread to a thirtieth of itself.
_DRAWS = 500
_LEAST_STRETCH = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
  """A logistic regression: log odds are bias + the sum of weights * (values - mean) / scale."""

  mean: np.ndarray
  scale: np.ndarray
  weights: np.ndarray
  bias: float

  def log_odds(self, values: np.ndarray) -> np.ndarray:
    """Return [n] log odds of values [n, k]."""
    return (values - self.mean) / self.scale @ self.weights + self.bias

  def scaled(self, stretch: float, shift: float) -> "Fit":
    """Return the fit whose log odds are stretch times these, plus shift."""
    bias = self.bias * stretch + shift
    return dataclasses.replace(self, weights=self.weights * stretch, bias=bias)


def fit_logistic(
  values: np.ndarray,
  labels: np.ndarray,
  l2: float,
  signs: Sequence[int] | None = None,
  targets: np.ndarray | None = None,
  shares: np.ndarray | None = None,
) -> Fit:
  """Minimise the mean log loss plus l2 / 2 times the squared length of the standardised weights.

  Args:
    values: [n, k]; labels: [n] bool.
    l2: the bias is not counted.
    signs: 1 or -1 for a weight that must not have the other sign, 0 for one that may; None for all free.
    targets: [n] probabilities to fit in place of the labels.
    shares: [n] of samples in the mean loss, positive, of any sum; None for all alike.

  Raises:
    ValueError: there is only one label, or the optimiser finds no minimum.
  """
  values, labels = np.asarray(values, np.float64), np.asarray(labels, bool)
  if labels.all() or not labels.any():
    raise ValueError(
      f"all {len(labels)} samples are {'positive' if labels.any() else 'negative'}; a fit needs both, of crops and of tracks: "
      "take more videos"
    )
  mean, scale = values.mean(axis=0), values.std(axis=0)
  scale = np.where(scale > 1e-9, scale, 1.0)
  standard = np.column_stack([(values - mean) / scale, np.ones(len(values))])
  wanted = labels.astype(np.float64) if targets is None else targets
  shares = np.ones(len(values)) if shares is None else shares
  shares = shares / shares.sum()

  def loss(weights):
    odds = standard @ weights
    slope = scipy.special.expit(odds) - wanted
    mean_loss = shares @ (np.logaddexp(0, odds) - wanted * odds)
    penalty = l2 * np.append(weights[:-1], 0)
    return mean_loss + 0.5 * penalty @ weights, standard.T @ (shares * slope) + penalty

  limits = {1: (0, None), -1: (None, 0), 0: (None, None)}
  bounds = [limits[sign] for sign in (*(signs or [0] * values.shape[1]), 0)]
  options = {"maxiter": 10_000, "ftol": 1e-14, "gtol": 1e-9}
  start = np.zeros(standard.shape[1])
  found = scipy.optimize.minimize(
    loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
  )
  if not np.isfinite(found.x).all() or found.nit >= options["maxiter"]:
    raise ValueError(
      f"the calibrator did not settle: {found.message}; is the evidence finite? In float16 numbers beyond 65504 are not "
      "(--dtype)"
    )
  return Fit(mean=mean, scale=scale, weights=found.x[:-1], bias=float(found.x[-1]))


def platt_scaling(
  odds: np.ndarray, labels: np.ndarray, shares: np.ndarray | None = None
) -> tuple[float, float]:
  """Return (stretch, shift): stretch * odds + shift are calibrated log odds of these samples.

  Platt 1999: two numbers, fitted to (n+ + 1) / (n+ + 2) for positives and 1 / (n- + 2) for negatives, which
  keeps odds finite where samples are told apart without a mistake. The order of samples stays. It mends odds
  that are off by a factor and a shift, and no other shape.

  Args:
    odds: [n] log odds. labels: [n] bool.
    shares: as of fit_logistic; the targets count samples.

  Raises:
    ValueError: as fit_logistic.
  """
  positives = int(np.sum(labels))
  targets = np.where(labels, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))
  platt = fit_logistic(odds[:, None], labels, l2=0.0, signs=[1], targets=targets, shares=shares)
  # Never zero, so that there is an order even where these samples bear out none.
  stretch = max(float(platt.weights[0] / platt.scale[0]), _LEAST_STRETCH)
  return stretch, platt.bias - stretch * float(platt.mean[0])


def remembered(odds: np.ndarray, tracks: Sequence[Any], memory: float) -> np.ndarray:
  """Return log odds [n] of which each is mixed with the one before it on its track, mixed itself.

  Args:
    odds: [n], those of a track one after another.
    tracks: [n] whose each is; None for what is on none, and stays.
    memory: share of the one before, at least 0 and less than 1.
  """
  mixed, last = np.array(odds, np.float64), {}
  for row, track in enumerate(tracks):
    if track is None:
      continue
    if track in last:
      mixed[row] = memory * last[track] + (1 - memory) * mixed[row]
    last[track] = mixed[row]
  return mixed


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
  """Return the chance that a positive scores above a negative, ties counting half; NaN without both."""
  labels = np.asarray(labels, bool)
  positives, negatives = int(labels.sum()), int((~labels).sum())
  if not positives or not negatives:
    return float("nan")
  _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
  # Of equal scores each has the mean of their ranks.
  ranks = (np.cumsum(counts) - 0.5 * (counts - 1))[places]
  above = ranks[labels].sum() - positives * (positives + 1) / 2
  return float(above / (positives * negatives))


def roc(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return the shares of negatives and of positives at or above each score, from none to all."""
  labels = np.asarray(labels, bool)
  order = np.argsort(-np.asarray(scores), kind="stable")
  scores, labels = np.asarray(scores)[order], labels[order]
  # Equal scores are passed at once.
  last = np.append(np.diff(scores) != 0, True)
  shares = (np.cumsum(group)[last] / max(group.sum(), 1) for group in (~labels, labels))
  false, true = (np.concatenate([[0.0], share]) for share in shares)
  return false, true


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reliability:
  """Samples by their confidence, in bins of equal width from 0 to 1; those that are empty left out.

  Attributes:
    confidence, accuracy: [m] mean confidence and share of positives in each bin.
    counts: [m] samples.
  """

  confidence: np.ndarray
  accuracy: np.ndarray
  counts: np.ndarray

  @property
  def error(self) -> float:
    """Expected calibration error: mean over samples of |accuracy - confidence| of their bin."""
    return float(np.average(np.abs(self.accuracy - self.confidence), weights=self.counts))


def reliability(confidences: np.ndarray, labels: np.ndarray, bins: int = _BINS) -> Reliability:
  """Sort samples into bins, as Guo et al. 2017 do: 15 of equal width, (a, b] but for the first.

  Args:
    confidences: [n] from 0 to 1, n at least 1. labels: [n] bool.
  """
  confidences, labels = np.asarray(confidences, np.float64), np.asarray(labels, np.float64)
  places = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
  counts = np.bincount(places, minlength=bins)
  held = counts > 0
  sums = (np.bincount(places, weights=each, minlength=bins) for each in (confidences, labels))
  confidence, accuracy = (each[held] / counts[held] for each in sums)
  return Reliability(confidence=confidence, accuracy=accuracy, counts=counts[held])


def error_spread(confidences: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> float:
  """Return by how much the expected calibration error differs between groups drawn anew, as many, with repetition.

  Their standard deviation (Efron 1979), the same in every call. Groups are drawn, not samples, since those of one
  video repeat each other. Of two or three groups it is too small itself. NaN with a single one.

  Args:
    confidences, labels: as for reliability.
    groups: [n] whose each is.
  """
  names = np.unique(groups)
  if len(names) < 2:
    return float("nan")
  rows = [np.flatnonzero(np.asarray(groups) == name) for name in names]
  draw, errors = np.random.default_rng(0), []
  for _ in range(_DRAWS):
    chosen = np.concatenate([rows[one] for one in draw.integers(len(rows), size=len(rows))])
    errors.append(reliability(confidences[chosen], labels[chosen]).error)
  return float(np.std(errors))


def threshold_at(
  confidences: np.ndarray,
  labels: np.ndarray,
  false_alarm_rate: float,
  shares: np.ndarray | None = None,
) -> float:
  """Return the lowest threshold above which at most this share of the negatives lies.

  Args:
    shares: [n] that samples count for, positive, of any sum; None for all alike.

  Raises:
    ValueError: the rate lies outside [0, 1), or there is no negative.
  """
  if not 0 <= false_alarm_rate < 1:
    raise ValueError(f"a false-alarm rate of {false_alarm_rate} must lie between 0 and 1")
  negative = ~np.asarray(labels, bool)
  negatives = np.asarray(confidences)[negative]
  if not len(negatives):
    raise ValueError("there is no negative sample to choose a threshold by; take more videos")
  order = np.argsort(-negatives, kind="stable")
  above = np.cumsum(np.ones(len(order)) if shares is None else shares[negative][order])
  # At most the last one, where rounding leaves all of them at the rate.
  first = min(np.searchsorted(above, false_alarm_rate * above[-1], side="right"), len(order) - 1)
  return float(negatives[order[first]])


def shares_alike(groups: Sequence[str]) -> np.ndarray:
  """Return [n] shares of samples by which each group counts as much as any other."""
  _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
  return 1 / counts[group]
