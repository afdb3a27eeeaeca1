"""Frames that come once: from a camera, or raw through a pipe."""

import io
import pathlib
import re
import select
from collections.abc import Iterator

import cv2
import numpy as np

from ostrack_jax.tracking.frames import FrameSource, open_frames

# Of --pixel_format, by their names in FFmpeg.
PIXEL_FORMATS = ("rgb24", "bgr24")
# A camera that has delivered nothing in so many tries is gone.
_FAILED_READS = 10
# Of raw frames, in pixels: 16K video, whose frames have 400 MB. A wrong size must not take all memory.
_LONGEST_SIDE = 16384


class Stream(FrameSource):
  """Frames that can be gone through once and whose number nobody knows."""

  is_live = True

  def __len__(self) -> int:
    raise TypeError(f"{self.name} does not declare how many frames it has")


class CameraFrames(Stream):
  """A camera, until the caller stops.

  Args:
    index: OpenCV's number of the camera, the first is 0.

  Raises:
    ValueError: there is no such camera, or it stops delivering frames.
  """

  def __init__(self, index: int):
    self.name = f"camera {index}"
    try:
      self._capture = cv2.VideoCapture(index)
      is_open = self._capture.isOpened()
    except (cv2.error, OverflowError):
      # What OpenCV says to a number that its integers cannot hold.
      is_open = False
    if not is_open:
      raise ValueError(
        f"{self.name} cannot be opened; is one connected, and may this user read it (/dev/video{index})?"
      )
    # Otherwise frames wait in the driver, and boxes come late.
    self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    fps = self._capture.get(cv2.CAP_PROP_FPS)
    if 0 < fps < 1000:
      self.fps = fps

  def __iter__(self) -> Iterator[np.ndarray]:
    count = failed = 0
    try:
      while failed < _FAILED_READS:
        read, image = self._capture.read()
        if not read:
          failed += 1
          continue
        yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        count, failed = count + 1, 0
    finally:
      self._capture.release()
    raise ValueError(f"{self.name} stopped delivering after {count} frames")


class RawFrames(Stream):
  """Frames of one size, one after another without headers, as `ffmpeg -f rawvideo` writes them.

  Args:
    file: unbuffered binary, such as `open(0, "rb", buffering=0)`: a buffered one cannot be left while
      another thread reads it.
    size: (width, height) in pixels.
    pixel_format: of PIXEL_FORMATS.

  Raises:
    ValueError: the stream ends within a frame.
  """

  def __init__(
    self,
    file: io.RawIOBase,
    size: tuple[int, int],
    pixel_format: str = "rgb24",
    name: str = "stdin",
  ):
    self.name = name
    self._file, self._size, self._pixel_format = file, size, pixel_format

  def __iter__(self) -> Iterator[np.ndarray]:
    width, height = self._size
    count = 0
    while True:
      frame = np.empty((height, width, 3), np.uint8)
      memory, filled = frame.data.cast("B"), 0
      while filled < len(memory):
        read = self._file.readinto(memory[filled:])
        if read is None:
          # A pipe that whoever opened it does not let wait, and that is empty for now.
          select.select([self._file], [], [])
        elif read:
          filled += read
        else:
          break
      if not filled:
        return
      if filled < len(memory):
        raise ValueError(
          f"{self.name} ends within frame {count}, with {filled} of {len(memory)} bytes; is the frame size "
          f"{width}x{height}, three bytes a pixel?"
        )
      yield frame[..., ::-1].copy() if self._pixel_format == "bgr24" else frame
      count += 1


def parse_size(text: str) -> tuple[int, int]:
  """Return (width, height) written as WxH; raises ValueError for anything else."""
  match = re.fullmatch(r"0*(\d{1,5})x0*(\d{1,5})", text)
  width, height = map(int, match.groups()) if match else (0, 0)
  if not (0 < width <= _LONGEST_SIDE and 0 < height <= _LONGEST_SIDE):
    raise ValueError(
      f"--frame_size={text} must be WIDTHxHEIGHT in pixels, such as 1280x720, each from 1 to {_LONGEST_SIDE}"
    )
  return width, height


def open_source(
  source: str,
  stdin: io.RawIOBase | None,
  frame_size: str | None = None,
  pixel_format: str = "rgb24",
) -> FrameSource:
  """Open what the command's --source names: as open_frames, a camera's number, or `-` for `stdin`.

  Args:
    stdin: where raw frames would come from; None where it is closed.
    frame_size, pixel_format: of raw frames; see parse_size and PIXEL_FORMATS.

  Raises:
    ValueError: frame_size is missing or surplus, stdin is closed or a terminal, or as the sources themselves.
    FileNotFoundError: as open_frames.
  """
  if source != "-":
    if frame_size:
      raise ValueError(f"--frame_size={frame_size} is of raw frames, --source=-; leave it away")
    if source.isdecimal() and not pathlib.Path(source).exists():
      return CameraFrames(int(source))
    return open_frames(source)
  if not frame_size:
    raise ValueError("--source=- needs --frame_size=WIDTHxHEIGHT, since raw frames do not say it")
  size = parse_size(frame_size)
  if stdin is None or stdin.isatty():
    raise ValueError(
      f"--source=- reads raw frames, but standard input is {'closed' if stdin is None else 'a terminal'}; "
      "pipe them into it, from "
      f"ffmpeg -i VIDEO -f rawvideo -pix_fmt {pixel_format} -"
    )
  return RawFrames(stdin, size, pixel_format)
