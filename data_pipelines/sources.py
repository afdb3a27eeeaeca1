"""Random access to prepared data sets: single frames for training, whole sequences for evaluation.

Frames are read as raw ArrayRecord entries, next to TFDS's metadata: parsing them here costs a tenth
of `as_data_source`, which reads the same files. Nothing is opened before the first read, so a source
can be sent to a worker process.
"""

import dataclasses
import json
import os
import pathlib
import threading
from collections.abc import Iterator

import cv2
import numpy as np
from array_record.python import array_record_module

# Not imported where it is used: tensorflow_datasets, imported by two threads at once, can deadlock.
from tensorflow_datasets.proto import tf_example_pb2

MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class SequenceIndex:
  """What is known of every frame of a split without reading it; frames in the order of the records.

  names: one a sequence. starts: [s + 1] int64, sequence i owns records starts[i] to starts[i + 1].
  boxes_xywh: [n, 4] float32 pixels. visible: [n] bool.
  """

  names: tuple[str, ...]
  starts: np.ndarray
  boxes_xywh: np.ndarray
  visible: np.ndarray

  def save(self, path: pathlib.Path) -> None:
    """Write the index as npz."""
    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    np.savez_compressed(path, **(fields | {"names": np.asarray(self.names, dtype=np.str_)}))

  @classmethod
  def load(cls, path: pathlib.Path) -> "SequenceIndex":
    """Read what `save` wrote."""
    with np.load(path) as data:
      fields = {f.name: data[f.name] for f in dataclasses.fields(cls)}
    return cls(**(fields | {"names": tuple(map(str, fields["names"]))}))


def index_path(directory, split: str) -> pathlib.Path:
  """Return where a prepared directory keeps the index of a split."""
  return pathlib.Path(directory) / f"index_{split}.npz"


def read_manifest(directory) -> dict:
  """Read the manifest of a prepared directory.

  Raises:
    FileNotFoundError: the directory was never prepared, or not to its end.
  """
  path = pathlib.Path(directory) / MANIFEST
  if not path.is_file():
    raise FileNotFoundError(
      f"{directory} holds no prepared data set ({MANIFEST} is missing): prepare it first, and pass the "
      "directory that the preparation returned"
    )
  return json.loads(path.read_text())


def decode_jpeg(jpeg: bytes) -> np.ndarray | None:
  """Decode to uint8 RGB [H, W, 3]; None if it cannot be decoded."""
  if not jpeg:
    return None
  return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)


class FrameSource:
  """One split of a prepared data set, frame by frame, by record number."""

  def __init__(
    self, directory: str | os.PathLike[str], split: str = "train", is_video: bool = True
  ):
    """Name a split.

    Args:
      directory: what `prepare_procedural` or `prepare_sequence_folder` returned.
      split: its name, for example "train".
      is_video: False for data sets of still images, whose frame serves as template and search.

    Raises:
      FileNotFoundError: not a prepared directory.
      ValueError: no such split.
    """
    self.directory = pathlib.Path(directory)
    self.split = split
    self.is_video = is_video
    manifest = read_manifest(directory)
    if split not in manifest["splits"]:
      raise ValueError(f"{directory} has no split {split!r}, only {sorted(manifest['splits'])}")
    self._reset()

  def _reset(self):
    self._index: SequenceIndex | None = None
    self._readers: list | None = None
    self._lock = threading.Lock()

  def __getstate__(self):
    return {"directory": self.directory, "split": self.split, "is_video": self.is_video}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._reset()

  def __repr__(self):
    return f"FrameSource({str(self.directory)!r}, split={self.split!r})"

  @property
  def index(self) -> SequenceIndex:
    """The index of the split, read on first use."""
    if self._index is None:
      self._index = SequenceIndex.load(index_path(self.directory, self.split))
    return self._index

  def __len__(self) -> int:
    return int(self.index.starts[-1])

  def records(self, sequence: int) -> slice:
    """Return the record numbers of a sequence as a slice."""
    return slice(int(self.index.starts[sequence]), int(self.index.starts[sequence + 1]))

  def describe(self, record: int) -> str:
    """Name a record for an error message."""
    sequence = int(np.searchsorted(self.index.starts, record, side="right")) - 1
    frame = record - int(self.index.starts[sequence])
    return f"record {record} of {self.directory}, split {self.split} (sequence {self.index.names[sequence]}, frame {frame})"

  def _open(self):
    with self._lock:
      if self._readers is None:
        paths = sorted(self.directory.glob(f"*-{self.split}.array_record-*"))
        readers = [array_record_module.ArrayRecordReader(os.fspath(p)) for p in paths]
        self._ends = np.cumsum([reader.num_records() for reader in readers])
        if not len(readers) or self._ends[-1] != len(self):
          found = int(self._ends[-1]) if len(readers) else 0
          raise ValueError(
            f"{self.directory}, split {self.split}: {len(self)} records expected, {found} found; delete the "
            "directory and prepare it again"
          )
        self._readers = readers
    return self._readers

  def jpeg(self, record: int) -> bytes:
    """Read the encoded image of a record; raises ValueError naming a record that cannot be read."""
    readers = self._readers or self._open()
    if not 0 <= record < len(self):
      raise IndexError(f"record {record} of {self!r}, which has {len(self)}")
    shard = int(np.searchsorted(self._ends, record, side="right"))
    first = int(self._ends[shard - 1]) if shard else 0
    try:
      (entry,) = readers[shard].read([record - first])
      # pyrefly: ignore[missing-attribute]
      example = tf_example_pb2.Example.FromString(entry)
      return example.features.feature["jpeg"].bytes_list.value[0]
    except Exception as error:
      raise ValueError(f"cannot read {self.describe(record)}: {error}") from error

  def frame(self, record: int) -> np.ndarray:
    """Read and decode a record, uint8 RGB [H, W, 3]; raises ValueError naming a damaged record."""
    image = decode_jpeg(self.jpeg(record))
    if image is None:
      raise ValueError(f"cannot decode the image of {self.describe(record)}")
    return image


class LazyFrames:
  """Frames of a run of records, decoded (uint8 RGB) each time one is asked for; has a length."""

  def __init__(self, source: FrameSource, records: range):
    self._source, self._records = source, records

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, frame: int) -> np.ndarray:
    return self._source.frame(self._records[frame])

  def __iter__(self) -> Iterator[np.ndarray]:
    return (self._source.frame(record) for record in self._records)


@dataclasses.dataclass(frozen=True)
class FrameSequence:
  """A whole sequence: `frames` decodes on access (uint8 RGB); boxes_xywh [n, 4] px; visible [n] bool."""

  name: str
  frames: LazyFrames
  boxes_xywh: np.ndarray
  visible: np.ndarray


def iter_sequences(directory: str | os.PathLike[str], split: str) -> Iterator[FrameSequence]:
  """Yield every sequence of a prepared split, in order; frames are decoded when they are looked at."""
  source = FrameSource(directory, split)
  index = source.index
  for i, name in enumerate(index.names):
    records = source.records(i)
    frames = LazyFrames(source, range(records.start, records.stop))
    yield FrameSequence(name, frames, index.boxes_xywh[records], index.visible[records])
