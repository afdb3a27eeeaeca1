"""Scores that the paper prints, for comparison.

Source: Ye et al., Joint Feature Learning and Relation Modeling for Tracking, ECCV 2022, Tables 1
and 2, in percent as printed. A dash of the paper is left out. GOT-10k's are those marked with an
asterisk (trained on GOT-10k alone) where a method has them.
"""

from collections.abc import Mapping

SOURCE = "Ye et al., ECCV 2022"
_TABLE_1 = """
SiamFC      33.6 42.0 33.9  23.0 31.1 26.9  57.1 66.3 53.3  34.8 35.3 9.8
MDNet       39.7 46.0 37.3  27.9 34.9 31.8  60.6 70.5 56.5  29.9 30.3 9.9
ECO         32.4 33.8 30.1  22.0 25.2 24.0  55.4 61.8 49.2  31.6 30.9 11.1
SiamRPN++   49.6 56.9 49.1  34.0 41.6 39.6  73.3 80.0 69.4  51.7 61.6 32.5
DiMP        56.9 65.0 56.7  39.2 47.6 45.1  74.0 80.1 68.7  61.1 71.7 49.2
SiamR-CNN   64.8 72.2 -     -    -    -     81.2 85.4 80.0  64.9 72.8 59.7
MAMLTrack   52.3 -    -     -    -    -     75.7 82.2 72.5  -    -    -
LTMU        57.2 -    57.2  41.4 49.9 47.3  -    -    -     -    -    -
Ocean       56.0 65.1 56.6  -    -    -     -    -    -     61.1 72.1 47.3
TrDiMP      63.9 -    61.4  -    -    -     78.4 83.3 73.1  67.1 77.7 58.3
TransT      64.9 73.8 69.0  -    -    -     81.4 86.7 80.3  67.1 76.8 60.9
AutoMatch   58.3 -    59.9  -    -    -     76.0 -    72.6  65.2 76.6 54.3
STARK       67.1 77.0 -     -    -    -     82.0 86.9 -     68.8 78.1 64.1
KeepTrack   67.1 77.2 70.2  48.2 -    -     -    -    -     -    -    -
SwinTrack-B 69.6 78.6 74.1  47.6 58.2 54.1  82.5 87.0 80.4  69.4 78.0 64.3
OSTrack-256 69.1 78.7 75.2  47.4 57.3 53.3  83.1 87.8 82.0  71.0 80.4 68.2
OSTrack-384 71.1 81.1 77.6  50.5 61.3 57.6  83.9 88.5 83.2  73.7 83.2 70.8
"""
_READ = ("success_auc", "normalised_precision_0.2", "precision_20px")
_AREAS = ("success_area", "normalised_precision_area", "precision_area")
_TABLE_1_COLUMNS = (
  *(("lasot", key) for key in _READ),
  *(("lasot_ext", key) for key in _READ),
  *(("trackingnet", key) for key in _AREAS),
  *(("got10k_test", key) for key in ("ao", "sr_0.5", "sr_0.75")),
)
# Rows of Table 2 are benchmarks, columns trackers, all of them AUC.
_TABLE_2 = """
-      SiamFC RT-MDNet ECO  Ocean ATOM DiMP50 STMTrack TransT STARK OSTrack-256 OSTrack-384
nfs    37.7   43.3     52.2 49.4  58.3 61.8   -        65.3   66.2  64.7        66.5
uav123 46.8   52.8     53.5 57.4  63.2 64.3   64.7     68.1   68.2  68.3        70.7
tnl2k  29.5   -        32.6 38.4  40.1 44.7   -        50.7   -     54.3        55.9
"""


def scores(dataset: str) -> Mapping[str, Mapping[str, float]]:
  """Return tracker to measure to score in percent for a benchmark; empty where the paper has none.

  Measures have the keys of evaluation.measures; TrackingNet's are areas.
  """
  return _SCORES.get(dataset, {})


def table_of(dataset: str) -> str:
  """Return where the paper prints a benchmark's scores, as in 'Ye et al., ECCV 2022, Table 2'."""
  return f"{SOURCE}, Table {1 if dataset in {name for name, _ in _TABLE_1_COLUMNS} else 2}"


def _read_tables() -> dict[str, dict[str, dict[str, float]]]:
  read: dict[str, dict[str, dict[str, float]]] = {}

  def add(dataset: str, tracker: str, key: str, printed: str) -> None:
    if printed != "-":
      read.setdefault(dataset, {}).setdefault(tracker, {})[key] = float(printed)

  for line in _TABLE_1.split("\n")[1:-1]:
    tracker, *printed = line.split()
    for (dataset, key), value in zip(_TABLE_1_COLUMNS, printed, strict=True):
      add(dataset, tracker, key, value)
  (_, *trackers), *rows = (line.split() for line in _TABLE_2.split("\n")[1:-1])
  for dataset, *printed in rows:
    for tracker, value in zip(trackers, printed, strict=True):
      add(dataset, tracker, "success_auc", value)
  return read


_SCORES = _read_tables()
