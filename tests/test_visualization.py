import fractions
import sys

import cv2
import numpy as np
import pytest

from ostrack_jax import visualization


def _grey(height=60, width=80, value=90):
  return np.full((height, width, 3), value, np.uint8)


def test_a_box_is_outlined_on_a_copy():
  frame = _grey()
  drawn = visualization.draw_box(frame, [20.3, 10.4, 30, 25], colour=(255, 0, 0))
  assert (frame == 90).all()
  red = (drawn == (255, 0, 0)).all(axis=2)
  rows, columns = np.nonzero(red)
  assert (columns.min(), columns.max(), rows.min(), rows.max()) == (20, 50, 10, 35)
  assert red[10, 20:51].all() and red[10:36, 50].all()
  assert not red[12:34, 22:49].any()
  assert (drawn[~red] == 90).all()


def test_a_label_stands_above_the_box_and_stays_in_the_frame():
  plain = visualization.draw_box(_grey(), [40, 30, 10, 10])
  labelled = visualization.draw_box(_grey(), [40, 30, 10, 10], "0.87")
  rows, _ = np.nonzero((plain != labelled).any(axis=2))
  assert len(rows) > 20 and rows.max() <= 30
  corner = visualization.draw_box(_grey(), [70, -5, 30, 10], "0.87")
  rows, columns = np.nonzero((corner == visualization.TRACK_COLOUR).all(axis=2))
  assert columns.min() < 66  # moved left from 70, so that the text fits
  assert rows.min() == 0


@pytest.mark.parametrize("box", [[np.nan] * 4, [1e30, 0, 5, 5], [-1e9, -1e9, 2e9, 2e9]])
def test_boxes_that_cannot_be_seen_change_nothing(box):
  np.testing.assert_array_equal(visualization.draw_box(_grey(), box), _grey())


def test_eliminated_cells_are_tinted_by_stage():
  drawn = visualization.draw_candidates(_grey(64, 64), [np.array([0, 5]), np.array([15, -1])], 4)
  cells = drawn.reshape(4, 16, 4, 16, 3).swapaxes(1, 2).reshape(16, 256, 3)
  assert (cells == cells[:, :1]).all()
  changed = [cell for cell in range(16) if (cells[cell, 0] != 90).any()]
  assert changed == [0, 5, 15]
  np.testing.assert_array_equal(cells[0, 0], cells[5, 0])
  assert (cells[0, 0] != cells[15, 0]).any()


@pytest.mark.parametrize("cell", [16, -2])
def test_cells_off_the_grid_are_refused(cell):
  with pytest.raises(ValueError, match="a grid of 4 x 4 has 0 to 15"):
    visualization.draw_candidates(_grey(64, 64), [np.array([cell])], 4)


def test_a_strip_sets_frames_in_rows():
  frames = [_grey(10, 20, value) for value in (10, 20, 30)]
  strip = visualization.frame_strip(frames, columns=2)
  assert strip.shape == (24, 44, 3)
  assert (strip[:10, :20] == 10).all() and (strip[:10, 24:] == 20).all()
  assert (strip[14:, :20] == 30).all() and (strip[14:, 24:] == 255).all()
  assert (strip[10:14] == 255).all()
  assert visualization.frame_strip(frames).shape == (10, 68, 3)
  assert visualization.frame_strip([_grey(10, 20), _grey(30, 60)]).shape == (10, 44, 3)


def test_strips_of_nothing_are_refused():
  with pytest.raises(ValueError, match="at least one frame"):
    visualization.frame_strip([])
  with pytest.raises(ValueError, match="columns 0"):
    visualization.frame_strip([_grey()], columns=0)


def test_images_are_written_as_rgb(tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
  visualization.write_image(tmp_path / "a.png", image)
  np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png"))[..., ::-1], image)
  with pytest.raises(ValueError, match=r"a\.text"):
    visualization.write_image(tmp_path / "a.text", image)
  assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def _read(path):
  capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
  fps, images = capture.get(cv2.CAP_PROP_FPS), []
  while True:
    read, image = capture.read()
    if not read:
      break
    images.append(image[..., ::-1])
  capture.release()
  return fps, np.stack(images)


@pytest.fixture(params=["h264", "mp4v"])
def codec(request):
  if request.param == "h264":
    pytest.importorskip("av")
  return request.param


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 63)])
def test_a_video_comes_back_as_written_in_even_sizes(tmp_path, height, width, codec):
  ramp = np.linspace(0, 120, width)[None, :, None] + np.array([100.0, 30.0, 0.0])
  frames = [np.full((height, width, 3), ramp + 3 * i).astype(np.uint8) for i in range(5)]
  with visualization.VideoWriter(tmp_path / "out.mp4", 7, codec) as writer:
    for frame in frames:
      writer.write(frame)
    assert not (tmp_path / "out.mp4").exists()
  assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]
  fps, images = _read(tmp_path / "out.mp4")
  assert fps == 7
  assert images.shape == (5, 48, 64, 3)
  np.testing.assert_allclose(
    images[:, :height, :width].mean(axis=(1, 2)), np.mean(frames, axis=(1, 2)), atol=4
  )
  # The added column and row repeat their neighbours instead of showing black.
  np.testing.assert_allclose(images[:, :, -1].mean(), images[:, :, -2].mean(), atol=8)
  np.testing.assert_allclose(images[:, -1].mean(), images[:, -2].mean(), atol=8)


def _interrupted(writer):
  writer.write(_grey())
  raise KeyboardInterrupt


def _resized(writer):
  writer.write(_grey(60, 80))
  writer.write(_grey(80, 60))


@pytest.mark.parametrize(
  ("use", "error", "message"),
  [
    (_interrupted, KeyboardInterrupt, "^$"),
    (_resized, ValueError, "frame of 60 x 80 pixels follows frames of 80 x 60"),
    (lambda writer: None, ValueError, "no frame was written"),
  ],
)
def test_an_error_leaves_no_file_and_keeps_the_old_one(tmp_path, use, error, message, codec):
  old = tmp_path / "out.mp4"
  old.write_bytes(b"old")
  with pytest.raises(error, match=message), visualization.VideoWriter(old, codec=codec) as writer:
    use(writer)
  assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]
  assert old.read_bytes() == b"old"


def test_frames_that_did_not_reach_the_disk_are_noticed(tmp_path, codec):
  # What a full disk looks like: the encoder takes the frames and the file stays short.
  with (
    pytest.raises(OSError, match=r"only 0 of 1 frames reached .*out\.mp4; is the disk full"),
    visualization.VideoWriter(tmp_path / "out.mp4", codec=codec) as writer,
  ):
    writer.write(_grey())
    close = writer._encoder.close
    writer._encoder.close = lambda: (close(), writer._temporary.write_bytes(b""))
  assert not list(tmp_path.iterdir())


def test_other_suffixes_and_rates_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"out\.avi; expected a name ending in \.mp4"):
    visualization.VideoWriter(tmp_path / "out.avi")
  with pytest.raises(ValueError, match="fps 0"):
    visualization.VideoWriter(tmp_path / "out.mp4", fps=0)
  with pytest.raises(ValueError, match="codec 'vp9' is unknown; choose one of h264, mp4v"):
    visualization.VideoWriter(tmp_path / "out.mp4", codec="vp9")


def test_videos_are_h264_where_pyav_is_installed(tmp_path, monkeypatch):
  av = pytest.importorskip("av")
  with visualization.VideoWriter(tmp_path / "out.mp4", fps=30000 / 1001) as writer:
    writer.write(_grey())
  with av.open(str(tmp_path / "out.mp4")) as container:
    stream = container.streams.video[0]
    assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
    assert stream.average_rate == fractions.Fraction(30000, 1001)
  visualization.default_codec.cache_clear()
  monkeypatch.setitem(sys.modules, "av", None)
  assert visualization.default_codec() == "mp4v"
  visualization.default_codec.cache_clear()


def test_h264_without_pyav_is_refused_with_the_cure(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "av", None)
  with pytest.raises(ValueError, match="codec h264 needs PyAV: pip install av"):
    visualization.VideoWriter(tmp_path / "out.mp4", codec="h264")


def test_a_box_is_as_wide_as_asked_and_its_label_as_large_as_ever():
  red = [
    (visualization.draw_box(_grey(), [20, 20, 30, 25], "0.87", (255, 0, 0), width) != 90).any(
      axis=2
    )
    for width in (None, 5)
  ]
  assert red[0][30, :40].sum() == 1 and red[1][30, :40].sum() >= 5
  widths = [one[one.any(axis=1).argmax()].sum() for one in red]
  assert widths[0] == widths[1] > 10


def test_a_file_replaces_another_only_when_it_is_complete(tmp_path):
  path = tmp_path / "table.csv"
  path.write_text("old")
  with pytest.raises(OSError, match="stop"), visualization.written_whole(path) as temporary:
    temporary.write_text("half")
    raise OSError("stop")
  assert path.read_text() == "old"
  with visualization.written_whole(path) as temporary:
    assert temporary.suffix == ".csv"
    temporary.write_text("new")
  assert path.read_text() == "new"
  assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
