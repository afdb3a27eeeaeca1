"""Archives of result files as the evaluation servers of GOT-10k and TrackingNet take them.

| server      | in the archive                                     | boxes                        |
|-------------|----------------------------------------------------|------------------------------|
| GOT-10k     | `<name>/<name>_001.txt` and `<name>/<name>_time.txt` | x,y,w,h; its toolkit writes 3 decimals |
| TrackingNet | `<name>.txt`                                       | x,y,w,h; the server rounds   |

Both servers read decimals; whole pixels, truncated, are what the official OSTrack code sends.
"""

import dataclasses
import os
import pathlib
import zipfile
from collections.abc import Callable

import numpy as np

from ostrack_jax.evaluation import benchmarks, results

# A member's path in the archive to its text.
_Members = dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
  """Declare how a server wants results.

  members: gives a sequence's files, from its name, its rows as text, and its seconds [n].
  needs_seconds: whether the server asks for the time of every frame.
  """

  members: Callable[[str, str, np.ndarray | None], _Members]
  needs_seconds: bool


def _got10k_members(name: str, rows: str, seconds: np.ndarray | None) -> _Members:
  assert seconds is not None
  times = "".join(f"{value:.8f}\n" for value in seconds.tolist())
  return {f"{name}/{name}_001.txt": rows, f"{name}/{name}_time.txt": times}


def _trackingnet_members(name: str, rows: str, seconds: np.ndarray | None) -> _Members:
  del seconds
  return {f"{name}.txt": rows}


SERVERS = {
  "got10k_test": Server(members=_got10k_members, needs_seconds=True),
  "trackingnet": Server(members=_trackingnet_members, needs_seconds=False),
}


def pack(
  dataset: str,
  results_folder: pathlib.Path,
  root: pathlib.Path,
  output: pathlib.Path,
  *,
  integer_boxes: bool = True,
  overwrite: bool = False,
) -> int:
  """Check the result files of a whole benchmark and pack them; returns the number of sequences.

  Args:
    dataset: a name in SERVERS.
    root: the benchmark's, which tells the names, lengths and first boxes to check against.
    output: the .zip to write. It appears only when it is complete; result files stay as they are.
    integer_boxes: truncate to whole pixels; else three decimals.

  Raises:
    FileNotFoundError: the root is incomplete, or there is no result file.
    FileExistsError: the output exists, without `overwrite`.
    ValueError: the output is no .zip; or, every problem in one message: a sequence without result,
      a result that is none of the benchmark's, another number of rows than frames, a first row that
      is a pixel or more off the given box, numbers that are not finite, boxes without width or
      height as they would be packed, and for GOT-10k seconds that are missing, negative or of another number.
  """
  server = SERVERS[dataset]
  if output.suffix != ".zip":
    raise ValueError(f"{output} does not end with .zip, which the server asks for")
  if output.exists() and not overwrite:
    raise FileExistsError(f"{output} exists; give another output, or pass --overwrite")
  folder = results.locate(results_folder)
  present = set(results.names_in(folder))
  videos = benchmarks.select(benchmarks.BENCHMARKS[dataset], root).videos
  foreign = sorted(present - {video.name for video in videos})
  problems = [f"{name}: is no sequence of {dataset}" for name in foreign]
  members: _Members = {}
  for video in videos:
    if video.name not in present:
      problems.append(f"{video.name}: no result file")
      continue
    try:
      result = results.read_result(folder, video.name)
    except (OSError, ValueError) as error:
      problems.append(f"{video.name}: {error}")
      continue
    boxes_xywh = np.trunc(result.boxes_xywh) if integer_boxes else result.boxes_xywh.round(3)
    found = _box_problems(boxes_xywh, result.boxes_xywh, video)
    if server.needs_seconds:
      found += _second_problems(result.seconds, video)
    problems += [f"{video.name}: {problem}" for problem in found]
    if not found:
      number = "{:.0f}" if integer_boxes else "{:.3f}"
      line = ",".join([number] * 4) + "\n"
      rows = "".join(line.format(*box) for box in (boxes_xywh + 0.0).tolist())
      members |= server.members(video.name, rows, result.seconds)
  if problems:
    raise ValueError(
      f"{folder} cannot be packed for {dataset}, {len(problems)} problems; evaluate again "
      "what is wrong:" + "".join(f"\n  {problem}" for problem in problems)
    )
  _write_archive(output, members)
  return len(videos)


def _box_problems(
  packed_xywh: np.ndarray, boxes_xywh: np.ndarray, video: benchmarks.Video
) -> list[str]:
  """Say what is wrong with boxes, [n, 4] pixels, as they would be packed and as they are written."""
  problems = []
  if len(boxes_xywh) != len(video.frames):
    problems.append(f"{len(boxes_xywh)} rows for {len(video.frames)} frames")
  (bad,) = np.nonzero(~np.isfinite(boxes_xywh).all(axis=1))
  if len(bad):
    problems.append(f"row {bad[0] + 1} holds a number that is not finite")
  (empty,) = np.nonzero((packed_xywh[:, 2:] <= 0).any(axis=1))
  if len(empty):
    box = packed_xywh[empty[0]].tolist()
    problems.append(f"row {empty[0] + 1} would be packed without width or height: {box}")
  # Under a pixel, since result files may hold truncated boxes.
  if not (np.abs(boxes_xywh[0] - video.boxes_xywh[0]) < 1).all():
    problems.append(
      f"its first row {boxes_xywh[0].tolist()} is not the given box {video.boxes_xywh[0].tolist()}"
    )
  return problems


def _second_problems(seconds: np.ndarray | None, video: benchmarks.Video) -> list[str]:
  if seconds is None:
    timing = results.TIMING_FILE
    return [
      f"no seconds, which the server asks for, in {video.name}_time.txt or {timing}: evaluate with "
      "--one_by_one, since sequences in lanes share their time"
    ]
  if len(seconds) != len(video.frames):
    return [f"{len(seconds)} rows of seconds for {len(video.frames)} frames"]
  if not (np.isfinite(seconds).all() and (seconds >= 0).all()):
    return ["a time is negative or not finite"]
  return []


def _write_archive(path: pathlib.Path, members: _Members) -> None:
  """Write an archive under a temporary name, then rename it; the same members, the same bytes."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with zipfile.ZipFile(temporary, "w") as archive:
      for name, text in sorted(members.items()):
        # Without the time of writing.
        member = zipfile.ZipInfo(name)
        member.external_attr = 0o644 << 16
        archive.writestr(member, text, compress_type=zipfile.ZIP_DEFLATED)
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)
