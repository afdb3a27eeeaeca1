"""What a raw data set is made of, before anything of it is stored."""

import dataclasses
import pathlib

import cv2
import numpy as np

from data_pipelines import jpeg

# What frames are written with that are not JPEG already.
_QUALITY = 95


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
  """One tracked object of a sequence.

  name: unique in its split; with one target a sequence, the sequence's name.
  boxes_xywh: [n, 4] float64 pixels of the full frame, zeros where not visible.
  visible: [n] bool.
  """

  name: str
  boxes_xywh: np.ndarray
  visible: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class RawSequence:
  """One video, or one still image, with everything annotated in it.

  frames: image files in order, or the JPEG bytes themselves where video is made, not found.
  targets: one in most videos, one an instance in a still image; each with a box a frame.
  """

  name: str
  frames: tuple[pathlib.Path | bytes, ...]
  targets: tuple[Target, ...]

  def __post_init__(self):
    for target in self.targets:
      shapes = (target.boxes_xywh.shape, target.visible.shape)
      if shapes != ((len(self.frames), 4), (len(self.frames),)):
        raise ValueError(
          f"sequence {self.name}, target {target.name}: boxes and visibility of shape {shapes} for "
          f"{len(self.frames)} frames; expected one row a frame"
        )


def read_jpeg(path: pathlib.Path) -> bytes:
  """Return a frame as JPEG: the file's own bytes if it is one, else encoded at quality 95.

  Raises:
    ValueError: the file is empty, truncated, or no image.
  """
  data = path.read_bytes()
  if jpeg.is_jpeg(data):
    # An end marker is enough: decoding every file would cost more than all the rest.
    if b"\xff\xd9" not in data[-4096:]:
      raise ValueError(f"cannot read frame {path}: it is truncated")
    if jpeg.image_wh(data) is None:
      raise ValueError(f"cannot read frame {path}: it is no image")
    return data
  image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
  if image is None:
    raise ValueError(f"cannot read frame {path}: it is {'no image' if data else 'empty'}")
  return jpeg.encode(image, _QUALITY)
