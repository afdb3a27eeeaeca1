"""From samples to a calibrator, and to the numbers and plots that say how good it is."""

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special
import tqdm

from ostrack_jax.evaluation import calibration, plots
from ostrack_jax.tracking.confidence import Calibrator
from ostrack_jax.tracking.confidence_samples import (
  PRESENCE,
  TRACKS,
  Observer,
  Sample,
  of_kinds,
)
from ostrack_jax.tracking.target_removal import Sequenced, usable_frames


def draw(
  observer: Observer,
  sequences: Sequence[Sequenced],
  *,
  crops: int,
  starts: int,
  seed: int,
  label: str,
) -> list[Sample]:
  """Draw samples of all kinds from videos, with a bar.

  Args:
    crops: frames a video from which crops are cut.
    starts: tracks a video, from evenly spaced frames.
    seed: the same gives the same samples, video by video.
    label: of the bar.
  """
  samples: list[Sample] = []
  with tqdm.tqdm(total=len(sequences), desc=label, unit="video", disable=None) as bar:
    for number, sequence in enumerate(sequences):
      rng = np.random.default_rng([seed, number])
      others = [other for other in sequences if _clip(other.name) != _clip(sequence.name)]
      samples += observer.presence(sequence, others, rng, crops)
      usable = usable_frames(sequence)
      for first in sorted({int(usable[len(usable) * i // starts]) for i in range(starts)}):
        samples += observer.tracks(sequence, rng, first)
      bar.update()
  return samples


def _clip(name: str) -> str:
  # Several targets of one clip are called clip/1, clip/2: one's crop may show the other.
  return name.partition("/")[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitting:
  """How to fit a calibrator.

  Attributes:
    signs: of confidence.evidence_signs.
    l2: of calibration.fit_logistic.
    false_alarm_rate: share of track samples, not right, that may be called visible, where the frames of every video
      together count alike.
    fitted_for, provenance, memory: of the calibrator.
  """

  signs: Mapping[str, int]
  l2: float
  false_alarm_rate: float
  fitted_for: Mapping[str, Any]
  provenance: Mapping[str, Any]
  memory: float = 0.0

  def fit(self, samples: Sequence[Sample]) -> Calibrator:
    """Return a calibrator: weights of crops, odds scaled to those of tracks, the threshold of those.

    Crops teach to order: each is another look, while a track's frames repeat each other. But where a tracker
    looks, and how often it is right there, tracks alone say. In the factor and shift of the odds, and in the
    threshold, every video counts alike: a long one says no more of how tracking fails than a short one. What
    `measure` tells counts frames.

    Raises:
      ValueError: all samples are right, or none, among crops or among tracks.
    """
    crops, tracks = of_kinds(samples, PRESENCE), of_kinds(samples, TRACKS)
    fit = calibration.fit_logistic(*_values(crops), self.l2, list(self.signs.values()))
    values, labels = _values(tracks)
    shares = calibration.shares_alike([sample.video for sample in tracks])
    # Mixed with those before they stay what they are, times a factor and with a shift.
    odds = calibration.remembered(fit.log_odds(values), _tracks(tracks), self.memory)
    stretch, shift = calibration.platt_scaling(odds, labels, shares)
    scaled, confidences = fit.scaled(stretch, shift), scipy.special.expit(stretch * odds + shift)
    return Calibrator(
      features=tuple(self.signs),
      mean=tuple(scaled.mean.tolist()),
      scale=tuple(scaled.scale.tolist()),
      weights=tuple(scaled.weights.tolist()),
      bias=scaled.bias,
      threshold=calibration.threshold_at(confidences, labels, self.false_alarm_rate, shares),
      false_alarm_rate=self.false_alarm_rate,
      memory=self.memory,
      fitted_for=dict(self.fitted_for),
      provenance=dict(self.provenance) | {"samples": len(samples), "right": int(labels.sum())},
    )


def _values(samples: Iterable[Sample]) -> tuple[np.ndarray, np.ndarray]:
  pairs = [(sample.evidence, sample.is_right) for sample in samples]
  return np.array([one for one, _ in pairs]), np.array([right for _, right in pairs], bool)


def _tracks(samples: Iterable[Sample]) -> list[tuple[str, ...] | None]:
  """Return which track each sample is of, None for crops."""
  return [
    (sample.video, sample.kind, sample.track) if sample.kind in TRACKS else None
    for sample in samples
  ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rated:
  """Samples with what a calibrator says of them: confidences [n], and visible [n] bool."""

  samples: list[Sample]
  confidences: np.ndarray
  visible: np.ndarray


def rate(calibrator: Calibrator, samples: Sequence[Sample]) -> Rated:
  """Return what a calibrator says of samples, at least one, those of a track one after another."""
  confidences, told = calibrator.confidence(_values(samples)[0]), {}
  for row, track in enumerate(_tracks(samples)):
    if track is not None:
      told[track] = calibrator.remembered(told.get(track), float(confidences[row]))
      confidences[row] = told[track]
  return Rated(
    samples=list(samples), confidences=confidences, visible=confidences > calibrator.threshold
  )


def left_out(fitting: Fitting, samples: Sequence[Sample]) -> Rated | None:
  """Rate every clip's samples by what was fitted on all others; None where that cannot be.

  That is with a single clip, or where the others are all right or all wrong.
  """
  rated = []
  for clip in dict.fromkeys(_clip(sample.video) for sample in samples):
    others = [sample for sample in samples if _clip(sample.video) != clip]
    try:
      calibrator = fitting.fit(others)
    except ValueError:
      return None
    rated.append(rate(calibrator, [sample for sample in samples if _clip(sample.video) == clip]))
  return Rated(
    samples=[sample for one in rated for sample in one.samples],
    confidences=np.concatenate([one.confidences for one in rated]),
    visible=np.concatenate([one.visible for one in rated]),
  )


@dataclasses.dataclass(frozen=True)
class _Part:
  """The samples of some kinds: scores of the raw peak, confidences, labels, and of which clips they are."""

  scores: np.ndarray
  confidences: np.ndarray
  visible: np.ndarray
  labels: np.ndarray
  clips: list[str]


def _part(rated: Rated, kinds: Sequence[str]) -> _Part:
  """Return what is right among tracks, and what has its target among crops."""
  chosen = np.array([sample.kind in kinds for sample in rated.samples], bool)
  samples = of_kinds(rated.samples, kinds)
  labels = [one.kind == "present" if kinds == PRESENCE else one.is_right for one in samples]
  return _Part(
    scores=np.array([sample.score for sample in samples]),
    confidences=rated.confidences[chosen],
    visible=rated.visible[chosen],
    labels=np.array(labels, bool),
    clips=[_clip(sample.video) for sample in samples],
  )


def measure(rated: Rated) -> dict[str, Any]:
  """Return the measures of docs/confidence.md, ready for JSON; None for one that cannot be told."""
  crops, tracks = _part(rated, PRESENCE), _part(rated, TRACKS)
  sure = tracks.confidences, tracks.labels
  kinds = [sample.kind for sample in rated.samples]
  right = [sample.kind for sample in rated.samples if sample.is_right]
  removed = [v for v, kind in zip(rated.visible, kinds, strict=True) if kind == "removed"]
  return {
    "presence": {
      "auroc": _known(calibration.auroc(crops.confidences, crops.labels)),
      "raw_peak_auroc": _known(calibration.auroc(crops.scores, crops.labels)),
      "counts": {kind: kinds.count(kind) for kind in PRESENCE},
    },
    "confidence": {
      "expected_calibration_error": _known(calibration.reliability(*sure).error),
      "expected_calibration_error_spread": _known(calibration.error_spread(*sure, tracks.clips)),
      "raw_peak_expected_calibration_error": _known(
        calibration.reliability(tracks.scores, tracks.labels).error
      ),
      "auroc": _known(calibration.auroc(tracks.confidences, tracks.labels)),
      "raw_peak_auroc": _known(calibration.auroc(tracks.scores, tracks.labels)),
      "counts": {kind: kinds.count(kind) for kind in TRACKS},
      "right": {kind: right.count(kind) for kind in TRACKS},
    },
    "visible": {
      "false_alarm_rate": _share(tracks.visible[~tracks.labels]),
      "false_alarm_rate_removed": _share(removed),
      "detection_rate": _share(tracks.visible[tracks.labels]),
    },
  }


def _known(value: float) -> float | None:
  return None if math.isnan(value) else value


def _share(visible) -> float | None:
  return float(np.mean(visible)) if len(visible) else None


def plot(rated: Rated, folder: pathlib.Path) -> None:
  """Write reliability.png, of the tracks, and roc.png, of both tracks and crops."""
  tracks, curves = _part(rated, TRACKS), {}
  for name, kinds in (("tracks", TRACKS), ("presence", PRESENCE)):
    part = _part(rated, kinds)
    for label, values in (("confidence", part.confidences), ("raw peak", part.scores)):
      area = calibration.auroc(values, part.labels)
      curves[f"{name}, {label}"] = (*calibration.roc(values, part.labels), area)
  plots.plot_roc(curves, "ROC (area under the curve)", folder / "roc.png")
  bins = {}
  for label, values in (("confidence", tracks.confidences), ("raw peak", tracks.scores)):
    found = calibration.reliability(values, tracks.labels)
    bins[label] = (found.confidence, found.accuracy, found.counts, found.error)
  plots.plot_reliability(
    bins, "Reliability (expected calibration error)", folder / "reliability.png"
  )


_TITLES = {
  "fit": "on what it was fitted on",
  "left_out": "each video, fitted on the others",
  "test": "on the test videos",
}


# Of the table's columns.
_WIDTHS = (34, 16, 18, 23, 15, 10)


def format_report(report: Mapping[str, Any]) -> str:
  """Return a table: a line for each of fit, left_out and test that the report has."""
  lines = [
    _line(
      "", "presence AUROC", "confidence AUROC", "ECE ± over clips", "false alarms", "detections"
    ),
    _line("", "(raw peak)", "(raw peak)", "(raw peak)", "(removed)"),
  ]
  for key, title in _TITLES.items():
    if key not in report:
      continue
    presence, sure, seen = (report[key][part] for part in ("presence", "confidence", "visible"))
    spread = sure["expected_calibration_error_spread"]
    error = _cell(sure["expected_calibration_error"])
    error += "" if spread is None else f" ± {_cell(spread)}"
    lines.append(
      _line(
        title,
        f"{_cell(presence['auroc'])} ({_cell(presence['raw_peak_auroc'])})",
        f"{_cell(sure['auroc'])} ({_cell(sure['raw_peak_auroc'])})",
        f"{error} ({_cell(sure['raw_peak_expected_calibration_error'])})",
        f"{_cell(seen['false_alarm_rate'])} ({_cell(seen['false_alarm_rate_removed'])})",
        _cell(seen["detection_rate"]),
      )
    )
    counts = presence["counts"] | sure["counts"]
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    lines.append(f"  {told}; right: {', '.join(f'{n} {k}' for k, n in sure['right'].items())}")
  return "\n".join(lines)


def _line(*cells: str) -> str:
  return "".join(f"{cell:<{width}}" for cell, width in zip(cells, _WIDTHS)).rstrip()


def _cell(value: float | None) -> str:
  return "none" if value is None else f"{value:.3f}"
