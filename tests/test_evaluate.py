import json
import subprocess
import sys
import types

import cv2
import numpy as np
import pytest

from ostrack_jax import command_line, evaluate
from ostrack_jax.evaluation import benchmarks


def still(frames, box):
  """Keep the first box, 0.1 s a frame."""
  count = sum(1 for _ in frames)
  return types.SimpleNamespace(boxes_xywh=np.tile(box, (count, 1)), seconds=np.full(count, 0.1))


@pytest.fixture
def tree(tmp_path):
  """Two sequences of four frames, 40x30: the target of `moves` goes right, `rests` does not."""
  root = tmp_path / "tree"
  for name, step in (("moves", 5), ("rests", 0)):
    (root / name / "img").mkdir(parents=True)
    for frame in range(4):
      image = np.full((30, 40, 3), frame, np.uint8)
      cv2.imwrite(str(root / name / "img" / f"{frame + 1:04d}.png"), image)
    rows = "".join(f"{frame * step},0,10,10\n" for frame in range(4))
    (root / name / "groundtruth.txt").write_text(rows)
  return root


def select(root, **options):
  return benchmarks.select(benchmarks.BENCHMARKS["folder"], root, **options)


def run(root, output, track=still, **options):
  selection = select(root, **options)
  return evaluate.evaluate_tracker(
    track, selection, output, dataset="folder", label="still", rule="visible"
  )


def command(*arguments):
  """Run the command in a process of its own, in which importing jax is an error."""
  code = "import sys; sys.modules['jax'] = None; from ostrack_jax import evaluate; evaluate.run()"
  return subprocess.run(
    [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
  )


def test_a_run_writes_results_summary_and_plots(tree, tmp_path):
  output = tmp_path / "out"
  summary, failed = run(tree, output)
  assert failed == {}
  written = sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
  assert written == [
    "per_sequence.csv",
    "precision.png",
    "results/moves.txt",
    "results/moves_time.txt",
    "results/rests.txt",
    "results/rests_time.txt",
    "success.png",
    "summary.json",
  ]
  content = json.loads((output / "summary.json").read_text())
  assert content["sequences"] == "2 of 2"
  assert content["ao_and_sr"] == "got10k, clipped"
  assert content["per_sequence"]["rests"]["ao"] == 1.0
  # 5, 10, 15 pixels off a box of 10: overlaps 1/3, 0, 0.
  assert content["per_sequence"]["moves"]["ao"] == pytest.approx(1 / 9)
  assert content["mean"]["ao"] == summary.mean["ao"] == pytest.approx(5 / 9)
  assert content["mean"]["fps"] == pytest.approx(10)


def test_a_failing_sequence_is_told_and_the_rest_scored(tree, tmp_path):
  (tree / "moves" / "img" / "0003.png").write_bytes(b"broken")
  summary, failed = run(tree, tmp_path / "out")
  assert list(summary.sequences) == ["rests"]
  assert "0003.png is not a readable image" in failed["moves"]
  content = json.loads((tmp_path / "out" / "summary.json").read_text())
  assert content["sequences"] == "1 of 2"
  assert list(content["failed"]) == ["moves"]


def test_no_summary_when_everything_fails(tree, tmp_path):
  def broken(frames, box):
    raise RuntimeError("no weights")

  summary, failed = run(tree, tmp_path / "out", broken)
  assert summary is None
  assert failed == {"moves": "RuntimeError: no weights", "rests": "RuntimeError: no weights"}
  assert not (tmp_path / "out" / "summary.json").exists()


def test_the_first_call_is_not_timed(tree, tmp_path):
  calls = []

  def compiles_first(frames, box):
    result = still(frames, box)
    calls.append(len(result.seconds))
    result.seconds[:] = 60.0 if len(calls) == 1 else 0.1
    return result

  summary, _ = run(tree, tmp_path / "out", compiles_first)
  assert calls == [2, 4, 4]
  assert summary.pooled["fps"] == pytest.approx(10)


def test_results_of_other_sequences_are_not_mixed_in(tree, tmp_path):
  run(tree, tmp_path / "out")
  run(tree, tmp_path / "out")
  with pytest.raises(FileExistsError, match=r"results of other sequences \(rests\)"):
    run(tree, tmp_path / "out", limit=1)


@pytest.fixture
def fake_checkpoint(monkeypatch):
  """Stand in for loading and tracking, so that the command itself runs."""
  monkeypatch.setattr(evaluate, "open_tracker", lambda checkpoint, num_heads: still)


@pytest.fixture
def main():
  """Run main with these arguments and return its exit code, flags put back afterwards."""

  def call(*arguments):
    evaluate.FLAGS.unparse_flags()
    argv = ["evaluate", *map(str, arguments)]
    return evaluate.main(
      command_line.parse(argv, "ostrack-evaluate", evaluate.FLAGS, evaluate.__doc__)
    )

  yield call
  for name in evaluate.FLAGS:
    evaluate.FLAGS[name].unparse()
  evaluate.FLAGS.unparse_flags()


def test_the_command_tracks_prints_and_returns_zero(tree, tmp_path, fake_checkpoint, main, capsys):
  code = main(
    "--checkpoint=runs/x", "--dataset=folder", f"--root={tree}", f"--output={tmp_path / 'out'}"
  )
  assert code == 0
  printed = capsys.readouterr().out
  assert "moves" in printed
  assert (
    "2 of 2 sequences; rule of the curves: visible; AO and SR: GOT-10k's rule, clipped" in printed
  )


def test_the_command_returns_one_and_names_what_failed_and_was_left_out(
  tree, tmp_path, fake_checkpoint, main, capsys
):
  (tree / "rests" / "img" / "0004.png").write_bytes(b"broken")
  (tree / "void").mkdir()
  output = tmp_path / "out"
  code = main("--checkpoint=x", "--dataset=folder", f"--root={tree}", f"--output={output}",
              "--allow_missing")  # fmt: skip
  captured = capsys.readouterr()
  assert code == 1
  assert "left out void: no groundtruth.txt" in captured.err
  assert "1 of 2 sequences failed:\n  rests: " in captured.err
  assert "1 of 3 sequences" in captured.out
  assert "void" in json.loads((output / "summary.json").read_text())["missing"]


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ([], "--checkpoint and --root and --output missing"),
    (["--results=r"], "--annotations missing"),
    (["--results=r", "--annotations=a", "--root=x"], "goes without --checkpoint and --root"),
    (["--checkpoint=c", "--root=gone", "--output=o"], "gone is not a folder"),
    (["--results=r", "--annotations=a", "--limit=0"], "--limit=0 leaves nothing"),
    (["otb"], "unexpected argument 'otb'"),
  ],
)
def test_mistakes_end_in_one_sentence(main, arguments, said):
  with pytest.raises(SystemExit) as stop:
    main(*arguments)
  assert str(stop.value).startswith("ostrack-evaluate: ")
  assert said in str(stop.value)


@pytest.fixture
def files(tmp_path):
  """Annotations and results of sequences a and b, three frames each."""
  for folder in ("truth", "boxes"):
    (tmp_path / folder).mkdir()
    for name in "ab":
      (tmp_path / folder / f"{name}.txt").write_text("0,0,10,10\n" * 3)
  return tmp_path / "boxes", tmp_path / "truth"


def test_result_files_are_scored_without_jax(files, tmp_path):
  done = command(f"--results={files[0]}", f"--annotations={files[1]}", f"--output={tmp_path / 'o'}")
  assert done.returncode == 0, done.stderr
  assert (
    "2 of 2 sequences; rule of the curves: otb; AO and SR: GOT-10k's rule, unclipped" in done.stdout
  )
  assert json.loads((tmp_path / "o" / "summary.json").read_text())["mean"]["ao"] == 1.0
  (files[0] / "b.txt").unlink()
  wrong = command(f"--results={files[0]}", f"--annotations={files[1]}")
  assert wrong.returncode == 1
  assert "b: no result file" in wrong.stderr
  assert "Traceback" not in wrong.stderr


def test_help_and_unknown_flags():
  shown = command("--help")
  assert shown.returncode == 0
  assert "allow_missing" in shown.stdout
  assert "python -m ostrack_jax.evaluate" in shown.stdout
  unknown = command("--datset=otb")
  assert unknown.returncode == 1
  assert "Unknown command line flag 'datset'" in unknown.stderr


def test_sequences_without_a_partner_stop_scoring_unless_allowed(files):
  (files[0] / "b.txt").rename(files[0] / "c.txt")
  with pytest.raises(FileNotFoundError, match="--allow_missing") as error:
    evaluate.score_files(*files)
  assert "\n  b: no result file\n  c: no annotation file" in str(error.value)
  summary, remarks = evaluate.score_files(*files, allow_missing=True)
  assert summary.coverage == "1 of 2"
  assert remarks == ["b: no result file", "c: no annotation file"]
  (files[0] / "a.txt").unlink()
  with pytest.raises(FileNotFoundError, match="occurs in both"):
    evaluate.score_files(*files, allow_missing=True)


def test_results_of_another_length_are_named_and_never_flattered(files):
  (files[0] / "a.txt").write_text("0,0,10,10\n" * 5)
  (files[0] / "b.txt").write_text("0,0,10,10\n" * 2)
  summary, remarks = evaluate.score_files(*files)
  assert remarks == [
    "a: 5 boxes for 3 annotated frames; the rest is ignored",
    "b: 2 boxes for 3 annotated frames; the missing frames count as failures",
  ]
  assert summary.sequences["a"].measures["precision_20px"] == 1.0
  assert summary.sequences["b"].measures["precision_20px"] == pytest.approx(2 / 3)
  assert summary.sequences["b"].measures["ao"] == 0.5


def test_scoring_can_be_narrowed(files):
  only, _ = evaluate.score_files(*files, sequences=["b"])
  assert list(only.sequences) == ["b"]
  assert only.coverage == "1 of 2"
  first, _ = evaluate.score_files(*files, limit=1)
  assert list(first.sequences) == ["a"]
  with pytest.raises(ValueError, match="unknown sequence z"):
    evaluate.score_files(*files, sequences=["z"])


@pytest.mark.parametrize("tracker", ["BACF", "kcf"])
def test_otb_numbers_are_the_toolkits(reference_dir, tracker):
  folder = reference_dir / "data" / "results" / "OTB100"
  summary, remarks = evaluate.score_files(folder / tracker, folder / "annotations")
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
  summary, _ = evaluate.score_files(folder / tracker, folder / "annotations", rule="absent_hits")
  assert round(summary.mean["success_auc"], 3) == success
  assert round(summary.mean["precision_20px"], 3) == precision
  other, _ = evaluate.score_files(folder / tracker, folder / "annotations", rule="otb")
  assert other.mean["success_auc"] == summary.mean["success_auc"]
  assert other.mean["precision_20px"] < summary.mean["precision_20px"] - 0.03
