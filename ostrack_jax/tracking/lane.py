"""One lane of many: the sequences it tracks in turn, with their frames read and decoded ahead."""

import collections
import concurrent.futures
import dataclasses
import pathlib
import time
from collections.abc import Generator, Iterator, Sequence

import numpy as np

from ostrack_jax.tracking import cutting
from ostrack_jax.tracking import frames as frame_files

# Frames in memory for every decoding thread, beside the least that a lane needs to go on.
AHEAD_PER_THREAD = 2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LaneSequence:
  """A sequence to track.

  Attributes:
    frames: image files in order.
    init_box_xywh: [4] the target in the first frame, pixels.
    start_boxes_xywh: [n, 4] annotated boxes, NaN where absent: the search region of frame t is cut around
      row t - 1, whatever was found there (teacher-forced; see cutting.starting_boxes). None: around the box
      found before.
  """

  name: str
  frames: Sequence[pathlib.Path]
  init_box_xywh: np.ndarray
  start_boxes_xywh: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaneResult:
  """How a sequence ended.

  Attributes:
    boxes_xywh: [n, 4] float64 pixels, row 0 the given box; rows behind an error are NaN.
    scores: [n] float64, NaN in row 0.
    seconds: from the first frame's reading to the last box, those of other lanes included.
    error: what ended it early, or None.
  """

  sequence: LaneSequence
  boxes_xywh: np.ndarray
  scores: np.ndarray
  seconds: float
  error: Exception | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropSettings:
  """Sides of template and search region, in pixels, and over the root of the target's area."""

  template_size: int
  search_size: int
  template_factor: float
  search_factor: float


def _read(path: pathlib.Path, memory: np.ndarray | None) -> tuple[np.ndarray, float, float]:
  began = time.perf_counter()
  data = path.read_bytes()
  read = time.perf_counter()
  image = frame_files.decode_image(data, path, memory)
  return image, read - began, time.perf_counter() - read


class Reader:
  """The frames of sequences, one after another, decoded ahead by a pool of threads.

  Args:
    depth: how many are ahead, those of the next sequence included.
  """

  def __init__(
    self, sequences: Sequence[LaneSequence], pool: concurrent.futures.Executor, depth: int
  ):
    self.planned = collections.deque(sequences)
    self._pool = pool
    self._depth = depth
    self._skipped: LaneSequence | None = None
    self._unread = self._walk(sequences)
    self._ahead: collections.deque[tuple[LaneSequence, concurrent.futures.Future]] = (
      collections.deque()
    )
    self._last: np.ndarray | None = None
    # Images go where earlier ones were: new memory costs a tenth of the decoding, and threads wait for
    # each other to get it.
    self._free: collections.deque[np.ndarray] = collections.deque()
    self.seconds_reading = 0.0
    self.seconds_decoding = 0.0

  def _walk(self, sequences: Sequence[LaneSequence]) -> Iterator[tuple[LaneSequence, pathlib.Path]]:
    for sequence in sequences:
      for path in sequence.frames:
        if sequence is self._skipped:
          break
        yield sequence, path

  def _fill(self) -> None:
    while len(self._ahead) < self._depth and (following := next(self._unread, None)) is not None:
      sequence, path = following
      memory = self._free.pop() if self._free else None
      self._ahead.append((sequence, self._pool.submit(_read, path, memory)))

  def next_frame(self) -> np.ndarray:
    """Return the next frame, [H, W, 3] RGB uint8; raises where it cannot be read."""
    self._fill()
    _, future = self._ahead.popleft()
    self._fill()
    image, reading, decoding = future.result()
    self.seconds_reading += reading
    self.seconds_decoding += decoding
    self._last = image
    return image

  def reuse_last(self) -> None:
    """Give the memory of the last frame back; it must not be looked at any more."""
    if self._last is not None:
      self._free.append(self._last.reshape(-1))
      self._last = None

  def skip(self, sequence: LaneSequence) -> None:
    """Leave out what is left of a sequence, the one whose frames come now."""
    self._skipped = sequence
    while self._ahead and self._ahead[0][0] is sequence:
      self._ahead.popleft()[1].cancel()


def decoded_ahead(paths: Sequence[pathlib.Path], threads: int) -> Generator[np.ndarray]:
  """Yield the images in order while threads decode the next ones; raises where an image cannot be read."""
  with concurrent.futures.ThreadPoolExecutor(threads, "decode") as pool:
    reader = Reader(
      [LaneSequence(name="", frames=paths, init_box_xywh=np.zeros(4))],
      pool,
      AHEAD_PER_THREAD * threads,
    )
    try:
      for _ in paths:
        yield reader.next_frame()
    finally:
      pool.shutdown(cancel_futures=True)


class Lane:
  """Tracks its sequences in turn; each ends in `ended`, whole or with its error.

  Attributes:
    row: its place in the batch.
    box_xywh: [4] float64, what the last search region was cut around.
    frame_size: (height, width) of the present sequence.
    new_template: of a sequence that has just begun, [Z, Z, 3] uint8, and template pixels per frame
      pixel, or None; whoever takes it sets it to None.
    first_box_xywh: [4] float64, where the target is in the template's frame.
  """

  def __init__(
    self, row: int, reader: Reader, settings: CropSettings, ended: collections.deque[LaneResult]
  ):
    self.row = row
    self.reader = reader
    self.box_xywh = np.zeros(4)
    self.frame_size = (0, 0)
    self.new_template: tuple[np.ndarray, float] | None = None
    self.first_box_xywh = np.zeros(4)
    self.seconds_cutting = 0.0
    self._settings = settings
    self._ended = ended
    self._sequence: LaneSequence | None = None
    self._index = 0
    self._boxes_xywh = np.empty((0, 4))
    self._scores = np.empty(0)
    self._began = 0.0
    self._forced: np.ndarray | None = None

  @property
  def is_idle(self) -> bool:
    """Whether there is nothing left to track."""
    return self._sequence is None and not self.reader.planned

  def prepare(self) -> tuple[np.ndarray, float] | None:
    """Cut the next search region, [S, S, 3] uint8, and return it with crop pixels per frame pixel.

    Ends the sequences on the way that are over or fail. None where no sequence is left.
    """
    while not self.is_idle:
      sequence = self._sequence or self._begin()
      try:
        if self._index == 0:
          self._start(sequence)
        if self._index < len(sequence.frames):
          return self._cut()
        self._end(sequence, None)
      except Exception as error:
        self.reader.skip(sequence)
        self._end(sequence, error)
    return None

  def accept(self, box_xywh: np.ndarray, score: float) -> None:
    """Take what the network found in the last search region."""
    index = self._index
    self._boxes_xywh[index] = box_xywh
    self._scores[index] = score
    self.box_xywh = self._boxes_xywh[index] if self._forced is None else self._forced[index]
    self._index = index + 1

  def _begin(self) -> LaneSequence:
    self._sequence = sequence = self.reader.planned.popleft()
    self._index = 0
    self._boxes_xywh = np.full((len(sequence.frames), 4), np.nan)
    self._scores = np.full(len(sequence.frames), np.nan)
    self._began = time.perf_counter()
    return sequence

  def _start(self, sequence: LaneSequence) -> None:
    if not len(sequence.frames):
      raise ValueError("the sequence has no frames; at least the one with init_box_xywh is needed")
    frame = self.reader.next_frame()
    began = time.perf_counter()
    settings = self._settings
    template, resize_factor, self.box_xywh, self.frame_size = self._numbered(
      cutting.cut_template,
      frame,
      sequence.init_box_xywh,
      settings.template_size,
      settings.template_factor,
    )
    self.new_template = template, resize_factor
    self.first_box_xywh = self.box_xywh
    self._boxes_xywh[0] = self.box_xywh
    self._forced = None
    if sequence.start_boxes_xywh is not None:
      self._forced = cutting.starting_boxes(sequence.start_boxes_xywh, self.frame_size)
      self.box_xywh = self._forced[0]
    self._index = 1
    self.reader.reuse_last()
    self.seconds_cutting += time.perf_counter() - began

  def _cut(self) -> tuple[np.ndarray, float]:
    frame = self.reader.next_frame()
    began = time.perf_counter()
    settings = self._settings
    cut = self._numbered(
      cutting.cut_search,
      frame,
      self.box_xywh,
      settings.search_size,
      settings.search_factor,
      self.frame_size,
    )
    self.reader.reuse_last()
    self.seconds_cutting += time.perf_counter() - began
    return cut

  def _numbered(self, cut, *arguments):
    try:
      return cut(*arguments)
    except ValueError as error:
      raise ValueError(f"frame {self._index}: {error}") from error

  def _end(self, sequence: LaneSequence, error: Exception | None) -> None:
    seconds = time.perf_counter() - self._began
    self._sequence = None
    self._ended.append(
      LaneResult(
        sequence=sequence,
        boxes_xywh=self._boxes_xywh,
        scores=self._scores,
        seconds=seconds,
        error=error,
      )
    )
