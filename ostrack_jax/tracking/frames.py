"""Frames of a video file or of numbered images, read in order as RGB uint8."""

import abc
import contextlib
import glob
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import simplejpeg
from absl import logging

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
_DEFAULT_FPS = 30.0
# Container headers count frames by estimate; a video that ends so much early is called damaged.
_TOLERATED_SHORTFALL = 0.05


def quiet_opencv() -> None:
  """Let users read one sentence of ours about a file, without OpenCV's and FFmpeg's lines around it."""
  cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
  os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


def rgb_frame(frame) -> np.ndarray:
  """Return a frame as [H, W, 3] uint8.

  Args:
    frame: uint8 [H, W, 3] RGB; [H, W] or [H, W, 1] grey, spread over three channels; or [H, W, 4]
      RGBA, whose alpha is dropped.

  Raises:
    ValueError: another type or shape, or no pixels.
  """
  frame = np.asarray(frame)
  if frame.dtype != np.uint8:
    cure = "multiply by 255 and convert" if frame.dtype.kind == "f" else "convert"
    raise ValueError(f"frame has type {frame.dtype}; expected uint8 from 0 to 255: {cure}")
  if frame.ndim == 2:
    frame = frame[:, :, None]
  if frame.ndim != 3 or frame.shape[2] not in (1, 3, 4):
    raise ValueError(
      f"frame has shape {frame.shape}; expected [H, W, 3] RGB, [H, W] grey or [H, W, 4] RGBA"
    )
  if frame.size == 0:
    raise ValueError(f"frame of shape {frame.shape} has no pixels")
  if frame.shape[2] == 1:
    return np.repeat(frame, 3, axis=2)
  return frame[:, :, :3]


def read_image(path: pathlib.Path) -> np.ndarray:
  """Read an image file as [H, W, 3] RGB uint8.

  Raises:
    ValueError: the file, which is named, cannot be decoded.
  """
  # From bytes, because cv2.imread cannot open every file name on every system.
  return decode_image(path.read_bytes(), path)


def decode_image(data: bytes, path: pathlib.Path, buffer: np.ndarray | None = None) -> np.ndarray:
  """Decode an image file's bytes to [H, W, 3] RGB uint8, with the pixels that cv2.imread gives.

  Args:
    buffer: uint8 memory that the image may be laid into, if it is large enough.

  Raises:
    ValueError: they cannot be decoded; `path` is named.
  """
  if _is_plain_jpeg(data):
    # The same pixels in less than half the time. What it refuses, as four colours, is left to OpenCV.
    with contextlib.suppress(ValueError):
      if buffer is not None:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        if buffer.size < int(height) * int(width) * 3:
          buffer = None
      return simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=buffer)
  image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
  if image is None:
    raise ValueError(f"{path} is not a readable image")
  return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def image_size(path: pathlib.Path) -> tuple[int, int]:
  """Return (width, height) of an image file as read_image would show it; raises as read_image."""
  data = path.read_bytes()
  if _is_plain_jpeg(data):
    with contextlib.suppress(ValueError):
      height, width = simplejpeg.decode_jpeg_header(data)[:2]
      return int(width), int(height)
  height, width = decode_image(data, path).shape[:2]
  return width, height


def _is_plain_jpeg(data: bytes) -> bool:
  # Exif, which stands in front if anywhere, may turn the picture; OpenCV does that.
  return data[:2] == b"\xff\xd8" and b"Exif\0\0" not in data[:65536]


class FrameSource(abc.ABC):
  """Frames that can be gone through, again and again unless live, from the first on.

  Iterating gives [H, W, 3] RGB uint8 arrays and raises ValueError where a frame cannot be read.
  `len` is the declared number of frames, an estimate for some videos; TypeError where none is known.

  Attributes:
    name: of the file or folder; of NAME/img and NAME/color, as benchmarks have them, the folder's above.
    fps: frames per second; 30 where unknown, as for images.
    is_live: whether frames come once and when they come, so that nobody can go through them again.
  """

  name: str
  fps: float = _DEFAULT_FPS
  is_live = False

  @abc.abstractmethod
  def __len__(self) -> int: ...

  @abc.abstractmethod
  def __iter__(self) -> Iterator[np.ndarray]: ...


class ImageFrames(FrameSource):
  """Image files in the order given."""

  def __init__(self, paths: Sequence[pathlib.Path], name: str):
    self.paths = tuple(paths)
    self.name = name

  def __len__(self) -> int:
    return len(self.paths)

  def __iter__(self) -> Iterator[np.ndarray]:
    return (read_image(path) for path in self.paths)


class VideoFrames(FrameSource):
  """A video file, decoded by OpenCV's FFmpeg.

  Raises:
    ValueError: the file holds no video that can be decoded.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.name = path.stem
    capture = self._open()
    try:
      fps = capture.get(cv2.CAP_PROP_FPS)
      if 0 < fps < 1000:
        self.fps = fps
      self._declared = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
      if not capture.grab():
        raise ValueError(f"{path} is a video without a readable frame")
    finally:
      capture.release()

  def _open(self) -> cv2.VideoCapture:
    # Named, since OpenCV's other backends take any file for a numbered image sequence.
    capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
      raise ValueError(f"{self.path} is not a readable video")
    return capture

  def __len__(self) -> int:
    if not self._declared:
      raise TypeError(f"{self.path} does not declare how many frames it has")
    return self._declared

  def __iter__(self) -> Iterator[np.ndarray]:
    capture = self._open()
    count, seconds = 0, 0.0
    try:
      while True:
        read, image = capture.read()
        if not read:
          break
        count += 1
        seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    finally:
      capture.release()
    missing = self._declared - count
    if missing <= 0:
      return
    # With a varying frame rate the declared count is an estimate, so the time must be short as well.
    duration = self._declared / self.fps
    if (
      min(missing / self._declared, 1 - (seconds + 1 / self.fps) / duration) > _TOLERATED_SHORTFALL
    ):
      raise ValueError(
        f"{self.path} is truncated or damaged after frame {count - 1}: "
        f"{count} of {self._declared} frames can be read"
      )
    logging.warning("%s declares %d frames; %d were read", self.path, self._declared, count)


def natural_order(path: pathlib.Path) -> tuple[list[tuple[int, str]], str]:
  """Return a sorting key under which frame 9 comes before frame 10."""
  parts = re.findall(r"\d+|\D+", path.name)
  # Numbers sort before text, so that the two are never compared; the name breaks ties of 1 and 01.
  return [(int(p), "") if p.isdecimal() else (1 << 64, p) for p in parts], path.name


def _images_in(paths) -> list[pathlib.Path]:
  images = (p for p in paths if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
  return sorted((p for p in images if p.is_file()), key=natural_order)


def _sequence_name(folder: pathlib.Path) -> str:
  folder = folder.resolve()
  above = folder.parent.name if folder.name in ("img", "color") else ""
  return above or folder.name


def open_frames(source: str | pathlib.Path) -> FrameSource:
  """Open a video file, a folder of images, or a pattern of images (`clip/*.png`).

  Images come in natural order of their names.

  Raises:
    FileNotFoundError: nothing is there, or no image.
    ValueError: a file that is no readable video.
  """
  path = pathlib.Path(source)
  if path.is_dir():
    images = _images_in(path.iterdir())
    if not images:
      inside = sorted(p for p in path.iterdir() if p.is_dir() and _images_in(p.iterdir()))
      hint = f"; did you mean {inside[0]}?" if inside else ""
      raise FileNotFoundError(
        f"folder {path} holds no image ({', '.join(s[1:] for s in IMAGE_SUFFIXES)}){hint}"
      )
    return ImageFrames(images, _sequence_name(path))
  if path.is_file():
    if path.suffix.lower() in IMAGE_SUFFIXES:
      raise ValueError(f"{path} is a single image; give the folder of frames or a video file")
    return VideoFrames(path)
  if glob.has_magic(str(source)):
    images = _images_in(map(pathlib.Path, glob.glob(str(source))))
    if not images:
      raise FileNotFoundError(f"no image matches {source}")
    return ImageFrames(images, _sequence_name(images[0].parent))
  raise FileNotFoundError(f"{source} does not exist; expected a video file or a folder of images")
