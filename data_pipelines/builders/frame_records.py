"""What the builders share: one record a frame, beside an index of all frames, as TFDS reads it."""

import abc
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from data_pipelines import context, jpeg
from data_pipelines.builders.raw_data import RawSequence, read_jpeg


@dataclasses.dataclass(eq=False)
class RecordConfig(tfds.core.BuilderConfig):
  """TFDS configuration of all builders.

  storage: what context records must serve; None keeps whole frames, JPEG files byte for byte.
  """

  name: str = "full_frames"
  storage: context.ContextSettings | None = None

  def describe(self) -> dict:
    """Return what the data is made from, for the manifest: other settings are other data."""
    storage = None if self.storage is None else dataclasses.asdict(self.storage)
    return {"storage": storage}


@dataclasses.dataclass(eq=False)
class RawDataConfig(RecordConfig):
  """TFDS configuration of builders that read a raw folder.

  root: that folder. allow_missing: leave out what an official list names and the folder lacks.
  """

  root: str = ""
  allow_missing: bool = False

  def describe(self) -> dict:
    """Return what the data is made from, the folder included."""
    return {**super().describe(), "root": os.fspath(pathlib.Path(self.root).resolve())}


@dataclasses.dataclass(frozen=True)
class StoredTemplate:
  """What templates of one target can show: its number in the record, an encoded image, and where."""

  target: int
  jpeg: bytes
  region_xyxy: tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Record:
  """One record: an encoded image, what it shows, and what templates of its targets can show."""

  jpeg: bytes
  region_xyxy: tuple[int, int, int, int]
  frame_wh: tuple[int, int]
  templates: tuple[StoredTemplate, ...] = ()


class FrameRecordBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A TFDS builder of one record a frame; subclasses list sequences and read one.

  Frames keep their order, so a sequence is a run of records, which the index beside the records
  names. `tfds.builder_from_directory(...).as_data_source()` reads the records as well.
  """

  VERSION = tfds.core.Version("2.0.0")
  SPLITS: tuple[str, ...] = ("train",)
  # What is prepared unless told otherwise.
  DEFAULT_SPLITS: tuple[str, ...] = ("train",)
  # False: still images, whose frame serves as template and search region.
  IS_VIDEO = True
  # A shard is what is done again after an interruption, and about a gigabyte for the largest sets.
  SEQUENCES_PER_SHARD = 16
  # Whether the same sequences in another folder are another data set.
  IDENTIFIED_BY_ROOT = False

  @property
  def root(self) -> pathlib.Path:
    """The raw folder."""
    config = self.builder_config
    assert isinstance(config, RawDataConfig)
    return pathlib.Path(config.root)

  @property
  def storage(self) -> context.ContextSettings | None:
    """What context records must serve, None for whole frames."""
    config = self.builder_config
    assert isinstance(config, RecordConfig)
    return config.storage

  @abc.abstractmethod
  def list_sequences(self, split: str) -> list[Any]:
    """Return a key for every sequence of a split, cheaply, in order; keys are plain JSON values."""

  @abc.abstractmethod
  def read_sequence(self, split: str, key: Any) -> RawSequence:
    """Read what a key names; runs in worker processes."""

  def annotation_digest(self, split: str, key: Any) -> str:
    """Return what tells a sequence's annotation from an edited one, "" where keys say enough."""
    del split, key
    return ""

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict(
      {
        "jpeg": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        "region_xyxy": tfds.features.Tensor(shape=(4,), dtype=np.int32),
        "frame_wh": tfds.features.Tensor(shape=(2,), dtype=np.int32),
        "sequence": tfds.features.Text(),
        "frame": tfds.features.Scalar(dtype=np.int32),
        "targets": tfds.features.Sequence(tfds.features.Text()),
        "boxes_xywh": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
        "visible": tfds.features.Tensor(shape=(None,), dtype=np.bool_),
        "templates": tfds.features.Sequence(
          tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
        ),
        "template_targets": tfds.features.Tensor(shape=(None,), dtype=np.int32),
        "template_regions_xyxy": tfds.features.Tensor(shape=(None, 4), dtype=np.int32),
      }
    )
    return tfds.core.DatasetInfo(
      builder=self, description=type(self).__doc__, features=features, disable_shuffling=True
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {split: self._generate_examples(split) for split in self.SPLITS}

  def _generate_examples(self, split: str):
    position = 0
    for key in self.list_sequences(split):
      raw = self.read_sequence(split, key)
      records = make_records(raw, self.storage, is_video=self.IS_VIDEO)
      for frame, record in enumerate(records):
        if record is not None:
          yield position, make_example(raw, frame, record)
          position += 1


def make_records(
  raw: RawSequence, storage: context.ContextSettings | None, *, is_video: bool
) -> Iterator[Record | None]:
  """Yield what to store of every frame: None where context records have no visible target near it.

  Of a still image nothing is stored for templates: it serves as search region too, decoded once.

  Raises:
    ValueError: a frame cannot be read.
  """
  for number, frame in enumerate(raw.frames):
    shown = [target.boxes_xywh[number] for target in raw.targets if target.visible[number]]
    if storage is not None and not shown:
      yield None
      continue
    data = frame if isinstance(frame, bytes) else read_jpeg(frame)
    frame_wh = jpeg.image_wh(data)
    if frame_wh is None:
      raise ValueError(f"sequence {raw.name}: cannot read frame {number}, {_name(frame)}")
    whole = context.Region((0, 0, *frame_wh), frame_wh)
    region = whole if storage is None else context.plan_region(np.stack(shown), frame_wh, storage)
    if region is None:
      yield None
      continue
    # What is stored as it is, is decoded too: a damaged file is better found now than in training.
    image = None if isinstance(frame, bytes) else jpeg.decode(data)
    if image is None and not isinstance(frame, bytes):
      raise ValueError(
        f"sequence {raw.name}: frame {number}, {_name(frame)}, is damaged; replace the file, or leave the "
        "sequence out"
      )
    if storage is None or image is None:
      yield Record(data, whole.xyxy, frame_wh)
      continue
    if region != whole:
      data = jpeg.encode(context.cut_region(image, region), storage.jpeg_quality)
    templates = _templates(raw, number, image, frame_wh, storage, region) if is_video else ()
    yield Record(data, region.xyxy, frame_wh, tuple(templates))


def _templates(
  raw: RawSequence, number: int, image: np.ndarray, frame_wh, storage, region: context.Region
) -> Iterator[StoredTemplate]:
  for target_number, target in enumerate(raw.targets):
    if target.visible[number]:
      box_xywh = target.boxes_xywh[number]
      template = context.plan_template(box_xywh, frame_wh, storage, region)
      if template is not None:
        data = jpeg.encode(context.cut_region(image, template), storage.jpeg_quality)
        yield StoredTemplate(target_number, data, template.xyxy)


def _name(frame: pathlib.Path | bytes) -> str:
  return "made here" if isinstance(frame, bytes) else os.fspath(frame)


def make_example(raw: RawSequence, frame: int, record: Record) -> dict[str, Any]:
  """Return the TFDS example of a record."""
  return {
    "jpeg": io.BytesIO(record.jpeg),
    "region_xyxy": np.array(record.region_xyxy, np.int32),
    "frame_wh": np.array(record.frame_wh, np.int32),
    "sequence": raw.name,
    "frame": frame,
    "targets": [target.name for target in raw.targets],
    "boxes_xywh": np.stack([target.boxes_xywh[frame] for target in raw.targets]).astype(np.float32),
    "visible": np.array([target.visible[frame] for target in raw.targets], np.bool_),
    "templates": [io.BytesIO(template.jpeg) for template in record.templates],
    "template_targets": np.array([t.target for t in record.templates], np.int32),
    "template_regions_xyxy": np.array([t.region_xyxy for t in record.templates], np.int32).reshape(
      -1, 4
    ),
  }


@contextlib.contextmanager
def quiet():
  """Silence TFDS's own progress bars and notes: the preparation shows one bar of its own."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(verbosity)
    tfds.enable_progress_bar()


def open_builder(
  builder_class: type[FrameRecordBuilder], config: RecordConfig, data_dir: str | os.PathLike[str]
) -> FrameRecordBuilder:
  """Construct a builder that writes ArrayRecord; `data_dir` need not exist."""
  with quiet():
    return builder_class(data_dir=os.fspath(data_dir), config=config, file_format="array_record")


def prepared_directory(
  builder_class: type[FrameRecordBuilder], config: RecordConfig, data_dir: str | os.PathLike[str]
) -> pathlib.Path:
  """Return where a configuration of a builder lives below `data_dir`."""
  return pathlib.Path(data_dir) / builder_class.name / config.name / str(builder_class.VERSION)


def fingerprint(
  builder_class: type[FrameRecordBuilder], config: RecordConfig, split: str, keys: list[Any]
) -> dict:
  """Return how many sequences a split has, and a SHA-256 of their list and what is annotated in them."""
  builder = open_builder(builder_class, config, "unused")
  text = json.dumps([[key, builder.annotation_digest(split, key)] for key in keys])
  return {"sequences": len(keys), "sha256": hashlib.sha256(text.encode()).hexdigest()}
