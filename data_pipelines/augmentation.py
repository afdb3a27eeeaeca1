"""From two frames with boxes to a template and a search region: jitter, crop, and what is decided by
chance. Grey, flips and brightness are only decided here, and their effect on the boxes computed; the
device applies them to the crops (ostrack_jax/training/augmentation.py)."""

import dataclasses
import math
import typing
from typing import Any

import cv2
import numpy as np

from data_pipelines import stored_crop, variation
from data_pipelines.sources import StoredFrame
from ostrack_jax import crop

# The backbone's patch side, at which the official code looks for something besides padding.
_STRIDE = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropSettings:
  """Crop sizes in pixels, factors over sqrt(w * h), and how far crops stray; defaults: OSTrack-256.

  Attributes:
    template_scale_jitter, search_scale_jitter: deviation of the log of width and height.
    template_centre_jitter, search_centre_jitter: width of the uniform shift over sqrt(w * h).
  """

  template_size: int = 128
  search_size: int = 256
  template_factor: float = 2.0
  search_factor: float = 4.0
  template_centre_jitter: float = 0.0
  template_scale_jitter: float = 0.0
  search_centre_jitter: float = 3.0
  search_scale_jitter: float = 0.25

  def crops(self) -> dict[str, Any]:
    """Return these values by name, without what subclasses add."""
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(CropSettings)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationSettings(CropSettings):
  """Which crops to take and how strongly to vary them; the defaults are OSTrack-256's.

  Attributes:
    grey_probability, joint_flip_probability: of both crops together.
    separate_flip_probability: of a second flip, of each crop by itself.
    independent_flip: whether there is that second flip, as in the official code, which so mirrors
      template and search against each other in half of the pairs.
    brightness: the largest relative change.
    half_pixel_labels: the official geometry, on which the released weights rest: the label's centre is
      half a pixel of the crop off, and a jointly flipped crop one pixel of the frame. False: neither.
    max_missing_share: a crop of context records that lacks more of its frame is drawn anew.
    search_centre_from: "jitter", or "previous_box" to cut the search region at the box given as the
      previous one, unjittered, as a tracker that lost nothing would.
    rotation_degrees, aspect_jitter: of the search region about its target; see variation.draw_warp.
    colour_jitter: of each crop by itself, the largest relative change of contrast, saturation and each
      channel's gain.
    blur_probability: of each crop by itself.
    distractor_probability: that another target is pasted into the search region.
      These five are not in the official code, and 0 unless asked for.
  """

  grey_probability: float = 0.05
  joint_flip_probability: float = 0.5
  separate_flip_probability: float = 0.5
  independent_flip: bool = True
  brightness: float = 0.2
  half_pixel_labels: bool = True
  max_missing_share: float = 0.05
  search_centre_from: str = "jitter"
  rotation_degrees: float = 0.0
  aspect_jitter: float = 0.0
  colour_jitter: float = 0.0
  blur_probability: float = 0.0
  distractor_probability: float = 0.0

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
    shares = (
      "grey_probability",
      "joint_flip_probability",
      "separate_flip_probability",
      "max_missing_share",
      "colour_jitter",
      "blur_probability",
      "distractor_probability",
    )
    for name in shares:
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"{name} {getattr(self, name)}: it must lie between 0 and 1")
    if not 0 <= self.rotation_degrees <= 180 or not 0 <= self.aspect_jitter <= 1:
      raise ValueError(
        f"rotation_degrees {self.rotation_degrees} must lie between 0 and 180, and aspect_jitter "
        f"{self.aspect_jitter} between 0 and 1"
      )

  @property
  def warps(self) -> bool:
    """Whether search regions are rotated or stretched."""
    return self.rotation_degrees > 0 or self.aspect_jitter > 0

  def for_validation(self) -> "AugmentationSettings":
    """Return the settings without separate flip and brightness, as the official validation has it,
    and without what the official code does not know."""
    return dataclasses.replace(
      self,
      separate_flip_probability=0.0,
      brightness=0.0,
      rotation_degrees=0.0,
      aspect_jitter=0.0,
      colour_jitter=0.0,
      blur_probability=0.0,
      distractor_probability=0.0,
    )


def jitter_box(
  rng: np.random.Generator, box_xywh: np.ndarray, centre_jitter: float, scale_jitter: float
) -> np.ndarray:
  """Vary a box: size by exp(scale_jitter * normal), centre by +-centre_jitter / 2 of its new side.

  Args:
    box_xywh: [4] pixels.

  Returns:
    [4] float64 pixels.
  """
  x, y, w, h = np.asarray(box_xywh, np.float64).tolist()
  # Plain numbers: arrays of two cost ten times as much.
  normal_w, normal_h = rng.standard_normal(2).tolist()
  uniform_x, uniform_y = rng.random(2).tolist()
  width, height = w * math.exp(scale_jitter * normal_w), h * math.exp(scale_jitter * normal_h)
  reach = centre_jitter * math.sqrt(width * height)
  return np.array(
    [
      x + 0.5 * w + (uniform_x - 0.5) * reach - 0.5 * width,
      y + 0.5 * h + (uniform_y - 0.5) * reach - 0.5 * height,
      width,
      height,
    ]
  )


def box_to_cut_around(
  around_xywh: np.ndarray, factor: float, frame_width: int, is_joint_flip: bool, half_pixel: bool
) -> np.ndarray:
  """Return the box [4] px around which to cut the crop that the device mirrors.

  The official code mirrors the frame before cutting, and boxes with x' = (width - 1) - x - w, one
  pixel off; it then rounds the corner of the crop. Here the crop's corner is where it falls there,
  so that the mirrored crop shows the very same pixels; only the black line at the frame's border (see
  CropWindow.padding) comes to lie at the frame's other side.
  """
  if not (is_joint_flip and half_pixel):
    return around_xywh
  x, y, w, h = around_xywh
  mirrored = crop.crop_window((frame_width - 1 - x - w, y, w, h), factor)
  x1 = frame_width - mirrored.x1 - mirrored.side
  return np.array([x1 + 0.5 * mirrored.side - 0.5 * w, y, w, h])


class Distractor(typing.NamedTuple):
  """A frame and the box [4], pixels of the full frame, of a target in it to paste elsewhere."""

  stored: StoredFrame
  box_xywh: np.ndarray


def label(
  box_xywh: np.ndarray,
  output_size: int,
  *,
  is_joint_flip: bool,
  is_own_flip: bool,
  half_pixel: bool,
) -> np.ndarray:
  """Return the box in the crop as the network sees it, after the flips.

  Args:
    box_xywh: [4] the target in the unflipped crop, normalised to it: crop.box_in_crop.
    output_size: side of the crop in pixels.
    is_joint_flip: the official first flip, of the frame: a distance from the crop's centre changes
      its sign, and with half_pixel the centre stays at (size - 1) / 2.
    is_own_flip: the official second flip, of the crop: x' = 1 - x - w.
    half_pixel: whether the centre is at (size - 1) / 2 or at size / 2.

  Returns:
    [4] float32 xywh normalised to the crop. Follows OSTrack, lib/train/data/processing.py and
    transforms.py.
  """
  x, y, w, h = box_xywh.tolist()
  if is_joint_flip:
    x = (1 - half_pixel / output_size) - x - w
  if is_own_flip:
    x = 1 - x - w
  return np.array([x, y, w, h], np.float32)


def shows_frame(window: crop.CropWindow, height: int, width: int, output_size: int) -> bool:
  """Return whether a crop shows the frame in at least one of the cells of the backbone's grid.

  Follows the official check: the padding mask resized bilinearly, any trace of it counted as
  padding, and then sampled every 16 pixels.
  """
  left, top, right, bottom = window.padding(height, width)
  # Two strides of frame in a crop hold a sampled place that bilinear reading keeps clear of padding.
  enough = 2 * _STRIDE * window.side / output_size + 2
  if window.side - max(left + right, top + bottom) >= enough:
    return True
  for before, after in ((top, bottom), (left, right)):
    if before == after == 0:
      continue
    padded = np.ones((1, window.side))
    padded[:, before : max(window.side - after, 0)] = 0
    if (cv2.resize(padded, (output_size, 1))[0, ::_STRIDE] > 0).all():
      return False
  return True


def make_pair(
  rng: np.random.Generator,
  template: StoredFrame,
  template_box_xywh: np.ndarray,
  search: StoredFrame,
  search_box_xywh: np.ndarray,
  settings: AugmentationSettings,
  previous_box_xywh: np.ndarray | None = None,
  distractor: Distractor | None = None,
) -> dict[str, np.ndarray | np.generic] | None:
  """Turn two frames into one training example.

  The joint flip, in the official code the first thing, comes behind the crop and so leaves the jitter
  unmirrored, which has the same distribution.

  Args:
    rng: consumed.
    template, search: what is stored of the two frames.
    template_box_xywh, search_box_xywh: [4] pixels of their full frames.
    previous_box_xywh: [4], needed when settings.search_centre_from is "previous_box".
    distractor: what to paste into the search region, if anything; settings do not decide it here.

  Returns:
    template, search: uint8 [Z, Z, 3] and [S, S, 3], neither grey nor flipped nor brightened yet;
    grey: bool, for both; and for each crop, its name in front, _flip: bool, _brightness: float32
    factor, _box_xywh: float32 [4], normalised to the crop as it is after the flips. None where the
    official code rejects the sample, a crop that shows only padding, and where a crop lacks more than
    settings.max_missing_share.

  Raises:
    ValueError: a box that cannot be cropped around, or no previous_box_xywh where it is needed.
  """
  previous = settings.search_centre_from == "previous_box"
  if previous and previous_box_xywh is None:
    raise ValueError("search_centre_from is 'previous_box': pass previous_box_xywh")
  own_flip_probability = settings.separate_flip_probability if settings.independent_flip else 0.0
  darkest = max(0.0, 1.0 - settings.brightness)
  brightness_range = 1.0 + settings.brightness - darkest
  is_grey, is_joint_flip = (
    rng.random(2) < (settings.grey_probability, settings.joint_flip_probability)
  ).tolist()
  pair: dict[str, np.ndarray | np.generic] = {"grey": np.bool_(is_grey)}
  for name, stored, box_xywh in (
    ("template", template, template_box_xywh),
    ("search", search, search_box_xywh),
  ):
    factor, size = getattr(settings, f"{name}_factor"), getattr(settings, f"{name}_size")
    if previous and name == "search":
      around = np.asarray(previous_box_xywh, np.float64)
    else:
      jitters = (getattr(settings, f"{name}_{what}_jitter") for what in ("centre", "scale"))
      around = jitter_box(rng, box_xywh, *jitters)
    width, height = stored.frame_wh
    cut_box = box_to_cut_around(around, factor, width, is_joint_flip, settings.half_pixel_labels)
    window = crop.crop_window(cut_box, factor)
    if not shows_frame(window, height, width, size):
      return None
    if stored_crop.missing_share(stored, window) > settings.max_missing_share:
      return None
    in_crop = crop.box_in_crop(
      box_xywh, around, size / window.side, size, settings.half_pixel_labels
    )
    if name == "search" and settings.warps:
      warp = variation.draw_warp(rng, settings.rotation_degrees, settings.aspect_jitter)
      centre_xy = size * (in_crop[:2] + 0.5 * in_crop[2:])
      image = stored_crop.cut_warped(stored, window, size, warp, centre_xy)
      in_crop = variation.warp_box(in_crop, warp)
    else:
      image = stored_crop.cut(stored, window, size)
    if name == "search" and distractor is not None:
      variation.paste_distractor(rng, image, size * in_crop, *distractor)
    if settings.colour_jitter:
      image = variation.vary_colours(rng, image, settings.colour_jitter)
    if settings.blur_probability and rng.random() < settings.blur_probability:
      image = variation.blur(rng, image)
    brighter, own = rng.random(2).tolist()
    is_own_flip = own < own_flip_probability
    pair[name] = image
    pair[f"{name}_flip"] = np.bool_(is_joint_flip != is_own_flip)
    pair[f"{name}_brightness"] = np.float32(darkest + brightness_range * brighter)
    pair[f"{name}_box_xywh"] = label(
      in_crop,
      size,
      is_joint_flip=is_joint_flip,
      is_own_flip=is_own_flip,
      half_pixel=settings.half_pixel_labels,
    )
  return pair
