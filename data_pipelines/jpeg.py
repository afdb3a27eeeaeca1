"""JPEG to pixels and back. simplejpeg gives the pixels that OpenCV gives, in less time."""

import cv2
import numpy as np
import simplejpeg

# Markers that stand alone, without a length behind them.
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))
_SCAN, _APP1 = 0xDA, 0xE1


def is_jpeg(data: bytes) -> bool:
  """Return whether bytes begin as a JPEG file does."""
  return data[:2] == b"\xff\xd8"


def _has_exif(data: bytes) -> bool:
  """Return whether a JPEG carries Exif data, which may turn the picture."""
  at = 2
  while at + 4 <= len(data) and data[at] == 0xFF:
    marker = data[at + 1]
    if marker == _SCAN:
      return False
    if marker == 0xFF:  # fill
      at += 1
      continue
    if marker == _APP1 and data[at + 4 : at + 10] == b"Exif\0\0":
      return True
    at += 2 if marker in _BARE else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
  return False


def decode(data: bytes) -> np.ndarray | None:
  """Decode to uint8 RGB [H, W, 3], upright as OpenCV reads it; None if it cannot be decoded.

  The pixels are those of cv2.imread, which the official code uses. Unlike there, a damaged file is
  never half a picture: it cannot be decoded.
  """
  if is_jpeg(data) and not _has_exif(data):
    try:
      return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError:
      try:
        four_colours = simplejpeg.decode_jpeg_header(data)[2] in ("CMYK", "YCCK")
      except ValueError:
        return None
      if not four_colours:
        return None
  if not data:
    return None
  return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def encode(image: np.ndarray, quality: int) -> bytes:
  """Encode uint8 RGB [H, W, 3] with 4:2:0 chroma."""
  return simplejpeg.encode_jpeg(
    np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="420"
  )


def image_wh(data: bytes) -> tuple[int, int] | None:
  """Return width and height, as `decode` would show the picture; None if it is no JPEG."""
  try:
    height, width = simplejpeg.decode_jpeg_header(data)[:2]
  except ValueError:
    return None
  if _has_exif(data):
    image = decode(data)
    return None if image is None else (image.shape[1], image.shape[0])
  return int(width), int(height)
