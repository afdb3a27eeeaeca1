"""A folder of images with boxes as a TFDS data set: COCO json, or YOLO text."""

import os
import pathlib
import re
from typing import Any

import cv2
import numpy as np
from absl import logging

from data_pipelines import jpeg
from data_pipelines.builders import coco, frame_records, layouts
from data_pipelines.builders.raw_data import RawSequence

# What folders and annotation files of a split are called.
_WORDS = {"train": r"train(?:ing)?", "validation": r"val(?:id(?:ation)?)?", "test": r"test"}
_ANNOTATIONS = ("*.json", "annotations/*.json", "*/_annotations.coco.json")
# COCO's other annotation files, which hold no instances.
_OTHER_ANNOTATIONS = ("captions", "person_keypoints", "stuff", "panoptic", "image_info")
# Written with few digits, a box at the border can pass it by this share of the image.
_ROUNDING = 0.01


class DetectionFolder(frame_records.FrameRecordBuilder):
  """Images with boxes: each box is a target, its image both of its frames.

  With a COCO json in the folder, in annotations/ or beside the images, that is read; images are looked
  for beside it, in the root, in images/, and in folders of the split's name. Else YOLO text: for
  images/<path>.jpg the labels are in labels/<path>.txt beside that images folder, or in the one labels
  folder anywhere below the root; without an images folder, beside each image. What lies in a folder
  called train, train2017 or the like is of that split, and so with val and valid; a json may be called
  so itself; where nothing is called so, all is `train`.

  An image without boxes is left out, as is a label without an image (with a note).
  """

  SPLITS = ("train", "validation")
  DEFAULT_SPLITS = ("train",)
  IDENTIFIED_BY_ROOT = True
  IS_VIDEO = False
  # Of one image each.
  SEQUENCES_PER_SHARD = 2048

  def list_sequences(self, split: str) -> list[list[Any]]:
    """Return [kind, image below the root, its boxes] of a split, in the order of the names.

    Boxes are [number, x, y, w, h], of the kind "pixels", or of "shares" of the image's sides.

    Raises:
      FileNotFoundError: no folder, no boxes for this split, or images that a json names are missing.
      ValueError: labels that cannot be read, with file and line; two images of one name; or several
        places where the labels may be meant to be.
    """
    if not self.root.is_dir():
      raise FileNotFoundError(f"no folder {self.root}: pass the folder that holds the images")
    files = _json_files(self.root, split)
    keys = self._from_json(files, split) if files else _from_yolo(self.root, split)
    if not keys:
      raise FileNotFoundError(
        f"no boxes for split {split} in {self.root}: expected a COCO json, or images/ with labels/ of "
        "YOLO text"
      )
    names: dict[str, str] = {}
    for _, file, _ in keys:
      other = names.setdefault(_name(file), file)
      if other != file:
        raise ValueError(
          f"{other} and {file} in {self.root} have the same name; rename one of them"
        )
    logging.info("%d images with %d boxes", len(keys), sum(len(boxes) for *_, boxes in keys))
    return keys

  def _from_json(self, files: list[pathlib.Path], split: str) -> list[list[Any]]:
    if len(files) > 1:
      raise ValueError(
        f"{self.root} has {len(files)} annotation files for split {split}: "
        f"{layouts.first_names([str(f.relative_to(self.root)) for f in files])}; leave one of them there"
      )
    instances = coco.read_instances(files[0])
    stem = re.sub(r"^instances_", "", files[0].stem)
    places = [
      place
      for base in (files[0].parent, self.root, self.root / "images")
      for place in (base, base / stem, base / split)
    ]
    found = {name: _first_file(places, name) for name in instances}
    kept = layouts.without_missing(
      list(instances),
      [name for name in instances if found[name] is None],
      f"images that {files[0]} names",
      allow_missing=self.builder_config.allow_missing,
    )
    keys = [[_below(self.root, found[name]), instances[name]] for name in kept]
    return [["pixels", file, boxes] for file, boxes in sorted(keys, key=lambda key: key[0])]

  def read_sequence(self, split: str, key: list[Any]) -> RawSequence:
    """Return an image with its boxes in pixels; ValueError for an image that cannot be read."""
    del split
    kind, file, boxes = key
    path = self.root / file
    size = np.tile(image_wh(path), 2) if kind == "shares" else 1.0
    targets = [(str(number), np.multiply(box, size).tolist()) for number, *box in boxes]
    return coco.image_sequence(_name(file), path, targets)


def image_wh(path: pathlib.Path) -> tuple[int, int]:
  """Return an image's width and height, turned upright as cv2.imread turns it.

  Raises:
    ValueError: the file cannot be read as an image.
  """
  data = path.read_bytes()
  if jpeg.is_jpeg(data):
    size = jpeg.image_wh(data)
  else:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    size = None if image is None else (image.shape[1], image.shape[0])
  if size is None:
    raise ValueError(f"cannot read frame {path}: it is {'no image' if data else 'empty'}")
  return size


def read_yolo(path: pathlib.Path) -> list[list[float]]:
  """Read a YOLO label file: [number of the row, x, y, w, h] of each, in shares of the image's sides.

  Rows are `class cx cy w h`, or a class and the corners of an outline, whose extent is taken.

  Raises:
    ValueError: another number of columns, no numbers, or values outside 0 to 1, with file and line.
  """
  boxes = []
  for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines()):
    if not line.strip():
      continue
    where = f"{path}, line {number + 1}"
    try:
      values = np.array(line.split()[1:], np.float64)
    except ValueError:
      raise ValueError(f"{where}: {line!r} is not a row of numbers") from None
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
      raise ValueError(
        f"{where}: {len(values) + 1} columns; expected class cx cy w h, or a class and an outline"
      )
    # NaN compares false.
    if not ((values >= -_ROUNDING) & (values <= 1 + _ROUNDING)).all():
      raise ValueError(
        f"{where}: {line.strip()!r} goes beyond 0 to 1; YOLO text holds shares of the image's sides"
      )
    if len(values) == 4:
      top_left, size = values[:2] - values[2:] / 2, values[2:]
    else:
      outline = values.reshape(-1, 2)
      top_left, size = outline.min(axis=0), np.ptp(outline, axis=0)
    boxes.append([number, *map(float, (*top_left, *size))])
  return boxes


def _from_yolo(root: pathlib.Path, split: str) -> list[list[Any]]:
  """Pair images and labels; one without the other has no boxes."""
  files = _walk(root)
  images = [
    file for file in files if pathlib.PurePosixPath(file).suffix.lower() in layouts.IMAGE_SUFFIXES
  ]
  labels = {file for file in files if file.endswith(".txt")}
  label_folders = sorted({folder for file in labels for folder in _folders_named(file, "labels")})
  wanted = set(_of_split(images, split))
  keys, used = [], set()
  for image in images:
    label = _label_of(root, image, label_folders)
    if label in labels:
      used.add(label)
      boxes = read_yolo(root / label) if image in wanted else []
      if boxes:
        keys.append(["shares", image, boxes])
  # Only files in labels/ are surely labels: others are lists of classes or notes.
  unused = sorted(file for file in labels - used if _folders_named(file, "labels"))
  if unused:
    logging.warning(
      "%d label files in %s have no image and are left out: %s",
      len(unused),
      root,
      layouts.first_names(unused),
    )
  return keys


def _label_of(root: pathlib.Path, image: str, label_folders: list[str]) -> str:
  """Return where the label of an image must be, below the root."""
  folders = _folders_named(image, "images")
  stem = str(pathlib.PurePosixPath(image).with_suffix(".txt"))
  if not folders:
    return stem
  images_folder = folders[-1]
  beside = str(pathlib.PurePosixPath(images_folder).with_name("labels"))
  if beside not in label_folders and len(label_folders) > 1:
    raise ValueError(
      f"{root / images_folder} has no labels folder beside it, and below {root} there are "
      f"{len(label_folders)}: {layouts.first_names(label_folders)}; expected {root / beside}"
    )
  folder = beside if beside in label_folders or not label_folders else label_folders[0]
  return folder + stem[len(images_folder) :]


def _folders_named(file: str, name: str) -> list[str]:
  """Return the folders of that name on the way to a file, from the outside in."""
  parts = file.split("/")[:-1]
  return ["/".join(parts[: i + 1]) for i, part in enumerate(parts) if part == name]


def _json_files(root: pathlib.Path, split: str) -> list[pathlib.Path]:
  """Find the annotation files that may be meant for a split."""
  found = [
    path.relative_to(root).as_posix()
    for pattern in _ANNOTATIONS
    for path in sorted(root.glob(pattern))
    if not path.name.startswith(_OTHER_ANNOTATIONS)
  ]
  return [root / file for file in _of_split(found, split)]


def _of_split(files: list[str], split: str) -> list[str]:
  """Return the files of a split; all of them are "train" where none is named after any."""
  named = {file: _split_of(file) for file in files}
  if not any(named.values()):
    return files if split == "train" else []
  return [file for file in files if named[file] == split]


def _split_of(file: str) -> str | None:
  """Return the split that a folder on the way is named after, or an annotation file itself."""
  *folders, name = file.lower().split("/")
  for split, word in _WORDS.items():
    if any(re.fullmatch(rf"{word}\d*", folder) for folder in folders):
      return split
    if name.endswith(".json") and re.search(rf"(?<![a-z]){word}(?![a-z])", name):
      return split
  return None


def _first_file(places: list[pathlib.Path], name: str) -> pathlib.Path | None:
  return next((place / name for place in places if (place / name).is_file()), None)


def _below(root: pathlib.Path, path: pathlib.Path | None) -> str:
  assert path is not None
  return path.relative_to(root).as_posix()


def _walk(root: pathlib.Path) -> list[str]:
  """List the files below a folder, following links, in the order of their names."""
  return sorted(
    pathlib.Path(folder, file).relative_to(root).as_posix()
    for folder, _, files in os.walk(root, followlinks=True)
    for file in files
    if not file.startswith(".")
  )


def _name(file: str) -> str:
  """Name an image by its path without the suffix and a leading images folder."""
  return re.sub(r"^images/", "", os.path.splitext(file)[0])
