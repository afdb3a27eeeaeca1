"""The training pipeline: sampled pairs, augmented, sharded over hosts, batched, read ahead."""

import dataclasses
import typing
from collections.abc import Iterator, Sequence

import cv2
import grain
import numpy as np
from absl import flags, logging

from data_pipelines import workers
from data_pipelines.augmentation import AugmentationSettings, make_pair
from data_pipelines.context import ContextSettings
from data_pipelines.sampling import PairDraw, PairSampler, SamplingSettings
from data_pipelines.sources import DamagedRecordError, FrameSource

Batch = dict[str, np.ndarray]

# Longer than any training; grain wants a length.
_ENDLESS = 2**48
# The official code redraws for ever. A thousand draws in a row without a pair mean broken data.
_MOST_REDRAWS = 1000
# Damaged records that each process names.
_MOST_NAMED = 20
# A worker's batches lie in shared memory: one on its way, and as grain goes about it, one waiting to be
# sent, one received, and one waiting to be received.
_WORKER_BUFFER = 1
_WORKER_BATCHES = 4
# Numbers that travel with a pair, and summed with a batch, as far as the iterator.
_COUNTERS = ("redraws", "skipped")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineSettings:
  """How pairs are drawn and how they are varied.

  on_bad_record: "stop" at a record that cannot be read, or "skip" and count it and draw another pair.
  """

  sampling: SamplingSettings = dataclasses.field(default_factory=SamplingSettings)
  augmentation: AugmentationSettings = dataclasses.field(default_factory=AugmentationSettings)
  on_bad_record: str = "stop"

  def __post_init__(self):
    if self.on_bad_record not in ("stop", "skip"):
      raise ValueError(f"on_bad_record {self.on_bad_record!r}: it must be 'stop' or 'skip'")


class PairTransform(grain.transforms.RandomMap):
  """Draw and augment one pair; the element only numbers it, the random numbers decide all."""

  def __init__(self, sources: Sequence[tuple[FrameSource, float]], settings: PipelineSettings):
    self._sampler = PairSampler(sources, settings.sampling)
    self._settings = settings
    self._has_templates = {
      source: source.storage is not None
      and ContextSettings(**source.storage).holds_templates_of(settings.augmentation)
      for source in self._sampler.sources
    }
    self._named: set[str] = set()

  # grain annotates no result for it.
  def random_map(self, element: int, rng: np.random.Generator) -> dict[str, typing.Any]:  # pyrefly: ignore[bad-override]
    """Return one pair as make_pair does, and how many draws came to nothing before it.

    Returns:
      make_pair's entries; redraws, skipped: int, pairs that the validity rule rejected, and pairs with
      a damaged record.

    Raises:
      DamagedRecordError: a record is damaged, and on_bad_record is "stop"; the message names it.
      ValueError: a thousand draws in a row were rejected or damaged.
    """
    del element
    redraws = skipped = 0
    while redraws + skipped < _MOST_REDRAWS:
      draw = self._sampler.draw(rng)
      try:
        pair = self._make(rng, draw)
      except DamagedRecordError as error:
        if self._settings.on_bad_record == "stop":
          raise
        self._name(str(error))
        skipped += 1
        continue
      if pair is not None:
        return pair | {"redraws": redraws, "skipped": skipped}
      redraws += 1
    raise ValueError(
      f"{_MOST_REDRAWS} pairs in a row from {self._sampler.sources} came to nothing: {skipped} had a damaged "
      f"record, and {redraws} showed nothing but padding or too little of the frame; check the files, and "
      "the boxes, which are x, y, width, height in pixels"
    )

  def _name(self, damage: str) -> None:
    """Log a damaged record, once, and no more of them than anybody reads."""
    if damage not in self._named and len(self._named) < _MOST_NAMED:
      self._named.add(damage)
      logging.warning("skipped: %s", damage)

  def _make(
    self, rng: np.random.Generator, draw: PairDraw
  ) -> dict[str, np.ndarray | np.generic] | None:
    source, _, template, search = draw
    index, augmentation = source.index, self._settings.augmentation
    if index.records[template] < 0 or index.records[search] < 0:
      # Of a box outside its frame nothing is stored; a crop of the frame would show padding alone.
      return None
    previous_box_xywh = None
    if augmentation.search_centre_from == "previous_box":
      previous_box_xywh = index.boxes_xywh[self._sampler.previous_visible(draw)]
    search_frame = source.stored_frame(search)
    if search == template:
      template_frame = search_frame
    elif self._has_templates[source]:
      template_frame = source.stored_template(template)
    else:
      template_frame = source.stored_frame(template)
    try:
      return make_pair(
        rng,
        template_frame,
        index.boxes_xywh[template],
        search_frame,
        index.boxes_xywh[search],
        augmentation,
        previous_box_xywh,
      )
    except ValueError as error:
      raise ValueError(f"{source.describe(search)}: {error}") from error


def _as_grain(sources, settings: PipelineSettings, seed: int) -> grain.MapDataset:
  return grain.MapDataset.range(_ENDLESS).seed(seed).random_map(PairTransform(sources, settings))


def _sharded_batches(pairs: grain.MapDataset, batch_size: int, shard_index: int, shard_count: int):
  """Give a host its pairs: number i goes to host i % shard_count.

  So step n takes the same pairs over all hosts together, however many they are.
  """
  if batch_size < 1 or not 0 <= shard_index < shard_count:
    raise ValueError(
      f"batch_size {batch_size}, shard {shard_index} of {shard_count}: a batch needs a pair, and shards count from 0"
    )
  cv2.setNumThreads(1)
  # Sliced behind random_map: the random numbers follow the index that random_map sees, so slicing
  # before it would give every host the same ones.
  mine = pairs[shard_index::shard_count]
  return grain.MapDataset.range(len(mine) // batch_size).map(_Batch(mine, batch_size))


class _Batch:
  """A function from a batch's number to the batch; pairs go into it one by one, as they are made.

  grain's own batching would hold all pairs beside the batch, and a worker's memory counts.
  """

  def __init__(self, pairs: grain.MapDataset, batch_size: int):
    self._pairs, self._size = pairs, batch_size

  def __call__(self, number: int) -> dict[str, typing.Any]:
    batch: dict[str, typing.Any] = dict.fromkeys(_COUNTERS, 0)
    for row in range(self._size):
      pair = self._pairs[number * self._size + row]
      # grain could have filtered it out; nothing is filtered here.
      assert pair is not None
      for name, value in pair.items():
        if name in _COUNTERS:
          batch[name] += value
          continue
        if row == 0:
          batch[name] = workers.empty((self._size, *value.shape), value.dtype)
        batch[name][row] = value
    return batch


class TrainIterator(grain.DatasetIterator):
  """Endless batches. Its state is the number of batches given, whatever the number of workers."""

  def __init__(
    self, batches: grain.MapDataset, num_workers: int, num_threads: int, read_ahead: int
  ):
    super().__init__()
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
      grain.experimental.DatasetOptions(min_shm_size=workers.SMALLEST_SHARED),
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
    shard_index, shard_count: this host among all; pair i goes to host i % shard_count.
    num_workers: worker processes of one thread each; 0 for threads of this process.
    num_threads: threads that read ahead where there are no workers; 0 reads when asked.
    read_ahead: batches that the threads keep ready.
    start_step: batches to skip, to go on from a checkpoint.

  Returns:
    An iterator over dicts as make_pair gives, with a leading batch axis, with get_state, set_state and
    counts.

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
  iterator = TrainIterator(batches, num_workers, num_threads, read_ahead)
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

  Args:
    sources: data sets with their weights in the mixture.
    settings: sampling and augmentation.
    count: pairs of all hosts together.
    batch_size: pairs a batch of this host.
    shard_index, shard_count: this host among all; pair i goes to host i % shard_count.
    num_threads: threads that read ahead, a batch each; 0 reads when asked.

  Raises:
    ValueError: count is not a multiple of the hosts' batches (a rest would compile the step anew).
  """
  augmentation = settings.augmentation.for_validation()
  settings = dataclasses.replace(settings, augmentation=augmentation)
  pairs = _as_grain(sources, settings, seed)
  batches = _sharded_batches(pairs, batch_size, shard_index, shard_count)
  steps, rest = divmod(count, batch_size * shard_count)
  if rest:
    raise ValueError(
      f"count {count} is not a multiple of batch_size {batch_size} times {shard_count} hosts"
    )
  options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
  return _without_counters(batches[:steps].to_iter_dataset(options))


def _without_counters(batches: grain.IterDataset) -> Iterator[Batch]:
  running = iter(batches)
  try:
    for batch in running:
      yield {name: value for name, value in batch.items() if name not in _COUNTERS}
  finally:
    running.close()
