import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from ostrack_jax import command_line, compare
from ostrack_jax.evaluation import comparison


@pytest.fixture
def main():
  """Run main with these arguments and return its exit code, flags put back afterwards."""

  def call(*arguments):
    compare.FLAGS.unparse_flags()
    argv = ["compare", *map(str, arguments)]
    return compare.main(command_line.parse(argv, "ostrack-compare", compare.FLAGS, compare.__doc__))

  yield call
  for name in compare.FLAGS:
    compare.FLAGS[name].unparse()
  compare.FLAGS.unparse_flags()


def write_boxes(path, *boxes):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(",".join(map(str, box)) + "\n" for box in boxes))


@pytest.fixture
def files(tmp_path):
  """Sequences a and b of three frames: tracker `good` is exact, `poor` 5 of 10 pixels off."""
  for name in "ab":
    write_boxes(tmp_path / "truth" / f"{name}.txt", *[(0, 0, 10, 10)] * 3)
    write_boxes(tmp_path / "good" / f"{name}.txt", *[(0, 0, 10, 10)] * 3)
    write_boxes(tmp_path / "poor" / "results" / f"{name}.txt", *[(5, 0, 10, 10)] * 3)
  return tmp_path


def test_trackers_stand_in_one_table_one_json_and_one_page(files, main, capsys):
  code = main(
    f"--results={files / 'poor'}",
    f"--results={files / 'good'}",
    f"--annotations={files / 'truth'}",
    f"--output={files / 'out'}",
  )
  assert code == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[2].split()[:3] == ["poor", "2", "0.5397"]
  assert lines[3].split()[:3] == ["good", "2", "0.9524"]
  assert "2 of 2 sequences; rule of the curves: otb" in lines[4]
  assert sorted(path.name for path in (files / "out").iterdir()) == [
    "comparison.json",
    "report.html",
  ]
  content = json.loads((files / "out" / "comparison.json").read_text())
  assert list(content["trackers"]) == ["poor", "good"]
  assert content["trackers"]["poor"]["mean"]["ao"] == pytest.approx(1 / 3)
  assert content["trackers"]["good"]["made_by"]["success_auc"] == "otb"
  assert "published_percent" not in content
  page = (files / "out" / "report.html").read_text()
  assert "poor" in page
  assert "good" in page


def test_a_root_gives_annotations_film_strips_rule_and_clipping(files, main):
  for name in "ab":
    (files / "tree" / name / "img").mkdir(parents=True)
    for frame in range(3):
      cv2.imwrite(
        str(files / "tree" / name / "img" / f"{frame}.png"), np.zeros((30, 40, 3), np.uint8)
      )
    write_boxes(files / "tree" / name / "groundtruth.txt", *[(0, 0, 10, 10)] * 3)
  code = main(
    f"--results={files / 'poor'}",
    "--dataset=folder",
    f"--root={files / 'tree'}",
    f"--output={files / 'out'}",
    "--labels=mine",
  )
  assert code == 0
  (mine,) = json.loads((files / "out" / "comparison.json").read_text())["trackers"].values()
  assert mine["rule"] == "visible"
  assert mine["ao_and_sr"] == "got10k, clipped"
  assert (files / "out" / "report.html").read_text().count("data:image/jpeg") == 6


def test_published_scores_are_written_for_their_benchmark(files, main):
  main(
    f"--results={files / 'good'}",
    f"--annotations={files / 'truth'}",
    "--dataset=nfs",
    f"--output={files / 'out'}",
  )
  content = json.loads((files / "out" / "comparison.json").read_text())
  assert content["published_percent"]["trackers"]["OSTrack-256"] == {"success_auc": 64.7}
  assert content["trackers"]["good"]["rule"] == "pytracking"


def test_a_tracker_that_lacks_a_sequence_stops_it_unless_allowed(files, main, capsys):
  (files / "good" / "b.txt").unlink()
  arguments = [
    f"--results={files / 'good'}",
    f"--results={files / 'poor'}",
    f"--annotations={files / 'truth'}",
    f"--output={files / 'out'}",
  ]
  with pytest.raises(SystemExit) as stop:
    main(*arguments)
  assert "1 results are missing" in str(stop.value)
  assert "b: no result file of good" in str(stop.value)
  assert not (files / "out").exists()
  assert main(*arguments, "--allow_missing") == 0
  captured = capsys.readouterr()
  assert "1 of 2 sequences" in captured.out
  assert "b: no result file of good" in captured.err


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ([], "--results and --output and --annotations or --root missing"),
    (["--results=r", "--output=o", "--root=x"], "--dataset, which --root needs, missing"),
    (["--results=gone", "--output=o", "--annotations=a"], "gone is not a folder"),
    (["a"], "unexpected argument 'a'"),
  ],
)
def test_mistakes_end_in_one_sentence(main, arguments, said):
  with pytest.raises(SystemExit) as stop:
    main(*arguments)
  assert str(stop.value).startswith("ostrack-compare: ")
  assert said in str(stop.value)


def test_labels_are_folder_names_and_never_repeat(files):
  folders = [files / "good", files / "poor", files / "poor" / "results"]
  assert list(comparison.label_folders(folders[:2])) == ["good", "poor"]
  with pytest.raises(ValueError, match="label 'poor' occurs twice; name the folders with --labels"):
    comparison.label_folders(folders)
  assert comparison.label_folders(folders[:2], ["x", "y"]) == {"x": folders[0], "y": folders[2]}
  with pytest.raises(ValueError, match="1 labels for 2 result folders"):
    comparison.label_folders(folders[:2], ["x"])


def test_what_the_evaluator_wrote_is_called_by_its_run(files):
  for run in ("one", "two"):
    write_boxes(files / run / "results" / "got10k" / "a.txt", (0, 0, 10, 10))
    (files / run / "run.json").write_text("{}")
  inside = [files / run / "results" / "got10k" for run in ("one", "two")]
  expected = dict(zip(("one", "two"), inside))
  assert comparison.label_folders([files / "one", files / "two"]) == expected
  assert comparison.label_folders(inside) == expected
  write_boxes(files / "one" / "results" / "trackingnet" / "a.txt", (0, 0, 10, 10))
  with pytest.raises(ValueError, match="results in got10k, trackingnet; name one of these"):
    comparison.label_folders([files / "one"])
  with pytest.raises(FileNotFoundError, match=r"truthless is not a folder"):
    comparison.label_folders([files / "truthless"])


def test_unequal_lengths_are_told_and_follow_the_rule(files):
  write_boxes(files / "good" / "a.txt", *[(0, 0, 10, 10)] * 2)
  videos = comparison.read_annotations(files / "truth")
  for rule, precision in (("otb", 2 / 3), ("pytracking", 1.0)):
    found = comparison.score_folders({"g": files / "good"}, videos, rule=rule, declared=2)
    assert found.remarks == ["a: 2 boxes of g for 3 annotated frames"]
    measures = found.trackers["g"].sequences["a"].measures
    # Boxes of zeros at the corner are 8 pixels from the target; missing ones fail.
    assert measures["precision_20px"] == pytest.approx(precision)


def test_annotations_must_fit_the_frames(files):
  videos = comparison.read_annotations(files / "truth")
  known = {name: comparison.Video(name=name, frames=("1.png",) * 2, boxes_xywh=videos[name].boxes_xywh[:2]) for name in "ab"}  # fmt: skip
  with pytest.raises(ValueError, match=r"a.txt has 3 boxes for 2 frames of a under the root"):
    comparison.read_annotations(files / "truth", known)
  (files / "truth" / "b.txt").unlink()
  with pytest.raises(FileNotFoundError, match=r"has no b.txt; leave --annotations or --root out"):
    comparison.read_annotations(files / "truth", known)


def test_held_back_annotations_cannot_be_scored(files):
  video = comparison.Video(
    name="a", frames=(), boxes_xywh=np.full((3, 4), np.nan), is_annotated=False
  )
  with pytest.raises(ValueError, match="annotations of a are held back"):
    comparison.score_folders({"g": files / "good"}, {"a": video}, rule="got10k", declared=1)


def test_comparing_starts_no_jax(files):
  code = "import sys; sys.modules['jax'] = None; from ostrack_jax import compare; compare.run()"
  arguments = [f"--results={files / 'good'}", f"--annotations={files / 'truth'}"]
  done = subprocess.run(
    [sys.executable, "-c", code, *arguments, f"--output={files / 'o'}"],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert (files / "o" / "report.html").is_file()
