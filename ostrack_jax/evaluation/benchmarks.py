"""What each benchmark consists of, and where its frames and annotations lie.

A benchmark is one declaration: how its sequences are found, how many there are, and the rule that
its published numbers follow. Boxes are used as written, neither shifted nor clipped.
"""

import csv
import dataclasses
import importlib.resources
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from ostrack_jax import annotations
from ostrack_jax.evaluation import metrics
from ostrack_jax.tracking import frames as frame_files

_ANNOTATION_NAMES = ("groundtruth.txt", "groundtruth_rect.txt")
# LaSOT and OTB, TNL2K, VOT; then frames that lie beside their annotation.
_FRAME_FOLDERS = ("img", "imgs", "color", ".")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
  """One annotated sequence.

  frames: image files in order. boxes_xywh: [len(frames), 4] pixels, NaN where the target is absent.
  """

  name: str
  frames: tuple[pathlib.Path, ...]
  boxes_xywh: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
  """A sequence that a benchmark names; `read` gives its Video or raises if files are missing."""

  name: str
  read: Callable[[], Video]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
  """Declare a benchmark.

  find: gives its candidates under a root folder, without looking whether they are complete.
  rule: a name in metrics.RULES. layout: what the root must look like, in words.
  """

  name: str
  rule: str
  layout: str
  find: Callable[[pathlib.Path], list[Candidate]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
  """The sequences that a run covers.

  declared: how many the whole benchmark has. missing: names that were looked for, to the reason.
  """

  videos: tuple[Video, ...]
  declared: int
  missing: dict[str, str]


def _find_otb(root: pathlib.Path) -> list[Candidate]:
  table = importlib.resources.files("ostrack_jax.evaluation") / "splits" / "otb100_sequences.csv"
  with table.open(encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  return [Candidate(name=row["name"], read=lambda row=row: _read_otb(root, row)) for row in rows]


def _read_otb(root: pathlib.Path, row: dict[str, str]) -> Video:
  folder = root / row["frames_folder"]
  skipped = int(row["skip_first_frames"])
  numbers = range(int(row["first_frame"]), int(row["last_frame"]) + 1)
  if not folder.is_dir():
    raise FileNotFoundError(f"no folder {row['frames_folder']}")
  present = {path.name for path in folder.iterdir()}
  names = [f"{number:0{int(row['digits'])}d}.{row['extension']}" for number in numbers][skipped:]
  absent = [name for name in names if name not in present]
  if absent:
    raise FileNotFoundError(
      f"{len(absent)} of {len(names)} frames are missing, the first {absent[0]}"
    )
  path = root / row["annotation"]
  if not path.is_file():
    raise FileNotFoundError(f"no file {row['annotation']}")
  boxes_xywh = annotations.read_boxes(path).boxes_xywh
  if len(boxes_xywh) < len(numbers):
    raise ValueError(f"{row['annotation']} has {len(boxes_xywh)} boxes for {len(numbers)} frames")
  return Video(
    name=row["name"],
    frames=tuple(folder / name for name in names),
    boxes_xywh=boxes_xywh[skipped : len(numbers)],
  )


def _find_folder(root: pathlib.Path) -> list[Candidate]:
  if _annotation_in(root):
    folders = [root.resolve()]
  else:
    folders = [found for child in _subfolders(root) for found in _sequence_folders(child)]
  names = [folder.name for folder in folders]
  repeated = sorted({name for name in names if names.count(name) > 1})
  if repeated:
    raise ValueError(
      f"{root} holds several sequences named {', '.join(repeated)}; rename them, "
      "or give a root with only one of them"
    )
  return [
    Candidate(name=folder.name, read=lambda folder=folder: _read_folder(folder))
    for folder in folders
  ]


def _sequence_folders(folder: pathlib.Path) -> list[pathlib.Path]:
  if _annotation_in(folder) or _frames_in(folder):
    return [folder]
  # LaSOT keeps <class>/<sequence>; a folder without sequences is named as one that is incomplete.
  nested = [child for child in _subfolders(folder) if _annotation_in(child) or _frames_in(child)]
  return nested or [folder]


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
  children = (path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")
  return sorted(children, key=frame_files.natural_order)


def _annotation_in(folder: pathlib.Path) -> pathlib.Path | None:
  paths = (folder / name for name in _ANNOTATION_NAMES)
  return next((path for path in paths if path.is_file()), None)


def _frames_in(folder: pathlib.Path) -> list[pathlib.Path]:
  for name in _FRAME_FOLDERS:
    inside = folder / name
    if inside.is_dir():
      frames = [
        path
        for path in inside.iterdir()
        if path.suffix.lower() in frame_files.IMAGE_SUFFIXES and path.name[0] != "."
      ]
      if frames:
        return sorted(frames, key=frame_files.natural_order)
  return []


def _read_folder(folder: pathlib.Path) -> Video:
  annotation, frames = _annotation_in(folder), _frames_in(folder)
  if annotation is None:
    raise FileNotFoundError(f"no {' or '.join(_ANNOTATION_NAMES)}")
  if not frames:
    raise FileNotFoundError(f"no frames in it or in {', '.join(_FRAME_FOLDERS[:-1])}")
  boxes_xywh = annotations.read_boxes(annotation).boxes_xywh
  if len(frames) < len(boxes_xywh):
    raise FileNotFoundError(f"{len(frames)} frames for {len(boxes_xywh)} boxes")
  # The annotation declares the range: OTB's Football1 has 81 frames and 74 boxes.
  return Video(name=folder.name, frames=tuple(frames[: len(boxes_xywh)]), boxes_xywh=boxes_xywh)


BENCHMARKS = {
  "otb": Benchmark(
    name="otb",
    rule="otb",
    layout="<root>/<name>/img/0001.jpg, ... and <root>/<name>/groundtruth_rect.txt",
    find=_find_otb,
  ),
  "folder": Benchmark(
    name="folder",
    rule="visible",
    layout=f"<root>/<name>/ with frames in it or in img/, and {' or '.join(_ANNOTATION_NAMES)}",
    find=_find_folder,
  ),
}


def choose(names: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
  """Return the wanted of `names` (all, if None) in their order.

  Raises ValueError for a wanted name that does not occur.
  """
  if wanted is None:
    return list(names)
  unknown = sorted(set(wanted) - set(names))
  if unknown:
    raise ValueError(
      f"unknown sequence {', '.join(unknown)}; expected some of {', '.join(list(names)[:5])}, ..."
    )
  return [name for name in names if name in wanted]


def select(
  benchmark: Benchmark,
  root: pathlib.Path,
  *,
  sequences: Sequence[str] | None = None,
  limit: int | None = None,
  allow_missing: bool = False,
) -> Selection:
  """Find and read the annotations of a benchmark's sequences, before any of them is tracked.

  Args:
    root: the folder that holds the benchmark; see Benchmark.layout.
    sequences: the names to cover; all of them if None.
    limit: stop after so many complete sequences.
    allow_missing: leave out incomplete sequences instead of raising.

  Raises FileNotFoundError for a missing root, for incomplete sequences (each named with what it
  lacks), and where nothing is left; ValueError for unknown names and a limit below one.
  """
  if not root.is_dir():
    raise FileNotFoundError(f"{root} is not a folder; expected {benchmark.layout}")
  candidates = {candidate.name: candidate for candidate in benchmark.find(root)}
  if not candidates:
    raise FileNotFoundError(f"{root} holds no sequence; expected {benchmark.layout}")
  if limit is not None and limit < 1:
    raise ValueError(f"limit {limit} leaves nothing to do; expected at least 1")
  videos: list[Video] = []
  missing: dict[str, str] = {}
  for name in choose(list(candidates), sequences):
    if len(videos) == limit:
      break
    try:
      video = candidates[name].read()
      if not metrics.usable_boxes(video.boxes_xywh[:1])[0]:
        raise ValueError("the first frame has no box to start from")
      videos.append(video)
    except (OSError, ValueError) as error:
      missing[name] = str(error)
  if missing and not allow_missing:
    lines = "".join(f"\n  {name}: {reason}" for name, reason in missing.items())
    raise FileNotFoundError(
      f"{len(missing)} of {len(missing) + len(videos)} sequences are incomplete under {root}; "
      f"complete them, or pass --allow_missing to leave them out:{lines}"
    )
  if not videos:
    raise FileNotFoundError(
      f"none of {len(missing)} sequences is complete under {root}; expected {benchmark.layout}"
    )
  return Selection(videos=tuple(videos), declared=len(candidates), missing=missing)
