"""Videos with object masks, of which the extent is the box: DAVIS 2016 and 2017."""

import functools
import pathlib
from collections.abc import Callable

import numpy as np

from ostrack_jax import annotations
from ostrack_jax.evaluation.layouts import reading
from ostrack_jax.evaluation.videos import Candidate, Video
from ostrack_jax.tracking import frames as frame_files

_PREFERRED = "480p"

# Colour of an object to its boxes, [n, 4] xywh pixels, NaN where it is not in the mask.
_Boxes = dict[int, np.ndarray]


def find_davis(root: pathlib.Path) -> list[Candidate]:
  """Name the objects in the first mask of every folder below Annotations.

  Every colour but black is an object. One alone is called like its video, several `<video>_1`,
  `<video>_2`, ... in the order of DAVIS's palette. An object that is not in the first mask cannot be
  tracked from there and is no sequence. Masks lie in 480p/, in the only other folder of a
  resolution, or in Annotations itself.

  Raises FileNotFoundError without Annotations, ValueError for several resolutions without 480p.
  """
  masks = root / "Annotations"
  if not masks.is_dir():
    raise FileNotFoundError(f"no folder {masks}; expected JPEGImages/ and Annotations/ in the root")
  found = []
  for folder in reading.subfolders(_resolution(masks)):
    relative = folder.relative_to(masks).as_posix()
    read_boxes = functools.cache(functools.partial(_read_boxes, root, relative))
    colours = _first_colours(folder)
    if len(colours) > 1:
      names = {colour: f"{folder.name}_{i + 1}" for i, colour in enumerate(colours)}
    else:
      # A video that cannot be read, or without any object, tells why when its turn comes.
      names = {colour: folder.name for colour in colours or (0,)}
    found += [
      Candidate(name=name, read=functools.partial(_read, root, relative, name, colour, read_boxes))
      for colour, name in names.items()
    ]
  return found


def _resolution(masks: pathlib.Path) -> pathlib.Path:
  """Return the folder that holds the videos' folders of masks."""
  inner = reading.subfolders(masks)
  if not inner or any(reading.images_in(folder) for folder in inner):
    return masks
  if len(inner) == 1:
    return inner[0]
  preferred = masks / _PREFERRED
  if preferred not in inner:
    names = ", ".join(folder.name for folder in inner)
    raise ValueError(
      f"{masks} has {len(inner)} resolutions ({names}), none of them {_PREFERRED}; leave one there"
    )
  return preferred


def _first_colours(folder: pathlib.Path) -> list[int]:
  masks = reading.images_in(folder)
  if not masks:
    return []
  try:
    return sorted(annotations.mask_extents(frame_files.read_image(masks[0])))
  except ValueError:
    return []


def _read_boxes(root: pathlib.Path, relative: str) -> tuple[tuple[pathlib.Path, ...], _Boxes]:
  """Read a video's frames and the boxes of every object in its masks.

  Raises FileNotFoundError or ValueError where frames and masks do not pair, or a mask is unreadable.
  """
  masks = {path.stem: path for path in reading.images_in(root / "Annotations" / relative)}
  frames = reading.images_in(root / "JPEGImages" / relative)
  if not frames:
    raise FileNotFoundError(f"no frames in JPEGImages/{relative}")
  lonely = {path.stem for path in frames} ^ set(masks)
  if lonely:
    raise ValueError(
      f"{len(frames)} frames but {len(masks)} masks; only one of the two has {min(lonely)}"
    )
  boxes_xywh: _Boxes = {}
  for i, frame in enumerate(frames):
    mask = frame_files.read_image(masks[frame.stem])
    if i == 0 and mask.shape != frame_files.read_image(frame).shape:
      raise ValueError(f"frame and mask {frame.stem} differ in size; take the same resolution")
    for colour, extent in annotations.mask_extents(mask).items():
      boxes_xywh.setdefault(colour, np.full((len(frames), 4), np.nan))[i] = extent
  return tuple(frames), boxes_xywh


def _read(
  root: pathlib.Path,
  relative: str,
  name: str,
  colour: int,
  read_boxes: Callable[[], tuple[tuple[pathlib.Path, ...], _Boxes]],
) -> Video:
  frames, boxes_xywh = read_boxes()
  if colour not in boxes_xywh:
    raise ValueError(f"no object in the first mask of Annotations/{relative}")
  return Video(name=name, frames=frames, boxes_xywh=boxes_xywh[colour])
