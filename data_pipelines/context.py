"""Context crops: the part of a frame that jittered crops can ever show, at the resolution they can show.

Around a target of side r = sqrt(w * h), a crop of factor f is f * r' wide and its centre moves by at most
c / 2 * r', where r' = r * exp(s * n) with n normal. With w and h both k = 3 deviations larger, a crop
reaches (f + c) / 2 * r * exp(k * s) to every side: that much is stored, up to the frame's border. A crop of S
pixels whose side is m = 3.5 deviations small (s / sqrt 2 each) shows S / (f * r * exp(-m * s / sqrt 2)) of its
pixels a frame pixel: what is stored has that resolution, or the frame's where that is lower. One crop in
4,000 would have shown more.

Templates hardly jitter, and decoding is most of a pair's cost: of every target in a video the square that
templates reach is stored a second time, by itself, where that is much less to decode.
"""

import dataclasses
import math

import cv2
import numpy as np

from data_pipelines.augmentation import AugmentationSettings, CropSettings

# Bilinear reading and rounding look this many pixels past a crop.
_MARGIN = 2
# Storing more than this share of a frame's pixels is not worth encoding them again: at quality 95 a pixel
# takes about twice the bytes that it takes in the files of the public sets.
_WORTH = 0.5
_RESOLUTION_SIGMAS = 3.5
# Stored pixels a template pixel: sampled twice, a template is then still within 2 levels of the frame's.
_TEMPLATE_OVERSAMPLING = 1.6


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextSettings(CropSettings):
  """The crops that a context record must serve.

  sigmas: deviations of the size jitter that the stored area covers. jpeg_quality: of what is stored.
  """

  sigmas: float = 3.0
  jpeg_quality: int = 95

  def _crops(self):
    for kind in ("template", "search"):
      yield (
        getattr(self, f"{kind}_size"),
        getattr(self, f"{kind}_factor"),
        getattr(self, f"{kind}_centre_jitter"),
        getattr(self, f"{kind}_scale_jitter"),
      )

  @property
  def reach(self) -> float:
    """How far from the target's centre is stored, over sqrt(w * h)."""
    return max((f + c) / 2 * math.exp(self.sigmas * s) for _, f, c, s in self._crops())

  @property
  def template_reach(self) -> float:
    """How far from the target's centre templates reach, over sqrt(w * h)."""
    reach = (self.template_factor + self.template_centre_jitter) / 2
    return reach * math.exp(self.sigmas * self.template_scale_jitter)

  @property
  def resolution(self) -> float:
    """Stored pixels over sqrt(w * h)."""
    return max(
      size / (f * math.exp(-_RESOLUTION_SIGMAS * s / math.sqrt(2)))
      for size, f, _, s in self._crops()
    )

  @property
  def template_resolution(self) -> float:
    """Stored pixels over sqrt(w * h) of what is stored for templates alone."""
    return min(self.resolution, _TEMPLATE_OVERSAMPLING * self.template_size / self.template_factor)

  def augmentation(self) -> AugmentationSettings:
    """Return the augmentation that these records were made for, the rest of it official."""
    return AugmentationSettings(**self.crops())

  def shortcomings(self, augmentation: CropSettings) -> list[str]:
    """Name what an augmentation asks for beyond what these records hold; empty if nothing."""
    need = ContextSettings(**augmentation.crops())
    found = []
    if need.reach > self.reach * (1 + 1e-9):
      found.append(
        f"crops reach {need.reach:.2f} box sides from the target, {self.reach:.2f} are stored: factor or jitter "
        "is larger"
      )
    if need.resolution > self.resolution * (1 + 1e-9):
      found.append(
        f"crops show a box side in {need.resolution:.0f} pixels, {self.resolution:.0f} are stored: the size is "
        "larger or the factor smaller"
      )
    return found

  def holds_templates_of(self, augmentation: CropSettings) -> bool:
    """Return whether what is stored for templates alone serves an augmentation's templates."""
    need = ContextSettings(**augmentation.crops())
    pairs = (
      (need.template_reach, self.template_reach),
      (need.template_size / need.template_factor, self.template_size / self.template_factor),
    )
    return all(wanted <= stored * (1 + 1e-9) for wanted, stored in pairs)


# What the official configurations draw, by search size.
PRESETS = {
  256: ContextSettings(),
  384: ContextSettings(
    template_size=192,
    search_size=384,
    search_factor=5.0,
    search_centre_jitter=4.5,
    search_scale_jitter=0.5,
  ),
}


@dataclasses.dataclass(frozen=True)
class Region:
  """A part of a frame and how large it is stored.

  xyxy: integer pixels of the frame, the end exclusive. stored_wh: pixels.
  """

  xyxy: tuple[int, int, int, int]
  stored_wh: tuple[int, int]


def plan_region(
  boxes_xywh: np.ndarray, frame_wh: tuple[int, int], settings: ContextSettings
) -> Region | None:
  """Return what to store of a frame with these targets, or None if no target is near the frame.

  The whole frame as it is, where storing less would hardly save anything.

  Args:
    boxes_xywh: [k, 4] pixels of the frame, positive sizes; several targets share one region.
    frame_wh: width and height of the frame.
  """
  width, height = frame_wh
  region = _plan(boxes_xywh, frame_wh, settings.reach, settings.resolution)
  if region is not None and math.prod(region.stored_wh) > _WORTH * width * height:
    return Region((0, 0, width, height), (width, height))
  return region


def plan_template(
  box_xywh: np.ndarray, frame_wh: tuple[int, int], settings: ContextSettings, region: Region
) -> Region | None:
  """Return what to store for templates of one target alone, or None if that saves too little.

  Args:
    box_xywh: [4] pixels of the frame, positive size.
    frame_wh: width and height of the frame.
    region: what is stored of the frame anyway.
  """
  template = _plan(box_xywh, frame_wh, settings.template_reach, settings.template_resolution)
  if template is None or math.prod(template.stored_wh) > _WORTH * math.prod(region.stored_wh):
    return None
  return template


def _plan(boxes_xywh, frame_wh: tuple[int, int], reach: float, resolution: float) -> Region | None:
  """Return the rectangle around boxes, `reach` box sides to every side, shrunk to a resolution."""
  width, height = frame_wh
  boxes = np.asarray(boxes_xywh, np.float64).reshape(-1, 4)
  sides = np.sqrt(boxes[:, 2] * boxes[:, 3])
  centres = boxes[:, :2] + boxes[:, 2:] / 2
  around = (reach * sides + _MARGIN)[:, None]
  low = np.floor((centres - around).min(axis=0))
  high = np.ceil((centres + around).max(axis=0))
  x1, y1 = (int(max(v, 0)) for v in low)
  x2, y2 = int(min(high[0], width)), int(min(high[1], height))
  if x2 <= x1 or y2 <= y1:
    return None
  scale = min(1.0, resolution / sides.min())
  stored_wh = (math.ceil((x2 - x1) * scale), math.ceil((y2 - y1) * scale))
  return Region((x1, y1, x2, y2), stored_wh)


def cut_region(frame: np.ndarray, region: Region) -> np.ndarray:
  """Cut a region out of a frame, uint8 [H, W, 3], and shrink it to its stored size.

  Bilinear and without smoothing, as the official crops are taken: of OpenCV's kernels this one leaves
  the least difference between a crop of the stored region and a crop of the frame.
  """
  x1, y1, x2, y2 = region.xyxy
  part = frame[y1:y2, x1:x2]
  if region.stored_wh == (x2 - x1, y2 - y1):
    return part
  return cv2.resize(part, region.stored_wh, interpolation=cv2.INTER_LINEAR)
