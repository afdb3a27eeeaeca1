"""From two frames with boxes to a template and a search region: jitter, crop, flips, brightness."""

import dataclasses

import cv2
import numpy as np

from ostrack_jax import crop

# The backbone's patch side, at which the official code looks for something besides padding.
_STRIDE = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
  """Crop sizes in pixels, factors over sqrt(w * h), and how strongly to vary; defaults: OSTrack-256.

  Jitter: `*_scale_jitter` is the deviation of the log of width and height, `*_centre_jitter` the
  width of the uniform shift over sqrt(w * h). `brightness` is the largest relative change.
  search_centre_from: "jitter", or "previous_box" to cut the search region at the box given as the
  previous one, unjittered, as a tracker that lost nothing would.
  """

  template_size: int = 128
  search_size: int = 256
  template_factor: float = 2.0
  search_factor: float = 4.0
  template_centre_jitter: float = 0.0
  template_scale_jitter: float = 0.0
  search_centre_jitter: float = 3.0
  search_scale_jitter: float = 0.25
  grey_probability: float = 0.05
  joint_flip_probability: float = 0.5
  separate_flip_probability: float = 0.5
  brightness: float = 0.2
  search_centre_from: str = "jitter"

  def __post_init__(self):
    if self.search_centre_from not in ("jitter", "previous_box"):
      raise ValueError(
        f"search_centre_from {self.search_centre_from!r}: it must be 'jitter' or 'previous_box'"
      )
    for name in ("template_size", "search_size"):
      if getattr(self, name) < _STRIDE or getattr(self, name) % _STRIDE:
        raise ValueError(
          f"{name} {getattr(self, name)}: it must be a positive multiple of {_STRIDE}"
        )

  def for_validation(self) -> "AugmentationSettings":
    """Return the settings without separate flip and brightness, as the official validation has it."""
    return dataclasses.replace(self, separate_flip_probability=0.0, brightness=0.0)


def jitter_box(
  rng: np.random.Generator, box_xywh: np.ndarray, centre_jitter: float, scale_jitter: float
) -> np.ndarray:
  """Vary a box: size by exp(scale_jitter * normal), centre by +-centre_jitter / 2 of its new side.

  Args:
    box_xywh: [4] pixels.

  Returns:
    [4] float64 pixels.
  """
  box = np.asarray(box_xywh, np.float64)
  size = box[2:] * np.exp(scale_jitter * rng.standard_normal(2))
  shift = (rng.random(2) - 0.5) * centre_jitter * np.sqrt(size.prod())
  return np.concatenate([box[:2] + 0.5 * box[2:] + shift - 0.5 * size, size])


def flip_box(box_xywh: np.ndarray, width: int) -> np.ndarray:
  """Mirror a box [4] px with its frame; x' = (width - 1) - x - w, one pixel off, as released."""
  x, y, w, h = np.asarray(box_xywh, np.float64)
  return np.array([width - 1 - x - w, y, w, h])


def shows_frame(window: crop.CropWindow, height: int, width: int, output_size: int) -> bool:
  """Return whether a crop shows the frame in at least one of the cells of the backbone's grid.

  Follows the official check: the padding mask resized bilinearly, any trace of it counted as
  padding, and then sampled every 16 pixels.
  """
  left, top, right, bottom = window.padding(height, width)
  for before, after in ((top, bottom), (left, right)):
    padded = np.ones((1, window.side))
    padded[:, before : max(window.side - after, 0)] = 0
    if (cv2.resize(padded, (output_size, 1))[0, ::_STRIDE] > 0).all():
      return False
  return True


def _cut(rng, frame, box_xywh, around_xywh, factor, size, settings: AugmentationSettings):
  window = crop.crop_window(around_xywh, factor)
  if not shows_frame(window, frame.shape[0], frame.shape[1], size):
    return None
  image, resize_factor = crop.crop_square(frame, around_xywh, factor, size)
  box = crop.box_in_crop(box_xywh, around_xywh, resize_factor, size)
  low = max(0.0, 1.0 - settings.brightness)
  brightness = np.asarray(rng.uniform(low, 1.0 + settings.brightness), np.float32)
  if rng.random() < settings.separate_flip_probability:
    image = image[:, ::-1]
    box[0] = 1 - box[0] - box[2]
  return np.ascontiguousarray(image), brightness, box.astype(np.float32)


def make_pair(
  rng: np.random.Generator,
  template_frame: np.ndarray,
  template_box_xywh: np.ndarray,
  search_frame: np.ndarray,
  search_box_xywh: np.ndarray,
  settings: AugmentationSettings,
  previous_box_xywh: np.ndarray | None = None,
) -> dict[str, np.ndarray] | None:
  """Turn two frames into one training example, in the official order of operations.

  Args:
    rng: consumed.
    template_frame, search_frame: [H, W, 3] uint8 RGB.
    template_box_xywh, search_box_xywh: [4] pixels of their frames.
    previous_box_xywh: [4], needed when settings.search_centre_from is "previous_box".

  Returns:
    template, search: uint8 [Z, Z, 3] and [S, S, 3]; template_brightness, search_brightness: float32
    factors that are still to be applied; template_box_xywh, search_box_xywh: float32 [4] normalised
    to the crop. None where the official code rejects the sample: a crop that shows only padding.
    Follows OSTrack, lib/train/data/processing.py; both boxes keep its half-pixel conventions.
  """
  frames = [template_frame, search_frame]
  boxes = [template_box_xywh, search_box_xywh]
  previous = settings.search_centre_from == "previous_box"
  if previous:
    if previous_box_xywh is None:
      raise ValueError("search_centre_from is 'previous_box': pass previous_box_xywh")
    boxes.append(previous_box_xywh)
  if rng.random() < settings.grey_probability:
    frames = [cv2.cvtColor(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) for f in frames]
  if rng.random() < settings.joint_flip_probability:
    widths = [template_frame.shape[1], *[search_frame.shape[1]] * (len(boxes) - 1)]
    boxes = [flip_box(box, width) for box, width in zip(boxes, widths)]
    # A view: the crop copies only what it needs of the mirrored frame.
    frames = [frame[:, ::-1] for frame in frames]
  template_around = jitter_box(
    rng, boxes[0], settings.template_centre_jitter, settings.template_scale_jitter
  )
  if previous:
    search_around = boxes[2]
  else:
    search_around = jitter_box(
      rng, boxes[1], settings.search_centre_jitter, settings.search_scale_jitter
    )
  template = _cut(
    rng,
    frames[0],
    boxes[0],
    template_around,
    settings.template_factor,
    settings.template_size,
    settings,
  )
  search = _cut(
    rng, frames[1], boxes[1], search_around, settings.search_factor, settings.search_size, settings
  )
  if template is None or search is None:
    return None
  return {
    f"{name}{part}": value
    for name, values in (("template", template), ("search", search))
    for part, value in zip(("", "_brightness", "_box_xywh"), values)
  }
