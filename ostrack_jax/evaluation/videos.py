"""One sequence of a benchmark: its frames, boxes and what the benchmark says of each."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from ostrack_jax.evaluation.box_errors import usable_boxes
from ostrack_jax.tracking.frames import read_image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
  """One annotated sequence.

  frames: image files in order.
  boxes_xywh: [len(frames), 4] pixels as written; NaN where the target is absent or not annotated.
  visible: [len(frames)] bool, False where the benchmark says full occlusion, out of view or cover 0;
    None where it says nothing.
  attributes: the benchmark's names for what is difficult in the whole sequence.
  is_annotated: False where only the first box is public; the rows behind it are then NaN.
  """

  name: str
  frames: tuple[pathlib.Path, ...]
  boxes_xywh: np.ndarray
  visible: np.ndarray | None = None
  attributes: tuple[str, ...] = ()
  is_annotated: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
  """A sequence that a benchmark names; `read` gives its Video or raises if files are missing."""

  name: str
  read: Callable[[], Video]


def first_box_only(
  name: str,
  frames: tuple[pathlib.Path, ...],
  box_xywh: np.ndarray,
  attributes: tuple[str, ...] = (),
) -> Video:
  """Return a sequence of which only the first box, [4] pixels, is public."""
  boxes_xywh = np.full((len(frames), 4), np.nan)
  boxes_xywh[0] = box_xywh
  return Video(
    name=name, frames=frames, boxes_xywh=boxes_xywh, attributes=attributes, is_annotated=False
  )


class ImageFiles:
  """Image files as frames [H, W, 3] RGB uint8, decoded on access."""

  def __init__(self, paths: tuple[pathlib.Path, ...]):
    self._paths = paths

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, frame: int) -> np.ndarray:
    return read_image(self._paths[frame])


@dataclasses.dataclass(frozen=True)
class AnnotatedVideo:
  """A video whose frames can be asked for; boxes_xywh [n, 4] pixels, visible [n] bool."""

  name: str
  frames: ImageFiles
  boxes_xywh: np.ndarray
  visible: np.ndarray


def annotated(video: Video) -> AnnotatedVideo:
  """Return a video to look into; the target counts as visible where it has a box and nothing says otherwise."""
  visible = usable_boxes(video.boxes_xywh)
  if video.visible is not None:
    visible = visible & video.visible
  return AnnotatedVideo(video.name, ImageFiles(video.frames), video.boxes_xywh, visible)
