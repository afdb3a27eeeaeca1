"""Random access to the frames of prepared data sets.

Frames are read as raw ArrayRecord entries, next to TFDS's metadata: parsing them here costs a tenth
of `as_data_source`, which reads the same files. Nothing is opened before the first read, so a source
can be sent to a worker process.
"""

import dataclasses
import json
import os
import pathlib
import threading
import typing
from collections.abc import Collection

import numpy as np
from array_record.python import array_record_module
from google.protobuf.message import DecodeError

# Not imported where it is used: tensorflow_datasets, imported by two threads at once, can deadlock.
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines import jpeg
from data_pipelines.frame_index import FrameIndex

MANIFEST = "manifest.json"
FORMAT = "frame_records/3"
# Entries are read one by one: a reader that reads ahead only takes memory.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class DamagedRecordError(ValueError):
  """A record that cannot be read or decoded; the message names it, its sequence and its frame."""


@dataclasses.dataclass(frozen=True, eq=False)
class StoredFrame:
  """A frame, or the part of it that was stored.

  image: uint8 RGB [h, w, 3]. region_xyxy: what it shows, integer pixels of the full frame, end
  exclusive. frame_wh: width and height of the full frame.
  """

  image: np.ndarray
  region_xyxy: tuple[int, int, int, int]
  frame_wh: tuple[int, int]

  @classmethod
  def from_image(cls, image: np.ndarray) -> "StoredFrame":
    """Take a full frame."""
    height, width = image.shape[:2]
    return cls(image, (0, 0, width, height), (width, height))

  @property
  def is_full_resolution(self) -> bool:
    """Whether a pixel of the image is a pixel of the frame."""
    x1, y1, x2, y2 = self.region_xyxy
    return self.image.shape[:2] == (y2 - y1, x2 - x1)

  @property
  def is_whole(self) -> bool:
    """Whether it is the full frame at full resolution."""
    return self.region_xyxy == (0, 0, *self.frame_wh) and self.is_full_resolution


class EncodedFrame(typing.NamedTuple):
  """A frame, or the part of it that was stored, as a JPEG file; for the rest see StoredFrame."""

  jpeg: bytes
  region_xyxy: tuple[int, int, int, int]
  frame_wh: tuple[int, int]


def index_path(directory, split: str) -> pathlib.Path:
  """Return where a prepared directory keeps the index of a split."""
  return pathlib.Path(directory) / f"index_{split}"


def read_manifest(directory) -> dict:
  """Read the manifest of a prepared directory.

  Raises:
    FileNotFoundError: the directory was never prepared, or not to its end.
    ValueError: another version prepared it.
  """
  path = pathlib.Path(directory) / MANIFEST
  if not path.is_file():
    raise FileNotFoundError(
      f"{directory} holds no prepared data set ({MANIFEST} is missing): prepare it first, and pass the "
      "directory that the preparation returned"
    )
  manifest = json.loads(path.read_text())
  if manifest.get("format") != FORMAT:
    raise ValueError(
      f"{directory} was prepared in the format {manifest.get('format')}, this version reads {FORMAT}: "
      "delete the directory and prepare it again"
    )
  return manifest


class FrameSource:
  """One split of a prepared data set, or some of its targets, frame by frame, by position."""

  def __init__(
    self,
    directory: str | os.PathLike[str],
    split: str = "train",
    sequences: Collection[str] | None = None,
  ):
    """Name a split.

    Args:
      directory: what `prepare` returned.
      split: its name, for example "train".
      sequences: the names of those that take part; None for all.

    Raises:
      FileNotFoundError: not a prepared directory.
      ValueError: no such split, or none of the sequences in it.
    """
    self.directory = pathlib.Path(directory)
    self.split = split
    manifest = read_manifest(directory)
    if split not in manifest["splits"]:
      raise ValueError(f"{directory} has no split {split!r}, only {sorted(manifest['splits'])}")
    self.is_video: bool = manifest["is_video"]
    self.storage: dict | None = manifest["storage"]
    self.name: str = f"{manifest['builder']} {split}"
    self._shard_lengths = manifest["splits"][split]["shard_lengths"]
    self._ends = np.cumsum(self._shard_lengths)
    self._reset()
    self._chosen = None
    if sequences is not None:
      self._chosen = np.flatnonzero(np.isin(self.index.names, np.array(sorted(sequences))))
      if not len(self._chosen):
        raise ValueError(
          f"{directory}, split {split}: none of its {len(self.index.names)} sequences is among the "
          f"{len(sequences)} asked for"
        )

  def _reset(self):
    self._index: FrameIndex | None = None
    self._readers: dict[int, array_record_module.ArrayRecordReader] = {}
    self._lock = threading.Lock()

  def __getstate__(self):
    hidden = ("_index", "_readers", "_lock")
    return {name: value for name, value in self.__dict__.items() if name not in hidden}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._reset()

  def __repr__(self):
    return f"FrameSource({str(self.directory)!r}, split={self.split!r})"

  @property
  def index(self) -> FrameIndex:
    """The index of the split, mapped on first use."""
    if self._index is None:
      self._index = FrameIndex.load(index_path(self.directory, self.split))
    return self._index

  @property
  def selected(self) -> np.ndarray:
    """The numbers of the targets that take part, int [m]."""
    return np.arange(len(self.index.names)) if self._chosen is None else self._chosen

  def __len__(self) -> int:
    """Return how many positions there are, of targets that take part or not."""
    return int(self.index.starts[-1])

  def positions(self, sequence: int) -> slice:
    """Return the positions of a target's frames as a slice."""
    return slice(int(self.index.starts[sequence]), int(self.index.starts[sequence + 1]))

  def describe(self, position: int) -> str:
    """Name a position for an error message."""
    sequence = int(np.searchsorted(self.index.starts, position, side="right")) - 1
    frame = position - int(self.index.starts[sequence])
    return (
      f"record {self.index.records[position]} of {self.directory}, split {self.split} "
      f"(sequence {self.index.names[sequence]}, frame {frame})"
    )

  def _reader(self, shard: int):
    reader = self._readers.get(shard)
    if reader is None:
      with self._lock:
        pattern = f"*-{self.split}.array_record-{shard:05d}-of-{len(self._shard_lengths):05d}"
        paths = list(self.directory.glob(pattern))
        if len(paths) != 1:
          raise ValueError(
            f"{len(paths)} files {pattern} in {self.directory}, expected 1; delete the directory and prepare "
            "it again"
          )
        reader = array_record_module.ArrayRecordReader(os.fspath(paths[0]), _READER_OPTIONS)
        if reader.num_records() != self._shard_lengths[shard]:
          raise DamagedRecordError(
            f"{self._shard_lengths[shard]} records expected in {paths[0]}, {reader.num_records()} found; delete "
            "the directory and prepare it again"
          )
        self._readers[shard] = reader
    return reader

  def _features(self, position: int):
    """Read the features of the record of a position; raises as `jpeg` does."""
    if not 0 <= position < len(self):
      raise IndexError(f"position {position} of {self!r}, which has {len(self)}")
    record = int(self.index.records[position])
    if record < 0:
      raise ValueError(
        f"{self.describe(position)} is not stored: context records leave out frames without a visible target"
      )
    shard = int(np.searchsorted(self._ends, record, side="right"))
    first = int(self._ends[shard - 1]) if shard else 0
    reader = self._reader(shard)
    try:
      (entry,) = reader.read([record - first])
      # pyrefly: ignore[missing-attribute]
      return tf_example_pb2.Example.FromString(entry).features.feature
    except (IndexError, RuntimeError, ValueError, DecodeError) as error:
      raise self._damaged(position, error) from error

  def _damaged(self, position: int, error: Exception) -> DamagedRecordError:
    return DamagedRecordError(
      f"cannot read {self.describe(position)}: {error}; delete the directory and prepare it again"
    )

  def jpeg(self, position: int) -> bytes:
    """Read the encoded image of a position.

    Raises:
      IndexError: no such position.
      ValueError: the frame is not stored, because nothing in it is visible.
      DamagedRecordError: it cannot be read.
    """
    return self.read(position).jpeg

  def read(self, position: int) -> EncodedFrame:
    """Read what is stored of a frame; raises as `jpeg` does."""
    return self._whole(position, self._features(position))

  def read_template(self, position: int) -> EncodedFrame:
    """Read the part of a frame that templates of the position's target reach; raises as `jpeg` does.

    Where that is not stored by itself, as it is in the context records of videos, what `read` returns.
    """
    features = self._features(position)
    sequence = int(self.index.starts.searchsorted(position, side="right")) - 1
    target = int(self.index.target_numbers[sequence])
    targets = list(features["template_targets"].int64_list.value)
    if target not in targets:
      return self._whole(position, features)
    which = targets.index(target)
    try:
      data = features["templates"].bytes_list.value[which]
      x1, y1, x2, y2 = features["template_regions_xyxy"].int64_list.value[4 * which : 4 * which + 4]
    except (IndexError, ValueError) as error:
      raise self._damaged(position, error) from error
    return EncodedFrame(data, (x1, y1, x2, y2), self._frame_wh(position))

  def _whole(self, position: int, features) -> EncodedFrame:
    try:
      data = features["jpeg"].bytes_list.value[0]
    except IndexError as error:
      raise self._damaged(position, error) from error
    region = tuple(self.index.regions_xyxy[int(self.index.records[position])].tolist())
    return EncodedFrame(data, region, self._frame_wh(position))

  def _frame_wh(self, position: int) -> tuple[int, int]:
    width, height = self.index.frames_wh[int(self.index.records[position])].tolist()
    return width, height

  def decode(self, position: int, encoded: EncodedFrame) -> StoredFrame:
    """Decode what was read of a position.

    Raises:
      DamagedRecordError: it cannot be decoded.
    """
    image = jpeg.decode(encoded.jpeg)
    if image is None:
      raise DamagedRecordError(
        f"cannot decode the image of {self.describe(position)}; delete the directory and prepare it again"
      )
    return StoredFrame(image, encoded.region_xyxy, encoded.frame_wh)

  def stored_frame(self, position: int) -> StoredFrame:
    """Read and decode what is stored of a frame; raises as `jpeg` and `decode` do."""
    return self.decode(position, self.read(position))

  def stored_template(self, position: int) -> StoredFrame:
    """Read and decode what is stored of a frame for templates, as `read_template` does."""
    return self.decode(position, self.read_template(position))

  def frame(self, position: int) -> np.ndarray:
    """Read and decode a full frame, uint8 RGB [H, W, 3].

    Raises:
      ValueError: of this frame only a context crop is stored.
      DamagedRecordError: it cannot be read or decoded.
    """
    stored = self.stored_frame(position)
    if not stored.is_whole:
      raise ValueError(
        f"{self.describe(position)} holds a context crop, not the frame: prepare the data set with --full_frames"
      )
    return stored.image
