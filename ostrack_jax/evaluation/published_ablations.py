"""What the paper prints of elimination, pre-training and two-stream trackers: Tables 3, 4 and 5.

Source: Ye et al., Joint Feature Learning and Relation Modeling for Tracking, ECCV 2022. Scores in percent,
speeds on an RTX 2080 Ti, multiply-adds in 10^9 as its profiler counts them: without the products inside
attention, QK^T and PV, and without the attention rows that rank candidates.
"""

import dataclasses
from collections.abc import Mapping

SOURCE = "Ye et al., ECCV 2022"
DEVICE = "RTX 2080 Ti"
# The rest of a row: success AUC on LaSOT and TrackingNet, AO on GOT-10k.
_TABLE_3 = """
256 without 93.1  29.0  68.7 82.9 71.0
256 with    105.4 21.5  69.1 83.1 71.0
384 without 41.4  65.3  71.0 83.5 73.5
384 with    58.1  48.3  71.1 83.9 73.7
"""
# Without elimination. LaSOT and TrackingNet: success, normalised precision, precision; GOT-10k: AO, SR.5, SR.75.
_TABLE_4 = """
none          60.4 70.0 62.8  77.5 83.0 73.8  62.7 72.8 53.7
ImageNet-1k   66.1 75.8 70.6  82.0 86.7 80.1  69.7 79.0 65.6
ImageNet-21k  66.9 76.3 71.2  82.4 86.9 80.1  70.2 80.7 65.4
MAE           68.7 78.1 74.6  82.9 87.5 81.6  73.6 83.0 71.7
"""
# Likewise, GOT-10k of models that trained on it alone, then frames per second and million training pairs.
_TABLE_5 = """
stark      67.6 76.3 72.8  82.6 87.4 81.5  68.8 78.4 65.6  52.9 30
swintrack  68.0 77.6 73.9  82.9 87.6 81.6  69.5 79.2 65.0  67.5 39.3
one_stream 68.7 78.1 74.6  82.9 87.5 81.6  71.0 80.3 68.2  93.1 18
"""
_SCORES = (
  *("lasot_auc", "lasot_normalised_precision", "lasot_precision"),
  *("trackingnet_auc", "trackingnet_normalised_precision", "trackingnet_precision"),
  *("got10k_ao", "got10k_sr_0.5", "got10k_sr_0.75"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Elimination:
  """A model of Table 3: with or without elimination, at a search size in pixels."""

  search_size: int
  eliminates: bool
  fps: float
  giga_macs: float
  lasot_auc: float
  trackingnet_auc: float
  got10k_ao: float


def elimination_models() -> tuple[Elimination, ...]:
  """Return Table 3, a model a row."""
  rows = []
  for line in _lines(_TABLE_3):
    fps, macs, lasot, trackingnet, got10k = map(float, line[2:])
    rows.append(
      Elimination(
        search_size=int(line[0]),
        eliminates=line[1] == "with",
        fps=fps,
        giga_macs=macs,
        lasot_auc=lasot,
        trackingnet_auc=trackingnet,
        got10k_ao=got10k,
      )
    )
  return tuple(rows)


def pretraining_kinds() -> Mapping[str, Mapping[str, float]]:
  """Return Table 4: kind of pre-training to measure to score."""
  return {name: dict(zip(_SCORES, values, strict=True)) for name, values in _named(_TABLE_4)}


def relations() -> Mapping[str, Mapping[str, float]]:
  """Return Table 5: OSTrack.relation to measure to score, `fps`, and `million_pairs` of training."""
  keys = (*_SCORES, "fps", "million_pairs")
  return {name: dict(zip(keys, values, strict=True)) for name, values in _named(_TABLE_5)}


def _named(table: str) -> list[tuple[str, list[float]]]:
  return [(name, list(map(float, values))) for name, *values in _lines(table)]


def _lines(table: str) -> list[list[str]]:
  return [line.split() for line in table.strip().splitlines()]
