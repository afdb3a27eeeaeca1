"""Procedural video as a TFDS data set: rendered once, on first use."""

import dataclasses
import hashlib
import json
import os
import pathlib

from data_pipelines import preparation, procedural_video
from data_pipelines.builders import frame_records
from data_pipelines.builders.raw_data import RawSequence, Target

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
class ProceduralConfig(frame_records.RecordConfig):
  """TFDS configuration: how the video is made."""

  settings: ProceduralSettings = dataclasses.field(default_factory=ProceduralSettings)

  def describe(self) -> dict:
    """Return what the data is made from."""
    return {**super().describe(), "renderer": RENDERER_VERSION, **dataclasses.asdict(self.settings)}


class ProceduralVideo(frame_records.FrameRecordBuilder):
  """A textured target among look-alikes, rendered; train and test from different seeds."""

  SPLITS = ("train", "test")
  DEFAULT_SPLITS = ("train", "test")

  def _settings(self) -> ProceduralSettings:
    config = self.builder_config
    assert isinstance(config, ProceduralConfig)
    return config.settings

  def list_sequences(self, split: str) -> list[int]:
    """Return the numbers of the sequences, which seed them."""
    settings = self._settings()
    return list(range(settings.train_sequences if split == "train" else settings.test_sequences))

  def read_sequence(self, split: str, key: int) -> RawSequence:
    """Render one sequence."""
    settings = self._settings()
    seed = (settings.seed, _SPLIT_SEEDS[split], key)
    jpegs, boxes_xywh, visible = procedural_video.encode_sequence(
      (seed, settings.video, settings.jpeg_quality)
    )
    name = f"{split}-{key:06d}"
    return RawSequence(name, tuple(jpegs), (Target(name, boxes_xywh, visible),))


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
  config = ProceduralConfig(name=settings.config_name, settings=settings)
  return preparation.prepare(ProceduralVideo, config, data_dir, num_workers=num_workers)
