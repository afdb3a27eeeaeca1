"""From random numbers to one training pair: drawn, read, cropped; again where that comes to nothing."""

import dataclasses
import typing
from collections.abc import Sequence

import grain
import numpy as np
from absl import logging

from data_pipelines.augmentation import AugmentationSettings, Distractor, make_pair
from data_pipelines.context import ContextSettings
from data_pipelines.sampling import PairDraw, PairSampler, SamplingSettings
from data_pipelines.sources import DamagedRecordError, FrameSource

# The official code redraws for ever. A thousand draws in a row without a pair mean broken data.
_MOST_REDRAWS = 1000
# Damaged records that each process names.
_MOST_NAMED = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineSettings:
  """How pairs are drawn and how they are varied.

  on_bad_record: "stop" at a record that cannot be read, or "skip" and count it and draw another pair.
  """

  sampling: SamplingSettings = dataclasses.field(default_factory=SamplingSettings)
  augmentation: AugmentationSettings = dataclasses.field(default_factory=AugmentationSettings)
  on_bad_record: str = "stop"

  def __post_init__(self):
    if self.on_bad_record not in ("stop", "skip"):
      raise ValueError(f"on_bad_record {self.on_bad_record!r}: it must be 'stop' or 'skip'")


class PairTransform(grain.transforms.RandomMap):
  """Draw and augment one pair; the element only numbers it, the random numbers decide all."""

  def __init__(self, sources: Sequence[tuple[FrameSource, float]], settings: PipelineSettings):
    self._sampler = PairSampler(sources, settings.sampling)
    self._settings = settings
    self._has_templates = {
      source: source.storage is not None
      and ContextSettings(**source.storage).holds_templates_of(settings.augmentation)
      for source in self._sampler.sources
    }
    self._named: set[str] = set()

  # grain annotates no result for it.
  def random_map(self, element: int, rng: np.random.Generator) -> dict[str, typing.Any]:  # pyrefly: ignore[bad-override]
    """Return one pair as make_pair does, and how many draws came to nothing before it.

    Returns:
      make_pair's entries; records: int64 [3], the source's number in the mixture, and the positions
      of template and search frame; redraws, skipped: int, pairs that the validity rule rejected, and
      pairs with a damaged record. With an absent_probability also present: bool, False where the search
      region, and search_box_xywh with it, is of another video's or image's target. A source of a single
      video or image has no other: its pairs are all present.

    Raises:
      DamagedRecordError: a record is damaged, and on_bad_record is "stop"; the message names it.
      ValueError: a thousand draws in a row were rejected or damaged.
    """
    del element
    redraws = skipped = 0
    while redraws + skipped < _MOST_REDRAWS:
      draw = self._sampler.draw(rng)
      searched = self._elsewhere(rng, draw) or draw
      try:
        pair = self._make(rng, draw, searched)
      except DamagedRecordError as error:
        if self._settings.on_bad_record == "stop":
          raise
        self._name(str(error))
        skipped += 1
        continue
      if pair is not None:
        number = self._sampler.sources.index(draw.source)
        records = np.array([number, draw.template, searched.search], np.int64)
        if self._settings.sampling.absent_probability:
          pair["present"] = np.bool_(searched is draw)
        return pair | {"records": records, "redraws": redraws, "skipped": skipped}
      redraws += 1
    raise ValueError(
      f"{_MOST_REDRAWS} pairs in a row from {self._sampler.sources} came to nothing: {skipped} had a damaged "
      f"record, and {redraws} showed nothing but padding or too little of the frame; check the files, and "
      "the boxes, which are x, y, width, height in pixels"
    )

  def _name(self, damage: str) -> None:
    """Log a damaged record, once, and no more of them than anybody reads."""
    if damage not in self._named and len(self._named) < _MOST_NAMED:
      self._named.add(damage)
      logging.warning("skipped: %s", damage)

  def _elsewhere(self, rng: np.random.Generator, draw: PairDraw) -> PairDraw | None:
    """Draw where to search in vain; None where the target is to be found."""
    probability = self._settings.sampling.absent_probability
    if not probability or rng.random() >= probability:
      return None
    return self._sampler.draw_elsewhere(rng, draw)

  def _make(
    self, rng: np.random.Generator, draw: PairDraw, searched: PairDraw
  ) -> dict[str, np.ndarray | np.generic] | None:
    """Make the pair of a draw's template and the search frame of `searched`, of the same source."""
    source, template, search = draw.source, draw.template, searched.search
    index, augmentation = source.index, self._settings.augmentation
    if index.records[template] < 0 or index.records[search] < 0:
      # Of a box outside its frame nothing is stored; a crop of the frame would show padding alone.
      return None
    previous_box_xywh = None
    if augmentation.search_centre_from == "previous_box":
      previous_box_xywh = index.boxes_xywh[self._sampler.previous_visible(searched)]
    search_frame = source.stored_frame(search)
    if search == template:
      template_frame = search_frame
    elif self._has_templates[source]:
      template_frame = source.stored_template(template)
    else:
      template_frame = source.stored_frame(template)
    distractor = None
    if augmentation.distractor_probability and rng.random() < augmentation.distractor_probability:
      distractor = self._distractor(rng, draw, absent=searched is not draw)
    try:
      return make_pair(
        rng,
        template_frame,
        index.boxes_xywh[template],
        search_frame,
        index.boxes_xywh[search],
        augmentation,
        previous_box_xywh,
        distractor,
      )
    except ValueError as error:
      raise ValueError(f"{source.describe(search)}: {error}") from error

  def _distractor(
    self, rng: np.random.Generator, draw: PairDraw, *, absent: bool
  ) -> Distractor | None:
    """Draw a target of another sequence; None where this draw came to the same or to nothing stored.

    Where the target is absent nothing of its video or image will do: its box may show the target, too.
    """
    source, sequence, position, _ = other = self._sampler.draw(rng)
    same = source is draw.source and sequence == draw.sequence
    if absent:
      same = same or self._sampler.shares_footage(draw, other)
    if same or source.index.records[position] < 0:
      return None
    read = source.stored_template if self._has_templates[source] else source.stored_frame
    return Distractor(read(position), source.index.boxes_xywh[position])
