import csv
import json
import os
import pathlib
import subprocess
import sys
import types

import cv2
import jax
import numpy as np
import pytest

import ostrack_jax
from ostrack_jax import command_line, description, loading, track, visualization
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.tracking.frames import open_frames
from ostrack_jax.tracking.tracker import TrackResult


class _Shifting:
  """A tracker without a network: moves the box by one pixel a frame."""

  def __init__(self, checkpoint=None, search_factor=None):
    self.search_factor = search_factor

  def init(self, frame, box_xywh):
    if not np.isfinite(box_xywh).all() or box_xywh[0] > frame.shape[1]:
      raise ValueError("box_xywh lies outside")
    self.box_xywh = np.array(box_xywh, np.float64)

  def update(self, frame):
    self.box_xywh = self.box_xywh + np.array([1.25, 0, 0, 0])
    return TrackResult(self.box_xywh, 0.875)


@pytest.fixture
def clip(tmp_path):
  """A folder of six numbered images."""
  folder = tmp_path / "clip"
  folder.mkdir()
  for number in range(6):
    cv2.imwrite(str(folder / f"{number}.png"), np.full((48, 64, 3), 20 * number, np.uint8))
  return folder


@pytest.fixture
def command(monkeypatch, capsys):
  """Runs the command in this process without a network; gives (exit code, stdout, stderr)."""
  complete = types.SimpleNamespace(description={"complete": True})
  monkeypatch.setattr(ostrack_jax, "load", lambda path, num_heads, dtype: complete, raising=False)
  monkeypatch.setattr(ostrack_jax, "Tracker", _Shifting, raising=False)

  def run(*arguments):
    track.FLAGS.unparse_flags()
    for name in track.FLAGS:
      track.FLAGS[name].unparse()
    try:
      code = track.main(
        command_line.parse(["track", *arguments], "ostrack-track", track.FLAGS, track.__doc__)
      )
    except SystemExit as stop:
      code = stop.code
      if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    return code, *capsys.readouterr()

  return run


def _files(folder):
  return sorted(p.name for p in folder.iterdir() if p.is_file())


def test_boxes_and_video_are_written(clip, tmp_path, command):
  code, out, _ = command(
    "--checkpoint=x", f"--source={clip}", "--init_box=10.5,8,20,12",
    f"--output={tmp_path / 'o.mp4'}", f"--boxes={tmp_path / 'o.csv'}",
  )  # fmt: skip
  assert code == 0
  assert "6 frames" in out and "o.mp4" in out and "o.csv" in out
  with (tmp_path / "o.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert list(rows[0]) == ["frame", "x", "y", "w", "h", "score"]
  values = np.array([[float(v) for v in row.values()] for row in rows])
  np.testing.assert_array_equal(values[:, 0], np.arange(6))
  np.testing.assert_array_equal(values[:, 1], 10.5 + 1.25 * np.arange(6))
  np.testing.assert_array_equal(values[:, 2:5], np.tile([8, 20, 12], (6, 1)))
  np.testing.assert_array_equal(values[:, 5], [np.nan] + [0.875] * 5)
  video = list(open_frames(tmp_path / "o.mp4"))
  assert len(video) == 6
  for number, frame in enumerate(video):
    assert abs(int(frame[-1, -1, 0]) - 20 * number) < 12
    # The left edge of the box, in the track's colour.
    edge = frame[8:21, round(10.5 + 1.25 * number)].mean(axis=0)
    assert edge[0] > 180 and edge[0] - edge[2] > 50  # yellow on grey


def test_each_output_can_be_had_alone(clip, tmp_path, command):
  common = ("--checkpoint=x", f"--source={clip}", "--init_box=10,8,20,12")
  assert command(*common, f"--boxes={tmp_path / 'o.csv'}")[0] == 0
  assert _files(tmp_path) == ["o.csv"]
  (tmp_path / "o.csv").unlink()
  assert command(*common, f"--output={tmp_path / 'o.mp4'}")[0] == 0
  assert _files(tmp_path) == ["o.mp4"]


def test_files_are_replaced_only_when_asked(clip, tmp_path, command):
  (tmp_path / "o.csv").write_text("precious")
  arguments = (
    "--checkpoint=x", f"--source={clip}", "--init_box=10,8,20,12", f"--boxes={tmp_path / 'o.csv'}",
  )  # fmt: skip
  code, _, err = command(*arguments)
  assert code == 1 and "o.csv exists; pass --overwrite" in err
  assert (tmp_path / "o.csv").read_text() == "precious"
  assert command(*arguments, "--overwrite")[0] == 0
  assert (tmp_path / "o.csv").read_text().startswith("frame,x")


def test_a_broken_frame_leaves_no_output(clip, tmp_path, command):
  (clip / "4.png").write_bytes(b"broken")
  code, _, err = command(
    "--checkpoint=x", f"--source={clip}", "--init_box=10,8,20,12",
    f"--output={tmp_path / 'o.mp4'}", f"--boxes={tmp_path / 'o.csv'}",
  )  # fmt: skip
  assert code == 1
  assert err.splitlines()[-1] == f"ostrack-track: {clip / '4.png'} is not a readable image"
  assert _files(tmp_path) == []


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"--source": None}, "--source missing"),
    ({"--checkpoint": None, "--init_box": None}, "--checkpoint and --init_box missing"),
    ({"--boxes": None}, "give --output=OUT.mp4, --boxes=OUT.csv, or both"),
    ({"--init_box": "1,2,3"}, "--init_box=1,2,3 must be four numbers"),
    ({"--init_box": "1,2,3,wide"}, "must be four numbers"),
    ({"--init_box": "nan,2,3,4"}, "frame 0: box_xywh lies outside"),
    ({"--init_box": "999,2,3,4"}, "frame 0: box_xywh lies outside"),
    ({"--source": "nowhere.mp4"}, "nowhere.mp4 does not exist"),
    ({"--output": "o.avi"}, "--output=o.avi must end in .mp4"),
    ({"--boxes": "nowhere/o.csv"}, "there is no folder nowhere"),
    ({"--boxes": "."}, "cannot write .: it is a folder"),
    ({"--output": "o.mp4", "--boxes": "./o.mp4"}, "both name o.mp4"),
    ({"--output": "in.mp4", "--source": "in.mp4"}, "in.mp4 is the source"),
    ({"--search_factor": "wide"}, "search_factor"),
    ({"--colour": "red"}, "Unknown command line flag 'colour'"),
    ({"surplus": None}, "unexpected argument 'surplus'"),
  ],
)
def test_mistakes_are_named_in_one_sentence(clip, tmp_path, command, monkeypatch, changes, message):
  monkeypatch.chdir(tmp_path)
  given = {"--checkpoint": "x", "--source": "clip", "--init_box": "1,2,9,9", "--boxes": "o.csv"}
  surplus = [name for name in changes if not name.startswith("--")]
  given |= {name: value for name, value in changes.items() if name.startswith("--")}
  arguments = [f"{name}={value}" for name, value in given.items() if value is not None]
  code, _, err = command(*arguments, *surplus)
  assert code == 1
  last = err.strip().splitlines()[-1]
  assert last.startswith("ostrack-track: ") and message in last
  assert "Traceback" not in err
  assert _files(tmp_path) == []


def test_a_read_only_folder_is_named_before_the_work(clip, tmp_path, command, monkeypatch):
  # Told, not made, since root may write everywhere.
  monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
  code, _, err = command(
    "--checkpoint=x", f"--source={clip}", "--init_box=1,2,9,9", f"--boxes={tmp_path / 'o.csv'}"
  )
  assert code == 1 and f"o.csv: folder {tmp_path} is not writable" in err


def test_the_search_factor_reaches_the_tracker(clip, tmp_path, command, monkeypatch):
  made = []
  monkeypatch.setattr(
    ostrack_jax,
    "Tracker",
    lambda *args, **kwargs: made.append(kwargs) or _Shifting(),
    raising=False,
  )
  common = (f"--source={clip}", "--init_box=1,2,9,9", "--checkpoint=x", "--overwrite")
  command(*common, f"--boxes={tmp_path / 'o.csv'}")
  command(*common, f"--boxes={tmp_path / 'o.csv'}", "--search_factor=3.5")
  assert made == [{"search_factor": None}, {"search_factor": 3.5}]


def test_help_explains_itself(command):
  code, out, _ = command("--help")
  assert code == 0
  assert "--init_box=x,y,w,h" in out and "--search_factor" in out


def _write_checkpoint(folder):
  model = OSTrack(
    variant="custom", width=32, depth=1, num_heads=2, template_size=32, search_size=64,
    head_channels=8, elimination_layers=(), keep_ratios=(),
  )  # fmt: skip
  images = [np.zeros((1, size, size, 3), np.float32) for size in (32, 64)]
  shapes = jax.eval_shape(model.init, jax.random.key(0), *images)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda s: rng.uniform(0.5, 1, s.shape).astype(np.float32) / 9, shapes)
  described = description.describe(
    model, {"template_factor": 2.0, "search_factor": 4.0}, {"kind": "training"}, True
  )
  loading.write_folder(loading.Checkpoint(model, variables, described), folder)


def test_a_converted_checkpoint_tracks_a_video_from_the_command_line(tmp_path):
  _write_checkpoint(tmp_path / "checkpoint")
  rng = np.random.default_rng(0)
  background = cv2.resize(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), (160, 120))
  with visualization.VideoWriter(tmp_path / "in.mp4", fps=10) as writer:
    for number in range(4):
      frame = background.copy()
      frame[40:70, 50 + 3 * number : 80 + 3 * number] = (255, 0, 0)
      writer.write(frame)
  root = pathlib.Path(track.__file__).parents[1]
  done = subprocess.run(
    [
      sys.executable, "-m", "ostrack_jax.track", "--init_box=50,40,30,30",
      f"--checkpoint={tmp_path / 'checkpoint'}", f"--source={tmp_path / 'in.mp4'}",
      f"--output={tmp_path / 'o.mp4'}", f"--boxes={tmp_path / 'o.csv'}",
    ],
    cwd=root, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "4 frames" in done.stdout
  rows = (tmp_path / "o.csv").read_text().splitlines()
  assert len(rows) == 5 and rows[1] == "0,50.0000,40.0000,30.0000,30.0000,nan"
  for row in rows[2:]:
    x, y, w, h, score = (float(v) for v in row.split(",")[1:])
    assert x >= 0 and y >= 0 and x + w <= 160.001 and y + h <= 120.001 and 0 < score < 1
  video = open_frames(tmp_path / "o.mp4")
  assert (len(video), video.fps) == (4, 10)


def test_a_broken_video_ends_in_one_line(tmp_path):
  (tmp_path / "in.mp4").write_bytes(b"no video")
  done = subprocess.run(
    [
      sys.executable, "-m", "ostrack_jax.track", "--init_box=50,40,30,30", "--checkpoint=x",
      f"--source={tmp_path / 'in.mp4'}", f"--boxes={tmp_path / 'o.csv'}",
    ],
    cwd=pathlib.Path(track.__file__).parents[1], capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 1
  assert done.stderr == f"ostrack-track: {tmp_path / 'in.mp4'} is not a readable video\n"


def test_importing_the_command_starts_no_jax():
  code = "import sys, json; import ostrack_jax.track; print(json.dumps('jax' in sys.modules))"
  root = pathlib.Path(track.__file__).parents[1]
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
  )
  assert json.loads(done.stdout) is False
