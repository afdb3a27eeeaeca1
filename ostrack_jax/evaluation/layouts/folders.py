"""Benchmarks that keep a sequence's frames and annotation in a folder of its own: TNL2K, VOT, any."""

import functools
import itertools
import pathlib
from collections.abc import Sequence

from ostrack_jax import annotations
from ostrack_jax.evaluation.layouts import reading
from ostrack_jax.evaluation.videos import Candidate, Video

ANNOTATION_NAMES = ("groundtruth.txt", "groundtruth_rect.txt")
# LaSOT and OTB, TNL2K, VOT; then frames that lie beside their annotation.
_FRAME_FOLDERS = ("img", "imgs", "color", ".")


def find_any(root: pathlib.Path) -> list[Candidate]:
  """Name the sequences of a folder, of its classes, or the folder itself if it is one."""
  if _annotation_in(root):
    folders = [root.resolve()]
  else:
    folders = [found for child in reading.subfolders(root) for found in _sequence_folders(child)]
  return _candidates(folders)


def find_tnl2k(root: pathlib.Path) -> list[Candidate]:
  """Name every folder of the root as one of TNL2K's test sequences.

  Frames are .jpg or .png. test_015_Sord_video_Q01_done/imgs/00000492.png is damaged as it was first
  distributed; its sequence fails by that name until the benchmark's repaired file replaces it.
  """
  return [
    Candidate(
      name=folder.name,
      read=functools.partial(_read, folder, ("groundtruth.txt",), ("imgs",)),
    )
    for folder in reading.subfolders(root)
  ]


def find_vot(root: pathlib.Path) -> list[Candidate]:
  """Name the sequences of list.txt, or, without it, the folders with groundtruth.txt.

  The box is the upright extent of a polygon; VOT's own tools may take another one.
  """
  if (root / "list.txt").is_file():
    folders = [root / name for name in reading.listed_names(root / "list.txt")]
  else:
    folders = [
      folder for folder in reading.subfolders(root) if (folder / "groundtruth.txt").is_file()
    ]
  return _candidates(folders)


def _candidates(folders: Sequence[pathlib.Path]) -> list[Candidate]:
  return [
    Candidate(
      name=folder.name, read=functools.partial(_read, folder, ANNOTATION_NAMES, _FRAME_FOLDERS)
    )
    for folder in folders
  ]


def _sequence_folders(folder: pathlib.Path) -> list[pathlib.Path]:
  if _annotation_in(folder) or _frames_in(folder):
    return [folder]
  # LaSOT keeps <class>/<sequence>; a folder without sequences is named as one that is incomplete.
  nested = [
    child for child in reading.subfolders(folder) if _annotation_in(child) or _frames_in(child)
  ]
  return nested or [folder]


def _annotation_in(
  folder: pathlib.Path, names: Sequence[str] = ANNOTATION_NAMES
) -> pathlib.Path | None:
  paths = (folder / name for name in names)
  return next((path for path in paths if path.is_file()), None)


def _frames_in(folder: pathlib.Path, inside: Sequence[str] = _FRAME_FOLDERS) -> list[pathlib.Path]:
  found = (reading.images_in(folder / name) for name in inside)
  return next((frames for frames in found if frames), [])


def _read(
  folder: pathlib.Path, annotation_names: Sequence[str], frame_folders: Sequence[str]
) -> Video:
  if not folder.is_dir():
    raise FileNotFoundError(f"no folder {folder.name}")
  annotation, frames = _annotation_in(folder, annotation_names), _frames_in(folder, frame_folders)
  if annotation is None:
    raise FileNotFoundError(f"no {' or '.join(annotation_names)}")
  if not frames:
    places = ", ".join(name for name in frame_folders if name != ".")
    raise FileNotFoundError(f"no frames in {'it or in ' if '.' in frame_folders else ''}{places}")
  boxes_xywh = annotations.read_boxes(annotation).boxes_xywh
  if len(frames) < len(boxes_xywh):
    raise FileNotFoundError(
      f"{len(frames)} frames for {len(boxes_xywh)} boxes{_first_gap([p.stem for p in frames])}"
    )
  # The annotation declares the range: OTB's Football1 has 81 frames and 74 boxes.
  return Video(name=folder.name, frames=tuple(frames[: len(boxes_xywh)]), boxes_xywh=boxes_xywh)


def _first_gap(stems: Sequence[str]) -> str:
  """Say which number is the first to be missing between frames that are named by number."""
  if not all(stem.isdecimal() for stem in stems):
    return ""
  for before, after in itertools.pairwise(stems):
    if int(after) != int(before) + 1:
      return f"; none is numbered {int(before) + 1:0{len(before)}d}"
  return ""
