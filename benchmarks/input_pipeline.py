"""Measure the input pipeline: training pairs a second per core, and where the time goes.

  python -m benchmarks.input_pipeline --template_size=64 --search_size=128

Procedural video is made below --data_dir (a temporary folder by default), unless --prepared names a
directory that holds prepared data. Every figure is pairs a second; "per core" divides by CPU time.
"""

import dataclasses
import pathlib
import resource
import sys
import tempfile
import time

import cv2
import numpy as np
from absl import app, flags

from data_pipelines import augmentation, pipeline, sampling
from data_pipelines.builders import procedural
from data_pipelines.sources import FrameSource, decode_jpeg

FLAGS = flags.FlagValues()
flags.DEFINE_string(
  "data_dir",
  None,
  "Where to keep procedural video; a temporary folder if not given.",
  flag_values=FLAGS,
)
flags.DEFINE_string(
  "prepared", None, "A prepared directory to read instead of procedural video.", flag_values=FLAGS
)
flags.DEFINE_integer(
  "sequences", 40, "Procedural training sequences.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_integer("template_size", 64, "Side of the template, pixels.", flag_values=FLAGS)
flags.DEFINE_integer("search_size", 128, "Side of the search region, pixels.", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 32, "Pairs a batch.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("batches", 60, "Batches to time.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_list("num_threads", ["0", "1", "2"], "Numbers of reading threads.", flag_values=FLAGS)
flags.DEFINE_list("num_workers", ["2"], "Numbers of worker processes.", flag_values=FLAGS)


@dataclasses.dataclass(frozen=True)
class Rate:
  """Pairs a second of wall time, and per second of this process's CPU time (None: not ours)."""

  wall: float
  core: float | None


def measure_pipeline(
  source: FrameSource,
  settings: pipeline.PipelineSettings,
  *,
  batch_size: int,
  batches: int,
  num_threads: int,
  num_workers: int,
) -> Rate:
  """Time whole batches; the first, which starts threads and workers, is left out.

  Batches that were read ahead before the clock started are drained first.
  """
  read_ahead = 2
  iterator = pipeline.train_pipeline(
    [(source, 1.0)],
    settings,
    batch_size=batch_size,
    seed=0,
    num_threads=num_threads,
    num_workers=num_workers,
    read_ahead=read_ahead,
  )
  for _ in range(1 + read_ahead * max(num_workers, 1)):
    next(iterator)
  wall, core = time.perf_counter(), time.process_time()
  for _ in range(batches):
    next(iterator)
  wall, core = time.perf_counter() - wall, time.process_time() - core
  iterator.close()
  pairs = batches * batch_size
  return Rate(pairs / wall, None if num_workers else pairs / core)


def measure_parts(
  source: FrameSource, settings: pipeline.PipelineSettings, pairs: int
) -> dict[str, float]:
  """Return milliseconds of CPU time a pair for sampling, reading, decoding and augmenting."""
  rng = np.random.default_rng(0)
  sampler = sampling.PairSampler([(source, 1.0)], settings.sampling)
  spent = dict.fromkeys(("sample", "read", "decode", "augment"), 0.0)

  def timed(part, function, *arguments):
    start = time.process_time()
    result = function(*arguments)
    spent[part] += time.process_time() - start
    return result

  source.frame(0)
  for _ in range(pairs):
    _, template, search = timed("sample", sampler.draw, rng)
    records = (template, search)
    jpegs = timed("read", lambda r: [source.jpeg(i) for i in r], records)
    frames = timed("decode", lambda j: [decode_jpeg(data) for data in j], jpegs)
    boxes_xywh = source.index.boxes_xywh
    timed(
      "augment",
      augmentation.make_pair,
      rng,
      frames[0],
      boxes_xywh[template],
      frames[1],
      boxes_xywh[search],
      settings.augmentation,
    )
  return {part: 1e3 * seconds / pairs for part, seconds in spent.items()}


def report(source: FrameSource, settings: pipeline.PipelineSettings) -> None:
  """Print all figures for a source."""
  height, width = source.frame(0).shape[:2]
  print(f"{source!r}: {len(source)} frames, the first {width}x{height}")
  parts = measure_parts(source, settings, max(FLAGS.batches * FLAGS.batch_size // 4, 1))
  print("CPU ms a pair: " + ", ".join(f"{part} {ms:.3f}" for part, ms in parts.items()))
  runs = [(int(threads), 0) for threads in FLAGS.num_threads]
  runs += [(1, int(workers)) for workers in FLAGS.num_workers if int(workers)]
  for num_threads, num_workers in runs:
    rate = measure_pipeline(
      source,
      settings,
      batch_size=FLAGS.batch_size,
      batches=FLAGS.batches,
      num_threads=num_threads,
      num_workers=num_workers,
    )
    per_core = "" if rate.core is None else f", {rate.core:.0f} per core"
    print(f"{num_threads} threads, {num_workers} workers: {rate.wall:.0f} pairs/s{per_core}")
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  print(f"peak resident memory of this process: {peak:.0f} MiB")


def main(argv: list[str]) -> None:
  """Prepare data if needed, measure, print."""
  if len(argv) > 1:
    sys.exit(f"benchmarks.input_pipeline: unexpected arguments {argv[1:]}; all settings are flags")
  cv2.setNumThreads(1)
  settings = pipeline.PipelineSettings(
    augmentation=augmentation.AugmentationSettings(
      template_size=FLAGS.template_size, search_size=FLAGS.search_size
    )
  )
  if FLAGS.prepared:
    report(FrameSource(FLAGS.prepared), settings)
    return
  made = procedural.ProceduralSettings(train_sequences=FLAGS.sequences, test_sequences=1)
  with tempfile.TemporaryDirectory() as temporary:
    data_dir = pathlib.Path(FLAGS.data_dir or temporary)
    report(FrameSource(procedural.prepare_procedural(data_dir, made)), settings)


def parse_flags(argv: list[str]) -> list[str]:
  """Parse this module's flags; print help or one sentence and leave where that is called for."""
  flags.FLAGS.mark_as_parsed()  # absl insists; nothing of ours is defined there
  if {"--help", "-h", "-help"} & set(argv):
    print(f"{__doc__}\n{FLAGS.get_help()}")
    sys.exit(0)
  try:
    return FLAGS(argv)
  except flags.Error as error:
    sys.exit(f"benchmarks.input_pipeline: {error}")


def run() -> None:
  """Run as a command."""
  app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
  run()
