"""Check a raw sequence, every frame decoded and every box looked at, and sequences with each other."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import simplejpeg

from data_pipelines import box_checks, jpeg
from data_pipelines.builders import layouts
from data_pipelines.builders.raw_data import RawSequence, Target
from data_pipelines.raw_findings import Finding, Place, SequenceReport
from data_pipelines.sampling import SamplingSettings


def frame_problem(data: bytes) -> tuple[str | None, tuple[int, int] | None]:
  """Decode an image file's bytes; return (what is wrong with it or None, (width, height) or None)."""
  if not data:
    return "the file is empty", None
  if not jpeg.is_jpeg(data):
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
      return "it is no image, or a damaged one", None
    return None, (image.shape[1], image.shape[0])
  size = jpeg.image_wh(data)
  if size is None:
    return "its JPEG header is damaged", None
  if b"\xff\xd9" not in data[-4096:]:
    return "the JPEG file is cut off", size
  try:
    # Grey reads all of the data, which is what finds damage, and saves turning it into colours.
    simplejpeg.decode_jpeg(data, colorspace="GRAY")
  except ValueError as error:
    header = simplejpeg.decode_jpeg_header(data)
    if header[2] not in ("CMYK", "YCCK") or jpeg.decode(data) is None:
      return f"its JPEG data is damaged: {str(error).strip().rstrip('.')}", size
  return None, size


def check_frames(place: Place) -> tuple[list[Finding], np.ndarray, bytes]:
  """Decode every frame; return findings, sizes_wh [n, 2] px (NaN: not known) and the first digest."""
  sizes_wh = np.full((len(place.sequence.frames), 2), np.nan)
  problems: dict[int, str] = {}
  digests: list[bytes] = []
  for i, frame in enumerate(place.sequence.frames):
    try:
      data = frame if isinstance(frame, bytes) else frame.read_bytes()
    except OSError as error:
      problems[i] = str(error.strerror or error)
      digests.append(b"")
      continue
    digests.append(hashlib.blake2b(data, digest_size=16).digest())
    # A frame that repeats the one before was decoded with it.
    if i and digests[i] == digests[i - 1] and i - 1 not in problems:
      sizes_wh[i] = sizes_wh[i - 1]
      continue
    problem, size = frame_problem(data)
    if problem is not None:
      problems[i] = problem
    if size is not None:
      sizes_wh[i] = size
  found = []
  if problems:
    first = min(problems)
    text = f"frame {first} cannot be read whole: {problems[first]}"
    found.append(place.finding("unreadable_frame", text, list(problems)))
  found += _other_sizes(place, sizes_wh)
  same = [i for i in range(1, len(digests)) if digests[i] and digests[i] == digests[i - 1]]
  if same:
    text = f"frame {same[0]} is, byte for byte, the file of frame {same[0] - 1}"
    found.append(place.finding("same_frame", text, same, beside=same[0] - 1))
  return found, sizes_wh, digests[0] if digests else b""


def _other_sizes(place: Place, sizes_wh: np.ndarray) -> list[Finding]:
  known = ~np.isnan(sizes_wh[:, 0])
  if not known.any():
    return []
  sizes, counts = np.unique(sizes_wh[known], axis=0, return_counts=True)
  usual = sizes[counts.argmax()]
  other = np.flatnonzero(known & (sizes_wh != usual).any(axis=1))
  if not len(other):
    return []
  text = (
    f"frame {other[0]} has {'{:g} x {:g}'.format(*sizes_wh[other[0]])} pixels, most of the sequence "
    f"{'{:g} x {:g}'.format(*usual)}"
  )
  return [place.finding("frame_size", text, other)]


def check_left_over(place: Place) -> list[Finding]:
  """Check whether the folder of a video holds images behind its last frame."""
  frames = place.sequence.frames
  files = [frame for frame in frames if isinstance(frame, pathlib.Path)]
  last = files[-1] if files else None
  if last is None or len(files) < len(frames) or any(f.parent != last.parent for f in files):
    return []
  used = {file.name for file in files}
  images = (
    path.name
    for path in last.parent.iterdir()
    if path.suffix.lower() in layouts.IMAGE_SUFFIXES and path.name[0] != "."
  )
  unused = sorted(name for name in images if name not in used)
  if not unused:
    return []
  text = (
    f"{len(used) + len(unused)} images in {last.parent.name} but {len(used)} boxes: {unused[0]}"
    f"{' and others are' if len(unused) > 1 else ' is'} left out"
  )
  return [dataclasses.replace(place.finding("left_over_frames", text), file=unused[0])]


def _trains(target: Target, is_video: bool) -> bool:
  settings = SamplingSettings()
  visible = int(np.sum(target.visible))
  if not is_video:
    return visible > 0
  return len(target.visible) >= settings.min_length and visible > settings.min_visible_over


def check_length(place: Place, target: Target) -> list[Finding]:
  """Check whether the sampler takes a video's target: it wants frames, and visible ones."""
  if _trains(target, is_video=True):
    return []
  settings = SamplingSettings()
  text = (
    f"{target.name} never trains: {len(target.visible)} frames, {int(np.sum(target.visible))} of them visible; "
    f"a video takes part from {settings.min_length} frames and {settings.min_visible_over + 1} visible ones on"
  )
  return [place.finding("too_short", text)]


def check_sequence(builder, split: str, key: Any) -> SequenceReport:
  """Read a sequence and check all of it; whatever reading raises becomes a finding.

  Args:
    builder: a FrameRecordBuilder.
    key: one of builder.list_sequences(split).
  """
  try:
    sequence = builder.read_sequence(split, key)
  # A checker must get past anything that a broken file makes a reader raise, and report it.
  except Exception as error:
    words = str(error) if isinstance(error, (ValueError, OSError)) else repr(error)
    name = key if isinstance(key, str) else [part for part in key if isinstance(part, str)][-1]
    finding = Finding(kind="unreadable_sequence", split=split, sequence=name, text=words)
    return SequenceReport(split=split, sequence=name, findings=(finding,))
  return examine(Place(split, sequence, pathlib.Path(builder.root)), builder.IS_VIDEO)


def examine(place: Place, is_video: bool) -> SequenceReport:
  """Check a sequence that could be read."""
  sequence = place.sequence
  if not sequence.frames:
    text = f"sequence {sequence.name} has no frames"
    finding = place.finding("unreadable_sequence", text)
    return SequenceReport(split=place.split, sequence=sequence.name, findings=(finding,))
  found, sizes_wh, digest = check_frames(place)
  written = None
  if is_video:
    found += check_left_over(place)
    if len(sequence.targets) == 1:
      written = box_checks.written_boxes(sequence.frames[0])
  for target in sequence.targets:
    found += box_checks.check_boxes(place, target, sizes_wh)
    found += box_checks.check_presence(place, target, written, is_video)
    if is_video:
      found += check_length(place, target)
  return SequenceReport(
    split=place.split,
    sequence=sequence.name,
    findings=tuple(_joined(found)),
    targets=len(sequence.targets),
    frames=len(sequence.frames),
    target_frames=len(sequence.targets) * len(sequence.frames),
    trains=sum(_trains(target, is_video) for target in sequence.targets),
    sides=_sides(sequence),
    digest=digest,
    sample=_sample(place),
  )


def _joined(findings: Sequence[Finding]) -> list[Finding]:
  """Join findings of the same kind, of several targets, into the first."""
  joined: dict[str, Finding] = {}
  for finding in findings:
    first = joined.setdefault(finding.kind, finding)
    if first is not finding:
      joined[finding.kind] = dataclasses.replace(
        first,
        count=first.count + finding.count,
        frames=tuple(sorted({*first.frames, *finding.frames})),
        pictures=(first.pictures + finding.pictures)[: max(3, len(first.pictures))],
      )
  return list(joined.values())


def _sides(sequence: RawSequence) -> np.ndarray:
  boxes = [target.boxes_xywh[target.visible] for target in sequence.targets]
  if not boxes:
    return np.zeros(0, np.float32)
  areas = np.concatenate(boxes)[:, 2:].prod(axis=1)
  return np.sqrt(np.where(np.isfinite(areas) & (areas > 0), areas, 0)).astype(np.float32)


def _sample(place: Place):
  for target in place.sequence.targets:
    visible = np.flatnonzero(target.visible)
    if len(visible):
      return place.picture(int(visible[0]), target.boxes_xywh[visible[0]])
  return place.picture(0)


def check_together(reports: Sequence[SequenceReport]) -> Iterator[Finding]:
  """Compare sequences: names and first images; and say which splits cannot train at all."""
  names: set[tuple[str, str]] = set()
  images: dict[bytes, SequenceReport] = {}
  for report in reports:
    name = (report.split, report.sequence)
    if name in names:
      text = f"the name {report.sequence} occurs twice in split {report.split}"
      yield Finding(kind="same_name", split=report.split, sequence=report.sequence, text=text)
    names.add(name)
    if not report.digest or report.sample is None:
      continue
    first = images.setdefault(report.digest, report)
    if first is not report and first.sample is not None:
      text = (
        f"it begins with the same image, byte for byte, as {first.sequence} of split {first.split}"
      )
      yield Finding(
        kind="same_image",
        split=report.split,
        sequence=report.sequence,
        text=text,
        pictures=(first.sample, report.sample),
      )
  for split in dict.fromkeys(report.split for report in reports):
    if not any(report.trains for report in reports if report.split == split):
      text = f"no sequence of split {split} can take part in training"
      yield Finding(kind="nothing_trains", split=split, sequence="", text=text)
