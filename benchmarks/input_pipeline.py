"""Measure the input pipeline: training pairs a second per core, where the time goes, and memory.

  python -m benchmarks.input_pipeline --prepared=prepared/sequence_folder/mine-context256/2.0.0
  python -m benchmarks.input_pipeline --prepared=... --num_workers=14 --device

Without --prepared it makes procedural video. "Per core" divides by CPU time, that of worker processes
included. --device also puts every batch on the accelerator; --pairs says how long each run is.
"""

import dataclasses
import multiprocessing
import os
import pathlib
import tempfile
import time

import cv2
import numpy as np
from absl import flags

from data_pipelines import augmentation, context, pipeline, sampling
from data_pipelines.builders import procedural
from data_pipelines.sources import FrameSource
from ostrack_jax import command_line

FLAGS = command_line.new_flags()
flags.DEFINE_string(
  "data_dir",
  None,
  "Where to keep procedural video; a temporary folder if not given.",
  flag_values=FLAGS,
)
flags.DEFINE_list(
  "prepared", [], "Prepared directories to read, one after another.", flag_values=FLAGS
)
flags.DEFINE_integer(
  "sequences", 40, "Procedural training sequences.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_enum(
  "search_size",
  "256",
  ["128", "256", "384"],
  "Crops: official 256 or 384, or half of 256.",
  flag_values=FLAGS,
)
flags.DEFINE_integer("batch_size", 32, "Pairs a batch.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("pairs", 4000, "Pairs to time in every run.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_list("num_threads", ["0", "2"], "Numbers of reading threads.", flag_values=FLAGS)
flags.DEFINE_list("num_workers", ["1", "2"], "Numbers of worker processes.", flag_values=FLAGS)
flags.DEFINE_integer("worker_threads", 1, "Reading threads of each worker.", flag_values=FLAGS)
flags.DEFINE_bool(
  "device", False, "Put every batch on the accelerator, as training does.", flag_values=FLAGS
)

_TICKS = os.sysconf("SC_CLK_TCK")
_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Run:
  """Pairs a second of wall time and of CPU time; MiB of this process at the start and the end of the
  run, and of the largest worker."""

  wall: float
  core: float
  own_mib: tuple[float, float]
  worker_mib: float


def _cpu_seconds(pid: int) -> float:
  fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
  return (int(fields[11]) + int(fields[12])) / _TICKS


def _resident_mib(pid: int) -> float:
  pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE") / _MIB


def measure_pipeline(
  source: FrameSource,
  settings: pipeline.PipelineSettings,
  *,
  batch_size: int,
  batches: int,
  num_threads: int,
  num_workers: int,
  to_device: bool,
) -> Run:
  """Time whole batches; what was read ahead before the clock starts is drained first."""
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
  use = _putter() if to_device else lambda batch: None
  for _ in range(1 + 2 * read_ahead * max(num_workers, 1)):
    use(next(iterator))
  pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)]
  own = _resident_mib(os.getpid())
  wall, core = time.perf_counter(), sum(map(_cpu_seconds, pids))
  for _ in range(batches):
    use(next(iterator))
  wall, core = time.perf_counter() - wall, sum(map(_cpu_seconds, pids)) - core
  memory = (own, _resident_mib(os.getpid()))
  workers = max(map(_resident_mib, pids[1:]), default=0.0)
  iterator.close()
  pairs = batches * batch_size
  return Run(pairs / wall, pairs / core, memory, workers)


def _putter():
  """Return a function that puts a batch on the devices and waits for the one before."""
  import jax

  from ostrack_jax import sharding

  mesh = sharding.make_mesh()
  before = []

  def put(batch):
    batch = {name: value for name, value in batch.items() if name != "records"}
    before.append(sharding.put_batch(mesh, batch))
    if len(before) > 2:
      jax.block_until_ready(before.pop(0))

  return put


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

  for _ in range(pairs):
    draw = timed("sample", sampler.draw, rng)
    search = timed("decode", source.decode, draw.search, timed("read", source.read, draw.search))
    template = search
    if draw.template != draw.search:
      template = timed("read", source.read_template, draw.template)
      template = timed("decode", source.decode, draw.template, template)
    template_box, search_box = (source.index.boxes_xywh[p] for p in (draw.template, draw.search))
    timed(
      "augment",
      augmentation.make_pair,
      rng,
      template,
      template_box,
      search,
      search_box,
      settings.augmentation,
    )
  return {part: 1e3 * seconds / pairs for part, seconds in spent.items()}


def report(source: FrameSource, settings: pipeline.PipelineSettings) -> None:
  """Print all figures for a source."""
  stored = source.stored_frame(int(np.flatnonzero(source.index.records >= 0)[0]))
  height, width = stored.image.shape[:2]
  print(
    f"{source!r}: {len(source)} frames, the first {stored.frame_wh[0]}x{stored.frame_wh[1]} stored as {width}x{height}"
  )
  parts = measure_parts(source, settings, min(FLAGS.pairs, 1000))
  whole = sum(parts.values())
  print(
    f"CPU ms a pair: {', '.join(f'{part} {ms:.3f}' for part, ms in parts.items())}; together {whole:.3f}; "
    f"decoding alone allows {1e3 / parts['decode']:.0f} pairs/s a core"
  )
  runs = [(int(threads), 0) for threads in FLAGS.num_threads]
  runs += [(FLAGS.worker_threads, int(workers)) for workers in FLAGS.num_workers if int(workers)]
  for num_threads, num_workers in runs:
    run = measure_pipeline(
      source,
      settings,
      batch_size=FLAGS.batch_size,
      batches=max(FLAGS.pairs // FLAGS.batch_size, 1),
      num_threads=num_threads,
      num_workers=num_workers,
      to_device=FLAGS.device,
    )
    print(
      f"{num_workers} workers, {num_threads} threads: {run.wall:.0f} pairs/s, {run.core:.0f} per core; "
      f"resident MiB: own {run.own_mib[0]:.0f} to {run.own_mib[1]:.0f}"
      + (f", largest worker {run.worker_mib:.0f}" if num_workers else "")
    )


def _settings() -> pipeline.PipelineSettings:
  size = int(FLAGS.search_size)
  if size == 128:
    crops = augmentation.AugmentationSettings(template_size=64, search_size=128)
  else:
    crops = context.PRESETS[size].augmentation()
  return pipeline.PipelineSettings(augmentation=crops)


def main(argv: list[str]) -> None:
  """Prepare data if needed, measure, print."""
  del argv
  cv2.setNumThreads(1)
  settings = _settings()
  for directory in FLAGS.prepared:
    report(FrameSource(directory), settings)
  if FLAGS.prepared:
    return
  made = procedural.ProceduralSettings(train_sequences=FLAGS.sequences, test_sequences=1)
  with tempfile.TemporaryDirectory() as temporary:
    data_dir = pathlib.Path(FLAGS.data_dir or temporary)
    report(FrameSource(procedural.prepare_procedural(data_dir, made)), settings)


if __name__ == "__main__":
  command_line.run(main, "benchmarks.input_pipeline", FLAGS, __doc__)
