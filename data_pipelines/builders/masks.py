"""Videos with object masks as a TFDS data set, in the layout of DAVIS."""

import pathlib

import cv2
import numpy as np

from data_pipelines import jpeg
from data_pipelines.builders import frame_records, layouts
from data_pipelines.builders.raw_data import RawSequence, Target, read_jpeg
from ostrack_jax.annotations import mask_extents

_IMAGES, _MASKS = "JPEGImages", "Annotations"
_PREFERRED = "480p"
# More colours than any set has objects in a video: the edges of such masks are blended.
_MOST_OBJECTS = 100


class MaskSequences(frame_records.FrameRecordBuilder):
  """Videos with a mask a frame, of which the extent is the box: DAVIS 2016 and 2017, YouTube-VOS.

  `<root>/JPEGImages/480p/<name>/00000.jpg` with `<root>/Annotations/480p/<name>/00000.png`; another
  resolution if 480p is not there, or none: `<root>/JPEGImages/<name>/`. Every colour of a mask but
  black is an object, in the whole sequence: DAVIS 2016 has one, white; DAVIS 2017 one an object. An
  object alone is called like its sequence, several `<name>/1`, ... in the order of DAVIS's palette. A
  box reaches from the first to past the last pixel of its object, and is not visible without any.
  """

  SPLITS = ("train",)
  DEFAULT_SPLITS = ("train",)
  IDENTIFIED_BY_ROOT = True

  def list_sequences(self, split: str) -> list[str]:
    """Return the folders of masks, below Annotations, in the order of their names.

    Raises:
      FileNotFoundError: no folder of masks, or some without frames.
      ValueError: several resolutions, none of them 480p.
    """
    del split
    masks = self.root / _MASKS
    if not masks.is_dir():
      raise FileNotFoundError(
        f"no folder {masks}: the raw folder holds {_IMAGES} and {_MASKS}, as in DAVIS"
      )
    prefix = self._resolution(masks)
    names = _folders(masks / prefix)
    if not names:
      raise FileNotFoundError(f"no folder of masks in {masks / prefix}")
    missing = [name for name in names if not (self.root / _IMAGES / prefix / name).is_dir()]
    present = layouts.without_missing(
      names,
      missing,
      f"folders of frames in {self.root / _IMAGES / prefix}",
      allow_missing=self.builder_config.allow_missing,
    )
    return [prefix + name for name in present]

  def _resolution(self, masks: pathlib.Path) -> str:
    """Return the folder of the resolution to take, with a slash; "" where there is none between."""
    inner = _folders(masks)
    if any(next((masks / name).glob("*.png"), None) for name in inner) or not inner:
      return ""
    if _PREFERRED not in inner and len(inner) > 1:
      raise ValueError(
        f"{masks} has {len(inner)} resolutions ({layouts.first_names(inner)}), none of them {_PREFERRED}; "
        "leave one of them there"
      )
    return f"{_PREFERRED if _PREFERRED in inner else inner[0]}/"

  def read_sequence(self, split: str, key: str) -> RawSequence:
    """Read the boxes off a sequence's masks.

    Raises:
      FileNotFoundError: no frames.
      ValueError: frames and masks differ in number, name or size, a mask cannot be read, no object is in
        any, or so many colours are that they cannot be objects.
    """
    del split
    name = key.rpartition("/")[2]
    frames = sorted((self.root / _IMAGES / key).glob("*.jpg"))
    masks = {path.stem: path for path in (self.root / _MASKS / key).glob("*.png")}
    if not frames:
      raise FileNotFoundError(f"sequence {name}: no frames in {self.root / _IMAGES / key}")
    lonely = {path.stem for path in frames} ^ set(masks)
    if lonely:
      raise ValueError(
        f"sequence {name}: {len(frames)} frames but {len(masks)} masks in {self.root / _MASKS / key} "
        f"({min(lonely)} is in one of them only); every frame needs its mask"
      )
    boxes: dict[int, np.ndarray] = {}
    for i, frame in enumerate(frames):
      mask = cv2.imread(str(masks[frame.stem]), cv2.IMREAD_COLOR_RGB)
      if mask is None:
        raise ValueError(f"cannot read mask {masks[frame.stem]}: it is no image")
      if i == 0:
        _check_size(name, frame, mask)
      for colour, box_xywh in mask_extents(mask).items():
        boxes.setdefault(colour, np.zeros((len(frames), 4)))[i] = box_xywh
      if len(boxes) > _MOST_OBJECTS:
        raise ValueError(
          f"sequence {name}: over {_MOST_OBJECTS} colours up to {masks[frame.stem]}; expected one an "
          "object, without blended edges"
        )
    if not boxes:
      raise ValueError(f"sequence {name}: no object in any mask of {self.root / _MASKS / key}")
    names = [name] if len(boxes) == 1 else [f"{name}/{i + 1}" for i in range(len(boxes))]
    targets = tuple(
      Target(target, boxes[colour], boxes[colour][:, 2] > 0)
      for target, colour in zip(names, sorted(boxes), strict=True)
    )
    return RawSequence(name, tuple(frames), targets)


def _check_size(name: str, frame: pathlib.Path, mask: np.ndarray) -> None:
  size = jpeg.image_wh(read_jpeg(frame))
  if size != (mask.shape[1], mask.shape[0]):
    raise ValueError(
      f"sequence {name}: {frame} has {size} pixels but its mask {(mask.shape[1], mask.shape[0])}; take "
      "both of the same resolution"
    )


def _folders(folder: pathlib.Path) -> list[str]:
  return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
