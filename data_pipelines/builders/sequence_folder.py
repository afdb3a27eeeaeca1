"""A folder of tracking sequences as a TFDS data set: own data, OTB, LaSOT, TinyTLP, VOT layouts."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import logging

from data_pipelines import sources
from data_pipelines.builders import frame_records
from ostrack_jax import annotations

ANNOTATION_FILES = ("groundtruth.txt", "groundtruth_rect.txt")
FRAME_FOLDERS = ("", "img", "imgs", "color")
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# LaSOT: 1 where the target cannot be seen.
_HIDDEN_FLAGS = ("full_occlusion.txt", "out_of_view.txt")
_JPEG_QUALITY = 95


@dataclasses.dataclass(eq=False)
class SequenceFolderConfig(tfds.core.BuilderConfig):
  """TFDS configuration: the folder that holds the sequences."""

  name: str = "default"
  root: str = ""


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
    frames = [p for p in inner.iterdir() if p.suffix.lower() in _IMAGES and p.name[0] != "."]
    if frames:
      return sorted(frames, key=_number_order)
  raise FileNotFoundError(f"no frames in {folder}, nor in its img, imgs or color folder")


def read_annotation(folder: pathlib.Path, name: str, frame_count: int):
  """Read a sequence's boxes_xywh [n, 4] px and visible [n]; n is at most `frame_count`.

  Frames beyond the last box are left out with a note. Not visible: NaN, no width or height, flagged as
  lost, or marked in LaSOT's full_occlusion.txt or out_of_view.txt.

  Raises:
    ValueError: more boxes than frames, or a flag file of another length.
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
    logging.info(
      "sequence %s: %d frames, %d boxes; later frames are left out", name, frame_count, count
    )
  visible = ~boxes.absent
  for flag in _HIDDEN_FLAGS:
    if (folder / flag).is_file():
      marks = annotations.read_rows(folder / flag).ravel()
      if len(marks) != count:
        raise ValueError(
          f"sequence {name}: {len(marks)} marks in {folder / flag} but {count} boxes"
        )
      visible &= marks == 0
  return np.where(visible[:, None], np.nan_to_num(boxes.boxes_xywh), 0.0), visible


def read_jpeg(path: pathlib.Path) -> bytes:
  """Return a frame as JPEG: the file's own bytes if it is one, else encoded at quality 95.

  Raises:
    ValueError: the file is empty, truncated, or no image.
  """
  data = path.read_bytes()
  is_jpeg = data[:2] == b"\xff\xd8"
  # A reduced decode is enough to see that it can be read. OpenCV 4 also decodes what has lost its end.
  mode = cv2.IMREAD_REDUCED_COLOR_8 if is_jpeg else cv2.IMREAD_COLOR
  image = cv2.imdecode(np.frombuffer(data, np.uint8), mode) if data else None
  if image is None or (is_jpeg and b"\xff\xd9" not in data[-4096:]):
    raise ValueError(f"cannot read frame {path}: it is {'truncated' if is_jpeg else 'no image'}")
  if is_jpeg:
    return data
  encoded, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
  if not encoded:
    raise ValueError(f"cannot encode frame {path} as JPEG")
  return jpeg.tobytes()


class SequenceFolder(frame_records.FrameRecordBuilder):
  """Sequences from a folder: frames as they are, boxes from a text file."""

  def sequences(self, split: str) -> Iterator[frame_records.EncodedSequence]:
    """Read the sequences one after another."""
    del split
    config = self.builder_config
    assert isinstance(config, SequenceFolderConfig)
    found = find_sequences(config.root)
    for name, folder in tqdm.tqdm(found.items(), desc=f"preparing {config.name}", unit="seq"):
      frames = find_frames(folder)
      boxes_xywh, visible = read_annotation(folder, name, len(frames))
      jpegs = (read_jpeg(path) for path in frames[: len(boxes_xywh)])
      yield frame_records.EncodedSequence(name, jpegs, boxes_xywh, visible)


def prepare_sequence_folder(
  root: str | os.PathLike[str], data_dir: str | os.PathLike[str], name: str
) -> pathlib.Path:
  """Store the sequences of a folder below `data_dir` unless done, and return the directory.

  Its only split is "train".

  Args:
    root: folder of `<name>/` or `<class>/<name>/`, each with groundtruth.txt or groundtruth_rect.txt
      (see ostrack_jax.annotations for columns and separators) and frames, in it or in img/.
    data_dir: root of all prepared data.
    name: what to call the data set; letters, digits and underscores.

  Raises:
    FileNotFoundError: no folder, no sequence or no frames.
    ValueError: a bad name, an unreadable frame or annotation, more boxes than frames, or a name in
      use for other sequences.
  """
  if not re.fullmatch(r"\w+", name):
    raise ValueError(f"name {name!r}: use letters, digits and underscores only")
  root = pathlib.Path(root).resolve()
  config = SequenceFolderConfig(name=name, root=os.fspath(root))
  done = frame_records.prepared_directory(SequenceFolder, config, data_dir)
  prepared = (
    sources.read_manifest(done)["settings"] if (done / sources.MANIFEST).is_file() else None
  )
  # The folder may be gone once it is prepared; while it is there it must be the same.
  if prepared and prepared["root"] == os.fspath(root) and not root.exists():
    return done
  settings = {"root": os.fspath(root), "sequences": list(find_sequences(root))}
  if prepared is not None and prepared != settings:
    raise ValueError(
      f"{done} was prepared from {len(prepared['sequences'])} sequences in {prepared['root']}, not from the "
      f"{len(settings['sequences'])} in {root}: choose another name, or delete that directory"
    )
  return frame_records.prepare(SequenceFolder, config, data_dir, settings)
