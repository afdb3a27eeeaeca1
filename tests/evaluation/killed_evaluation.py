"""Kill an evaluation again and again, and compare its output with that of an undisturbed one.

  PYTHONPATH=. python tests/evaluation/killed_evaluation.py --kills=10 --folder=runs/killed

kills with SIGKILL at random moments: while the program starts, while it tracks, and right when a file
appears. Prints each kill. Exits with 0 if all files but timing.json are then equal, byte for byte.
"""

import argparse
import os
import pathlib
import random
import shutil
import signal
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"
# Every part of the run starts with compiled programs, so that kills reach its later stages.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import cv2
import jax
import numpy as np

from ostrack_jax import command_line, description, evaluate, loading
from ostrack_jax.evaluation import tracking_runs
from ostrack_jax.models.ostrack import OSTrack

assert tracking_runs  # Imported before the children are made.

MODEL = OSTrack(
  variant="custom",
  width=16,
  depth=1,
  num_heads=1,
  template_size=32,
  search_size=64,
  head_channels=8,
  elimination_layers=(),
  keep_ratios=(),
)


def write_checkpoint(folder: pathlib.Path) -> None:
  """Write a converted checkpoint of the smallest network, with random weights."""
  shapes = jax.eval_shape(
    MODEL.init, jax.random.key(0), np.zeros((1, 32, 32, 3), "f"), np.zeros((1, 64, 64, 3), "f")
  )
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key in ("scale", "var"):
      return np.ones(leaf.shape, np.float32)
    return (0.3 * rng.normal(size=leaf.shape)).astype(np.float32)

  variables = jax.tree_util.tree_map_with_path(draw, shapes)
  factors = {"template_factor": 2.0, "search_factor": 4.0}
  loading.write_folder(
    loading.Checkpoint(
      MODEL, variables, description.describe(MODEL, factors, {"kind": "random"}, True)
    ),
    folder,
  )


def write_tree(root: pathlib.Path, lengths: list[int], size=(96, 72)) -> None:
  """Write sequences s00, s01, ... of blurred noise in the plain folder layout."""
  for number, length in enumerate(lengths):
    rng = np.random.default_rng(number)
    folder = root / f"s{number:02d}"
    (folder / "img").mkdir(parents=True)
    for index in range(length):
      noise = rng.integers(0, 256, (9, 12, 3), np.uint8)
      cv2.imwrite(str(folder / "img" / f"{index:04d}.jpg"), cv2.resize(noise, size))
    boxes = rng.uniform(10, 40, (length, 4)).round(2)
    rows = "".join(",".join(map(str, box)) + "\n" for box in boxes.tolist())
    (folder / "groundtruth.txt").write_text(rows)


def _in_child(log: pathlib.Path, work) -> int:
  """Call it in a process of its own that inherits the imports, which take longer than all else."""
  child = os.fork()
  if child:
    return child
  code = 1
  try:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = work() or 0
  finally:
    sys.stdout.flush()
    # What this process inherited is not its own to clean up.
    os._exit(code)


def _start(folder: pathlib.Path, output: pathlib.Path) -> int:
  """Evaluate in a child and return its number."""
  arguments = [
    *("evaluate", f"--checkpoint={folder / 'checkpoint'}", "--dataset=folder"),
    *(f"--root={folder / 'tree'}", f"--output={output}", "--batch_size=2", "--threads=2"),
    f"--compilation_cache={folder / 'compiled'}",
  ]

  def work() -> int:
    command_line.parse(arguments, "evaluate", evaluate.FLAGS, "")
    return evaluate.main([])

  return _in_child(output.with_suffix(".log"), work)


def _wait_for(condition, child: int, seconds: float = float("inf")) -> None:
  """Return when it is true, or the time is over, or the child has ended."""
  end = time.monotonic() + seconds
  while not condition() and time.monotonic() < end:
    if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
      return
    time.sleep(0.0002)


def _finished(output: pathlib.Path) -> int:
  return len(list((output / "results").glob("*.txt")))


def _kill(child: int, output: pathlib.Path, number: int, rng: random.Random) -> str:
  """Kill at a moment that depends on the number; return what was going on."""
  before = _finished(output)
  if number % 3 == 2:
    _wait_for(lambda: _finished(output) > before, child, rng.uniform(0, 2.0))
  else:
    _wait_for(lambda: _finished(output) > before, child)
    if number % 3:
      time.sleep(rng.uniform(0, 0.03))
  os.kill(child, signal.SIGKILL)
  _, status = os.waitpid(child, 0)
  if os.WIFEXITED(status):
    return f"ended by itself with code {os.WEXITSTATUS(status)}"
  half = len(list(output.rglob(".*.tmp")))
  return f"killed; {_finished(output)} sequences finished, {half} files half written"


def _outcome(output: pathlib.Path) -> dict[str, bytes]:
  files = (path for path in output.rglob("*") if path.is_file() and path.name != "timing.json")
  return {str(path.relative_to(output)): path.read_bytes() for path in files}


def main() -> None:
  """Run the comparison."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kills", type=int, default=10)
  parser.add_argument("--folder", type=pathlib.Path, required=True)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  rng = random.Random(arguments.seed)
  folder = arguments.folder.absolute()
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  # In a child, because it starts threads, which a fork would not take along.
  os.waitpid(
    _in_child(folder / "checkpoint.log", lambda: write_checkpoint(folder / "checkpoint")), 0
  )
  write_tree(folder / "tree", [rng.randint(5, 60) for _ in range(8 + 8 * arguments.kills)])
  undisturbed, disturbed = folder / "undisturbed", folder / "disturbed"

  _, status = os.waitpid(_start(folder, undisturbed), 0)
  if status:
    sys.exit(f"the undisturbed run failed: see {undisturbed}.log")
  for number in range(arguments.kills):
    told = _kill(_start(folder, disturbed), disturbed, number, rng)
    print(f"{number + 1}: {told}", flush=True)
    if not told.startswith("killed"):
      sys.exit(f"the disturbed run ended before {arguments.kills} kills; see {disturbed}.log")
  _, status = os.waitpid(_start(folder, disturbed), 0)
  if status:
    sys.exit(f"the last part failed: see {disturbed}.log")
  want, got = _outcome(undisturbed), _outcome(disturbed)
  differing = sorted(name for name in {*want, *got} if want.get(name) != got.get(name))
  if differing:
    sys.exit(f"after {arguments.kills} kills there differ: {', '.join(differing)}")
  print(f"after {arguments.kills} kills all is equal: {len(want)} files")


if __name__ == "__main__":
  main()
