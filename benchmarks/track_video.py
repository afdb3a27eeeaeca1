"""Measure the `track` command's parts: decoding, tracking, and both at once, for one object and for many.

  python -m benchmarks.track_video --output=track_video.json
  python -m benchmarks.track_video --checkpoint=ostrack_tiny --frames=200     (on a CPU)

The video is procedural, 1280 x 720, in H.264 (which needs PyAV); without --checkpoint the network is ViT-B
of 256 pixels with random weights whose boxes keep their size. End to end is from the file to a CSV table.
The aims: one object end to end at 0.9 or more of the slower of its parts, and 16 objects in less than 3
times the time of one.
"""

import json
import pathlib
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from data_pipelines import procedural_video
from ostrack_jax import MultiTracker, command_line, load, loading, track_outputs
from ostrack_jax.evaluation.results import write_text
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.tracking.frames import VideoFrames
from ostrack_jax.training.state import init_variables
from ostrack_jax.visualization import VideoWriter

_NAME = "benchmarks.track_video"

FLAGS = command_line.new_flags()
flags.DEFINE_string("checkpoint", None, "By default random weights.", flag_values=FLAGS)
flags.DEFINE_string("dtype", None, "By default bfloat16 on a GPU, else float32.", flag_values=FLAGS)
flags.DEFINE_integer("objects", 16, "Beside one.", 2, flag_values=FLAGS)
flags.DEFINE_integer("frames", 600, "Of the video.", 20, flag_values=FLAGS)
flags.DEFINE_integer("turns", 3, "Of which the median counts.", 1, flag_values=FLAGS)
flags.DEFINE_string("output", None, "JSON file to write.", flag_values=FLAGS)

_WIDTH, _HEIGHT = 1280, 720
_RENDERED = 60
_SEARCH_FACTOR = 4.0


def steady(variables):
  """Return variables whose head says every target's size is that of the box before."""
  share = 1 / _SEARCH_FACTOR
  size = variables["params"]["box_head"]["conv5_size"]
  still = {
    "kernel": np.zeros_like(size["kernel"]),
    "bias": np.full_like(size["bias"], np.log(share / (1 - share))),
  }
  head = variables["params"]["box_head"] | {"conv5_size": still}
  return variables | {"params": variables["params"] | {"box_head": head}}


def make_checkpoint():
  """Return the checkpoint of --checkpoint, or one with random weights."""
  dtype = FLAGS.dtype or ("bfloat16" if jax.default_backend() == "gpu" else "float32")
  if FLAGS.checkpoint:
    return load(FLAGS.checkpoint, dtype=dtype)
  model = OSTrack(dtype=dtype)
  variables = steady(jax.device_get(init_variables(model, 0)))
  factors = {"template_factor": 2.0, "search_factor": _SEARCH_FACTOR}
  return loading.Checkpoint(model, variables, {"tracker": factors})


def write_video(path: pathlib.Path, count: int) -> None:
  """Write a procedural video that runs forth and back, so that nothing jumps."""
  settings = procedural_video.ProceduralVideoSettings(
    width=_WIDTH, height=_HEIGHT, length=_RENDERED, min_target_size=60, max_target_size=160
  )
  images, _, _ = procedural_video.render_sequence(0, settings)
  circle = [*images, *images[-2:0:-1]]
  with VideoWriter(path, codec="h264") as video:
    for number in tqdm(range(count), desc="writing", disable=None):
      video.write(circle[number % len(circle)])


def starts(count: int) -> list[tuple[float, float, float, float]]:
  """Return boxes all over the frame."""
  rng = np.random.default_rng(0)
  return [
    (float(x), float(y), 90.0, 110.0)
    for x, y in zip(rng.uniform(0, _WIDTH - 90, count), rng.uniform(0, _HEIGHT - 110, count))
  ]


def rate(frames: Iterable[object]) -> float:
  """Return how many a second come out, the first two left out, in which something compiles."""
  times = [time.perf_counter() for _ in frames]
  return (len(times) - 2) / (times[-1] - times[1])


def end_to_end(tracker: MultiTracker, video: VideoFrames, count: int, folder: str) -> float:
  """Return the command's frames per second, from the file to a table."""
  table = track_outputs.CsvTable(pathlib.Path(folder) / "boxes.csv")
  tracks = tracker.track(video, {0: starts(count)})
  return track_outputs.write_tracks(tracks, [table], False, lambda: None).per_second


def measure(folder: str) -> Iterator[tuple[str, float]]:
  """Yield names and frames per second, turn after turn."""
  # Before the video, which takes long to make: a wrong path shall be told at once.
  checkpoint = make_checkpoint()
  video = pathlib.Path(folder) / "video.mp4"
  write_video(video, FLAGS.frames)
  source = VideoFrames(video)
  held = [image for image, _ in zip(source, range(_RENDERED))]
  for _ in range(FLAGS.turns):
    yield "decode", rate(source)
    for count in (1, FLAGS.objects):
      # Compiled once, since trackers of equal models share what they compile.
      tracker = MultiTracker(checkpoint, max_objects=count)
      images = (held[number % len(held)] for number in range(FLAGS.frames))
      yield f"tracker, {count}", rate(tracker.track(images, {0: starts(count)}))
      tracker = MultiTracker(checkpoint, max_objects=count)
      yield f"end to end, {count}", end_to_end(tracker, source, count, folder)


def _measure_all() -> None:
  rates: dict[str, list[float]] = {}
  with tempfile.TemporaryDirectory() as folder:
    for name, value in tqdm(measure(folder), total=5 * FLAGS.turns, disable=None):
      rates.setdefault(name, []).append(value)
  per_second = {name: statistics.median(values) for name, values in rates.items()}
  many = f"end to end, {FLAGS.objects}"
  slower = min(per_second["decode"], per_second["tracker, 1"])
  found = {
    "device": jax.devices()[0].device_kind,
    "host": platform.processor() or platform.machine(),
    "checkpoint": FLAGS.checkpoint or "random ViT-B, 256",
    "frames": FLAGS.frames,
    "frames_per_second": per_second,
    "all_turns": rates,
    "end_to_end_over_slower_part": per_second["end to end, 1"] / slower,
    "time_of_many_over_one": per_second["end to end, 1"] / per_second[many],
  }
  for name, value in per_second.items():
    print(f"{name + (' objects' if name[-1].isdecimal() else ''):<24} {value:8.1f} frames/s")
  print(f"one object over the slower part: {found['end_to_end_over_slower_part']:.2f} (aim: 0.9)")
  print(
    f"{FLAGS.objects} objects over one, in time: {found['time_of_many_over_one']:.2f} (aim: below 3)"
  )
  if FLAGS.output:
    write_text(pathlib.Path(FLAGS.output), json.dumps(found, indent=2) + "\n")


def main(argv) -> None:
  """Measure, print and write."""
  del argv
  try:
    _measure_all()
  except (ValueError, OSError) as error:
    sys.exit(f"{_NAME}: {error}")


if __name__ == "__main__":
  command_line.run(main, _NAME, FLAGS, __doc__)
