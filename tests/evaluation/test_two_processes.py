"""Two processes share the sequences of a benchmark and leave what one leaves."""

import concurrent.futures
import json
import os
import socket
import subprocess
import sys

import cv2
import numpy as np
import pytest

_MEMBER = """
import sys, jax
jax.distributed.initialize(sys.argv.pop(1), 2, int(sys.argv.pop(1)))
from ostrack_jax import evaluate
evaluate.run()
"""


@pytest.fixture
def tree(tmp_path):
  """Three sequences of different lengths, a textured square that moves over noise."""
  rng = np.random.default_rng(0)
  target = cv2.resize(rng.integers(0, 256, (6, 6, 3), np.uint8), (30, 30))
  root = tmp_path / "tree"
  for number, length in enumerate((6, 3, 5)):
    folder = root / f"s{number}" / "img"
    folder.mkdir(parents=True)
    rows = []
    for index in range(length):
      image = rng.integers(60, 120, (120, 160, 3), np.uint8)
      x, y = 40 + 4 * index + 5 * number, 50
      image[y : y + 30, x : x + 30] = target
      cv2.imwrite(str(folder / f"{index + 1:04d}.png"), image)
      rows.append(f"{x},{y},30,30\n")
    (root / f"s{number}" / "groundtruth.txt").write_text("".join(rows))
  return root


def _evaluate(flags, start, tree, output, *options):
  command = [
    *(sys.executable, *start, "--checkpoint=ostrack_tiny", "--dataset=folder"),
    *(f"--root={tree}", f"--output={output}", "--batch_size=1", "--threads=1", *options),
  ]
  done = subprocess.run(
    command,
    env=os.environ | {"XLA_FLAGS": flags},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done


def test_two_processes_leave_what_one_leaves(tree, tmp_path, xla_flags):
  flags = xla_flags(1)
  _evaluate(flags, ["-m", "ostrack_jax.evaluate"], tree, tmp_path / "one")
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    members = [
      pool.submit(
        _evaluate,
        flags,
        ["-c", _MEMBER, address, str(number)],
        tree,
        tmp_path / "two",
        "--multi_host",
      )
      for number in range(2)
    ]
    tracked = [member.result().stdout for member in members]
  # Shared out by length: six frames to the one, five and three to the other; first frames are not tracked.
  counts = sorted(int(text.partition("tracked ")[2].split()[0]) for text in tracked)
  assert counts == [6, 8]
  names = sorted(path.name for path in (tmp_path / "one" / "results").iterdir())
  assert names == sorted(path.name for path in (tmp_path / "two" / "results").iterdir())
  for name in names:
    boxes = [np.loadtxt(tmp_path / run / "results" / name, delimiter=",") for run in ("one", "two")]
    np.testing.assert_allclose(*boxes, atol=0.5)
  summaries = [json.loads((tmp_path / run / "summary.json").read_text()) for run in ("one", "two")]
  assert (
    set(summaries[0]["per_sequence"]) == set(summaries[1]["per_sequence"]) == {"s0", "s1", "s2"}
  )
  for key, value in summaries[0]["mean"].items():
    assert summaries[1]["mean"][key] == pytest.approx(value, abs=0.02)
