"""LaSOT, Fan et al. 2019, and its extension, Fan et al. 2021."""

import functools
import pathlib

from ostrack_jax.evaluation.layouts import reading
from ostrack_jax.evaluation.videos import Candidate, Video

_HIDDEN = ("full_occlusion.txt", "out_of_view.txt")


def find_lasot(root: pathlib.Path) -> list[Candidate]:
  """Name the 280 test sequences."""
  return _from_names(root, "lasot_test_names.txt")


def find_lasot_ext(root: pathlib.Path) -> list[Candidate]:
  """Name the 150 sequences of the extension."""
  return _from_names(root, "lasot_ext_names.txt")


def _from_names(root: pathlib.Path, file: str) -> list[Candidate]:
  return [
    Candidate(name=name, read=functools.partial(_read, root, name))
    for name in reading.split_names(file)
  ]


def _read(root: pathlib.Path, name: str) -> Video:
  places = (f"{name.rpartition('-')[0]}/{name}", name)
  relative = next((place for place in places if (root / place).is_dir()), None)
  if relative is None:
    raise FileNotFoundError(f"no folder {' or '.join(places)}")
  boxes_xywh = reading.boxes(root, f"{relative}/groundtruth.txt")
  count = len(boxes_xywh)
  frames = reading.all_numbered_frames(root, f"{relative}/img", first=1, digits=8, count=count)
  occluded, out_of_view = (reading.flags(root, f"{relative}/{file}", count) for file in _HIDDEN)
  return Video(
    name=name,
    frames=frames,
    boxes_xywh=boxes_xywh,
    visible=(occluded == 0) & (out_of_view == 0),
  )
