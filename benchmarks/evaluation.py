"""Measure evaluation: frames a second from files to boxes, for many sequences and for one alone.

  python -m benchmarks.evaluation --output=evaluation.json
  python -m benchmarks.evaluation --fake_network          (what the host alone can do)
  python -m benchmarks.evaluation --checkpoint=PATH --dataset=otb --root=DIR --allow_missing

Without --root it makes 1280 x 720 JPEG frames of procedural video, and without --checkpoint it takes random
weights; search regions are cut around given boxes, so that they have the size that they have in tracking.
Its frames have 0.75 bits a pixel, as many as a clip of LaSOT. On a GPU a sequence alone is followed, as
evaluation does it; its search regions are then cut where random weights say.
Two floors are measured apart: decoding with all threads, and the network on a batch that lies on the device.
The ratio is frames a second end to end over the lower floor.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import jax
import numpy as np
from absl import flags

from ostrack_jax import Tracker, command_line, loading
from ostrack_jax.evaluation import benchmarks, tracking_runs
from ostrack_jax.evaluation.results import write_text
from ostrack_jax.models import candidates, checks, head
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.tracking import engine, lane, lanes, sharing
from ostrack_jax.tracking import frames as frame_files
from ostrack_jax.tracking.lane import LaneSequence
from ostrack_jax.tracking.tracker import locate, remember
from ostrack_jax.tracking.weights import prepare
from ostrack_jax.training.state import init_variables

FLAGS = command_line.new_flags()
flags.DEFINE_enum("variant", "b", ["ti", "s", "b", "l"], "Model size.", flag_values=FLAGS)
flags.DEFINE_enum("search_size", "256", ["256", "384"], "Official model.", flag_values=FLAGS)
flags.DEFINE_string("checkpoint", None, "Instead of random weights.", flag_values=FLAGS)
flags.DEFINE_enum("dtype", "bfloat16", list(checks.DTYPES), "Compute.", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 32, "Lanes of a group.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("threads", 0, "That decode; 0 for one a core.", flag_values=FLAGS)
flags.DEFINE_integer("processes", -1, "That they are spread over; -1 as evaluation does.", -1, flag_values=FLAGS)  # fmt: skip
flags.DEFINE_integer("frames", 200, "Of every procedural sequence.", 3, flag_values=FLAGS)
flags.DEFINE_integer("sequences", 64, "Procedural ones.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string("root", None, "Folder of real sequences.", flag_values=FLAGS)
flags.DEFINE_enum("dataset", "folder", sorted(benchmarks.BENCHMARKS), "Layout of --root.", flag_values=FLAGS)  # fmt: skip
flags.DEFINE_list("only", None, "Only these sequences of --root.", flag_values=FLAGS)
flags.DEFINE_bool("allow_missing", False, "Leave out incomplete ones of --root.", flag_values=FLAGS)
flags.DEFINE_bool("fake_network", False, "Answer without computing.", flag_values=FLAGS)
flags.DEFINE_string("output", None, "JSON file to write.", flag_values=FLAGS)

_DISTINCT_FRAMES = 60
# Random colours on grids of 9 x 16 times this.
_DETAIL = (1, 2)
_NOISE = 1.0
_SECONDS = 3.0


def procedural_sequences(folder: pathlib.Path, count: int, length: int) -> list[LaneSequence]:
  """Write frames of a patch that moves over a panning background; sequences share the files."""
  rng = np.random.default_rng(0)
  width, height = 1280, 720
  layers = (
    cv2.resize(
      rng.integers(0, 256, (side * 9, side * 16, 3), np.uint8), (width + 120, height + 120)
    )
    for side in _DETAIL
  )
  scene = np.mean([layer.astype(np.float32) for layer in layers], axis=0)
  patch = cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (90, 120))
  paths, found = [], []
  for number in range(_DISTINCT_FRAMES):
    angle = 2 * np.pi * number / _DISTINCT_FRAMES
    left, top = (int(60 + 59 * wave) for wave in (np.sin(angle), np.cos(angle)))
    frame = scene[top : top + height, left : left + width]
    frame = np.clip(frame + rng.normal(scale=_NOISE, size=frame.shape), 0, 255).astype(np.uint8)
    x, y = int(560 + 300 * np.cos(angle)), int(300 + 200 * np.sin(angle))
    frame[y : y + 120, x : x + 90] = patch
    paths.append(folder / f"{number:04d}.jpg")
    cv2.imwrite(str(paths[-1]), frame, [cv2.IMWRITE_JPEG_QUALITY, 90])
    found.append((x, y, 90, 120))
  made = []
  for number in range(count):
    order = [(number * 7 + index) % _DISTINCT_FRAMES for index in range(length)]
    truth = np.array([found[index] for index in order], float)
    made.append(_sequence(f"{number}", [paths[index] for index in order], truth, forced=True))
  return made


def _sequence(name: str, paths, truth: np.ndarray, forced: bool) -> LaneSequence:
  starts = truth if forced else None
  return LaneSequence(name=name, frames=paths, init_box_xywh=truth[0], start_boxes_xywh=starts)


def open_network(dtype: str) -> loading.Checkpoint:
  """Return the checkpoint that the flags name, or random weights, computing in a dtype."""
  if FLAGS.checkpoint:
    return loading.load(FLAGS.checkpoint, dtype=dtype)
  size = int(FLAGS.search_size)
  model = OSTrack(variant=FLAGS.variant, search_size=size, template_size=size // 2, dtype=dtype)
  factors = {"template_factor": 2.0, "search_factor": size / 64 if size == 256 else 5.0}
  return loading.Checkpoint(
    model, jax.block_until_ready(init_variables(model, 0)), {"tracker": factors}
  )


def decode_floor(sequences: Sequence[LaneSequence], threads: int) -> float:
  """Return frames a second that so many threads read and decode, doing nothing else."""
  paths = [path for sequence in sequences for path in sequence.frames][:4000]

  def part(number: int) -> int:
    end, count, memory = time.perf_counter() + _SECONDS, 0, None
    while time.perf_counter() < end:
      path = paths[(number * 37 + count) % len(paths)]
      memory = frame_files.decode_image(path.read_bytes(), path, memory).reshape(-1)
      count += 1
    return count

  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    began = time.perf_counter()
    total = sum(pool.map(part, range(threads)))
    return total / (time.perf_counter() - began)


def network_floor(network: loading.Checkpoint, batch_size: int) -> float:
  """Return frames a second of the network on a batch that lies on one device, steps queued."""
  model = network.model
  rng = np.random.default_rng(0)
  images = [
    jax.device_put(rng.integers(0, 256, (batch_size, side, side, 3), np.uint8))
    for side in (model.template_size, model.search_size)
  ]
  mask = None
  if model.template_tokens == "ground_truth_box":
    mask = np.ones((batch_size, (model.template_size // candidates.PATCH_SIZE) ** 2), bool)
  weights = jax.device_put(prepare(model, network.variables, batch_size))
  window = jax.device_put(head.hann_window(model.search_grid))
  images[0] = remember(model, weights, images[0])

  def step():
    return locate(model, weights, *images, window, mask)

  jax.block_until_ready(step())
  steps, began = 0, time.perf_counter()
  while time.perf_counter() - began < _SECONDS:
    jax.block_until_ready([step() for _ in range(4)])
    steps += 4
  return steps * batch_size / (time.perf_counter() - began)


def _fake_locate(batch_size: int) -> Callable:
  answer = jax.device_put(np.full((batch_size, 5), 0.5, np.float32))
  return lambda *arguments: answer


def end_to_end(
  network: loading.Checkpoint,
  sequences: Sequence[LaneSequence],
  batch_size: int,
  groups: int,
  threads: int,
) -> dict[str, Any]:
  """Track all sequences; return frames a second, a CPU second too, and where the time went."""
  tracker = lanes.LaneTracker(
    network,
    batch_size=batch_size,
    groups=groups,
    threads=threads,
    processes=None if FLAGS.processes < 0 else FLAGS.processes,
    locate=_fake_locate(batch_size) if FLAGS.fake_network else locate,
  )
  # Compiles; the batch is the same for any number of sequences.
  short = [dataclasses.replace(one, frames=one.frames[:3]) for one in sequences[:1]]
  list(tracker.track([short]))
  plan = sharing.plan_lanes(sequences, [len(one.frames) for one in sequences], tracker.lanes)
  began, cpu = time.perf_counter(), time.process_time()
  for result in tracker.track(plan):
    if result.error is not None:
      raise ValueError(f"sequence {result.sequence.name}: {result.error}")
  seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
  stages = dataclasses.asdict(tracker.stages)
  frames = stages.pop("frames")
  cpu += stages.pop("processes")
  print(f"{'one alone' if tracker.lanes == 1 else f'{tracker.lanes} lanes'}: {frames / seconds:.1f} frames/s, "
        f"{frames / cpu:.1f} a second of CPU time")  # fmt: skip
  per_frame = {name: 1e3 * value / frames for name, value in stages.items()}
  print("  ms a frame: " + ", ".join(f"{name} {value:.2f}" for name, value in per_frame.items()))
  return {
    "frames": frames,
    "seconds": seconds,
    "frames_per_second": frames / seconds,
    "frames_per_cpu_second": frames / cpu,
    "ms_per_frame": per_frame,
  }


def followed(network: loading.Checkpoint, sequence: LaneSequence, threads: int) -> dict[str, Any]:
  """Follow one sequence, search regions cut on the device; return frames a second."""
  tracker = Tracker(network)

  def run(paths: Sequence[pathlib.Path]) -> float:
    began = time.perf_counter()
    with contextlib.closing(lane.decoded_ahead(paths, threads)) as images:
      engine.follow_sequence(tracker, images, sequence.init_box_xywh)
    return time.perf_counter() - began

  run(sequence.frames[:3])
  # Long enough for the first frames, before which nothing is decoded, not to count.
  paths = [*sequence.frames] * 5
  frames, seconds = len(paths) - 1, run(paths)
  print(f"one alone, cut on the device: {frames / seconds:.1f} frames/s")
  return {"frames": frames, "seconds": seconds, "frames_per_second": frames / seconds}


def measure(sequences: Sequence[LaneSequence], threads: int) -> dict[str, Any]:
  """Measure the floors and both runs; return them."""
  network = open_network(FLAGS.dtype)
  devices = len(jax.local_devices())
  decoding = decode_floor(sequences, threads)
  print(f"floor, decoding with {threads} threads: {decoding:.1f} frames/s")
  measured: dict[str, Any] = {"decode_floor": decoding}
  batch = -(-FLAGS.batch_size // devices) * devices
  follows = (
    jax.local_devices()[0].platform in tracking_runs.PLATFORMS_THAT_CUT and not FLAGS.fake_network
  )
  for name, batch_size, groups, chosen in (
    ("many", batch, 2, sequences),
    ("alone", 1 if follows else devices, 1, sequences[:1]),
  ):
    floor = decoding
    if not FLAGS.fake_network:
      network_bound = network_floor(network, max(batch_size // devices, 1))
      if name == "many":
        network_bound *= devices
      print(f"floor, the network with batches of {batch_size}: {network_bound:.1f} frames/s")
      floor = min(floor, network_bound)
      measured[f"{name}_network_floor"] = network_bound
    if name == "alone" and follows:
      run = followed(network, chosen[0], threads)
    else:
      run = end_to_end(network, chosen, batch_size, groups, threads)
    run["ratio_to_floor"] = run["frames_per_second"] / floor
    print(f"  {run['ratio_to_floor']:.0%} of the lower floor")
    measured[name] = run
  return measured


def main(argv: list[str]) -> None:
  """Measure, print, and write what --output names."""
  del argv
  threads = FLAGS.threads or len(os.sched_getaffinity(0))
  device = jax.local_devices()[0]
  about = {"devices": f"{jax.local_device_count()} x {device.device_kind}", "threads": threads}
  print(f"{about['devices']}, {threads} threads, {FLAGS.dtype}")
  # Its own threads would fight with ours over the cores.
  cv2.setNumThreads(1)
  with tempfile.TemporaryDirectory() as temporary:
    if FLAGS.root:
      videos = benchmarks.select(
        benchmarks.BENCHMARKS[FLAGS.dataset],
        pathlib.Path(FLAGS.root),
        sequences=FLAGS.only,
        allow_missing=FLAGS.allow_missing,
      ).videos
      sequences = [_sequence(v.name, v.frames, v.boxes_xywh, forced=True) for v in videos]
    else:
      sequences = procedural_sequences(pathlib.Path(temporary), FLAGS.sequences, FLAGS.frames)
    measured = measure(sequences, threads)
  if FLAGS.output:
    settings = {name: FLAGS[name].value for name in FLAGS if name != "help"}
    text = json.dumps(about | {"settings": settings} | measured, indent=2)
    write_text(pathlib.Path(FLAGS.output), text + "\n")


if __name__ == "__main__":
  command_line.run(main, "benchmarks.evaluation", FLAGS, __doc__)
