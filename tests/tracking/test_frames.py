import cv2
import numpy as np
import pytest
import simplejpeg

from ostrack_jax.tracking import frames
from ostrack_jax.visualization import VideoWriter


def _picture(number, height=48, width=64):
  """A frame of one colour, brighter with its number, red far above blue."""
  return np.full((height, width, 3), (200, 10 * number, 20), np.uint8)


def _write_images(folder, names):
  folder.mkdir(parents=True, exist_ok=True)
  for number, name in enumerate(names):
    cv2.imwrite(str(folder / name), cv2.cvtColor(_picture(number), cv2.COLOR_RGB2BGR))


def _numbers(source):
  return [round(frame[..., 1].mean() / 10) for frame in source]


def test_images_come_in_natural_order_as_rgb(tmp_path):
  _write_images(tmp_path, ["f1.png", "f2.png", "f10.png", "f11.PNG"])
  (tmp_path / "notes.txt").write_text("no image")
  (tmp_path / "._f1.png").write_bytes(b"written by a file manager")
  source = frames.open_frames(tmp_path)
  assert len(source) == 4
  assert source.fps == 30
  np.testing.assert_array_equal(next(iter(source)), _picture(0))
  assert _numbers(source) == [0, 1, 2, 3]
  assert _numbers(source) == [0, 1, 2, 3]


def test_natural_order_tells_numbers_from_text_and_zeros_apart(tmp_path):
  names = ["10.png", "b2.png", "01.png", "b.png", "1.png", "a10.png", "a9b.png"]
  ordered = sorted((tmp_path / name for name in names), key=frames.natural_order)
  assert [p.name for p in ordered] == [
    "01.png", "1.png", "10.png", "a9b.png", "a10.png", "b2.png", "b.png",
  ]  # fmt: skip


def test_a_pattern_selects_images(tmp_path):
  _write_images(tmp_path, ["a1.png", "a2.png", "b1.png"])
  assert _numbers(frames.open_frames(str(tmp_path / "a*.png"))) == [0, 1]
  with pytest.raises(FileNotFoundError, match=r"no image matches .*c\*"):
    frames.open_frames(str(tmp_path / "c*.png"))


@pytest.mark.parametrize(("inside", "name"), [("img", "Bird2"), ("color", "Bird2"), ("cut", "cut")])
def test_a_sequence_is_called_by_its_own_folder(tmp_path, inside, name):
  folder = tmp_path / "Bird2" / inside
  folder.mkdir(parents=True)
  _write_images(folder, ["1.png"])
  assert frames.open_frames(folder).name == name
  assert frames.open_frames(str(folder / "*.png")).name == name


def test_grey_sixteen_bit_and_transparent_files_become_rgb_bytes(tmp_path):
  cv2.imwrite(str(tmp_path / "1.png"), np.full((8, 9), 7, np.uint8))
  cv2.imwrite(str(tmp_path / "2.png"), np.full((8, 9, 4), (1, 2, 3, 0), np.uint8))
  cv2.imwrite(str(tmp_path / "3.png"), np.full((8, 9, 3), 256 * 50, np.uint16))
  grey, transparent, deep = frames.open_frames(tmp_path)
  np.testing.assert_array_equal(grey, np.full((8, 9, 3), 7, np.uint8))
  np.testing.assert_array_equal(transparent, np.full((8, 9, 3), (3, 2, 1), np.uint8))
  np.testing.assert_array_equal(deep, np.full((8, 9, 3), 50, np.uint8))


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_a_broken_image_is_named_where_it_stands(tmp_path, content):
  _write_images(tmp_path, ["1.png", "2.png", "3.png"])
  (tmp_path / "2.png").write_bytes(content)
  reader = iter(frames.open_frames(tmp_path))
  next(reader)
  with pytest.raises(ValueError, match=r"2\.png is not a readable image"):
    next(reader)


def test_a_folder_without_images_points_to_the_one_inside(tmp_path):
  with pytest.raises(FileNotFoundError, match="holds no image"):
    frames.open_frames(tmp_path)
  _write_images(tmp_path / "img", ["1.png"])
  with pytest.raises(FileNotFoundError, match=r"did you mean .*img\?"):
    frames.open_frames(tmp_path)


def test_missing_and_unsuitable_files_are_refused_in_words(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4 does not exist"):
    frames.open_frames(tmp_path / "nowhere.mp4")
  _write_images(tmp_path, ["1.png"])
  with pytest.raises(ValueError, match="single image; give the folder"):
    frames.open_frames(tmp_path / "1.png")


def test_files_that_are_no_video_are_refused(tmp_path):
  for name, content in (("empty.mp4", b""), ("text.avi", b"hello" * 100)):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is not a readable video"):
      frames.open_frames(tmp_path / name)


def test_a_video_gives_its_frames_rate_and_length(tmp_path):
  with VideoWriter(tmp_path / "clip.mp4", fps=12.5) as writer:
    for number in range(9):
      writer.write(_picture(number))
  source = frames.open_frames(tmp_path / "clip.mp4")
  assert (len(source), source.fps, source.name) == (9, 12.5, "clip")
  assert _numbers(source) == list(range(9))
  first = next(iter(source))
  assert first.shape == (48, 64, 3)
  np.testing.assert_allclose(first.mean(axis=(0, 1)), (200, 0, 20), atol=6)


def _write_avi(path, count):
  writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
  rng = np.random.default_rng(0)
  for _ in range(count):
    writer.write(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
  writer.release()


def test_a_truncated_video_says_after_which_frame(tmp_path):
  whole, half = tmp_path / "whole.avi", tmp_path / "half.avi"
  _write_avi(whole, 40)
  assert len(list(frames.open_frames(whole))) == 40
  data = whole.read_bytes()
  half.write_bytes(data[: len(data) // 2])
  read = []
  with pytest.raises(ValueError, match=r"half\.avi is truncated or damaged after frame") as error:
    for frame in frames.open_frames(half):
      read.append(frame)
  assert 10 < len(read) < 30
  assert f"after frame {len(read) - 1}: {len(read)} of 40" in str(error.value)


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 1)])
def test_grey_frames_are_spread_over_three_channels(shape):
  grey = np.arange(42, dtype=np.uint8).reshape(shape)
  converted = frames.rgb_frame(grey)
  assert converted.shape == (6, 7, 3)
  for channel in range(3):
    np.testing.assert_array_equal(converted[..., channel], grey.reshape(6, 7))


def test_alpha_is_dropped():
  rgba = np.random.default_rng(0).integers(0, 256, (6, 7, 4), dtype=np.uint8)
  np.testing.assert_array_equal(frames.rgb_frame(rgba), rgba[..., :3])


@pytest.mark.parametrize(
  ("frame", "message"),
  [
    (np.zeros((6, 7, 3), np.float32), "float32; expected uint8 from 0 to 255: multiply by 255"),
    (np.zeros((6, 7, 3), np.uint16), "uint16; expected uint8"),
    (np.zeros((6, 7, 2), np.uint8), r"shape \(6, 7, 2\); expected"),
    (np.zeros((1, 6, 7, 3), np.uint8), "expected"),
    (np.zeros((0, 7, 3), np.uint8), "no pixels"),
    (np.zeros((6, 0), np.uint8), "no pixels"),
    (None, "type object"),
  ],
)
def test_other_arrays_are_refused_with_the_cure(frame, message):
  with pytest.raises(ValueError, match=message):
    frames.rgb_frame(frame)


def _jpeg(image, **options):
  return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=85, **options)


@pytest.mark.parametrize("kind", ["420", "444", "grey", "odd", "exif", "png"])
def test_images_decode_to_opencvs_pixels_also_into_given_memory(tmp_path, kind):
  rng = np.random.default_rng(0)
  image = cv2.resize(
    rng.integers(0, 256, (6, 9, 3), np.uint8), (61, 45) if kind == "odd" else (64, 48)
  )
  match kind:
    case "grey":
      data = _jpeg(image[..., :1], colorspace="GRAY", colorsubsampling="Gray")
    case "444":
      data = _jpeg(image, colorsubsampling="444")
    case "png":
      data = cv2.imencode(".png", image)[1].tobytes()
    case _:
      data = _jpeg(image, colorsubsampling="420")
  if kind == "exif":
    # Orientation 6: to be turned by a quarter.
    tag = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    data = data[:2] + b"\xff\xe1" + (len(tag) + 2).to_bytes(2, "big") + tag + data[2:]
  path = tmp_path / "image"
  path.write_bytes(data)
  expected = cv2.imread(str(path))[..., ::-1]
  np.testing.assert_array_equal(frames.read_image(path), expected)
  for size in (10, 50000):
    memory = np.zeros(size, np.uint8)
    np.testing.assert_array_equal(frames.decode_image(data, path, memory), expected)
  assert frames.image_size(path) == (expected.shape[1], expected.shape[0])
  if kind == "exif":
    assert expected.shape[:2] == (64, 48)


def test_a_jpeg_cut_short_is_not_read_in_part(tmp_path):
  data = _jpeg(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
  (tmp_path / "a.jpg").write_bytes(data[: len(data) * 2 // 3])
  with pytest.raises(ValueError, match=r"a\.jpg is not a readable image"):
    frames.read_image(tmp_path / "a.jpg")
