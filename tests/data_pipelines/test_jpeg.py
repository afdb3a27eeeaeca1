"""Decoding gives OpenCV's pixels, upright, or nothing at all."""

import cv2
import numpy as np
import pytest

from data_pipelines import jpeg


def picture(width=50, height=34):
  small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
  return cv2.resize(small, (width, height))


def encode_cv2(image, *options):
  return cv2.imencode(".jpg", image[..., ::-1], list(options))[1].tobytes()


def turned(data: bytes, orientation: int) -> bytes:
  """Put an Exif segment with an orientation behind the start marker."""
  entry = (0x0112).to_bytes(2, "big") + (3).to_bytes(2, "big") + (1).to_bytes(4, "big")
  entry += orientation.to_bytes(2, "big") + b"\0\0"
  exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01" + entry + b"\0\0\0\0"
  return data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]


@pytest.mark.parametrize("sampling", [0x411111, 0x221111])
@pytest.mark.parametrize("progressive", [0, 1])
def test_pixels_are_those_of_opencv(sampling, progressive):
  data = encode_cv2(
    picture(),
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    sampling,
    cv2.IMWRITE_JPEG_PROGRESSIVE,
    progressive,
  )
  want = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
  np.testing.assert_array_equal(jpeg.decode(data), want)


def test_grey_files_become_rgb():
  data = cv2.imencode(".jpg", picture()[..., 0])[1].tobytes()
  image = jpeg.decode(data)
  assert image.shape == (34, 50, 3)
  np.testing.assert_array_equal(image[..., 0], image[..., 2])


@pytest.mark.parametrize(("orientation", "wh"), [(1, (50, 34)), (3, (50, 34)), (6, (34, 50))])
def test_exif_orientation_is_obeyed(orientation, wh):
  data = turned(encode_cv2(picture()), orientation)
  want = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
  np.testing.assert_array_equal(jpeg.decode(data), want)
  assert jpeg.image_wh(data) == wh == want.shape[1::-1]


def test_an_upright_picture_with_exif_keeps_its_sides():
  assert jpeg.image_wh(turned(encode_cv2(picture(20, 22)), 1)) == (20, 22)


@pytest.mark.parametrize("damage", ["cut", "zeros", "empty", "text"])
def test_a_damaged_file_is_no_picture(damage):
  data = encode_cv2(picture(200, 160))
  half = len(data) // 2
  damaged = {
    "cut": data[:half],
    "zeros": data[:half] + bytes(len(data) - half),
    "empty": b"",
    "text": b"no image",
  }[damage]
  assert jpeg.decode(damaged) is None


def test_what_is_encoded_comes_back():
  image = picture()
  assert np.abs(jpeg.decode(jpeg.encode(image, 95)).astype(int) - image).mean() < 8
  assert jpeg.image_wh(jpeg.encode(image, 95)) == (50, 34)
  assert jpeg.image_wh(b"no image") is None
