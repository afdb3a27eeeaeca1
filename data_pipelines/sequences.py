"""Whole sequences of prepared data sets, for tracking."""

import dataclasses
import os
from collections.abc import Collection, Iterator

import numpy as np

from data_pipelines.sources import FrameSource


class LazyFrames:
  """Frames of a run of positions, decoded (uint8 RGB) each time one is asked for; has a length."""

  def __init__(self, source: FrameSource, positions: range):
    self._source, self._positions = source, positions

  def __len__(self) -> int:
    return len(self._positions)

  def __getitem__(self, frame: int) -> np.ndarray:
    return self._source.frame(self._positions[frame])

  def from_frame(self, first: int) -> "LazyFrames":
    """Return the frames from one of them to the end."""
    return LazyFrames(self._source, self._positions[first:])

  def __iter__(self) -> Iterator[np.ndarray]:
    return (self._source.frame(position) for position in self._positions)


@dataclasses.dataclass(frozen=True)
class FrameSequence:
  """A whole sequence: `frames` decodes on access (uint8 RGB); boxes_xywh [n, 4] px; visible [n] bool."""

  name: str
  frames: LazyFrames
  boxes_xywh: np.ndarray
  visible: np.ndarray

  def parts(self, starts: int) -> "list[FrameSequence]":
    """Return the rest of the sequence from each of so many evenly spaced frames on, the first among them.

    Each begins with the next frame in which the target is visible. What has no further frame, or begins
    where another does, is left out.
    """
    found = set()
    for first in {len(self.visible) * i // starts for i in range(starts)}:
      (later,) = self.visible[first:].nonzero()
      if len(later) and first + later[0] + 1 < len(self.visible):
        found.add(first + int(later[0]))
    return [self._from(first) for first in sorted(found)]

  def _from(self, first: int) -> "FrameSequence":
    name = f"{self.name} from frame {first}" if first else self.name
    frames, boxes_xywh, visible = self.frames, self.boxes_xywh[first:], self.visible[first:]
    return FrameSequence(name, frames.from_frame(first), boxes_xywh, visible)


def iter_sequences(
  directory: str | os.PathLike[str], split: str, sequences: Collection[str] | None = None
) -> Iterator[FrameSequence]:
  """Yield the sequences of a prepared split, in order; frames are decoded when they are looked at.

  Raises:
    ValueError: the data set holds context crops, which no tracker can run on.
  """
  source = FrameSource(directory, split, sequences)
  if source.storage is not None:
    raise ValueError(
      f"{directory} holds context crops; tracking needs whole frames: prepare the data set with --full_frames"
    )
  index = source.index
  for i in source.selected:
    positions = source.positions(i)
    frames = LazyFrames(source, range(positions.start, positions.stop))
    boxes_xywh, visible = np.array(index.boxes_xywh[positions]), np.array(index.visible[positions])
    yield FrameSequence(str(index.names[i]), frames, boxes_xywh, visible)
