"""Measure tracking: the network alone, a whole step from a frame to a box, and how soon the first box comes.

  python -m benchmarks.inference --output=inference.json
  python -m benchmarks.inference --peer                 (and an equal network in PyTorch, which needs torch)
  python -m benchmarks.inference --rows=network --batch_sizes=1 --profile=runs/trace

Random weights, ViT-B. Medians; every call is waited for, but for a known video. With and without elimination, and
ours and the peer, which has a process of its own, take turns. The floor of the network is its weights read
once, at the memory's speed, and its arithmetic at the device's peak.
"""

import contextlib
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, TypeVar

# Not all of the GPU's memory is ours beside the peer.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np
from absl import flags

from benchmarks.peer_process import PeerProcess, PeerStep, call_times
from ostrack_jax import Tracker, command_line, loading
from ostrack_jax.description import describe
from ostrack_jax.evaluation.results import write_text
from ostrack_jax.models import head
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.tracking import weights as weights_lib
from ostrack_jax.tracking.tracker import locate, remember
from ostrack_jax.tracking.waiting import fetch
from ostrack_jax.training import cost
from ostrack_jax.training.state import init_variables

FLAGS = command_line.new_flags()
flags.DEFINE_enum("variant", "b", ["ti", "s", "b", "l"], "Model size.", flag_values=FLAGS)
flags.DEFINE_list("search_sizes", ["256", "384"], "Official models.", flag_values=FLAGS)
flags.DEFINE_list("keep_ratios", ["0.7", "1.0"], "1 for no elimination.", flag_values=FLAGS)
flags.DEFINE_list("batch_sizes", ["1", "64"], "Of the network alone.", flag_values=FLAGS)
flags.DEFINE_string("dtype", None, "By default bfloat16 on a GPU, else float32.", flag_values=FLAGS)
flags.DEFINE_list(
  "rows", ["network", "step", "queued", "start"], "What to measure.", flag_values=FLAGS
)
flags.DEFINE_bool(
  "fuse_blocks", True, "Of batches, where the device has fused blocks.", flag_values=FLAGS
)
flags.DEFINE_bool("peer", False, "PyTorch beside ours.", flag_values=FLAGS)
flags.DEFINE_float("seconds", 3.0, "Of every measurement.", 0.01, flag_values=FLAGS)
flags.DEFINE_string("profile", "", "Folder for a trace of a few calls.", flag_values=FLAGS)
flags.DEFINE_string("output", None, "JSON file to write.", flag_values=FLAGS)

_Name = TypeVar("_Name", bound=Hashable)
_WARM_UP = 5
_TURNS = 12
_VIDEO_TURNS = 3
_BOX_XYWH = (600.0, 300.0, 90.0, 120.0)
# Bytes a second.
_MEMORY_SPEEDS = {"H100": 3.35e12, "H200": 4.8e12, "A100": 2.04e12}


def median_ms(steps: Mapping[_Name, Callable[[], object] | PeerStep]) -> dict[_Name, float]:
  """Return the median time of each step in milliseconds; they take turns."""
  times: dict[_Name, list[float]] = {name: [] for name in steps}
  for turn in range(-_WARM_UP, _TURNS):
    for name, step in steps.items():
      seconds = 0 if turn < 0 else FLAGS.seconds / _TURNS
      took = step.times(seconds) if isinstance(step, PeerStep) else call_times(step, seconds)
      if turn >= 0:
        times[name] += took
  return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def make_model(search_size: int, keep_ratio: float) -> OSTrack:
  """Return the model to measure."""
  default = "bfloat16" if jax.default_backend() == "gpu" else "float32"
  return OSTrack(
    variant=FLAGS.variant,
    search_size=search_size,
    template_size=search_size // 2,
    keep_ratios=(keep_ratio,) * 3,
    dtype=FLAGS.dtype or default,
  )


def network_step(model: OSTrack, variables, batch_size: int) -> Callable[[], object]:
  """Return the network on crops that lie on the device, to boxes on the host."""
  weights = weights_lib.prepare(model, variables, batch_size, fuse_blocks=FLAGS.fuse_blocks)
  weights = jax.device_put(weights)
  rng = np.random.default_rng(0)
  template, search = (
    jax.device_put(rng.integers(0, 256, (batch_size, side, side, 3), np.uint8))
    for side in (model.template_size, model.search_size)
  )
  window = jax.device_put(head.hann_window(model.search_grid))
  template = remember(model, weights, template)
  return lambda: fetch(locate(model, weights, template, search, window))


def floor_ms(model: OSTrack, batch_size: int) -> float | None:
  """Return the network's floor, None for a device whose speeds are not known."""
  kind = jax.devices()[0].device_kind
  memory = next((speed for name, speed in _MEMORY_SPEEDS.items() if name in kind), None)
  peak = cost.peak_flops(kind, model.dtype)
  if memory is None or peak is None:
    return None
  shapes = jax.eval_shape(lambda: init_variables(model, 0)["params"])
  parameters = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
  size = 4 if model.dtype == "float32" else 2
  flops = 2 * sum(cost.forward_macs(model).values()) * batch_size
  return 1e3 * (parameters * size / memory + flops / peak)


def make_tracker(model: OSTrack, variables) -> Tracker:
  """Return a tracker with the official factors."""
  factors = {"template_factor": 2.0, "search_factor": 4.0 if model.search_size == 256 else 5.0}
  return Tracker(loading.Checkpoint(model, variables, {"tracker": factors}))


def random_frames() -> np.ndarray:
  """Return a few frames of 1280 x 720."""
  return np.random.default_rng(0).integers(0, 256, (8, 720, 1280, 3), np.uint8)


def tracking_step(model: OSTrack, variables) -> Callable[[], object]:
  """Return a whole step: a 1280 x 720 frame on the host, to a box on the host."""
  tracker = make_tracker(model, variables)
  frames = random_frames()
  tracker.init(frames[0], _BOX_XYWH)
  count = 0

  def step():
    nonlocal count
    count += 1
    # From random weights the box would wander, and with it the size of the crop.
    tracker.box_xywh = _BOX_XYWH
    return tracker.update(frames[count % len(frames)])

  return step


def queued_ms(trackers: dict[float, Tracker]) -> dict[float, float]:
  """Return the time of a frame of a known video, the next ones on their way to the device; trackers take turns."""
  frames = random_frames()
  for tracker in trackers.values():
    tracker.init(frames[0], _BOX_XYWH)
    list(tracker.follow(frames))
  times: dict[float, list[float]] = {name: [] for name in trackers}
  # The first seconds of a process are slower than what follows.
  for turn in range(-_VIDEO_TURNS, _VIDEO_TURNS):
    for name, tracker in trackers.items():
      count, began = 0, time.perf_counter()
      for _ in tracker.follow(_until(began + FLAGS.seconds / _VIDEO_TURNS, frames)):
        count += 1
      if turn >= 0:
        times[name].append((time.perf_counter() - began) / count)
  return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def _until(end: float, frames: np.ndarray) -> Iterator[np.ndarray]:
  for number in itertools.count():
    if number and time.perf_counter() > end:
      return
    yield frames[number % len(frames)]


_FIRST_BOX = """
import sys, numpy as np
from ostrack_jax import Tracker, load
tracker = Tracker(load(sys.argv[1]))
frame = np.zeros((720, 1280, 3), np.uint8)
tracker.init(frame, (600, 300, 90, 120))
tracker.update(frame)
"""


def seconds_to_first_box(model: OSTrack, variables) -> dict[str, float]:
  """Return how long a new process takes to its first box, without programs compiled before and with them."""
  description = describe(
    model, {"template_factor": 2.0, "search_factor": 4.0}, {"kind": "random"}, complete=True
  )
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary) / "checkpoint"
    loading.write_folder(loading.Checkpoint(model, variables, description), folder)
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{temporary}/cache"}
    seconds = {}
    for name in ("cold", "with cache"):
      began = time.perf_counter()
      command = [sys.executable, "-c", _FIRST_BOX, str(folder)]
      subprocess.run(command, env=environment, check=True)
      seconds[name] = time.perf_counter() - began
  return seconds


def _network_rows(
  search_size: int,
  models: dict[float, OSTrack],
  variables: dict[float, Any],
  batch_size: int,
) -> list[dict]:
  """Measure the network alone by keep ratio, the peer beside it."""
  ours_by_ratio = {
    ratio: network_step(model, variables[ratio], batch_size) for ratio, model in models.items()
  }
  steps: dict[tuple[str, float], Callable[[], object] | PeerStep] = {
    ("ours", ratio): step for ratio, step in ours_by_ratio.items()
  }
  # One process a row: what was compiled before it could make a batch's size a variable.
  with contextlib.ExitStack() as stack:
    if FLAGS.peer:
      peer = stack.enter_context(contextlib.closing(PeerProcess()))
      for ratio in models:
        steps["peer", ratio] = peer.make_step(search_size, ratio, batch_size)
    found = median_ms(steps)
  rows = []
  for ratio, model in models.items():
    ours = found["ours", ratio]
    row: dict = {"row": "network", "search": search_size, "keep_ratio": ratio}
    is_fused = weights_lib.fuses_blocks(model, batch_size, FLAGS.fuse_blocks)
    row |= {"batch": batch_size, "ms": ours, "ms_per_image": ours / batch_size}
    row |= {"dtype": model.dtype, "fused_blocks": is_fused}
    kind = "fused" if is_fused else "plain"
    text = (
      f"network {search_size}, keep {ratio:g}, batch {batch_size}, {kind} blocks: {ours:.3f} ms"
    )
    if batch_size > 1:
      text += f", {row['ms_per_image']:.4f} an image"
    if FLAGS.peer:
      theirs = found["peer", ratio]
      row |= {"peer_ms": theirs, "times_faster": theirs / ours}
      text += f"; PyTorch {theirs:.3f} ms, ours {row['times_faster']:.2f} times as fast"
    floor = floor_ms(model, batch_size)
    if floor is not None:
      row["floor_ms"] = floor
      text += f"; floor {floor:.3f} ms, ours {ours / floor:.1f} times that"
    print(text, flush=True)
    rows.append(row)
    if FLAGS.profile:
      with jax.profiler.trace(f"{FLAGS.profile}/{search_size}-{ratio:g}-{batch_size}"):
        for _ in range(_WARM_UP):
          ours_by_ratio[ratio]()
  return rows


def _video_rows(row: str, search_size: int, found_ms: dict[float, float]) -> list[dict]:
  title = {"step": "whole step", "queued": "frame of a known video"}[row]
  for ratio, milliseconds in found_ms.items():
    print(f"{title} {search_size}, keep {ratio:g}: {milliseconds:.3f} ms", flush=True)
  return [
    {"row": row, "search": search_size, "keep_ratio": ratio, "ms": milliseconds}
    for ratio, milliseconds in found_ms.items()
  ]


def measure(search_size: int) -> list[dict]:
  """Measure the rows of one search size, all keep ratios in turns."""
  models = {ratio: make_model(search_size, ratio) for ratio in map(float, FLAGS.keep_ratios)}
  variables = {
    ratio: jax.block_until_ready(init_variables(model, 0)) for ratio, model in models.items()
  }
  rows: list[dict] = []
  if "network" in FLAGS.rows:
    for batch_size in map(int, FLAGS.batch_sizes):
      rows += _network_rows(search_size, models, variables, batch_size)
  if "step" in FLAGS.rows:
    steps = {ratio: tracking_step(model, variables[ratio]) for ratio, model in models.items()}
    rows += _video_rows("step", search_size, median_ms(steps))
  if "queued" in FLAGS.rows:
    trackers = {ratio: make_tracker(model, variables[ratio]) for ratio, model in models.items()}
    rows += _video_rows("queued", search_size, queued_ms(trackers))
  if "start" in FLAGS.rows and search_size == 256 and 0.7 in models:
    seconds = seconds_to_first_box(models[0.7], variables[0.7])
    print("first box: " + ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))
    rows.append({"row": "start", "search": search_size, "seconds": seconds})
  return rows


def main(argv: list[str]) -> None:
  """Measure, print, and write what --output names."""
  del argv
  unknown = set(FLAGS.rows) - {"network", "step", "queued", "start"}
  if unknown:
    raise SystemExit(f"benchmarks.inference: --rows {sorted(unknown)} unknown")
  device = jax.devices()[0]
  print(f"{device.device_kind}, jax {jax.__version__}")
  rows = [row for size in map(int, FLAGS.search_sizes) for row in measure(size)]
  if FLAGS.output:
    about = {"device": device.device_kind, "jax": jax.__version__, "rows": rows}
    write_text(pathlib.Path(FLAGS.output), json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
  command_line.run(main, "benchmarks.inference", FLAGS, __doc__)
