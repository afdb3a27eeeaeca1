"""A sheet of sampled training pairs with their labels, as the network sees them."""

import dataclasses
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np

from data_pipelines import contact_sheet
from data_pipelines.augmentation import AugmentationSettings
from data_pipelines.pipeline import Batch, PipelineSettings, train_pipeline
from data_pipelines.sampling import SamplingSettings
from data_pipelines.sources import FrameSource
from ostrack_jax import visualization

# The official settings by search size.
PRESETS = {
  "256": AugmentationSettings(),
  "384": AugmentationSettings(
    template_size=192,
    search_size=384,
    search_factor=5.0,
    search_centre_jitter=4.5,
    search_scale_jitter=0.5,
  ),
}
_COLUMNS_PX = 1600


def settings(preset: str, **changes) -> AugmentationSettings:
  """Return a preset's settings with changes; raises ValueError for sizes that do not fit a model."""
  return dataclasses.replace(PRESETS[preset], **changes)


@dataclasses.dataclass(frozen=True, eq=False)
class SeenPair:
  """A pair as the network sees it, but for the normalisation.

  template, search: uint8 RGB [Z, Z, 3] and [S, S, 3]. template_box_xywh, search_box_xywh: [4] labels
  in pixels of their crops. words: what was done to each. present: whether the search region shows the
  template's target; if not, search_box_xywh is another's, and no label.
  """

  template: np.ndarray
  search: np.ndarray
  template_box_xywh: np.ndarray
  search_box_xywh: np.ndarray
  words: tuple[str, str]
  present: bool = True


def see_pair(batch: Batch, i: int) -> SeenPair:
  """Do to pair `i` of a batch what the device does: grey, flips, brightness."""
  seen: dict[str, tuple[np.ndarray, np.ndarray, str]] = {}
  for name in ("template", "search"):
    image, done = batch[name][i], []
    if batch["grey"][i]:
      image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
      done.append("grey")
    if batch[f"{name}_flip"][i]:
      image = image[:, ::-1]
      done.append("flipped")
    brightness = float(batch[f"{name}_brightness"][i])
    image = np.clip(np.rint(image * np.float32(brightness)), 0, 255).astype(np.uint8)
    done.append(f"brightness {brightness:.2f}")
    box_xywh = np.asarray(batch[f"{name}_box_xywh"][i], np.float64) * image.shape[1]
    seen[name] = np.ascontiguousarray(image), box_xywh, ", ".join(done)
  (template, template_box, template_words), (search, search_box, search_words) = seen.values()
  present = bool(batch["present"][i]) if "present" in batch else True
  words = (template_words, search_words if present else f"absent, {search_words}")
  return SeenPair(template, search, template_box, search_box, words, present)


def draw_pair(pair: SeenPair) -> np.ndarray:
  """Return template and search region side by side at their own size, with labels and words.

  A search region without the target has no label.
  """
  template = visualization.draw_box(pair.template, pair.template_box_xywh)
  search = pair.search
  if pair.present:
    search = visualization.draw_box(search, pair.search_box_xywh)
  words = [f"template: {pair.words[0]}", f"search: {pair.words[1]}"]
  return contact_sheet.captioned(contact_sheet.beside([template, search]), words)


def sample_pairs(
  sources: Sequence[tuple[FrameSource, float]],
  augmentation: AugmentationSettings,
  count: int,
  seed: int,
  absent_probability: float = 0.0,
) -> list[SeenPair]:
  """Draw the first pairs that training from this seed would see; raises as train_pipeline does."""
  sampling = SamplingSettings(absent_probability=absent_probability)
  pipeline = PipelineSettings(sampling=sampling, augmentation=augmentation)
  batches = train_pipeline(sources, pipeline, batch_size=count, seed=seed, num_threads=0)
  try:
    batch = next(batches)
  finally:
    batches.close()
  return [see_pair(batch, i) for i in range(count)]


def write_preview(
  path: pathlib.Path,
  sources: Sequence[tuple[FrameSource, float]],
  augmentation: AugmentationSettings,
  *,
  pairs: int = 16,
  seed: int = 0,
  absent_probability: float = 0.0,
) -> None:
  """Write a sheet of sampled pairs; the suffix of the file chooses the format.

  absent_probability: that a search region shows another target, as in SamplingSettings.

  Raises:
    ValueError: no pairs asked for, a suffix that cannot be written, or see train_pipeline.
    DamagedRecordError: a record cannot be read.
  """
  if pairs < 1:
    raise ValueError(f"{pairs} pairs to preview: ask for at least 1")
  sampled = sample_pairs(sources, augmentation, pairs, seed, absent_probability)
  tiles = [draw_pair(pair) for pair in sampled]
  columns = max(1, _COLUMNS_PX // tiles[0].shape[1])
  visualization.write_image(path, contact_sheet.sheet(tiles, columns))
