"""Procedural video as a TFDS data set: rendered once, on first use."""

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
from collections.abc import Iterator

import tensorflow_datasets as tfds
import tqdm

from data_pipelines import procedural_video
from data_pipelines.builders import frame_records

# Raise it when the renderer changes its pixels, so that data made before is not taken for new.
RENDERER_VERSION = 1
_SPLIT_SEEDS = {"train": 1, "test": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProceduralSettings:
  """How much procedural video, from which seed, and what it looks like."""

  train_sequences: int = 400
  test_sequences: int = 20
  seed: int = 0
  jpeg_quality: int = 92
  video: procedural_video.ProceduralVideoSettings = dataclasses.field(
    default_factory=procedural_video.ProceduralVideoSettings
  )

  def __post_init__(self):
    if self.train_sequences < 1 or self.test_sequences < 1:
      raise ValueError(
        f"{self.train_sequences} training and {self.test_sequences} test sequences: each needs at least 1"
      )

  @property
  def config_name(self) -> str:
    """A name that any change of the settings changes."""
    text = json.dumps([RENDERER_VERSION, dataclasses.asdict(self)], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{self.video.width}x{self.video.height}_{self.train_sequences}_{self.test_sequences}_{digest}"


@dataclasses.dataclass(eq=False)
class ProceduralConfig(tfds.core.BuilderConfig):
  """TFDS configuration: the settings, and how many processes render (0: this one)."""

  name: str = "default"
  settings: ProceduralSettings = dataclasses.field(default_factory=ProceduralSettings)
  num_workers: int = 0


class ProceduralVideo(frame_records.FrameRecordBuilder):
  """A textured target among look-alikes, rendered; train and test from different seeds."""

  SPLITS: tuple[str, ...] = ("train", "test")

  def sequences(self, split: str) -> Iterator[frame_records.EncodedSequence]:
    """Render the sequences of a split, in order, whatever the number of processes."""
    config = self.builder_config
    assert isinstance(config, ProceduralConfig)
    settings = config.settings
    count = settings.train_sequences if split == "train" else settings.test_sequences
    tasks = [
      ((settings.seed, _SPLIT_SEEDS[split], i), settings.video, settings.jpeg_quality)
      for i in range(count)
    ]
    progress = tqdm.tqdm(total=count, desc=f"procedural video, {split}", unit="seq")
    with progress, _mapper(config.num_workers) as run:
      for i, (jpegs, boxes_xywh, visible) in enumerate(
        run(procedural_video.encode_sequence, tasks)
      ):
        progress.update()
        yield frame_records.EncodedSequence(f"{split}-{i:06d}", jpegs, boxes_xywh, visible)


@contextlib.contextmanager
def _mapper(num_workers: int):
  """Give `map`, here or over spawned processes (a fork would copy the threads of jax)."""
  if not num_workers:
    yield map
    return
  with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
    yield pool.imap


def prepare_procedural(
  data_dir: str | os.PathLike[str],
  settings: ProceduralSettings | None = None,
  *,
  num_workers: int = 0,
) -> pathlib.Path:
  """Make procedural video below `data_dir` unless it is there, and return its directory.

  Args:
    data_dir: root of all prepared data.
    settings: None for the defaults; other settings live in another directory.
    num_workers: processes that render; 0 renders here. The data does not depend on it.
  """
  settings = settings or ProceduralSettings()
  config = ProceduralConfig(name=settings.config_name, settings=settings, num_workers=num_workers)
  return frame_records.prepare(ProceduralVideo, config, data_dir, dataclasses.asdict(settings))
