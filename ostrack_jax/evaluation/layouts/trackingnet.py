"""TrackingNet's test set, Mueller et al. 2018, of which only first boxes are public."""

import functools
import pathlib

from ostrack_jax.evaluation.layouts import reading
from ostrack_jax.evaluation.videos import Candidate, Video, first_box_only


def find_test(root: pathlib.Path) -> list[Candidate]:
  """Name the sequences that have frames or an annotation; frames count from 0 without zeros."""
  frames, boxes = root / "TEST" / "frames", root / "TEST" / "anno"
  # Names are YouTube's, which may begin with an underscore or a dash.
  names = {path.name for path in frames.glob("*") if path.is_dir() and path.name[0] != "."}
  names |= {path.stem for path in boxes.glob("*.txt") if path.name[0] != "."}
  return [Candidate(name=name, read=functools.partial(_read, root, name)) for name in sorted(names)]


def _read(root: pathlib.Path, name: str) -> Video:
  frames = reading.all_numbered_frames(root, f"TEST/frames/{name}", first=0, digits=1)
  return first_box_only(name, frames, reading.first_box(root, f"TEST/anno/{name}.txt"))
