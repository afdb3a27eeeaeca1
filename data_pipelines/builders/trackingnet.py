"""TrackingNet's training part as a TFDS data set."""

import os

import numpy as np
from absl import logging

from data_pipelines import splits
from data_pipelines.builders import frame_records, layouts
from data_pipelines.builders.raw_data import RawSequence

_CHUNKS = tuple(f"TRAIN_{i}" for i in range(12))


class TrackingNet(frame_records.FrameRecordBuilder):
  """TrackingNet, Mueller et al. 2018: 30134 training videos in TRAIN_0 to TRAIN_11.

  `<root>/TRAIN_<k>/anno/<name>.txt` with `<root>/TRAIN_<k>/frames/<name>/0.jpg`, 1.jpg, ... A target
  is visible where its box has width and height, as in the official code. Sequences beyond the
  official 30134 are left out with a note: the official sampler never shows them, because its class
  map does not know them.
  """

  name = "trackingnet"
  SEQUENCES_PER_SHARD = 128
  SPLITS = ("train",)
  DEFAULT_SPLITS = ("train",)

  def list_sequences(self, split: str) -> list[str]:
    """Return `TRAIN_<k>/<name>` of the official sequences, by chunk and name.

    Raises:
      FileNotFoundError: sequences of the official list have no annotation or no frames.
      ValueError: two chunks hold a sequence of the same name.
    """
    names = splits.subset("trackingnet", split)
    found: dict[str, str] = {}
    for chunk in _CHUNKS:
      # Sequences with boxes and frames; either may not be unpacked yet.
      frames = set(_entries(self.root / chunk / "frames"))
      annotated = {
        entry[:-4] for entry in _entries(self.root / chunk / "anno") if entry[-4:] == ".txt"
      }
      for name in sorted(frames & annotated):
        if name in found:
          raise ValueError(
            f"sequence {name} is in {found[name]} and in {chunk} of {self.root}; keep one of them"
          )
        found[name] = chunk
    known = set(names)
    extra = [name for name in found if name not in known]
    if extra:
      logging.warning(
        "%d sequences in %s are not in the official list and are left out: %s",
        len(extra),
        self.root,
        layouts.first_names(extra),
      )
    missing = [name for name in names if name not in found]
    where = f"TrackingNet training sequences in {self.root} (as TRAIN_<k>/anno/<name>.txt and frames/<name>)"
    present = set(
      layouts.without_missing(
        names, missing, where, allow_missing=self.builder_config.allow_missing
      )
    )
    return [f"{chunk}/{name}" for name, chunk in found.items() if name in present]

  def read_sequence(self, split: str, key: str) -> RawSequence:
    """Read one sequence; see data_pipelines.builders.layouts for what is refused."""
    del split
    chunk, name = key.split("/")
    annotation = self.root / chunk / "anno" / f"{name}.txt"
    boxes_xywh = layouts.read_rectangles(annotation, name)
    count = len(boxes_xywh)
    folder = self.root / chunk / "frames" / name
    frames = layouts.numbered_frames(folder, 1, 0, count, name, annotation)
    return layouts.one_target(name, frames, boxes_xywh, np.zeros(count, bool), annotation)


def _entries(folder) -> list[str]:
  """List a folder, empty where there is none."""
  return os.listdir(folder) if folder.is_dir() else []
