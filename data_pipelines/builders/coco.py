"""COCO 2017 as a TFDS data set, and still images with the boxes of everything in them."""

import collections
import json
import math
import os
import pathlib
from typing import Any

import numpy as np
from absl import logging

from data_pipelines.builders import frame_records, layouts
from data_pipelines.builders.raw_data import RawSequence, Target


def image_sequence(
  name: str, path: pathlib.Path, targets: list[tuple[str, list[float]]]
) -> RawSequence:
  """Return a still image as a sequence of one frame, with a target an instance.

  Args:
    name: the image's name; targets are called `<name>_<suffix>`.
    targets: suffix and x y w h in pixels of each; one without width or height is not visible.
  """
  made = []
  for suffix, box in targets:
    box_xywh = np.asarray([box], np.float64)
    visible = np.array([box[2] > 0 and box[3] > 0])
    made.append(Target(f"{name}_{suffix}", np.where(visible[:, None], box_xywh, 0.0), visible))
  return RawSequence(name, (path,), tuple(made))


def read_instances(path: pathlib.Path) -> dict[str, list[list[float]]]:
  """Read a COCO annotation file: [annotation id, x, y, w, h] of each instance, by image file.

  Instances marked iscrowd are left out, as in the official code: their box is that of many objects.
  Images come in the order of their names, instances in that of the file; an image without instances is
  left out.

  Raises:
    FileNotFoundError: no such file.
    ValueError: not COCO's instance format, a box that is not four finite numbers, an annotation of an
      image that the file does not list, or an annotation id that is used twice.
  """
  if not path.is_file():
    raise FileNotFoundError(f"no annotation file {path}")
  try:
    data = json.loads(path.read_bytes())
    files = {image["id"]: image["file_name"] for image in data["images"]}
    annotations = [
      (item["id"], item["image_id"], item["bbox"])
      for item in data["annotations"]
      if not item.get("iscrowd", 0)
    ]
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise ValueError(
      f"{path} is not in COCO's instance format ({type(error).__name__}: {error}); expected images with id "
      "and file_name, and annotations with id, image_id and bbox"
    ) from error
  instances: dict[str, list[list[float]]] = collections.defaultdict(list)
  seen = set()
  for identity, image, box in annotations:
    if image not in files:
      raise ValueError(f"{path}: annotation {identity} is of image {image}, which is not listed")
    if identity in seen:
      raise ValueError(f"{path}: two annotations have the id {identity}")
    if not _is_box(box):
      raise ValueError(
        f"{path}: annotation {identity} has the box {box}; expected x, y, w, h as finite numbers"
      )
    seen.add(identity)
    instances[files[image]].append([identity, *map(float, box)])
  return {file: instances[file] for file in sorted(instances)}


def _is_box(box: Any) -> bool:
  return (
    isinstance(box, list)
    and len(box) == 4
    and all(isinstance(v, (int, float)) and math.isfinite(v) for v in box)
  )


class Coco2017(frame_records.FrameRecordBuilder):
  """COCO 2017, Lin et al. 2014: every non-crowd instance is a target, its image both of its frames.

  `<root>/annotations/instances_train2017.json` with `<root>/train2017/` or
  `<root>/images/train2017/`; `val2017` likewise. A target is called `<image>_<annotation id>` and is
  visible where its box has width and height.
  """

  SPLITS = ("train", "validation")
  DEFAULT_SPLITS = ("train",)
  IS_VIDEO = False
  # Of one image each.
  SEQUENCES_PER_SHARD = 2048

  def list_sequences(self, split: str) -> list[list[Any]]:
    """Return [image file below the root, its instances] of a split; see `read_instances`.

    Raises:
      FileNotFoundError: no annotation file or image folder, or images that are annotated are missing.
      ValueError: see `read_instances`.
    """
    part = {"train": "train2017", "validation": "val2017"}[split]
    instances = read_instances(self.root / "annotations" / f"instances_{part}.json")
    folders = [folder for folder in (part, f"images/{part}") if (self.root / folder).is_dir()]
    if not folders:
      raise FileNotFoundError(f"no folder {part} nor images/{part} with images in {self.root}")
    present = set(os.listdir(self.root / folders[0]))
    missing = [file for file in instances if file not in present]
    files = layouts.without_missing(
      list(instances),
      missing,
      f"annotated images in {self.root / folders[0]}",
      allow_missing=self.builder_config.allow_missing,
    )
    logging.info("%d images with %d instances", len(files), sum(len(instances[f]) for f in files))
    return [[f"{folders[0]}/{file}", instances[file]] for file in files]

  def read_sequence(self, split: str, key: list[Any]) -> RawSequence:
    """Return an image with its instances; the key has them, so that no worker reads the annotations."""
    del split
    file, instances = key
    path = self.root / file
    return image_sequence(path.stem, path, [(str(i), box) for i, *box in instances])
