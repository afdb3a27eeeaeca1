"""Boxes, eliminated candidates and videos for people to look at. Images are RGB uint8."""

import contextlib
import fractions
import functools
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

# Readable on most footage, and apart for colour-blind eyes (Okabe and Ito).
TRACK_COLOUR = (240, 228, 66)
_STAGE_COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167))
_STRIP_GAP_PX = 4


@contextlib.contextmanager
def written_whole(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """Give a temporary path beside `path`, which takes its place if the block ends without an error.

  The suffix is the same, since writers choose their format by it. After an error nothing is left.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
  try:
    yield temporary
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def draw_box(
  frame: np.ndarray,
  box_xywh,
  label: str = "",
  colour: tuple[int, int, int] = TRACK_COLOUR,
  thickness: int | None = None,
) -> np.ndarray:
  """Return a copy of a frame with a box and, above it, a label.

  Args:
    frame: [H, W, 3] RGB uint8.
    box_xywh: four numbers, pixels of the frame; nothing is drawn for one that is not finite.
    label: ASCII text.
    colour: RGB of the outline; the label stands on it.
    thickness: of the outline in pixels; None for line_width's.
  """
  image = np.ascontiguousarray(frame).copy()
  box = np.asarray(box_xywh, np.float64)
  if not np.isfinite(box).all():
    return image
  height, width = image.shape[:2]
  thickness = thickness or line_width(image)
  # cv2 takes 32-bit integers; far outside the frame the exact place does not matter.
  corners = np.clip(np.array([*box[:2], *(box[:2] + box[2:])]), -1e6, 1e6)
  left, top, right, bottom = (round(v) for v in corners.tolist())
  cv2.rectangle(image, (left, top), (right, bottom), colour, thickness)
  if label:
    scale = max(0.35, min(height, width) / 720)
    font = cv2.FONT_HERSHEY_SIMPLEX
    stroke = line_width(image)
    (text_width, text_height), below = cv2.getTextSize(label, font, scale, stroke)
    text_width += 2 * stroke
    x = min(max(left, 0), max(width - text_width, 0))
    y = min(max(top - below - thickness, text_height), height - below)
    cv2.rectangle(image, (x, y - text_height), (x + text_width, y + below), colour, -1)
    ink = (0, 0, 0) if sum(colour) > 330 else (255, 255, 255)
    cv2.putText(image, label, (x + stroke, y), font, scale, ink, stroke, cv2.LINE_AA)
  return image


def line_width(image: np.ndarray) -> int:
  """Return how wide, in pixels, lines are on an image of this size."""
  return max(1, round(min(image.shape[:2]) / 240))


def draw_candidates(
  search_crop: np.ndarray, removed: Sequence[np.ndarray], grid: int
) -> np.ndarray:
  """Return a copy of a search crop whose eliminated cells are tinted, each stage in its colour.

  Args:
    search_crop: [S, S, 3] RGB uint8.
    removed: a [k] array per stage: row-major cells of the search grid; -1 is padding. What
      OSTrackOutput.removed holds for one image.
    grid: cells per side.

  Raises:
    ValueError: a cell that is not on the grid.
  """
  image = search_crop.astype(np.float32)
  height, width = image.shape[:2]
  rows = np.arange(height) * grid // height
  columns = np.arange(width) * grid // width
  cells = rows[:, None] * grid + columns[None, :]
  for stage, dropped in enumerate(removed):
    dropped = np.asarray(dropped)
    if dropped.size and (dropped.min() < -1 or dropped.max() >= grid * grid):
      raise ValueError(
        f"stage {stage} removes cells {dropped.min()} to {dropped.max()}; "
        f"a grid of {grid} x {grid} has 0 to {grid * grid - 1}"
      )
    tinted = np.isin(cells, dropped)
    colour = np.array(_STAGE_COLOURS[stage % len(_STAGE_COLOURS)], np.float32)
    image[tinted] = 0.35 * image[tinted] + 0.65 * colour
  return np.rint(image).astype(np.uint8)


def frame_strip(frames: Sequence[np.ndarray], columns: int | None = None) -> np.ndarray:
  """Return frames side by side on white, row by row.

  Args:
    frames: [H, W, 3] RGB uint8 each; all are resized to the first one's size.
    columns: frames in a row; None puts all in one.

  Raises:
    ValueError: no frames, or columns below 1.
  """
  if not frames:
    raise ValueError("a strip needs at least one frame")
  columns = len(frames) if columns is None else columns
  if columns < 1:
    raise ValueError(f"columns {columns} must be at least 1")
  columns = min(columns, len(frames))
  height, width = frames[0].shape[:2]
  rows = -(-len(frames) // columns)
  gap = _STRIP_GAP_PX
  strip = np.full(
    (rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8
  )
  for i, frame in enumerate(frames):
    if frame.shape[:2] != (height, width):
      frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    y, x = i // columns * (height + gap), i % columns * (width + gap)
    strip[y : y + height, x : x + width] = frame
  return strip


def write_image(path: str | pathlib.Path, image: np.ndarray) -> None:
  """Write an RGB uint8 image; the suffix (.png, .jpg, ...) chooses the format.

  Raises:
    ValueError: a suffix that OpenCV cannot write.
  """
  path = pathlib.Path(path)
  try:
    encoded, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
  except cv2.error:
    encoded, data = False, np.empty(0, np.uint8)
  if not encoded:
    raise ValueError(f"cannot write an image as {path.name}; use .png or .jpg")
  with written_whole(path) as temporary:
    temporary.write_bytes(data.tobytes())


class _Mp4v:
  """MPEG-4 Part 2 by OpenCV, which can encode it everywhere."""

  def __init__(self, path: pathlib.Path, fps: float, width: int, height: int):
    self._writer = cv2.VideoWriter(
      str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height)
    )
    if not self._writer.isOpened():
      raise OSError("OpenCV could not open it as an mp4v video")

  def write(self, frame: np.ndarray) -> None:
    self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

  def close(self) -> None:
    self._writer.release()


def _import_pyav():
  try:
    import av
  except ImportError:
    raise ValueError("codec h264 needs PyAV: pip install av; mp4v needs nothing") from None
  return av


class _H264:
  """H.264 by PyAV's FFmpeg and x264."""

  def __init__(self, path: pathlib.Path, fps: float, width: int, height: int):
    av = _import_pyav()
    self._video_frame = av.VideoFrame
    # The index in front, so that browsers play it while it loads.
    self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
    rate = fractions.Fraction(fps).limit_denominator(1001)
    self._stream = self._container.add_stream(
      "libx264", rate=rate, options={"crf": "20", "preset": "veryfast"}
    )
    self._stream.width, self._stream.height = width, height
    self._stream.pix_fmt = "yuv420p"

  def write(self, frame: np.ndarray) -> None:
    self._container.mux(self._stream.encode(self._video_frame.from_ndarray(frame, "rgb24")))

  def close(self) -> None:
    try:
      self._container.mux(self._stream.encode())
    finally:
      self._container.close()


_CODECS = {"h264": _H264, "mp4v": _Mp4v}


@functools.cache
def default_codec() -> str:
  """Return the codec of videos: `h264`, which browsers play, if PyAV (the extra `video`) is installed; else `mp4v`."""
  try:
    import av
  except ImportError:
    return "mp4v"
  return "h264" if "libx264" in av.codecs_available else "mp4v"


class VideoWriter:
  """Write an .mp4, as a context manager.

  The file appears when the block ends without an error; until then, and after one, there is none.
  Frames of odd width or height get their last column or row twice, which the codecs ask for.

  Args:
    path: ends in .mp4; replaced if it exists.
    fps: frames per second.
    codec: `h264`, which needs PyAV, or `mp4v` (MPEG-4 Part 2); None for default_codec's.

  Raises:
    ValueError: another suffix or codec, one whose library is not installed, no frame written, or frames
      of different size.
    OSError: the file cannot be written.
  """

  def __init__(self, path: str | pathlib.Path, fps: float = 30.0, codec: str | None = None):
    self._path = pathlib.Path(path)
    if self._path.suffix.lower() != ".mp4":
      raise ValueError(f"cannot write a video as {self._path.name}; expected a name ending in .mp4")
    if not 0 < fps < 1000:
      raise ValueError(f"fps {fps} must lie between 0 and 1000")
    self.codec = default_codec() if codec is None else codec
    if self.codec not in _CODECS:
      raise ValueError(f"codec {codec!r} is unknown; choose one of {', '.join(_CODECS)}")
    if self.codec == "h264":
      # Here already, since the first frame may come late.
      _import_pyav()
    self._fps = fps
    self._encoder: _Mp4v | _H264 | None = None
    self._size: tuple[int, int] | None = None
    self._count = 0
    self._context = contextlib.ExitStack()

  def __enter__(self):
    self._temporary = self._context.enter_context(written_whole(self._path))
    return self

  def write(self, frame: np.ndarray) -> None:
    """Append a frame, [H, W, 3] RGB uint8."""
    height, width = frame.shape[:2]
    if self._encoder is None:
      self._size = (width, height)
      even = (width + width % 2, height + height % 2)
      try:
        self._encoder = _CODECS[self.codec](self._temporary, self._fps, *even)
      except OSError as error:
        raise OSError(f"cannot write {self._path}: {error}") from error
    if self._size is not None and (width, height) != self._size:
      raise ValueError(
        f"frame of {width} x {height} pixels follows frames of {self._size[0]} x {self._size[1]}; "
        "a video has one size"
      )
    self._encoder.write(
      cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    )
    self._count += 1

  def __exit__(self, kind, error, traceback):
    try:
      if self._encoder is not None:
        self._encoder.close()
      if kind is None:
        self._check_complete()
    except Exception:
      self._context.__exit__(*sys.exc_info())
      # What went wrong before says more.
      if kind is None:
        raise
      return
    self._context.__exit__(kind, error, traceback)

  def _check_complete(self) -> None:
    if not self._count:
      raise ValueError(f"no frame was written to {self._path}")
    # OpenCV drops frames without a word when the disk is full.
    capture = cv2.VideoCapture(str(self._temporary), cv2.CAP_FFMPEG)
    written = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    capture.release()
    if written != self._count:
      raise OSError(
        f"only {written} of {self._count} frames reached {self._path}; is the disk full?"
      )
