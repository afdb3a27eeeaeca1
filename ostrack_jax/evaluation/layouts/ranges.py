"""Benchmarks whose sequences are ranges of frames, read from a table: OTB, NFS, UAV123, UAV20L."""

import functools
import pathlib

from ostrack_jax.evaluation.layouts import reading
from ostrack_jax.evaluation.videos import Candidate, Video

# The columns of the attribute files: Mueller et al. 2016, A Benchmark and Simulator for UAV Tracking.
UAV_ATTRIBUTES = (
  "scale variation",
  "aspect ratio change",
  "low resolution",
  "fast motion",
  "full occlusion",
  "partial occlusion",
  "out of view",
  "background clutter",
  "illumination variation",
  "viewpoint change",
  "camera motion",
  "similar object",
)


def find_otb(root: pathlib.Path) -> list[Candidate]:
  """Name OTB's 100 sequences: Jogging_1, Jogging_2, Skating2_1, ... share a folder of frames.

  David, BlurCar1, 3 and 4 and Football1 use a part of their frames, Tiger1 skips the first five and
  their boxes, Board's frames have five digits.
  """
  return _from_table(root, "otb100_sequences.csv")


def find_nfs(root: pathlib.Path) -> list[Candidate]:
  """Name NFS's 100 sequences of 30 frames a second, without the `nfs_` that some results put first."""
  return _from_table(root, "nfs_sequences.csv")


def find_uav123(root: pathlib.Path) -> list[Candidate]:
  """Name UAV123's 123 sequences, some of them ranges of one folder: bird1_2 is bird1 from 775 on.

  A row of NaN says that the target is absent. Attributes stand in anno/UAV123/att, if it is there.
  """
  return _from_table(root, "uav123_sequences.csv", attributes="anno/UAV123/att")


def find_uav20l(root: pathlib.Path) -> list[Candidate]:
  """Name the sequences that have a file in anno/UAV20L.

  Each is a folder of UAV123's frames from frame 1 on, one frame a row: public tables of the ranges
  begin all 20 at frame 1. They end bike1 and bird1 one frame later (3085 and 2437), as published
  results do, than the annotations have rows; here the annotation ends a sequence.
  """
  folder = root / "anno" / "UAV20L"
  names = sorted(path.stem for path in folder.glob("*.txt") if path.name[0] != ".")
  return [Candidate(name=name, read=functools.partial(_read_uav20l, root, name)) for name in names]


def _from_table(root: pathlib.Path, table: str, attributes: str | None = None) -> list[Candidate]:
  return [
    Candidate(name=row["name"], read=functools.partial(_read_range, root, row, attributes))
    for row in reading.split_table(table)
  ]


def _read_range(root: pathlib.Path, row: dict[str, str], attributes: str | None) -> Video:
  skipped = int(row["skip_first_frames"])
  names = reading.numbers(
    int(row["first_frame"]), int(row["last_frame"]), int(row["digits"]), row["extension"]
  )
  frames = reading.named_frames(root, row["frames_folder"], names[skipped:])
  boxes_xywh = reading.boxes(root, row["annotation"])
  if len(boxes_xywh) < len(names):
    raise ValueError(f"{row['annotation']} has {len(boxes_xywh)} boxes for {len(names)} frames")
  return Video(
    name=row["name"],
    frames=frames,
    boxes_xywh=boxes_xywh[skipped : len(names)],
    attributes=_attributes(root, attributes, row["name"]),
  )


def _read_uav20l(root: pathlib.Path, name: str) -> Video:
  boxes_xywh = reading.boxes(root, f"anno/UAV20L/{name}.txt")
  frames = reading.named_frames(
    root, f"data_seq/UAV123/{name}", reading.numbers(1, len(boxes_xywh), 6)
  )
  return Video(
    name=name,
    frames=frames,
    boxes_xywh=boxes_xywh,
    attributes=_attributes(root, "anno/UAV20L/att", name),
  )


def _attributes(root: pathlib.Path, relative: str | None, name: str) -> tuple[str, ...]:
  """Return a sequence's attributes; none where the benchmark came without the whole folder."""
  if relative is None or not (root / relative).is_dir():
    return ()
  values = reading.flags(root, f"{relative}/{name}.txt", len(UAV_ATTRIBUTES))
  return reading.marked(UAV_ATTRIBUTES, values)
