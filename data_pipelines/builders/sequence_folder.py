"""A folder of tracking sequences as a TFDS data set: own data, OTB, LaSOT, TinyTLP, VOT layouts."""

import hashlib
import os
import pathlib
import re

import numpy as np
from absl import logging

from data_pipelines import context, preparation
from data_pipelines.builders import frame_records, layouts
from data_pipelines.builders.raw_data import RawSequence, Target
from ostrack_jax import annotations

ANNOTATION_FILES = ("groundtruth.txt", "groundtruth_rect.txt")
FRAME_FOLDERS = ("", "img", "imgs", "color")
# Marks a frame, and what of them means that the target cannot be seen: LaSOT's and GOT-10k's.
_HIDDEN_MARKS = {
  "full_occlusion.txt": lambda marks: marks != 0,
  "out_of_view.txt": lambda marks: marks != 0,
  "absence.label": lambda marks: marks != 0,
  "cover.label": lambda marks: marks <= 0,
}


def annotation_file(folder: pathlib.Path) -> pathlib.Path | None:
  """Return the annotation file of a sequence's folder, None if it has none."""
  found = (folder / name for name in ANNOTATION_FILES)
  return next((path for path in found if path.is_file()), None)


def find_sequences(root: str | os.PathLike[str]) -> dict[str, pathlib.Path]:
  """Find the sequences of a folder, as `<root>/<name>` or `<root>/<class>/<name>`, sorted.

  Raises:
    FileNotFoundError: no such folder, or no sequence in it.
  """
  root = pathlib.Path(root)
  if not root.is_dir():
    raise FileNotFoundError(f"no folder {root}: pass the folder that holds the sequences")
  found: dict[str, pathlib.Path] = {}
  for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
    inner = (
      [folder] if annotation_file(folder) else sorted(p for p in folder.iterdir() if p.is_dir())
    )
    for path in inner:
      if annotation_file(path):
        found[path.relative_to(root).as_posix()] = path
  if not found:
    hint = (
      "; it looks like a sequence itself: pass the folder above it" if annotation_file(root) else ""
    )
    raise FileNotFoundError(
      f"no sequence in {root}: expected <name>/{ANNOTATION_FILES[0]} or <name>/{ANNOTATION_FILES[1]} beside "
      f"frames or an img folder{hint}"
    )
  return found


def _number_order(path: pathlib.Path):
  return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def find_frames(folder: pathlib.Path) -> list[pathlib.Path]:
  """List the frames of a sequence in the order of their numbers.

  Raises:
    FileNotFoundError: none in the folder or its img, imgs or color folder.
  """
  for name in FRAME_FOLDERS:
    inner = folder / name
    if not inner.is_dir():
      continue
    frames = [
      p for p in inner.iterdir() if p.suffix.lower() in layouts.IMAGE_SUFFIXES and p.name[0] != "."
    ]
    if frames:
      return sorted(frames, key=_number_order)
  raise FileNotFoundError(f"no frames in {folder}, nor in its img, imgs or color folder")


def read_annotation(folder: pathlib.Path, name: str, frame_count: int):
  """Read a sequence's boxes_xywh [n, 4] px and visible [n]; n is at most `frame_count`.

  Frames beyond the last box are left out with a note. Not visible: NaN, no width or height, flagged as
  lost, or marked as hidden in LaSOT's or GOT-10k's files where there are any.

  Raises:
    FileNotFoundError: no annotation file.
    ValueError: more boxes than frames, or a file of marks of another length.
  """
  path = annotation_file(folder)
  if path is None:
    raise FileNotFoundError(f"sequence {name}: none of {', '.join(ANNOTATION_FILES)} in {folder}")
  boxes = annotations.read_boxes(path)
  count = len(boxes.boxes_xywh)
  if count > frame_count:
    raise ValueError(
      f"sequence {name}: {count} boxes in {path} but {frame_count} frames; every box needs its frame"
    )
  if count < frame_count:
    logging.warning(
      "sequence %s: %d frames, %d boxes; later frames are left out", name, frame_count, count
    )
  visible = ~boxes.absent
  for file, is_hidden in _HIDDEN_MARKS.items():
    if (folder / file).is_file():
      visible &= ~is_hidden(layouts.read_marks(folder / file, count, name))
  return np.where(visible[:, None], np.nan_to_num(boxes.boxes_xywh), 0.0), visible


class SequenceFolder(frame_records.FrameRecordBuilder):
  """Sequences from a folder: frames as they are, boxes from a text file.

  `<root>/<name>/` or `<root>/<class>/<name>/`, each with groundtruth.txt or groundtruth_rect.txt (see
  ostrack_jax.annotations for columns and separators) and frames in it or in img/, imgs/ or color/.
  """

  SPLITS = ("train",)
  DEFAULT_SPLITS = ("train",)
  IDENTIFIED_BY_ROOT = True

  def list_sequences(self, split: str) -> list[str]:
    """Return the folders of the sequences below the root; see `find_sequences`."""
    del split
    return list(find_sequences(self.root))

  def annotation_digest(self, split: str, key: str) -> str:
    """Return a SHA-256 of the box file."""
    del split
    path = annotation_file(self.root / pathlib.PurePosixPath(key))
    return hashlib.sha256(path.read_bytes()).hexdigest() if path else ""

  def read_sequence(self, split: str, key: str) -> RawSequence:
    """Read one sequence; see `find_frames` and `read_annotation` for what is refused."""
    del split
    folder = self.root / pathlib.PurePosixPath(key)
    frames = find_frames(folder)
    boxes_xywh, visible = read_annotation(folder, key, len(frames))
    return RawSequence(key, tuple(frames[: len(boxes_xywh)]), (Target(key, boxes_xywh, visible),))


def prepare_sequence_folder(
  root: str | os.PathLike[str],
  data_dir: str | os.PathLike[str],
  name: str,
  storage: context.ContextSettings | None = None,
) -> pathlib.Path:
  """Store the sequences of a folder below `data_dir` unless done, and return the directory.

  Its only split is "train". Once it is prepared, the folder may be gone.

  Args:
    root: the folder; see SequenceFolder.
    data_dir: root of all prepared data.
    name: what to call the data set; letters, digits and underscores.
    storage: what context records must serve; None keeps whole frames.

  Raises:
    FileNotFoundError: no folder, no sequence or no frames.
    ValueError: a bad name, an unreadable frame or annotation, more boxes than frames, or a name in
      use for other sequences.
  """
  if not name:
    raise ValueError("own data needs a name: letters, digits and underscores")
  return preparation.prepare_folder(SequenceFolder, root, data_dir, name, storage=storage)
