import json
import subprocess
import sys
import types

import cv2
import numpy as np
import pytest

from ostrack_jax import command_line, evaluate
from ostrack_jax.evaluation import one_pass
from ostrack_jax.tracking import frames as frame_files


class StillRun:
  """Keeps the first box, 0.1 s a frame; stands for a checkpoint and its device."""

  def __init__(self, videos, **settings):
    self.videos = videos
    self.settings = {"checkpoint": "abc", **settings}
    self.tracked = []

  def track(self, unfinished, progress):
    self.tracked += [video.name for video in unfinished]
    return one_pass.one_by_one(self.track_one, unfinished, progress)

  def track_one(self, video, progress):
    frames = [frame_files.read_image(path) for path in video.frames]
    for _ in frames:
      progress()
    count = len(frames)
    return types.SimpleNamespace(
      boxes_xywh=np.tile(video.boxes_xywh[0], (count, 1)),
      scores=np.array([np.nan, *np.linspace(0.5, 0.6, count - 1)]),
      seconds=np.full(count, 0.1),
    )

  def timing(self):
    return {"seconds_are": "made up"}


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


def command(*arguments):
  """Run the command in a process of its own, in which importing jax is an error."""
  code = "import sys; sys.modules['jax'] = None; from ostrack_jax import evaluate; evaluate.run()"
  return subprocess.run(
    [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
  )


@pytest.fixture
def runs(monkeypatch):
  """Stand in for loading and tracking, so that the command itself runs; the runs that it planned."""
  made = []

  def open_run(videos):
    settings = {"one_by_one": evaluate.FLAGS.one_by_one, "batch_size": evaluate.FLAGS.batch_size}
    settings["elimination"] = ", ".join(evaluate.FLAGS.keep_ratios or ["0.7"])
    made.append(StillRun(videos, **settings))
    return made[-1]

  monkeypatch.setattr(evaluate, "open_run", open_run)
  return made


@pytest.fixture
def main():
  """Run main with these arguments and return its exit code, flags put back afterwards."""

  def call(*arguments):
    for name in evaluate.FLAGS:
      evaluate.FLAGS[name].unparse()
    evaluate.FLAGS.unparse_flags()
    argv = ["evaluate", *map(str, arguments)]
    return evaluate.main(
      command_line.parse(argv, "ostrack-evaluate", evaluate.FLAGS, evaluate.__doc__)
    )

  yield call
  for name in evaluate.FLAGS:
    evaluate.FLAGS[name].unparse()
  evaluate.FLAGS.unparse_flags()


@pytest.fixture
def track(tree, tmp_path, runs, main):
  """Run the command on the tree, writing to `out`, with these arguments more."""

  def call(*arguments):
    return main(
      "--checkpoint=runs/x",
      "--dataset=folder",
      f"--root={tree}",
      f"--output={tmp_path / 'out'}",
      *arguments,
    )

  return call


def read_json(path):
  return json.loads(path.read_text())


def test_a_run_writes_results_scores_summary_and_plots(track, tmp_path, capsys):
  output = tmp_path / "out"
  assert track() == 0
  written = sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
  assert written == [
    "per_sequence.csv",
    "precision.png",
    "report.html",
    *("results/moves.txt", "results/rests.txt", "run.json"),
    *("scores/moves.txt", "scores/rests.txt"),
    *("success.png", "summary.json", "timing.json"),
  ]
  content = read_json(output / "summary.json")
  assert content["sequences"] == "2 of 2"
  assert content["ao_and_sr"] == "got10k, clipped"
  assert content["per_sequence"]["rests"]["ao"] == 1.0
  # 5, 10, 15 pixels off a box of 10: overlaps 1/3, 0, 0.
  assert content["per_sequence"]["moves"]["ao"] == pytest.approx(1 / 9)
  assert content["mean"]["ao"] == pytest.approx(5 / 9)
  assert (output / "scores" / "moves.txt").read_text() == "nan\n0.500000\n0.550000\n0.600000\n"
  assert (output / "results" / "rests.txt").read_text() == "0.0000,0.0000,10.0000,10.0000\n" * 4
  printed = capsys.readouterr().out
  assert "moves" in printed
  assert (
    "2 of 2 sequences; rule of the curves: visible; AO and SR: GOT-10k's rule, clipped" in printed
  )


def test_times_stand_in_timing_json_alone(track, tmp_path, capsys):
  output = tmp_path / "out"
  assert track("--one_by_one") == 0
  timing = read_json(output / "timing.json")
  assert timing["per_sequence"]["rests"]["fps"] == pytest.approx(10)
  assert timing["per_sequence"]["rests"]["seconds"] == [0.1] * 4
  assert timing["last_run"]["frames"] == 8
  assert "    10.0\n" in capsys.readouterr().out
  for path in output.rglob("*.*"):
    if path.suffix in (".json", ".csv") and path.name != "timing.json":
      assert not {"fps", "seconds"} & set(path.read_text().replace('"', " ").split()), path


@pytest.mark.parametrize(
  ("argument", "key", "value", "words"),
  [
    ("--teacher_forced", "teacher_forced", True, "every frame was searched around the annotated"),
    ("--keep_ratios=0.5", "elimination_set_to", "0.5", "elimination was set for this run: 0.5"),
  ],
)
def test_unusual_runs_say_so_wherever_their_scores_stand(
  track, tmp_path, capsys, argument, key, value, words
):
  assert track(argument) == 0
  output = tmp_path / "out"
  assert read_json(output / "summary.json")[key] == value
  for text in ((output / "report.html").read_text(), capsys.readouterr().out):
    assert words in text


def test_whole_pixels_are_truncated_toward_zero(track, tree, tmp_path):
  (tree / "rests" / "groundtruth.txt").write_text("-1.9,2.9,10.5,10\n" * 4)
  assert track("--integer_boxes") == 0
  assert (tmp_path / "out" / "results" / "rests.txt").read_text() == "-1\t2\t10\t10\n" * 4


def test_a_failing_sequence_is_told_and_tried_again(track, tree, tmp_path, runs, capsys):
  image = (tree / "moves" / "img" / "0003.png").read_bytes()
  (tree / "moves" / "img" / "0003.png").write_bytes(b"broken")
  assert track() == 1
  assert "1 of 2 sequences failed:\n  moves: " in capsys.readouterr().err
  content = read_json(tmp_path / "out" / "summary.json")
  assert content["sequences"] == "1 of 2"
  assert "0003.png is not a readable image" in content["failed"]["moves"]
  (tree / "moves" / "img" / "0003.png").write_bytes(image)
  assert track() == 0
  assert [run.tracked for run in runs] == [["moves", "rests"], ["moves"]]
  content = read_json(tmp_path / "out" / "summary.json")
  assert content["sequences"] == "2 of 2" and content["failed"] == {}
  assert set(read_json(tmp_path / "out" / "timing.json")["per_sequence"]) == {"moves", "rests"}


def test_no_summary_when_everything_fails(track, tree, tmp_path):
  for path in tree.rglob("0002.png"):
    path.write_bytes(b"broken")
  assert track() == 1
  assert not (tmp_path / "out" / "summary.json").exists()


def test_finished_sequences_are_kept_and_give_the_same_files(track, tmp_path, runs):
  def files():
    paths = (path for path in (tmp_path / "out").rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in paths if path.name != "timing.json"}

  assert track() == 0
  before = files()
  (tmp_path / "out" / "results" / "moves.txt").unlink()
  (tmp_path / "out" / "results" / ".moves.txt.1.tmp").write_text("half")
  assert track() == 0
  assert files() == before
  assert [run.tracked for run in runs] == [["moves", "rests"], ["moves"]]


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (["--batch_size=2"], "batch_size (0 there, 2 now)"),
    (["--keep_ratios=0.5"], "elimination (0.7 there, 0.5 now)"),
    (["--integer_boxes"], "integer_boxes (False there, True now)"),
    (["--limit=1"], "sequences (2 sequences, "),
  ],
)
def test_other_settings_are_refused_by_name(track, tmp_path, arguments, said):
  track()
  before = (tmp_path / "out" / "run.json").read_bytes()
  with pytest.raises(SystemExit, match="use another --output") as stop:
    track(*arguments)
  assert said in str(stop.value)
  assert (tmp_path / "out" / "run.json").read_bytes() == before


def test_results_of_an_unknown_run_are_not_mixed_in(track, tmp_path):
  (tmp_path / "out" / "results").mkdir(parents=True)
  (tmp_path / "out" / "results" / "rests.txt").write_text("1,2,3,4\n")
  with pytest.raises(SystemExit, match=r"results of an unknown run, without a run\.json"):
    track()


def test_what_is_left_out_is_named(track, tree, tmp_path, capsys):
  (tree / "void").mkdir()
  assert track("--allow_missing") == 0
  captured = capsys.readouterr()
  assert "left out void: no groundtruth.txt" in captured.err
  assert "2 of 3 sequences" in captured.out
  assert "void" in read_json(tmp_path / "out" / "summary.json")["missing"]


def test_benchmarks_without_public_annotations_are_tracked_and_not_scored(
  tmp_path, runs, main, capsys
):
  root = tmp_path / "trackingnet"
  (root / "TEST" / "frames" / "a").mkdir(parents=True)
  (root / "TEST" / "anno").mkdir()
  for index in range(3):
    image = np.zeros((30, 40, 3), np.uint8)
    cv2.imwrite(str(root / "TEST" / "frames" / "a" / f"{index}.jpg"), image)
  (root / "TEST" / "anno" / "a.txt").write_text("5,6,7,8\n")
  output = tmp_path / "out"
  arguments = ["--checkpoint=x", "--dataset=trackingnet", f"--root={root}", "--allow_missing"]
  assert main(*arguments, f"--output={output}") == 0
  assert len((output / "results" / "trackingnet" / "a.txt").read_text().splitlines()) == 3
  assert not (output / "summary.json").exists()
  assert f"python -m ostrack_jax.pack --dataset=trackingnet --results={output} " in (
    capsys.readouterr().out
  )


def test_several_processes_track_their_shares_and_the_first_one_scores_all(
  track, tmp_path, runs, monkeypatch, capsys
):
  """Here one after the other; the second is the first to end."""
  from jax.experimental import multihost_utils

  monkeypatch.setattr(multihost_utils, "sync_global_devices", lambda name: None)
  plan_all = evaluate.open_run
  for process, name in ((1, "moves"), (0, "rests")):
    monkeypatch.setattr(evaluate, "_join_cluster", lambda process=process: (process, 2))
    monkeypatch.setattr(
      evaluate,
      "open_run",
      lambda videos, name=name: plan_all([v for v in videos if v.name == name]),
    )
    if process:
      (tmp_path / "tree" / "moves" / "img" / "0003.png").write_bytes(b"broken")
    assert track("--multi_host") == 1
    assert (tmp_path / "out" / "summary.json").exists() is (process == 0)
  assert [run.tracked for run in runs] == [["moves"], ["rests"]]
  content = read_json(tmp_path / "out" / "summary.json")
  assert content["sequences"] == "1 of 2" and list(content["failed"]) == ["moves"]
  assert "1 of 2 sequences failed:\n  moves: " in capsys.readouterr().err
  assert set(read_json(tmp_path / "out" / "timing.json")["per_sequence"]) == {"rests"}
  assert not list((tmp_path / "out").glob(".failed*"))


def test_a_rule_that_cannot_score_the_annotations_stops_before_tracking(track, tree, runs):
  (path,) = (tree / "moves").glob("groundtruth*.txt")
  rows = path.read_text().splitlines()
  path.write_text("\n".join([*rows[:-1], "nan,nan,nan,nan"]) + "\n")
  with pytest.raises(SystemExit, match="sequence moves: annotated box of frame 3 is NaN"):
    track("--rule=pytracking")
  assert not runs


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


def test_result_files_are_scored_without_jax(result_files, tmp_path):
  done = command(
    f"--results={result_files[0]}", f"--annotations={result_files[1]}", f"--output={tmp_path / 'o'}"
  )
  assert done.returncode == 0, done.stderr
  assert (
    "2 of 2 sequences; rule of the curves: otb; AO and SR: GOT-10k's rule, unclipped" in done.stdout
  )
  assert json.loads((tmp_path / "o" / "summary.json").read_text())["mean"]["ao"] == 1.0
  (result_files[0] / "b.txt").unlink()
  wrong = command(f"--results={result_files[0]}", f"--annotations={result_files[1]}")
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
