import json

import numpy as np
import pytest

from ostrack_jax.evaluation import scoring


def test_sequences_without_a_partner_stop_scoring_unless_allowed(result_files):
  (result_files[0] / "b.txt").rename(result_files[0] / "c.txt")
  with pytest.raises(FileNotFoundError, match="--allow_missing") as error:
    scoring.score_files(*result_files)
  assert "\n  b: no result file\n  c: no annotation file" in str(error.value)
  summary, remarks = scoring.score_files(*result_files, allow_missing=True)
  assert summary.coverage == "1 of 2"
  assert remarks == ["b: no result file", "c: no annotation file"]
  (result_files[0] / "a.txt").unlink()
  with pytest.raises(FileNotFoundError, match="occurs in both"):
    scoring.score_files(*result_files, allow_missing=True)


def test_results_of_another_length_are_named_and_never_flattered(result_files):
  (result_files[0] / "a.txt").write_text("0,0,10,10\n" * 5)
  (result_files[0] / "b.txt").write_text("0,0,10,10\n" * 2)
  summary, remarks = scoring.score_files(*result_files)
  assert remarks == [
    "a: 5 boxes for 3 annotated frames; the rest is ignored",
    "b: 2 boxes for 3 annotated frames; the missing frames count as failures",
  ]
  assert summary.sequences["a"].measures["precision_20px"] == 1.0
  assert summary.sequences["b"].measures["precision_20px"] == pytest.approx(2 / 3)
  assert summary.sequences["b"].measures["ao"] == 0.5


def test_scoring_can_be_narrowed(result_files):
  only, _ = scoring.score_files(*result_files, sequences=["b"])
  assert list(only.sequences) == ["b"]
  assert only.coverage == "1 of 2"
  first, _ = scoring.score_files(*result_files, limit=1)
  assert list(first.sequences) == ["a"]
  with pytest.raises(ValueError, match="unknown sequence z"):
    scoring.score_files(*result_files, sequences=["z"])


@pytest.mark.parametrize("tracker", ["BACF", "kcf"])
def test_otb_numbers_are_the_toolkits(reference_dir, tracker):
  folder = reference_dir / "data" / "results" / "OTB100"
  summary, remarks = scoring.score_files(folder / tracker, folder / "annotations")
  published = json.loads((folder / f"{tracker}_got10k_toolkit_performance.json").read_text())
  (published,) = published.values()
  assert remarks == []
  assert len(summary.sequences) == 100
  overall = published["overall"]
  assert summary.mean["success_auc"] == pytest.approx(overall["success_score"], abs=1e-12)
  assert summary.mean["precision_20px"] == pytest.approx(overall["precision_score"], abs=1e-12)
  assert summary.success_curve[10] == pytest.approx(overall["success_rate"], abs=1e-12)
  np.testing.assert_allclose(summary.success_curve, overall["success_curve"], atol=1e-12)
  np.testing.assert_allclose(summary.precision_curve, overall["precision_curve"], atol=1e-12)
  for name, one in summary.sequences.items():
    theirs = published["seq_wise"][name]
    np.testing.assert_allclose(one.success_curve, theirs["success_curve"], atol=1e-12)
    np.testing.assert_allclose(one.precision_curve, theirs["precision_curve"], atol=1e-12)
    assert one.measures["success_auc"] == pytest.approx(theirs["success_score"], abs=1e-12)
    assert one.measures["precision_20px"] == pytest.approx(theirs["precision_score"], abs=1e-12)


@pytest.mark.parametrize(
  ("tracker", "success", "precision"), [("BACF", 0.415, 0.584), ("KCF", 0.196, 0.311)]
)
def test_uav20l_numbers_need_absent_frames_to_hit(reference_dir, tracker, success, precision):
  folder = reference_dir / "data" / "results" / "UAV20L"
  summary, _ = scoring.score_files(folder / tracker, folder / "annotations", rule="absent_hits")
  assert round(summary.mean["success_auc"], 3) == success
  assert round(summary.mean["precision_20px"], 3) == precision
  other, _ = scoring.score_files(folder / tracker, folder / "annotations", rule="otb")
  assert other.mean["success_auc"] == summary.mean["success_auc"]
  assert other.mean["precision_20px"] < summary.mean["precision_20px"] - 0.03
