"""What the checks of raw data report: findings, and what was seen of each sequence."""

import dataclasses
import pathlib
from collections.abc import Iterable

import numpy as np

from data_pipelines.builders.raw_data import RawSequence

SEVERITIES = ("error", "warning", "note")
# What is looked for: how bad it is, and a heading. Reports keep this order, the worst first.
KINDS = {
  "unreadable_sequence": ("error", "sequences that cannot be read"),
  "unreadable_frame": ("error", "frames that cannot be read whole"),
  "impossible_box": ("error", "boxes without size where the target is marked visible"),
  "fractions": ("error", "boxes that look like fractions of the frame"),
  "outside": ("error", "boxes wholly outside the frame"),
  "same_name": ("error", "names that occur twice"),
  "nothing_trains": ("error", "splits of which no sequence can train"),
  "corners": ("warning", "boxes that look like two corners"),
  "frame_size": ("warning", "frames of another size than most of their sequence"),
  "left_over_frames": ("warning", "frames without a box"),
  "negative_size": ("warning", "boxes written with a negative size"),
  "jump": ("warning", "sudden jumps"),
  "same_frame": ("warning", "frames identical to the one before"),
  "same_image": ("warning", "sequences that begin with the same image"),
  "too_short": ("warning", "targets that never train"),
  "tiny_box": ("note", "boxes with a side below 2 pixels"),
  "partly_outside": ("note", "boxes partly outside the frame"),
  "absent": ("note", "targets that are not visible in some frames"),
  "still_box": ("note", "boxes that stay the same for long"),
}
# Of one finding; the first frames say what the defect looks like.
_PICTURES = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
  """A frame to show: its file, its number counted from 0, and the box [4] in pixels, or None."""

  path: str
  frame: int
  box_xywh: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
  """One kind of defect in one sequence.

  text: a sentence about the first case. count: how many cases there are. frames: numbers from 0 of
  the frames that have it, none where it is about the sequence as a whole. file: of the first of
  them, below the raw folder. pictures: what to look at.
  """

  kind: str
  split: str
  sequence: str
  text: str
  count: int = 1
  frames: tuple[int, ...] = ()
  file: str = ""
  pictures: tuple[Picture, ...] = ()

  @property
  def severity(self) -> str:
    """One of SEVERITIES."""
    return KINDS[self.kind][0]

  @property
  def sentence(self) -> str:
    """The text, and how many more cases there are."""
    return f"{self.text} (and {self.count - 1} more)" if self.count > 1 else self.text


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SequenceReport:
  """What was seen of one sequence.

  targets, frames, visible: counts; `visible` counts the frames of every target, of target_frames.
  sides: [visible] float32, sqrt(w * h) in pixels. trains: how many targets can take part in
  training. digest: of the first frame's file. sample: a frame to show, with a visible target if
  there is one.
  """

  split: str
  sequence: str
  findings: tuple[Finding, ...]
  targets: int = 0
  frames: int = 0
  target_frames: int = 0
  trains: int = 0
  sides: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
  digest: bytes = b""
  sample: Picture | None = None

  @property
  def visible(self) -> int:
    """How many boxes there are."""
    return len(self.sides)


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
  """A sequence under examination: makes its findings. root: the raw folder, to name files below it."""

  split: str
  sequence: RawSequence
  root: pathlib.Path

  def picture(self, frame: int, box_xywh=None) -> Picture:
    """Return a frame to show."""
    path = self.sequence.frames[frame]
    box = None if box_xywh is None else tuple(float(v) for v in box_xywh)
    return Picture(str(path) if isinstance(path, pathlib.Path) else "", int(frame), box)

  def finding(
    self,
    kind: str,
    text: str,
    frames: Iterable[int] = (),
    boxes_xywh: np.ndarray | None = None,
    beside: int | None = None,
  ) -> Finding:
    """Make a finding.

    Args:
      frames: all that have the defect; the text is about the first.
      boxes_xywh: [n, 4] for all frames of the sequence, drawn into the pictures.
      beside: a frame to show with the first.
    """
    numbers = tuple(int(frame) for frame in frames)
    shown = numbers[:_PICTURES] if beside is None else sorted((beside, numbers[0]))
    return Finding(
      kind=kind,
      split=self.split,
      sequence=self.sequence.name,
      text=text,
      count=max(len(numbers), 1),
      frames=numbers,
      file=self._file(numbers[0]) if numbers else "",
      pictures=tuple(self.picture(i, None if boxes_xywh is None else boxes_xywh[i]) for i in shown),
    )

  def _file(self, frame: int) -> str:
    path = self.sequence.frames[frame]
    if not isinstance(path, pathlib.Path):
      return ""
    return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)
