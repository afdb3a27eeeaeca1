"""A video that a visitor of the page chose: checked from end to end, with a picture of every frame."""

import contextlib
import dataclasses
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import cv2
import numpy as np

from ostrack_jax.tracking.cutting import checked_box
from ostrack_jax.tracking.frames import FrameSource, open_frames

# Longest side of the pictures in which boxes are drawn.
PREVIEW_PX = 960
_PREVIEW_QUALITY = 88
# Of a first box: less shows the network nothing, and is more often a slip of the mouse.
SMALLEST_BOX_PX = 4
_MB = 1e6

Progress = Callable[[float | None, str], object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """What visitors may use up.

  Attributes:
    max_frames: of a video; what comes behind is left away, and said so.
    max_upload_mb: of one file.
    max_temp_mb: of the temporary folder, all visitors together.
    max_objects: followed at once.
  """

  max_frames: int = 1800
  max_upload_mb: float = 200
  max_temp_mb: float = 4096
  max_objects: int = 8

  def __post_init__(self):
    if self.max_frames < 2:
      raise ValueError(
        f"--max_frames={self.max_frames} leaves nothing to track; expected 2 or more"
      )
    for name in ("max_upload_mb", "max_temp_mb"):
      if not 0 < getattr(self, name) < math.inf:
        raise ValueError(f"--{name}={getattr(self, name)} must be above 0 and finite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
  """A video whose every frame was read.

  Attributes:
    source: where its frames come from.
    name: to show, and to name results by.
    count: frames that are used.
    size: (width, height) in pixels.
    fps: frames per second.
    is_cut: whether the video goes on behind them.
    previews: folder of a JPEG picture a frame.
  """

  source: FrameSource
  name: str
  count: int
  size: tuple[int, int]
  fps: float
  is_cut: bool
  previews: pathlib.Path

  def frames(self, first: int = 0) -> Iterator[np.ndarray]:
    """Give the frames that are used, [H, W, 3] RGB uint8, from `first` on."""
    for index, frame in enumerate(self.source):
      if index >= self.count:
        return
      if index >= first:
        yield frame

  def preview(self, frame: int) -> bytes:
    """Return a frame as JPEG, no side longer than PREVIEW_PX."""
    return _preview_path(self.previews, frame).read_bytes()

  def check_box(self, box_xywh) -> tuple[float, float, float, float]:
    """Return a box, cut at the frame's border, if an object can start with it.

    Args:
      box_xywh: four numbers, pixels of the frame.

    Raises:
      ValueError: it is no box, lies outside, or is too small.
    """
    width, height = self.size
    numbers = np.asarray(box_xywh, np.float64)
    if numbers.shape == (4,):
      # Before anything else, since a slip of the mouse gives such a box.
      _check_size(*numbers[2:].tolist())
    x, y, w, h = checked_box(numbers, (height, width)).tolist()
    right, bottom = min(x + w, width), min(y + h, height)
    x, y = max(x, 0.0), max(y, 0.0)
    w, h = right - x, bottom - y
    _check_size(w, h)
    return round(x, 1), round(y, 1), round(w, 1), round(h, 1)


def open_clip(
  source: pathlib.Path,
  name: str,
  folder: pathlib.Path,
  max_frames: int,
  progress: Progress,
) -> Clip:
  """Read a video or a folder of images, and write a picture of every frame into a new folder.

  All frames are read at once, because positions that a video is asked for are not exact with every codec:
  the frame in which a box was drawn has to be the one that is tracked from.

  Args:
    folder: to be made; does not exist yet, nor after an error.
    progress: called with the share done, None where unknown, and words.

  Raises:
    ValueError, OSError: it cannot be read, its frames differ in size, or it has fewer than two. The message
      calls it by `name`.
  """
  folder.mkdir()
  try:
    return _read(source, name, folder, max_frames, progress)
  except (ValueError, OSError) as error:
    shutil.rmtree(folder, ignore_errors=True)
    # Visitors know the file by its name, not by where the server keeps it.
    raise ValueError(str(error).replace(str(source), name)) from error
  except BaseException:
    shutil.rmtree(folder, ignore_errors=True)
    raise


def _read(source, name, folder, max_frames, progress) -> Clip:
  frames = open_frames(source)
  try:
    total = min(len(frames), max_frames)
  except TypeError:
    total = None
  size, count, is_cut = (0, 0), 0, False
  for index, frame in enumerate(frames):
    if index == max_frames:
      is_cut = True
      break
    found = frame.shape[1], frame.shape[0]
    if index and found != size:
      raise ValueError(
        f"frame {index} of {name} has {found[0]} x {found[1]} pixels, those before it {size[0]} x {size[1]}; "
        "a video has one size"
      )
    size, count = found, index + 1
    _write_preview(frame, _preview_path(folder, index))
    progress(None if total is None else min(count / total, 1.0), f"Reading {name}")
  if count < 2:
    raise ValueError(f"{name} has {count} frame; expected a video of 2 frames or more")
  return Clip(
    source=frames, name=name, count=count, size=size, fps=frames.fps, is_cut=is_cut, previews=folder
  )


def _check_size(width: float, height: float) -> None:
  if min(width, height) < SMALLEST_BOX_PX:
    raise ValueError(
      f"a box of {width:.3g} x {height:.3g} pixels is too small to follow; draw one of {SMALLEST_BOX_PX} pixels "
      "or more on each side"
    )


def _preview_path(folder: pathlib.Path, frame: int) -> pathlib.Path:
  return folder / f"{frame:06d}.jpg"


def preview_jpeg(frame: np.ndarray, longest: int = PREVIEW_PX) -> bytes:
  """Return a frame, [H, W, 3] RGB uint8, as JPEG, no side longer than asked."""
  share = longest / max(frame.shape[:2])
  if share < 1:
    size = [max(1, round(share * side)) for side in (frame.shape[1], frame.shape[0])]
    frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
  quality = [cv2.IMWRITE_JPEG_QUALITY, _PREVIEW_QUALITY]
  return cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), quality)[1].tobytes()


def _write_preview(frame: np.ndarray, path: pathlib.Path) -> None:
  path.write_bytes(preview_jpeg(frame))


def check_room(folder: pathlib.Path, max_temp_mb: float) -> None:
  """Raise ValueError where a folder holds as much as it may."""
  used = 0
  for place, _, names in os.walk(folder):
    for name in names:
      # Others remove theirs meanwhile.
      with contextlib.suppress(FileNotFoundError):
        used += os.stat(os.path.join(place, name)).st_size
  if used >= max_temp_mb * _MB:
    raise ValueError(
      f"the server's temporary folder is full ({used / _MB:.0f} of {max_temp_mb:g} MB): close other tabs of "
      "this page, or start it with a larger --max_temp_mb"
    )
