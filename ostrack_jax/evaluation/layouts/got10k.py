"""GOT-10k, Huang et al. 2019: test, of which only first boxes are public, and val."""

import functools
import pathlib

from ostrack_jax.evaluation.layouts import reading
from ostrack_jax.evaluation.videos import Candidate, Video, first_box_only

# Of the keys in meta_info.ini, those with few enough values to tell groups of sequences apart.
_ATTRIBUTE_KEYS = ("root_class", "motion_class")


def find_test(root: pathlib.Path) -> list[Candidate]:
  """Name the sequences of test/list.txt, or, without it, the folders GOT-10k_Test_*."""
  return [
    Candidate(name=name, read=functools.partial(_read_test, root, name))
    for name in _names(root, "test")
  ]


def find_val(root: pathlib.Path) -> list[Candidate]:
  """Name the sequences of val/list.txt, or, without it, the folders GOT-10k_Val_*.

  Frames with cover 0 are not visible; their boxes stay as written. absence.label is not read: the
  toolkit's AO and SR leave frames out by cover alone.
  """
  return [
    Candidate(name=name, read=functools.partial(_read_val, root, name))
    for name in _names(root, "val")
  ]


def _names(root: pathlib.Path, split: str) -> list[str]:
  folder = root / split
  if not folder.is_dir():
    raise FileNotFoundError(f"no folder {folder}; expected the root that holds {split}/")
  if (folder / "list.txt").is_file():
    return reading.listed_names(folder / "list.txt")
  prefix = f"GOT-10k_{split.capitalize()}_"
  return [path.name for path in reading.subfolders(folder) if path.name.startswith(prefix)]


def _read_test(root: pathlib.Path, name: str) -> Video:
  relative = f"test/{name}"
  frames = reading.all_numbered_frames(root, relative, first=1, digits=8)
  return first_box_only(name, frames, reading.first_box(root, f"{relative}/groundtruth.txt"))


def _read_val(root: pathlib.Path, name: str) -> Video:
  relative = f"val/{name}"
  boxes_xywh = reading.boxes(root, f"{relative}/groundtruth.txt")
  count = len(boxes_xywh)
  frames = reading.all_numbered_frames(root, relative, first=1, digits=8, count=count)
  cover = reading.flags(root, f"{relative}/cover.label", count)
  return Video(
    name=name,
    frames=frames,
    boxes_xywh=boxes_xywh,
    visible=cover > 0,
    attributes=_attributes(root / relative / "meta_info.ini"),
  )


def _attributes(path: pathlib.Path) -> tuple[str, ...]:
  """Return the classes of a sequence as "key: value"; none without the file."""
  if not path.is_file():
    return ()
  lines = (line.partition(":") for line in path.read_text(encoding="utf-8-sig").splitlines())
  found = {key.strip(): value.strip() for key, _, value in lines}
  return tuple(f"{key}: {found[key]}" for key in _ATTRIBUTE_KEYS if found.get(key))
