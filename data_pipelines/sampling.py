"""Which two frames make a training pair."""

import bisect
import dataclasses
import typing
from collections.abc import Sequence

import numpy as np

from data_pipelines.sources import FrameSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings:
  """The official sampler's numbers; a video takes part with more than `min_visible_over` visible
  frames and `min_length` frames, a target in a still image with a box of a side of at least
  `min_image_side` pixels, sqrt(w * h); officially any. A pair's search region shows another target with
  `absent_probability`, officially never; see PairSampler.draw_elsewhere."""

  max_gap: int = 200
  gap_step: int = 5
  min_visible_over: int = 4
  min_length: int = 20
  min_image_side: float = 0.0
  absent_probability: float = 0.0

  def __post_init__(self):
    if self.max_gap < 2:
      raise ValueError(f"max_gap {self.max_gap}: it must be at least 2, since the end is exclusive")
    if self.gap_step < 1:
      raise ValueError(f"gap_step {self.gap_step}: it must be at least 1, for the gap to widen")
    if self.min_visible_over < 1:
      raise ValueError(
        f"min_visible_over {self.min_visible_over}: it must be at least 1, since a pair needs two "
        "visible frames"
      )
    if self.min_image_side < 0:
      raise ValueError(f"min_image_side {self.min_image_side}: it must be at least 0")
    if not 0 <= self.absent_probability < 1:
      raise ValueError(
        f"absent_probability {self.absent_probability}: it must be at least 0 and less than 1, since boxes are "
        "learnt from the other pairs alone"
      )


class PairDraw(typing.NamedTuple):
  """Two frames of one sequence, by their positions in the source's index."""

  source: FrameSource
  sequence: int
  template: int
  search: int


def sample_pair(
  rng: np.random.Generator,
  visible: np.ndarray,
  max_gap: int = 200,
  is_video: bool = True,
  gap_step: int = 5,
) -> tuple[int, int]:
  """Draw a template frame and a later search frame, both visible.

  Args:
    rng: consumed.
    visible: [n] bool.
    max_gap: the search frame is less than this many frames later; widened by `gap_step`, and the
      template drawn anew, as long as nothing visible lies in reach.
    is_video: False gives the first frame twice.

  Returns:
    (template, search) frame numbers. Follows the causal mode of the official sampler.

  Raises:
    ValueError: fewer than two visible frames.
  """
  if not is_video:
    return 0, 0
  (frames,) = visible.nonzero()
  if len(frames) < 2:
    raise ValueError(f"{len(frames)} of {len(visible)} frames are visible: a pair needs two")
  # The last visible frame may be drawn as template, in vain, unless it is the very last frame.
  early = len(frames) - int(frames[-1] == len(visible) - 1)
  reach = max_gap
  while reach < len(visible):
    template = int(frames[rng.integers(early)])
    first, last = frames.searchsorted((template + 1, template + reach))
    if last > first:
      return template, int(frames[rng.integers(first, last)])
    reach += gap_step
  # Everything is in reach. Redrawing until the template has a successor gives each frame but the last
  # visible one the same chance; so does this, at once.
  number = int(rng.integers(len(frames) - 1))
  return int(frames[number]), int(frames[rng.integers(number + 1, len(frames))])


def eligible_sequences(source: FrameSource, settings: SamplingSettings) -> np.ndarray:
  """Return the numbers of the sequences that take part, int [m], out of `source.selected`.

  Videos: those long enough, with enough visible frames. Still images: every target with a box that can
  be cropped around, finite and of positive size; the official 50 px rule is not enforced there either.

  Raises:
    ValueError: none does.
  """
  index, selected = source.index, source.selected
  # Plain views: a slice of a memory map costs several times as much.
  starts, boxes_xywh = np.asarray(index.starts), np.asarray(index.boxes_xywh)
  lengths = starts[selected + 1] - starts[selected]
  if source.is_video:
    visible = np.asarray(index.visible)
    counts = [np.count_nonzero(visible[starts[i] : starts[i + 1]]) for i in selected]
    fits = (np.array(counts, int) > settings.min_visible_over) & (lengths >= settings.min_length)
    needed = (
      f"{settings.min_length} frames and more than {settings.min_visible_over} visible ones; lower "
      "min_length or min_visible_over"
    )
  else:
    fits = lengths > 0
    boxes = boxes_xywh[starts[selected[fits]]]
    fits[fits] = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    areas = boxes_xywh[starts[selected[fits]], 2:].prod(axis=1)
    fits[fits] = areas >= settings.min_image_side**2
    needed = (
      "a box of finite numbers and positive width and height, and sqrt(width * height) of at least "
      f"min_image_side {settings.min_image_side:g}"
    )
  if not fits.any():
    raise ValueError(f"{source!r}: none of its {len(fits)} sequences has {needed}")
  return selected[fits]


def footage_of_tracks(source: FrameSource) -> np.ndarray:
  """Return for each track of a source a number that those of one video, or one image, share, int [s].

  It is the last record of the track's frames: all targets of a video are stored in the same records.
  """
  starts = np.asarray(source.index.starts)
  footage = np.full(len(starts) - 1, -1)
  # reduceat gives an empty track the next one's first record.
  filled = starts[1:] > starts[:-1]
  footage[filled] = np.maximum.reduceat(np.asarray(source.index.records), starts[:-1][filled])
  return footage


class PairSampler:
  """Draws from a mixture: a data set by weight, in it a sequence (each alike), in it two frames."""

  def __init__(
    self,
    sources: Sequence[tuple[FrameSource, float]],
    settings: SamplingSettings | None = None,
  ):
    """Take data sets with their weights.

    Raises:
      ValueError: no data set, a weight below 0 or not finite, a data set without an eligible sequence,
        or absent targets asked for where every data set is one video or image.
    """
    self.settings = settings or SamplingSettings()
    weights = np.array([weight for _, weight in sources], np.float64)
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
      raise ValueError(
        f"data set weights {weights.tolist()}: at least one data set, none below 0, not all 0"
      )
    self.sources = [source for source, _ in sources]
    bounds = np.cumsum(weights)
    self._bounds = (bounds / bounds[-1]).tolist()
    self._eligible = [eligible_sequences(source, self.settings) for source in self.sources]
    # For each data set, of its tracks; None where an eligible one has no other to go to.
    self._footage: list[np.ndarray | None] = [None] * len(self.sources)
    if self.settings.absent_probability:
      for i, (source, eligible) in enumerate(zip(self.sources, self._eligible)):
        footage = footage_of_tracks(source)
        if np.ptp(footage[eligible]):
          self._footage[i] = footage
      if all(f is None or not weight for f, weight in zip(self._footage, weights)):
        raise ValueError(
          f"absent_probability {self.settings.absent_probability}: a search region without the target is taken "
          f"from another video or image of the same data set, and each of {self.sources} has only one; add "
          "a data set, or set absent_probability to 0"
        )

  def draw(self, rng: np.random.Generator) -> PairDraw:
    """Return two frames of a sequence, the template first."""
    which = bisect.bisect_right(self._bounds, rng.random())
    eligible = self._eligible[which]
    return self._draw_in(rng, self.sources[which], int(eligible[rng.integers(len(eligible))]))

  def draw_elsewhere(self, rng: np.random.Generator, draw: PairDraw) -> PairDraw | None:
    """Return two frames of another track of a draw's data set, in which the draw's target is not.

    Tracks of the draw's own video or image do not count: their crops may show its target. None where the
    data set has no other. Only with an absent_probability.
    """
    which = self.sources.index(draw.source)
    eligible, footage = self._eligible[which], self._footage[which]
    if footage is None:
      return None
    while True:
      sequence = int(eligible[rng.integers(len(eligible))])
      if footage[sequence] != footage[draw.sequence]:
        return self._draw_in(rng, draw.source, sequence)

  def shares_footage(self, one: PairDraw, other: PairDraw) -> bool:
    """Return whether two draws are of one video or image. Only with an absent_probability."""
    if one.source is not other.source:
      return False
    footage = self._footage[self.sources.index(one.source)]
    return footage is None or bool(footage[one.sequence] == footage[other.sequence])

  def _draw_in(self, rng: np.random.Generator, source: FrameSource, sequence: int) -> PairDraw:
    positions = source.positions(sequence)
    if not source.is_video:
      return PairDraw(source, sequence, positions.start, positions.start)
    template, search = sample_pair(
      rng,
      source.index.visible[positions],
      self.settings.max_gap,
      gap_step=self.settings.gap_step,
    )
    return PairDraw(source, sequence, positions.start + template, positions.start + search)

  def previous_visible(self, draw: PairDraw) -> int:
    """Return the last visible position before the search frame, at the earliest the template."""
    (earlier,) = draw.source.index.visible[draw.template : draw.search].nonzero()
    return draw.template + int(earlier[-1]) if len(earlier) else draw.template
