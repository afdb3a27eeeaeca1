"""LaSOT as a TFDS data set."""

import pathlib

from data_pipelines import splits
from data_pipelines.builders import frame_records, layouts
from data_pipelines.builders.raw_data import RawSequence

_HIDDEN = ("full_occlusion.txt", "out_of_view.txt")


class Lasot(frame_records.FrameRecordBuilder):
  """LaSOT, Fan et al. 2019: 1120 training and 280 test videos of 70 classes, by name.

  `<root>/<class>/<name>` or `<root>/<name>`, each with img/00000001.jpg, ..., groundtruth.txt, and
  full_occlusion.txt and out_of_view.txt in one line. A target is visible where its box has width and
  height and both files say 0, as in the official code.
  """

  SPLITS = ("train", "test")
  DEFAULT_SPLITS = ("train",)

  def list_sequences(self, split: str) -> list[str]:
    """Return the folders of a split below the root, in the order of the official list."""
    names = splits.subset("lasot", split)
    found = {name: self._find(name) for name in names}
    missing = [name for name in names if found[name] is None]
    where = f"LaSOT {split} sequences in {self.root} (as <class>/<name> or <name>)"
    present = layouts.without_missing(
      names, missing, where, allow_missing=self.builder_config.allow_missing
    )
    return [str(found[name]) for name in present]

  def _find(self, name: str) -> str | None:
    for folder in (f"{name.rpartition('-')[0]}/{name}", name):
      if (self.root / folder / "groundtruth.txt").is_file():
        return folder
    return None

  def read_sequence(self, split: str, key: str) -> RawSequence:
    """Read one sequence; see data_pipelines.builders.layouts for what is refused."""
    del split
    folder = self.root / pathlib.PurePosixPath(key)
    annotation = folder / "groundtruth.txt"
    boxes_xywh = layouts.read_rectangles(annotation, folder.name)
    count = len(boxes_xywh)
    marks = [layouts.read_marks(folder / name, count, folder.name) for name in _HIDDEN]
    frames = layouts.numbered_frames(folder / "img", 8, 1, count, folder.name, annotation)
    hidden = (marks[0] != 0) | (marks[1] != 0)
    return layouts.one_target(folder.name, frames, boxes_xywh, hidden, annotation)
