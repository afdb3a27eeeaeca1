"""Objects drawn on the frames they are followed through: boxes, trails, and search regions as insets."""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from ostrack_jax import crop, visualization

Colour = tuple[int, int, int]
# Of Okabe and Ito, apart for colour-blind eyes; those that are readable on most footage come first.
PALETTE: dict[str, Colour] = {
  "yellow": visualization.TRACK_COLOUR,
  "sky_blue": (86, 180, 233),
  "orange": (230, 159, 0),
  "green": (0, 158, 115),
  "vermilion": (213, 94, 0),
  "purple": (204, 121, 167),
  "blue": (0, 114, 178),
}
# Share of the frame's shorter side.
_INSET_SHARE = 0.28


def parse_colour(text: str) -> Colour:
  """Return RGB of a colour of the palette or of #rrggbb; raises ValueError for anything else."""
  if text in PALETTE:
    return PALETTE[text]
  if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
    raise ValueError(f"--colour={text} is unknown; give #rrggbb or one of {', '.join(PALETTE)}")
  red, green, blue = bytes.fromhex(text[1:])
  return red, green, blue


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawingOptions:
  """How objects are drawn.

  Attributes:
    colours: RGB, for one object after another, from the first again where there are more.
    line_width: of boxes in pixels; None for one that suits the frame.
    trail: for how many frames back the way of a box's centre is drawn.
    inset: whether the search regions are shown along the lower edge, as many as there is room for.
    search_factor: of those.
    numbered: whether labels say which object it is.
  """

  colours: Sequence[Colour] = tuple(PALETTE.values())
  line_width: int | None = None
  trail: int = 0
  inset: bool = False
  search_factor: float = 4.0
  numbered: bool = False

  def __post_init__(self):
    if self.line_width is not None and not 1 <= self.line_width <= 100:
      raise ValueError(f"--line_width={self.line_width} must lie between 1 and 100 pixels")
    if self.trail < 0:
      raise ValueError(f"--trail={self.trail} must be a number of frames, 0 or more")


class TrackPainter:
  """Draws the objects of one frame after another; it remembers where they were."""

  def __init__(self, options: DrawingOptions):
    self._options = options
    self._painted: tuple[np.ndarray, np.ndarray] | None = None
    self._before: dict[int, np.ndarray] = {}
    self._trails: dict[int, collections.deque[np.ndarray]] = {}

  def paint(self, image: np.ndarray, results: Mapping[int, Any]) -> np.ndarray:
    """Return a frame with its objects drawn. The same array again gives the same picture.

    Args:
      image: [H, W, 3] RGB uint8, of which a copy is drawn on.
      results: TrackResult by object.
    """
    if self._painted is not None and self._painted[0] is image:
      return self._painted[1]
    painted = image.copy()
    for number, found in results.items():
      if self._options.trail:
        self._draw_trail(painted, number, found.box_xywh)
    for number, found in results.items():
      painted = visualization.draw_box(
        painted,
        found.box_xywh,
        self._label(number, found),
        self._colour(number),
        self._options.line_width,
      )
    if self._options.inset:
      self._draw_insets(image, painted, results)
    self._before = {number: found.box_xywh for number, found in results.items()}
    self._painted = image, painted
    return painted

  def _colour(self, number: int) -> Colour:
    return self._options.colours[number % len(self._options.colours)]

  def _label(self, number: int, found) -> str:
    words = [f"{number}"] if self._options.numbered else []
    sure = found.score if found.confidence is None else found.confidence
    if np.isfinite(sure):
      words.append(f"{sure:.2f}")
    if found.visible is False:
      words.append("absent")
    return " ".join(words)

  def _thickness(self, image: np.ndarray) -> int:
    return self._options.line_width or visualization.line_width(image)

  def _draw_trail(self, painted: np.ndarray, number: int, box_xywh: np.ndarray) -> None:
    """Draw the way to a box's centre, fainter the longer ago it is."""
    trail = self._trails.setdefault(number, collections.deque(maxlen=self._options.trail + 1))
    trail.append(box_xywh[:2] + 0.5 * box_xywh[2:])
    # cv2 counts in quarters of a pixel here, so that slow objects do not move in steps.
    points = np.rint(np.clip(np.array(trail), -1e4, 1e4) * 4).astype(np.int32)
    colour = np.array(self._colour(number), np.float64)
    for age, (start, end) in enumerate(zip(points[-2::-1], points[:0:-1])):
      strength = 1 - 0.7 * age / self._options.trail
      cv2.line(
        painted,
        start.tolist(),
        end.tolist(),
        (strength * colour).tolist(),
        self._thickness(painted),
        cv2.LINE_AA,
        2,
      )

  def _draw_insets(
    self, image: np.ndarray, painted: np.ndarray, results: Mapping[int, Any]
  ) -> None:
    """Show where each object was looked for, and in it where it was found."""
    height, width = image.shape[:2]
    size = max(round(_INSET_SHARE * min(height, width)), 32)
    edge = self._thickness(image)
    for place, (number, found) in enumerate(results.items()):
      left, top = place * (size + edge), height - size
      if left + size > width or top < 0:
        break
      around = self._before.get(number, found.box_xywh)
      inset, resize_factor = crop.crop_square(image, around, self._options.search_factor, size)
      box = size * crop.box_in_crop(found.box_xywh, around, resize_factor, size, half_pixel=False)
      colour = self._colour(number)
      inset = visualization.draw_box(inset, box, "", colour, max(1, edge // 2))
      cv2.rectangle(inset, (0, 0), (size - 1, size - 1), colour, edge)
      painted[top : top + size, left : left + size] = inset
