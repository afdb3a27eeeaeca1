"""The paper's tables, and results whose scores were published."""

import json

import pytest

from ostrack_jax.evaluation import benchmarks, comparison, measures, published


@pytest.mark.parametrize(
  ("dataset", "tracker", "scores"),
  [
    ("lasot", "OSTrack-384", {"success_auc": 71.1, "normalised_precision_0.2": 81.1, "precision_20px": 77.6}),
    ("lasot_ext", "KeepTrack", {"success_auc": 48.2}),
    ("trackingnet", "OSTrack-256", {"success_area": 83.1, "normalised_precision_area": 87.8, "precision_area": 82.0}),
    ("got10k_test", "OSTrack-256", {"ao": 71.0, "sr_0.5": 80.4, "sr_0.75": 68.2}),
    ("nfs", "STARK", {"success_auc": 66.2}),
    ("uav123", "OSTrack-256", {"success_auc": 68.3}),
    ("tnl2k", "OSTrack-384", {"success_auc": 55.9}),
  ],
)  # fmt: skip
def test_scores_of_the_paper(dataset, tracker, scores):
  assert published.scores(dataset)[tracker] == scores


def test_what_the_paper_leaves_out_is_left_out():
  assert published.scores("otb") == {}
  assert "LTMU" not in published.scores("got10k_test")
  assert "RT-MDNet" not in published.scores("tnl2k")
  assert (published.table_of("lasot")[-7:], published.table_of("nfs")[-7:]) == (
    "Table 1",
    "Table 2",
  )


@pytest.mark.parametrize(
  "dataset", ["lasot", "lasot_ext", "trackingnet", "got10k_test", "nfs", "uav123", "tnl2k"]
)
def test_published_scores_have_the_keys_of_the_benchmarks_rule(dataset):
  ours = {one.key for one in measures.measures_of(benchmarks.BENCHMARKS[dataset].rule)}
  theirs = {key for scores in published.scores(dataset).values() for key in scores}
  assert theirs
  assert theirs <= ours


def scored(folder, tracker, rule):
  videos = comparison.read_annotations(folder / "annotations")
  found = comparison.score_folders(
    {tracker: folder / tracker}, videos, rule=rule, declared=len(videos)
  )
  return found.trackers[tracker]


@pytest.mark.parametrize("tracker", ["BACF", "kcf"])
def test_otb100_equals_the_toolkit_overall_and_per_sequence(reference_dir, tracker):
  folder = reference_dir / "data" / "results" / "OTB100"
  (printed,) = json.loads(
    (folder / f"{tracker}_got10k_toolkit_performance.json").read_text()
  ).values()
  summary = scored(folder, tracker, "otb")
  assert len(summary.sequences) == 100
  for measure, key in (("success_auc", "success_score"), ("precision_20px", "precision_score")):
    assert round(summary.mean[measure], 4) == round(printed["overall"][key], 4)
    for name, one in summary.sequences.items():
      theirs = printed["seq_wise"][name][key]
      assert one.measures[measure] == pytest.approx(theirs, abs=1e-12), name


@pytest.mark.parametrize(
  ("tracker", "success", "precision"), [("BACF", 0.415, 0.584), ("KCF", 0.196, 0.311)]
)
def test_uav20l_equals_the_published_numbers_by_their_rule_alone(
  reference_dir, tracker, success, precision
):
  folder = reference_dir / "data" / "results" / "UAV20L"
  found = {rule: scored(folder, tracker, rule) for rule in ("absent_hits", "otb", "visible")}
  assert round(found["absent_hits"].mean["success_auc"], 3) == success
  assert round(found["absent_hits"].mean["precision_20px"], 3) == precision
  # Counting absent frames as failures costs precision; leaving them out changes success too.
  other = {
    rule: (round(found[rule].mean["success_auc"], 3), round(found[rule].mean["precision_20px"], 3))
    for rule in ("otb", "visible")
  }
  assert (
    other
    == {
      "BACF": {"otb": (0.415, 0.542), "visible": (0.420, 0.548)},
      "KCF": {"otb": (0.196, 0.269), "visible": (0.198, 0.273)},
    }[tracker]
  )
