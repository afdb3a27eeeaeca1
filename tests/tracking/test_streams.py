"""Frames from pipes and cameras; cameras are stood in for, since test machines have none."""

import io
import os
import signal
import threading
import time

import numpy as np
import pytest

from ostrack_jax.tracking import engine, streams


@pytest.fixture
def pipe():
  """(reader, writer), both unbuffered."""
  reading, writing = os.pipe()
  with io.FileIO(reading) as reader, io.FileIO(writing, "wb") as writer:
    yield reader, writer


def _frames(count, height=4, width=6):
  return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("pixel_format", streams.PIXEL_FORMATS)
def test_raw_frames_come_as_they_were_piped_in_pieces_of_any_length(pipe, pixel_format, waits):
  file, writer = pipe
  os.set_blocking(file.fileno(), waits)
  frames = _frames(3)
  source = streams.open_source("-", file, "6x4", pixel_format)
  assert (source.name, source.fps, source.is_live) == ("stdin", 30, True)
  with pytest.raises(TypeError, match="stdin does not declare how many frames"):
    len(source)

  def feed():
    data = (frames if pixel_format == "rgb24" else frames[..., ::-1]).tobytes()
    for start in range(0, len(data), 50):
      writer.write(data[start : start + 50])
      time.sleep(0.001)
    writer.close()

  feeder = threading.Thread(target=feed)
  feeder.start()
  read = list(source)
  feeder.join()
  np.testing.assert_array_equal(read, frames)


def test_a_stream_that_ends_within_a_frame_says_how_far_it_came(pipe):
  file, writer = pipe
  writer.write(_frames(2).tobytes()[:100])
  writer.close()
  source = iter(streams.RawFrames(file, (6, 4)))
  next(source)
  with pytest.raises(
    ValueError, match="stdin ends within frame 1, with 28 of 72 bytes; is the frame"
  ):
    next(source)


@pytest.mark.parametrize(
  "size", ["64", "0x9", "64x48x3", "-4x8", "16385x9", "9x9999999999999999999"]
)
def test_other_sizes_are_refused(size):
  with pytest.raises(ValueError, match=f"--frame_size={size} must be .* each from 1 to 16384"):
    streams.parse_size(size)


def test_a_size_is_width_and_height():
  assert streams.parse_size("16384x0720") == (16384, 720)


def test_closed_standard_input_is_no_source():
  with pytest.raises(ValueError, match="standard input is closed; pipe them into it, from ffmpeg"):
    streams.open_source("-", None, "6x4")


def test_a_terminal_is_no_source():
  terminal, other = os.openpty()
  try:
    with (
      io.FileIO(other, closefd=False) as file,
      pytest.raises(ValueError, match="standard input is a terminal; pipe them into it"),
    ):
      streams.open_source("-", file, "6x4")
  finally:
    os.close(terminal)
    os.close(other)


def test_ctrl_c_leaves_a_pipe_that_is_silent(pipe):
  file, writer = pipe
  # Whoever started the tests in the background may have it ignored.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  writer.write(_frames(1).tobytes())
  frames = engine.read_ahead(streams.RawFrames(file, (6, 4)))
  next(frames)
  main = threading.main_thread().ident
  timer = threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGINT])
  began = time.perf_counter()
  with pytest.raises(KeyboardInterrupt):
    # Inside, since a machine that stalls here may take longer than the timer.
    timer.start()
    next(frames)
  signal.signal(signal.SIGINT, before)
  assert time.perf_counter() - began < 10
  # Left behind in its read, it must not keep the program from ending.
  assert all(thread.daemon for thread in threading.enumerate() if thread.name == "frames")
  writer.close()


class _Camera:
  """Stands for cv2.VideoCapture: two frames, one that fails, another, then nothing any more."""

  def __init__(self, index):
    self.index, self.released, self.buffer = index, False, None
    self.reads = [*_frames(2), None, *_frames(1)]

  def isOpened(self):
    return self.index == 2

  def set(self, name, value):
    self.buffer = value

  def get(self, name):
    return 25.0

  def read(self):
    frame = self.reads.pop(0) if self.reads else None
    return frame is not None, frame

  def release(self):
    self.released = True


@pytest.fixture
def cameras(monkeypatch):
  made = []
  monkeypatch.setattr(streams.cv2, "VideoCapture", lambda i: made.append(_Camera(i)) or made[-1])
  return made


def test_a_camera_gives_rgb_until_it_is_gone(cameras, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  source = streams.open_source("2", None)
  assert (source.name, source.fps, source.is_live) == ("camera 2", 25, True)
  assert cameras[0].buffer == 1
  read = []
  with pytest.raises(ValueError, match="camera 2 stopped delivering after 3 frames"):
    read.extend(source)
  assert len(read) == 3
  assert cameras[0].released
  with pytest.raises(ValueError, match="camera 0 cannot be opened; is one connected"):
    streams.open_source("0", None)


def test_a_number_that_no_camera_can_have_is_refused():
  with pytest.raises(ValueError, match="camera 99999999999 cannot be opened"):
    streams.open_source("99999999999", None)


def test_camera_frames_are_turned_from_bgr(cameras):
  np.testing.assert_array_equal(next(iter(streams.CameraFrames(2))), _frames(1)[0][..., ::-1])


def test_a_folder_named_like_a_camera_is_the_folder(cameras, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "2").mkdir()
  with pytest.raises(FileNotFoundError, match="folder 2 holds no image"):
    streams.open_source("2", None)
  assert not cameras
