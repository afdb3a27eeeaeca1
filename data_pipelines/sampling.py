"""Which two frames make a training pair."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.sources import FrameSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings:
  """The official sampler's numbers; a video takes part with more than `min_visible_over` visible
  frames and `min_length` frames."""

  max_gap: int = 200
  gap_step: int = 5
  min_visible_over: int = 4
  min_length: int = 20

  def __post_init__(self):
    if self.max_gap < 2:
      raise ValueError(f"max_gap {self.max_gap}: it must be at least 2, since the end is exclusive")


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
  (frames,) = np.nonzero(visible)
  if len(frames) < 2:
    raise ValueError(f"{len(frames)} of {len(visible)} frames are visible: a pair needs two")
  early = frames[frames < len(visible) - 1]
  reach = max_gap
  while True:
    template = int(early[rng.integers(len(early))])
    first = np.searchsorted(frames, template + 1)
    last = np.searchsorted(frames, template + reach)
    if last > first:
      return template, int(frames[rng.integers(first, last)])
    reach += gap_step


def eligible_sequences(source: FrameSource, settings: SamplingSettings) -> np.ndarray:
  """Return the numbers of the sequences that take part, int [m].

  Raises:
    ValueError: none does.
  """
  starts = source.index.starts
  if not source.is_video:
    return np.arange(len(starts) - 1)
  totals = np.concatenate([[0], np.cumsum(source.index.visible)])
  visible = totals[starts[1:]] - totals[starts[:-1]]
  fits = (visible > settings.min_visible_over) & (np.diff(starts) >= settings.min_length)
  if not fits.any():
    raise ValueError(
      f"{source!r}: none of its {len(fits)} sequences has {settings.min_length} frames and more than "
      f"{settings.min_visible_over} visible ones; lower min_length or min_visible_over"
    )
  return np.flatnonzero(fits)


class PairSampler:
  """Draws from a mixture: a data set by weight, in it a sequence (each alike), in it two frames."""

  def __init__(
    self,
    sources: Sequence[tuple[FrameSource, float]],
    settings: SamplingSettings | None = None,
  ):
    """Take data sets with their weights; raises ValueError for no data set or a weight below 0."""
    self.settings = settings or SamplingSettings()
    weights = np.array([weight for _, weight in sources], np.float64)
    if not len(weights) or (weights < 0).any() or not weights.sum() > 0:
      raise ValueError(
        f"data set weights {weights.tolist()}: at least one data set, none below 0, not all 0"
      )
    self.sources = [source for source, _ in sources]
    self._bounds = np.cumsum(weights / weights.sum())
    self._eligible = [eligible_sequences(source, self.settings) for source in self.sources]

  def draw(self, rng: np.random.Generator) -> tuple[FrameSource, int, int]:
    """Return (source, template record, search record)."""
    which = int(np.searchsorted(self._bounds, rng.random(), side="right"))
    which = min(which, len(self.sources) - 1)
    source, eligible = self.sources[which], self._eligible[which]
    records = source.records(int(eligible[rng.integers(len(eligible))]))
    template, search = sample_pair(
      rng,
      source.index.visible[records],
      self.settings.max_gap,
      source.is_video,
      self.settings.gap_step,
    )
    return source, records.start + template, records.start + search

  def previous_visible(self, source: FrameSource, template: int, search: int) -> int:
    """Return the last visible record before `search`, at the earliest `template`."""
    earlier = np.flatnonzero(source.index.visible[template:search])
    return template + int(earlier[-1]) if len(earlier) else template
