"""The training pipeline: sampled pairs, augmented, sharded over hosts, batched, read ahead."""

import dataclasses
import math
import typing
from collections.abc import Iterator, Sequence

import cv2
import grain
import numpy as np
from absl import flags
from grain.multiprocessing import SharedMemoryArray

from data_pipelines import workers
from data_pipelines.pair_transform import PairTransform, PipelineSettings
from data_pipelines.sources import FrameSource

Batch = dict[str, np.ndarray]

# Longer than any training; grain wants a length.
_ENDLESS = 2**48
# A worker's batches lie in shared memory: one on its way, and as grain goes about it, one waiting to be
# sent, one received, and one waiting to be received.
_WORKER_BUFFER = 1
_WORKER_BATCHES = 4
# Bytes. Smaller arrays are sent as they are: a piece of shared memory costs more than sending them.
_SMALLEST_SHARED = 65536
# Numbers that travel with a pair, and summed with a batch, as far as the iterator.
_COUNTERS = ("redraws", "skipped")


def _as_grain(sources, settings: PipelineSettings, seed: int) -> grain.MapDataset:
  return grain.MapDataset.range(_ENDLESS).seed(seed).random_map(PairTransform(sources, settings))


def _sharded_batches(pairs: grain.MapDataset, batch_size: int, shard_index: int, shard_count: int):
  """Give a host its pairs: of each step's, a run of batch_size, the first host the first run.

  So step n takes the same pairs in the same order over all hosts together, however many they are.
  """
  if batch_size < 1 or not 0 <= shard_index < shard_count:
    raise ValueError(
      f"batch_size {batch_size}, shard {shard_index} of {shard_count}: a batch needs a pair, and shards count from 0"
    )
  cv2.setNumThreads(1)
  # The random numbers follow the index that random_map sees, so hosts share its results, not its input.
  own = _Batch(pairs, batch_size, batch_size * shard_count, batch_size * shard_index)
  return grain.MapDataset.range(len(pairs) // (batch_size * shard_count)).map(own)


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Return an array to fill; in a worker a large one lies in the memory that it is sent in."""
  if not workers.in_worker() or math.prod(shape) * dtype.itemsize < _SMALLEST_SHARED:
    return np.empty(shape, dtype)
  return SharedMemoryArray(shape, dtype)


class _Batch:
  """A function from a batch's number to the batch; pairs go into it one by one, as they are made.

  grain's own batching would hold all pairs beside the batch, and a worker's memory counts.
  """

  def __init__(self, pairs: grain.MapDataset, size: int, stride: int, first: int):
    """Batch n holds `size` pairs from number n * stride + first on."""
    self._pairs, self._size, self._stride, self._first = pairs, size, stride, first

  def __call__(self, number: int) -> dict[str, typing.Any]:
    batch: dict[str, typing.Any] = dict.fromkeys(_COUNTERS, 0)
    try:
      for row in range(self._size):
        pair = self._pairs[number * self._stride + self._first + row]
        # grain could have filtered it out; nothing is filtered here.
        assert pair is not None
        for name, value in pair.items():
          if name in _COUNTERS:
            batch[name] += value
            continue
          if row == 0:
            batch[name] = _empty((self._size, *value.shape), value.dtype)
          batch[name][row] = value
    except BaseException:
      # What is never sent nobody else would give back.
      for value in batch.values():
        if isinstance(value, SharedMemoryArray):
          value.unlink_on_del()
      raise
    return batch


class TrainIterator(grain.DatasetIterator):
  """Endless batches. Its state is the number of batches given, whatever the number of workers."""

  def __init__(
    self,
    sources: Sequence[FrameSource],
    batches: grain.MapDataset,
    num_workers: int,
    num_threads: int,
    read_ahead: int,
  ):
    super().__init__()
    self._sources = sources
    self._batches = batches
    self._num_workers = num_workers
    self._options = grain.ReadOptions(
      num_threads=num_threads, prefetch_buffer_size=max(read_ahead, num_threads)
    )
    self._step = 0
    self._running: grain.DatasetIterator | None = None
    self._counts = dict.fromkeys(("pairs", *_COUNTERS), 0)

  def _start(self) -> grain.DatasetIterator:
    rest = self._batches[self._step :]
    if not self._num_workers:
      return iter(rest.to_iter_dataset(self._options))
    # grain reads absl flags, which nobody has parsed in a notebook or under a private parser.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    # A worker is one thread: it reads when asked, and asks itself as long as its buffer has room.
    dataset = grain.experimental.WithOptionsIterDataset(
      rest.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)),
      grain.experimental.DatasetOptions(min_shm_size=_SMALLEST_SHARED),
    )
    running = iter(
      dataset.mp_prefetch(
        grain.MultiprocessingOptions(
          num_workers=self._num_workers, per_worker_buffer_size=_WORKER_BUFFER
        ),
        worker_init_fn=workers.begin_worker,
      )
    )
    with workers.small_children(self._num_workers):
      # Makes an iterator a worker, which start_prefetch then starts; else the first batch would.
      running.get_state()
      running.start_prefetch()
    return running

  def __next__(self) -> Batch:
    if self._running is None:
      self._running = self._start()
    try:
      batch = next(self._running)
    except BaseException:
      # Workers that are left to the interpreter's end leave shared memory behind.
      self.close()
      raise
    self._step += 1
    self._counts["pairs"] += len(batch["search"])
    for name in _COUNTERS:
      self._counts[name] += int(batch.pop(name))
    return batch

  @property
  def counts(self) -> dict[str, int]:
    """So far given by this iterator, of this host: pairs; and for them: redraws, skipped."""
    return dict(self._counts)

  def describe(self, records: np.ndarray) -> str:
    """Name the two records of a pair, given as its row [3] of a batch's `records`."""
    number, template, search = (int(value) for value in records)
    source = self._sources[number]
    return f"template {source.describe(template)}, search region {source.describe(search)}"

  def get_state(self) -> dict[str, int]:
    """Return {"step": batches given so far}."""
    return {"step": self._step}

  def set_state(self, state: dict[str, int]) -> None:
    """Go on as if `state["step"]` batches had been given."""
    self.close()
    self._step = int(state["step"])

  def close(self) -> None:
    """Stop threads and workers; the next call to next() starts them anew."""
    if self._running is not None:
      self._running.close()
      self._running = None


def train_pipeline(
  sources: Sequence[tuple[FrameSource, float]],
  settings: PipelineSettings,
  *,
  batch_size: int,
  seed: int,
  shard_index: int = 0,
  shard_count: int = 1,
  num_workers: int = 0,
  num_threads: int = 2,
  read_ahead: int = 4,
  start_step: int = 0,
) -> TrainIterator:
  """Return endless training batches, a function of the sources, the settings and the seed alone.

  Args:
    sources: data sets with their weights in the mixture.
    settings: sampling and augmentation.
    batch_size: pairs a batch of this host.
    shard_index, shard_count: this host among all; of each step's pairs it takes the
      shard_index-th run of batch_size.
    num_workers: worker processes of one thread each; 0 for threads of this process.
    num_threads: threads that read ahead where there are no workers; 0 reads when asked.
    read_ahead: batches that the threads keep ready.
    start_step: batches to skip, to go on from a checkpoint.

  Returns:
    An iterator over dicts as make_pair gives, `records`, and with an absent_probability `present`
    (PairTransform), with a leading batch axis; with get_state, set_state, counts and describe.

  Raises:
    ValueError: settings that do not fit the sources; no room in shared memory for the workers.
  """
  batches = _sharded_batches(
    _as_grain(sources, settings, seed), batch_size, shard_index, shard_count
  )
  if num_workers:
    sizes = (settings.augmentation.template_size, settings.augmentation.search_size)
    batch_bytes = batch_size * sum(3 * size**2 for size in sizes)
    workers.check_shared_memory(num_workers, _WORKER_BATCHES, batch_bytes)
  iterator = TrainIterator(
    [source for source, _ in sources], batches, num_workers, num_threads, read_ahead
  )
  iterator.set_state({"step": start_step})
  return iterator


def validation_pairs(
  sources: Sequence[tuple[FrameSource, float]],
  settings: PipelineSettings,
  *,
  count: int,
  batch_size: int,
  seed: int,
  shard_index: int = 0,
  shard_count: int = 1,
  num_threads: int = 2,
) -> Iterator[Batch]:
  """Yield pairs in batches, always the same for a seed, without separate flip or brightness.

  Every target is present, whatever the settings.

  Args:
    sources: data sets with their weights in the mixture.
    settings: sampling and augmentation.
    count: pairs of all hosts together.
    batch_size: pairs a batch of this host.
    shard_index, shard_count: this host among all; of each step's pairs it takes the
      shard_index-th run of batch_size.
    num_threads: threads that read ahead, a batch each; 0 reads when asked.

  Raises:
    ValueError: count is not a multiple of the hosts' batches (a rest would compile the step anew).
  """
  augmentation = settings.augmentation.for_validation()
  sampling = dataclasses.replace(settings.sampling, absent_probability=0.0)
  settings = dataclasses.replace(settings, augmentation=augmentation, sampling=sampling)
  pairs = _as_grain(sources, settings, seed)
  batches = _sharded_batches(pairs, batch_size, shard_index, shard_count)
  steps, rest = divmod(count, batch_size * shard_count)
  if rest:
    raise ValueError(
      f"count {count} is not a multiple of batch_size {batch_size} times {shard_count} hosts"
    )
  options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
  return _images_and_boxes(batches[:steps].to_iter_dataset(options))


def _images_and_boxes(batches: grain.IterDataset) -> Iterator[Batch]:
  running = iter(batches)
  try:
    for batch in running:
      yield {n: value for n, value in batch.items() if n not in (*_COUNTERS, "records")}
  finally:
    running.close()
