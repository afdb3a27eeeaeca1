"""The training pipeline: sampled pairs, augmented, sharded over hosts, batched, read ahead."""

import dataclasses
import multiprocessing
import os
import threading
import typing
from collections.abc import Iterator, Sequence

import cv2
import grain
import numpy as np
from absl import flags

from data_pipelines.augmentation import AugmentationSettings, make_pair
from data_pipelines.sampling import PairSampler, SamplingSettings
from data_pipelines.sources import FrameSource

Batch = dict[str, np.ndarray]

# Longer than any training; grain wants a length.
_ENDLESS = 2**48
# The official code redraws for ever. A thousand rejected draws in a row mean broken annotations.
_MOST_REDRAWS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineSettings:
  """How pairs are drawn and how they are varied."""

  sampling: SamplingSettings = dataclasses.field(default_factory=SamplingSettings)
  augmentation: AugmentationSettings = dataclasses.field(default_factory=AugmentationSettings)


class PairTransform(grain.transforms.RandomMap):
  """Draw and augment one pair; the element only numbers it, the random numbers decide all."""

  def __init__(self, sources: Sequence[tuple[FrameSource, float]], settings: PipelineSettings):
    self._sampler = PairSampler(sources, settings.sampling)
    self._settings = settings.augmentation

  # grain annotates no result for it.
  def random_map(self, element: int, rng: np.random.Generator) -> Batch:  # pyrefly: ignore[bad-override]
    """Return one pair as make_pair does, redrawn until the official validity rule accepts it.

    Raises:
      ValueError: a record is damaged; the message names it.
      ValueError: a thousand draws in a row were rejected.
    """
    del element
    for _ in range(_MOST_REDRAWS):
      source, template, search = self._sampler.draw(rng)
      boxes_xywh, previous_box_xywh = source.index.boxes_xywh, None
      if self._settings.search_centre_from == "previous_box":
        previous = self._sampler.previous_visible(source, template, search)
        previous_box_xywh = boxes_xywh[previous]
      template_frame = source.frame(template)
      search_frame = template_frame if search == template else source.frame(search)
      pair = make_pair(
        rng,
        template_frame,
        boxes_xywh[template],
        search_frame,
        boxes_xywh[search],
        self._settings,
        previous_box_xywh,
      )
      if pair is not None:
        return pair
    raise ValueError(
      f"{_MOST_REDRAWS} pairs in a row from {self._sampler.sources} showed nothing but padding: "
      "check the boxes, which are x, y, width, height in pixels"
    )


def _as_grain(sources, settings: PipelineSettings, seed: int) -> grain.MapDataset:
  return grain.MapDataset.range(_ENDLESS).seed(seed).random_map(PairTransform(sources, settings))


def _begin_worker(worker_index: int, worker_count: int) -> None:
  del worker_index, worker_count
  cv2.setNumThreads(1)
  parent = multiprocessing.parent_process()

  def follow_parent():
    if parent is not None:
      parent.join()
      os._exit(1)

  # grain's workers wait for room in a queue that a killed training never empties: they would stay.
  threading.Thread(target=follow_parent, daemon=True).start()


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

  def _start(self) -> grain.DatasetIterator:
    dataset = self._batches[self._step :].to_iter_dataset(self._options)
    if self._num_workers:
      # grain reads absl flags, which nobody has parsed in a notebook or under a private parser.
      if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
      dataset = dataset.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=self._num_workers, per_worker_buffer_size=2),
        worker_init_fn=_begin_worker,
      )
    return iter(dataset)

  def __next__(self) -> Batch:
    if self._running is None:
      self._running = self._start()
    batch = next(self._running)
    self._step += 1
    return batch

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
    num_workers: worker processes, 0 for none; threads do better as long as decoding dominates.
    num_threads: threads that read ahead in every process; 0 reads when asked.
    read_ahead: batches that each process keeps ready.
    start_step: batches to skip, to go on from a checkpoint.

  Returns:
    An iterator over dicts as make_pair gives, with a leading batch axis, with get_state and
    set_state.
  """
  if batch_size < 1 or not 0 <= shard_index < shard_count:
    raise ValueError(
      f"batch_size {batch_size}, shard {shard_index} of {shard_count}: a batch needs a pair, and shards count from 0"
    )
  cv2.setNumThreads(1)
  # Sliced behind random_map: the random numbers follow the index that random_map sees, so slicing
  # before it would give every host the same ones.
  pairs = _as_grain(sources, settings, seed)[shard_index::shard_count]
  batches = pairs.batch(batch_size, drop_remainder=True)
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
) -> Iterator[Batch]:
  """Yield `count` pairs in batches, always the same for a seed, without separate flip or brightness.

  Args:
    sources: data sets with their weights in the mixture.

  Raises:
    ValueError: count is not a multiple of batch_size (a rest would compile the step anew).
  """
  if batch_size < 1 or count % batch_size:
    raise ValueError(f"count {count} is not a multiple of batch_size {batch_size}")
  settings = dataclasses.replace(settings, augmentation=settings.augmentation.for_validation())
  batches = _as_grain(sources, settings, seed).batch(batch_size)
  return (typing.cast(Batch, batches[i]) for i in range(count // batch_size))
