"""Write one shard of a prepared data set: its records, and beside them what the index needs of them."""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np
from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines.builders import frame_records

# JPEG does not get smaller by compressing it again, and entries are read one by one.
_WRITER_OPTIONS = "group_size:1,uncompressed"

_progress: Any = None


@dataclasses.dataclass(frozen=True)
class ShardTask:
  """A shard to write: which sequences of which builder, and where.

  work: folder for what is joined at the end. total: shards of the split.
  """

  builder_class: type[frame_records.FrameRecordBuilder]
  config: frame_records.RecordConfig
  directory: pathlib.Path
  work: pathlib.Path
  split: str
  number: int
  total: int
  keys: list[Any]

  @property
  def path(self) -> pathlib.Path:
    """The file with the records, named as TFDS names it."""
    name = (
      f"{self.builder_class.name}-{self.split}.array_record-{self.number:05d}-of-{self.total:05d}"
    )
    return self.directory / name

  @property
  def index_part(self) -> pathlib.Path:
    """The part of the index, written last: a shard is finished when it is there."""
    return self.work / f"{self.split}-{self.number:05d}.npz"

  def is_finished(self) -> bool:
    """Return whether the shard was written to its end."""
    if not (self.index_part.is_file() and self.path.is_file()):
      return False
    with np.load(self.index_part) as part:
      return int(part["shard_bytes"]) == self.path.stat().st_size


def begin_worker(progress) -> None:
  """Tell a worker process where to report progress."""
  global _progress
  _progress = progress


def write_in_worker(task: ShardTask) -> None:
  """Write a shard in a worker process that `begin_worker` set up."""
  write_shard(task, lambda: _progress.put(1))


def write_shard(task: ShardTask, sequence_done=lambda: None) -> None:
  """Write a shard under a temporary name, rename it, then write its part of the index likewise.

  Raises:
    ValueError, OSError: the raw data cannot be read; the message names the file.
  """
  builder = frame_records.open_builder(task.builder_class, task.config, task.work / "unused")
  features = builder.info.features
  serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
  temporary = task.directory / f".{task.path.name}.{os.getpid()}.partial"
  part = _IndexPart()
  try:
    writer = array_record_module.ArrayRecordWriter(os.fspath(temporary), _WRITER_OPTIONS)
    try:
      for key in task.keys:
        raw = builder.read_sequence(task.split, key)
        records = []
        made = frame_records.make_records(raw, builder.storage, is_video=builder.IS_VIDEO)
        for frame, record in enumerate(made):
          records.append(record)
          if record is not None:
            example = frame_records.make_example(raw, frame, record)
            encoded = serializer.serialize_example(features.encode_example(example))
            # TFDS leaves the order of the features to the process that writes.
            # pyrefly: ignore[missing-attribute]
            parsed = tf_example_pb2.Example.FromString(encoded)
            writer.write(parsed.SerializeToString(deterministic=True))
        part.add(raw, records)
        sequence_done()
    finally:
      writer.close()
    part.save(task.index_part, shard_bytes=temporary.stat().st_size, finish=(temporary, task.path))
  finally:
    temporary.unlink(missing_ok=True)


class _IndexPart:
  """What the index needs of one shard, gathered sequence by sequence."""

  def __init__(self):
    self._rows: dict[str, list] = {
      name: []
      for name in (
        "names",
        "target_numbers",
        "boxes_xywh",
        "visible",
        "records",
        "regions_xyxy",
        "frames_wh",
      )
    }
    self._raw_bytes = self._stored_bytes = self._frames = 0

  def add(self, raw, records: list) -> None:
    stored = np.array([record is not None for record in records], bool)
    first = len(self._rows["regions_xyxy"])
    numbers = np.where(stored, first + np.cumsum(stored) - 1, -1)
    for target_number, target in enumerate(raw.targets):
      # Where nothing could be stored there is nothing to train on: a box far outside its frame.
      visible = target.visible & stored
      self._rows["names"].append(target.name)
      self._rows["target_numbers"].append(target_number)
      self._rows["boxes_xywh"].append(target.boxes_xywh)
      self._rows["visible"].append(visible)
      self._rows["records"].append(numbers)
    for record in records:
      if record is not None:
        self._rows["regions_xyxy"].append(record.region_xyxy)
        self._rows["frames_wh"].append(record.frame_wh)
        self._stored_bytes += len(record.jpeg) + sum(len(t.jpeg) for t in record.templates)
    self._frames += len(raw.frames)
    self._raw_bytes += sum(
      len(frame) if isinstance(frame, bytes) else frame.stat().st_size for frame in raw.frames
    )

  def save(self, path: pathlib.Path, *, shard_bytes: int, finish) -> None:
    """Rename the shard, then write this part: in this order a part that exists has its shard."""
    rows = self._rows
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(temporary, "wb") as file:
      np.savez(
        file,
        names=np.array(rows["names"], np.str_),
        target_numbers=np.array(rows["target_numbers"], np.int32),
        lengths=np.array([len(boxes) for boxes in rows["boxes_xywh"]], np.int64),
        boxes_xywh=np.concatenate([np.zeros((0, 4)), *rows["boxes_xywh"]]).astype(np.float32),
        visible=np.concatenate([np.zeros(0, bool), *rows["visible"]]),
        records=np.concatenate([np.zeros(0, np.int64), *rows["records"]]).astype(np.int64),
        regions_xyxy=np.array(rows["regions_xyxy"], np.int32).reshape(-1, 4),
        frames_wh=np.array(rows["frames_wh"], np.int32).reshape(-1, 2),
        raw_bytes=self._raw_bytes,
        stored_bytes=self._stored_bytes,
        frames=self._frames,
        shard_bytes=shard_bytes,
      )
    os.replace(*finish)
    os.replace(temporary, path)
