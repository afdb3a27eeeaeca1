"""What is known of every frame of a split without reading it: arrays on disk, mapped into memory."""

import dataclasses
import pathlib

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class FrameIndex:
  """Targets and their frames. A position counts the frames of all targets, one target after another.

  names: [s] one a target. starts: [s + 1] int64, target i owns positions starts[i] to starts[i + 1].
  target_numbers: [s] int32, which of its record's targets each is.
  boxes_xywh: [n, 4] float32 pixels of the full frame. visible: [n] bool.
  records: [n] int64, the record that holds the frame, -1 where it is not stored.
  regions_xyxy: [r, 4] int32, what of its frame each record shows, pixels of the full frame.
  frames_wh: [r, 2] int32, the size of each record's full frame.
  """

  names: np.ndarray
  starts: np.ndarray
  target_numbers: np.ndarray
  boxes_xywh: np.ndarray
  visible: np.ndarray
  records: np.ndarray
  regions_xyxy: np.ndarray
  frames_wh: np.ndarray

  @classmethod
  def load(cls, folder: pathlib.Path) -> "FrameIndex":
    """Map what `write` wrote; worker processes share the memory."""
    fields = [field.name for field in dataclasses.fields(cls)]
    # As plain arrays over the mapped memory: np.memmap's own indexing is slow.
    return cls(
      **{name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in fields}
    )


def write(folder: pathlib.Path, parts: list[pathlib.Path]) -> None:
  """Join the indices of shards (npz files, in order) into one, array after array.

  A part counts its targets' frames in `lengths` instead of `starts`, and its records from 0.
  """
  folder.mkdir(parents=True, exist_ok=True)
  lengths = np.concatenate([_read(part, "lengths") for part in parts])
  counts = [len(_read(part, "frames_wh")) for part in parts]
  starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
  np.save(folder / "starts.npy", starts)
  for name in ("names", "target_numbers"):
    np.save(folder / f"{name}.npy", np.concatenate([_read(part, name) for part in parts]))
  for name, rows, columns, dtype in (
    ("boxes_xywh", starts[-1], (4,), np.float32),
    ("visible", starts[-1], (), np.bool_),
    ("records", starts[-1], (), np.int64),
    ("regions_xyxy", sum(counts), (4,), np.int32),
    ("frames_wh", sum(counts), (2,), np.int32),
  ):
    whole = np.lib.format.open_memmap(
      folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(int(rows), *columns)
    )
    row = first_record = 0
    for part, count in zip(parts, counts):
      values = _read(part, name)
      if name == "records":
        values = np.where(values >= 0, values + first_record, -1)
      whole[row : row + len(values)] = values
      row, first_record = row + len(values), first_record + count
    whole.flush()


def _read(part: pathlib.Path, name: str) -> np.ndarray:
  with np.load(part) as data:
    return data[name]
