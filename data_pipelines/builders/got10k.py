"""GOT-10k as a TFDS data set."""

import collections
import pathlib

import numpy as np
from absl import logging

from data_pipelines import splits
from data_pipelines.builders import frame_records, layouts
from data_pipelines.builders.raw_data import RawSequence

# 1 where the target is absent; how much of it can be seen, 0 to 8.
_ABSENCE, _COVER = "absence.label", "cover.label"


class Got10k(frame_records.FrameRecordBuilder):
  """GOT-10k, Huang et al. 2019: 9335 training and 180 validation videos.

  `<root>/train/list.txt` and `<root>/train/GOT-10k_Train_000001/`, ..., each with 00000001.jpg, ...,
  groundtruth.txt, absence.label and cover.label; `val` likewise. Each part is stored whole, in the
  order of its list.txt; data_pipelines.splits says which of its sequences vottrain, votval and the
  other splits consist of. A target is visible where its box has width and height, absence is 0 and
  cover above 0, as in the official code. A folder without either label, as users make them, has
  nothing hidden; one with only one of them is refused.
  """

  SEQUENCES_PER_SHARD = 128
  SPLITS = ("train", "val")
  DEFAULT_SPLITS = ("train", "val")

  def list_sequences(self, split: str) -> list[str]:
    """Return the names of a part's sequences, in the order of its list.txt.

    Raises:
      FileNotFoundError: no list.txt, or sequences of the official part are missing.
      ValueError: list.txt names a sequence twice, or is complete but not in natural order: the index
        lists of the splits would then mean other sequences than they do everywhere else.
    """
    path = self.root / split / "list.txt"
    if not path.is_file():
      raise FileNotFoundError(
        f"no file {path}: the raw folder of GOT-10k holds train/ and val/, each with its list.txt"
      )
    listed = path.read_text(encoding="utf-8-sig").split()
    official = splits.got10k_names(split)
    _check_list(path, listed, official)
    # In the order of list.txt; what it should name and does not comes last.
    expected = list(dict.fromkeys((*listed, *official)))
    named = set(listed)
    missing = [
      name
      for name in expected
      if name not in named or not (path.parent / name / "groundtruth.txt").is_file()
    ]
    return layouts.without_missing(
      expected,
      missing,
      f"GOT-10k {split} sequences in {path.parent} and its list.txt (--splits chooses between train and val)",
      allow_missing=self.builder_config.allow_missing,
    )

  def read_sequence(self, split: str, key: str) -> RawSequence:
    """Read one sequence; see data_pipelines.builders.layouts for what is refused."""
    folder = self.root / split / key
    annotation = folder / "groundtruth.txt"
    boxes_xywh = layouts.read_rectangles(annotation, key)
    count = len(boxes_xywh)
    frames = layouts.numbered_frames(folder, 8, 1, count, key, annotation)
    if (folder / _ABSENCE).is_file() or (folder / _COVER).is_file():
      absence = layouts.read_marks(folder / _ABSENCE, count, key)
      cover = layouts.read_marks(folder / _COVER, count, key)
      hidden = (absence != 0) | (cover <= 0)
    else:
      logging.info("sequence %s: neither %s nor %s; nothing is hidden", key, _ABSENCE, _COVER)
      hidden = np.zeros(count, bool)
    return layouts.one_target(key, frames, boxes_xywh, hidden, annotation)


def _check_list(path: pathlib.Path, listed: list[str], official: tuple[str, ...]) -> None:
  """Refuse a list.txt with repeated names, or a complete one in another than natural order."""
  repeated = [name for name, count in collections.Counter(listed).items() if count > 1]
  if repeated:
    raise ValueError(f"{path} names {layouts.first_names(repeated)} more than once")
  known = set(official)
  kept = [name for name in listed if name in known]
  if len(kept) < len(official):
    return
  for number, (name, expected) in enumerate(zip(kept, official, strict=True), start=1):
    if name != expected:
      raise ValueError(
        f"{path} is not in natural order: its sequence {number} is {name}, expected {expected}; the "
        "index lists of vottrain and votval cannot be applied to it. Sort it by name"
      )
