import csv
import json
import math

import numpy as np
import pytest

from ostrack_jax.evaluation import report

STILL = np.tile([0.0, 0, 10, 10], (4, 1))
MOVING = STILL + np.array([[0, 0, 0, 0], [5, 0, 0, 0], [10, 0, 0, 0], [30, 0, 0, 0]])


@pytest.fixture
def summary():
  """Sequence a: overlaps 1, 1/3, 0, 0. Sequence b: two frames, perfect, timed and sized."""
  return report.score(
    {"a": STILL, "b": STILL[:2]},
    {"a": MOVING, "b": STILL[:2]},
    {"b": (100, 80)},
    seconds={"b": np.array([5.0, 0.1])},
    declared=100,
  )


def test_measures_of_a_hand_computed_sequence(summary):
  measures = summary.sequences["a"].measures
  # Thresholds 0 to 0.95: 20 below 1; of these 7 (0 to 0.30) below 1/3.
  assert measures["success_auc"] == pytest.approx((20 + 7) / 4 / 21)
  assert measures["precision_20px"] == 0.75
  assert measures["normalised_precision_0.2"] == 0.25
  assert measures["ao"] == pytest.approx(1 / 9)
  assert measures["sr_0.5"] == measures["sr_0.75"] == 0.0
  assert math.isnan(measures["fps"])


def test_mean_is_over_sequences_and_pooled_over_frames(summary):
  assert summary.mean["precision_20px"] == (0.75 + 1) / 2
  assert summary.mean["ao"] == pytest.approx((1 / 9 + 1) / 2)
  assert summary.pooled["ao"] == pytest.approx((1 / 3 + 0 + 0 + 1) / 4)
  assert summary.pooled["sr_0.75"] == 0.25
  assert summary.mean["fps"] == summary.pooled["fps"] == pytest.approx(10.0)
  np.testing.assert_allclose(summary.success_curve[[0, 7]], [(0.5 + 1) / 2, (0.25 + 1) / 2])


def test_success_rates_have_their_own_thresholds():
  # Overlap 6 of 10 in the one frame that counts.
  narrow = STILL[:2] * np.array([1, 1, 1, 0.6])
  measures = report.score({"a": narrow}, {"a": STILL[:2]}).mean
  assert (measures["sr_0.5"], measures["sr_0.75"]) == (1.0, 0.0)


def test_a_sequence_of_one_frame_has_no_ao_and_does_not_spoil_the_mean():
  summary = report.score({"a": STILL[:1], "b": STILL}, {"a": STILL[:1], "b": STILL})
  assert math.isnan(summary.sequences["a"].measures["ao"])
  assert summary.mean["ao"] == summary.pooled["ao"] == 1.0


def test_coverage_and_clipping_are_told(summary):
  assert summary.coverage == "2 of 100"
  assert summary.clipping == "clipped in 1 of 2 sequences"
  assert report.score({"a": STILL}, {"a": STILL}).clipping == "unclipped"
  assert report.score({"a": STILL}, {"a": STILL}, {"a": (9, 9)}).clipping == "clipped"


def test_the_rule_is_applied():
  annotated = STILL.copy()
  annotated[2] = np.nan
  scores = {
    rule: report.score({"a": STILL}, {"a": annotated}, rule=rule).mean
    for rule in ("otb", "absent_hits", "visible")
  }
  assert {rule: mean["precision_20px"] for rule, mean in scores.items()} == {
    "otb": 0.75,
    "absent_hits": 1.0,
    "visible": 1.0,
  }
  assert scores["absent_hits"]["success_auc"] == pytest.approx(0.75 * 20 / 21)
  assert scores["visible"]["success_auc"] == pytest.approx(20 / 21)


def test_wrong_input_is_named():
  with pytest.raises(ValueError, match="unknown rule 'x'; expected one of pytracking"):
    report.score({"a": STILL}, {"a": STILL}, rule="x")
  with pytest.raises(ValueError, match="alone: a, c"):
    report.score({"a": STILL, "b": STILL}, {"c": STILL, "b": STILL})
  with pytest.raises(ValueError, match="no sequences"):
    report.score({}, {})
  with pytest.raises(ValueError, match="sequence a: 3 predicted boxes for 4"):
    report.score({"a": STILL[:3]}, {"a": STILL})
  with pytest.raises(ValueError, match="sequence a: no frame counts"):
    report.score({"a": STILL}, {"a": STILL * np.nan})


def test_table_is_aligned_and_says_what_made_it(summary):
  lines = report.format_table(summary).splitlines()
  assert len({len(line) for line in lines[:-1]}) == 1
  assert lines[2].split() == [
    "a",
    "4",
    "0.3214",
    "0.7500",
    "0.2500",
    "0.1111",
    "0.0000",
    "0.0000",
    "-",
  ]
  assert lines[-2].split() == [
    "all",
    "frames",
    "6",
    "-",
    "-",
    "-",
    "0.3333",
    "0.2500",
    "0.2500",
    "10.0",
  ]
  assert "2 of 100" in lines[-1]
  assert "visible" in lines[-1]
  assert "clipped in 1 of 2" in lines[-1]


def test_json_and_csv_hold_the_numbers_and_null_for_unknown(summary, tmp_path):
  report.write_json(summary, tmp_path / "s.json", {"dataset": "otb"})
  content = json.loads((tmp_path / "s.json").read_text())
  assert content["dataset"] == "otb"
  assert content["sequences"] == "2 of 100"
  assert content["rule"] == "visible"
  assert content["per_sequence"]["a"]["ao"] == pytest.approx(1 / 9)
  assert content["mean"] == {key: value for key, value in summary.mean.items() if key != "fps"}
  assert content["all_frames"]["ao"] == summary.pooled["ao"]
  assert len(content["curves"]["precision"]) == 51
  assert set(content["definitions"]) == set(content["mean"]) == set(content["made_by"])
  report.write_csv(summary, tmp_path / "s.csv")
  rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
  assert [row["sequence"] for row in rows] == ["a", "b"]
  assert float(rows[0]["precision_20px"]) == 0.75
  single = report.score({"a": STILL[:1]}, {"a": STILL[:1]})
  report.write_csv(single, tmp_path / "s.csv")
  (row,) = csv.DictReader((tmp_path / "s.csv").read_text().splitlines())
  assert row["ao"] == ""


def test_times_stand_in_a_file_of_their_own(summary, tmp_path):
  report.write_json(summary, tmp_path / "s.json")
  report.write_csv(summary, tmp_path / "s.csv")
  assert not any("fps" in (tmp_path / name).read_text() for name in ("s.json", "s.csv"))
  report.write_timing(summary, tmp_path / "timing.json")
  timing = json.loads((tmp_path / "timing.json").read_text())
  assert timing["per_sequence"]["a"]["fps"] is None
  assert timing["all_frames"]["fps"] == timing["per_sequence"]["b"]["fps"] == pytest.approx(10.0)


@pytest.mark.parametrize(
  ("rule", "made"),
  [
    ("visible", {"success_auc": "visible", "ao": "got10k, unclipped"}),
    ("pytracking", {"precision_20px": "pytracking", "sr_0.5": "got10k, unclipped"}),
    ("trackingnet", {"precision_area": "trackingnet", "sr_0.75": "got10k, unclipped"}),
    ("got10k", {"ao": "got10k, unclipped", "success_auc": "got10k, unclipped"}),
  ],
)
def test_every_number_says_its_rule(rule, made):
  summary = report.score({"a": STILL}, {"a": MOVING}, rule=rule)
  assert made.items() <= summary.made_by.items()
  assert set(summary.made_by) == set(summary.mean) - {"fps"}


def test_trackingnet_gives_areas_and_calls_them_so():
  mean = report.score({"a": STILL}, {"a": MOVING}, rule="trackingnet").mean
  assert {"success_auc", "precision_20px"}.isdisjoint(mean)
  # Overlaps 1, 1/3, 0, 0 at 21 thresholds: 7 of them 1/2, 13 of them 1/4, the last 0; half at the ends.
  assert mean["success_area"] == pytest.approx((0.25 + 6 * 0.5 + 13 * 0.25) / 20)
  # Errors 0, 5, 10, 30 px at steps of 2.5: frame by frame the share of steps behind them.
  areas = [20, 18.5, 16.5, 8.5]
  assert mean["precision_area"] == pytest.approx(np.mean(areas) / 20)
  # 0, 0.5, 1, 3 of the size: the second hits at the last threshold alone.
  assert mean["normalised_precision_area"] == pytest.approx((20 + 0.5) / 4 / 20)


def test_got10k_pools_the_frames_of_all_sequences_in_its_curve_too():
  summary = report.score({"a": STILL, "b": STILL[:2]}, {"a": MOVING, "b": STILL[:2]}, rule="got10k")
  # Overlaps behind the first frames: 1/3, 0, 0 and 1.
  np.testing.assert_allclose(summary.success_curve[[0, 34, 99, 100]], [0.5, 0.25, 0.25, 0])
  assert len(summary.success_curve) == 101
  assert summary.headline is summary.pooled
  assert summary.headline["ao"] == pytest.approx((1 / 3 + 1) / 4)
  assert summary.pooled["success_auc"] == pytest.approx((34 * 0.5 + 66 * 0.25) / 101)
  assert report.score({"a": STILL}, {"a": MOVING}).headline["precision_20px"] == 0.75


def test_visible_frames_reach_the_rule_and_ao():
  visible = {"a": np.array([True, True, False, False])}
  summary = report.score({"a": STILL}, {"a": MOVING}, rule="visible", visible=visible)
  assert summary.sequences["a"].counted == 2
  assert summary.mean["ao"] == pytest.approx(1 / 3)
  np.testing.assert_allclose(
    summary.sequences["a"].frame_overlaps, [1, 1 / 3, math.nan, math.nan], rtol=1e-12
  )


def test_a_short_result_is_the_rules_affair_and_fails_in_ao():
  summary = report.score({"a": STILL[:2]}, {"a": STILL}, rule="pytracking")
  assert summary.mean["ao"] == pytest.approx(1 / 3)
  # The missing boxes are zeros at the corner, 5 pixels and a half from the target's centre.
  assert summary.mean["precision_20px"] == 1.0
  assert summary.mean["success_auc"] == pytest.approx(0.5 * 20 / 21)


def test_attributes_are_scored_over_the_sequences_that_have_them(summary, tmp_path):
  attributes = {"a": ("fast", "night"), "b": ("fast",), "c": ("fast", "rain")}
  scored = report.by_attribute(summary, attributes)
  # Rain has no scored sequence.
  assert list(scored) == ["fast", "night"]
  assert scored["fast"].coverage == "2 of 3"
  assert scored["fast"].mean["precision_20px"] == (0.75 + 1) / 2
  assert scored["night"].mean["precision_20px"] == 0.75
  assert scored["night"].success_curve[0] == 0.5
  lines = report.format_attributes(scored).splitlines()
  assert lines[3].split()[:3] == ["night", "1", "0.3214"]
  report.write_json(summary, tmp_path / "s.json", attributes=scored)
  written = json.loads((tmp_path / "s.json").read_text())["per_attribute"]
  assert written["night"]["precision_20px"] == 0.75
  with pytest.raises(ValueError, match="no attributes are given for b"):
    report.by_attribute(summary, {"a": ()})


def test_comparison_has_one_line_a_tracker():
  trackers = {
    "still": report.score({"a": STILL}, {"a": MOVING}, rule="got10k"),
    "exact": report.score({"a": MOVING}, {"a": MOVING}, rule="got10k"),
  }
  lines = report.format_comparison(trackers).splitlines()
  assert lines[0].split()[:3] == ["tracker", "seqs", "AO"]
  assert lines[2].split()[:3] == ["still", "1", "0.1111"]
  assert lines[3].split()[:3] == ["exact", "1", "1.0000"]
