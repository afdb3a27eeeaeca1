"""The `track` command as a process of its own."""

import json
import pathlib
import subprocess
import sys

import cv2
import jax
import numpy as np

from ostrack_jax import description, loading, track, visualization
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.tracking.frames import open_frames


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
  assert len(rows) == 5 and rows[1] == "0,0,50.0000,40.0000,30.0000,30.0000,,,"
  for row in rows[2:]:
    x, y, w, h, score = (float(v) for v in row.split(",")[2:7])
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
