"""The numbers that a rule gives: their names, headings, definitions, and how a curve makes them."""

import dataclasses

import numpy as np

from ostrack_jax.evaluation import curves, metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
  """A number of a table.

  key: its name in files. curve: which curve it is read from, '' for none. decimals: shown.
  """

  key: str
  heading: str
  definition: str
  curve: str = ""
  decimals: int = 4


_READ = (
  Measure(
    key="success_auc",
    heading="success",
    definition="mean of the success curve: share of frames with overlap above 0, 0.05, ... 1",
    curve="success",
  ),
  Measure(
    key="precision_20px",
    heading="prec@20",
    definition="share of frames with the centre within 20 pixels",
    curve="precision",
  ),
  Measure(
    key="normalised_precision_0.2",
    heading="norm@.2",
    definition="share of frames with the centre within 0.2 of the annotated size",
    curve="normalised_precision",
  ),
)
_AREAS = (
  Measure(
    key="success_area",
    heading="success area",
    definition="area under the success curve, 21 thresholds from 0 to 1, whole-pixel boxes",
    curve="success",
  ),
  Measure(
    key="precision_area",
    heading="prec area",
    definition="area under the precision curve, 21 thresholds from 0 to 50 pixels, as a share",
    curve="precision",
  ),
  Measure(
    key="normalised_precision_area",
    heading="norm area",
    definition="area under the normalised precision curve, 21 thresholds from 0 to 0.5, as a share",
    curve="normalised_precision",
  ),
)
_OVERLAP = (
  Measure(
    key="ao", heading="AO", definition="mean overlap, first and absent frames left out (GOT-10k)"
  ),
  Measure(
    key="sr_0.5", heading="SR.5", definition="share of the frames of AO with overlap above 0.5"
  ),
  Measure(
    key="sr_0.75", heading="SR.75", definition="share of the frames of AO with overlap above 0.75"
  ),
)
FPS = Measure(
  key="fps",
  heading="FPS",
  definition="tracked frames over the seconds they took, the first frame left out",
  decimals=1,
)


def measures_of(rule: str) -> tuple[Measure, ...]:
  """Return what a rule (a name in metrics.RULES) gives, in the order of the tables; FPS is last.

  Under `got10k` AO and SR come first, and its success curve has 101 thresholds.
  """
  declared = metrics.RULES[rule]
  if declared.areas:
    return (*_AREAS, *_OVERLAP, FPS)
  if declared.pooled:
    success = dataclasses.replace(
      _READ[0],
      definition="mean of the success curve: share of frames with overlap above 0, 0.01, ... 1",
    )
    return (*_OVERLAP, success, *_READ[1:], FPS)
  return (*_READ, *_OVERLAP, FPS)


def read_curves(rule: str, by_name: dict[str, np.ndarray]) -> dict[str, float]:
  """Return the measures that a rule reads from its curves, which are given by name."""
  values = {}
  for measure in measures_of(rule):
    if measure.curve:
      curve = by_name[measure.curve]
      if metrics.RULES[rule].areas:
        values[measure.key] = curves.area(curve)
      elif measure.curve == "success":
        values[measure.key] = float(curve.mean())
      else:
        values[measure.key] = float(curve[curves.SCORE_POSITION])
  return values


def overlap_measures(overlaps: np.ndarray) -> dict[str, float]:
  """Return AO, SR.5 and SR.75 of the overlaps [m] of metrics.got10k_overlaps; NaN for none."""
  return {
    "ao": curves.average_overlap(overlaps),
    "sr_0.5": curves.success_rate(overlaps, 0.5),
    "sr_0.75": curves.success_rate(overlaps, 0.75),
  }
