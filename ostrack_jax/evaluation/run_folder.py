"""The output folder of an evaluation: what is done stays done, and only for the run that it belongs to.

run.json       the checkpoint and the settings that the results depend on
results/       boxes, one file a sequence (in a subfolder where the benchmark's official results have one)
scores/        the tracker's score of every frame, likewise
timing.json    all that is about time, and differs between two runs
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ostrack_jax.evaluation import results
from ostrack_jax.evaluation.videos import Video

RUN_FILE = "run.json"


def sequences_digest(videos: Sequence[Video]) -> str:
  """Return a hash of which sequences a run covers, in order, with their lengths and boxes."""
  rows = [[video.name, len(video.frames), video.boxes_xywh.tolist()] for video in videos]
  return f"{len(videos)} sequences, {hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]}"


def checkpoint_digest(variables: Mapping[str, Any], description: Mapping[str, Any]) -> str:
  """Return a hash of all that a checkpoint makes a tracker do, wherever and however it is stored.

  variables: {"params", "batch_stats"}, nested mappings of arrays. description: with `model`, `tracker`.
  """
  digest = hashlib.sha256()
  digest.update(json.dumps([description["model"], description["tracker"]], sort_keys=True).encode())

  def add(path: str, tree) -> None:
    if isinstance(tree, Mapping):
      for key in sorted(tree):
        add(f"{path}/{key}", tree[key])
    else:
      array = np.ascontiguousarray(tree)
      digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
      digest.update(array.tobytes())

  for name in ("params", "batch_stats"):
    add(name, variables[name])
  return digest.hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackedSequence:
  """How tracking a sequence ended.

  boxes_xywh: [n, 4] pixels. scores: [n], NaN where there is none. seconds: [n] spent on each frame, or
  the total of all. error: what ended it early, or None.
  """

  video: Video
  boxes_xywh: np.ndarray
  scores: np.ndarray
  seconds: np.ndarray | float
  error: Exception | None = None


class RunFolder:
  """Results of one run, whole at any moment.

  Args:
    output: made if it is missing.
    settings: name to value in JSON, everything that the results depend on.
    result_folder: below results/ and scores/, or "".
    integer_boxes: see results.write_result.
    process, processes: which of how many write to this folder at once.

  Raises:
    FileExistsError: the folder belongs to a run with other settings, which are named, or holds results
      of an unknown one.
    ValueError: its run.json or timing.json is damaged.
  """

  def __init__(
    self,
    output: pathlib.Path,
    settings: Mapping[str, Any],
    *,
    result_folder: str = "",
    integer_boxes: bool = False,
    process: int = 0,
    processes: int = 1,
  ):
    self.output = output
    self.results = output / "results" / result_folder
    self.scores = output / "scores" / result_folder
    self._integer_boxes = integer_boxes
    self._claim(settings)
    if processes == 1:
      _remove_half_written(output, self.results, self.scores)
    self._timing_path = output / _timing_name(process, processes)
    self._timing = results.read_timing(self._timing_path)
    self._timing.setdefault("per_sequence", {})

  def _claim(self, settings: Mapping[str, Any]) -> None:
    record = self.output / RUN_FILE
    if record.is_file():
      try:
        before = json.loads(record.read_text(encoding="utf-8"))["settings"]
        differing = [
          f"{key} ({before.get(key)} there, {settings.get(key)} now)"
          for key in sorted({*before, *settings})
          if before.get(key) != settings.get(key)
        ]
      except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{record} is damaged ({error}); use another --output") from error
      if differing:
        raise FileExistsError(
          f"{self.output} holds a run with other settings: {', '.join(differing)}; "
          "go on with those, or use another --output"
        )
      return
    if any((self.output / "results").glob("**/*.txt")):
      raise FileExistsError(
        f"{self.output / 'results'} holds results of an unknown run, without a {RUN_FILE} beside it; "
        "use another --output"
      )
    text = json.dumps({"settings": dict(settings)}, indent=2, sort_keys=True)
    results.write_text(record, text + "\n")

  def is_finished(self, video: Video) -> bool:
    """Return whether a sequence was tracked whole."""
    # The boxes are written last, behind the times.
    return (self.results / f"{video.name}.txt").is_file()

  def write(self, tracked: TrackedSequence) -> None:
    """Write a sequence's files; ValueError where its boxes are too few or not finite."""
    name, frames = tracked.video.name, len(tracked.video.frames)
    boxes_xywh = np.asarray(tracked.boxes_xywh, dtype=np.float64)
    if boxes_xywh.shape != (frames, 4):
      raise ValueError(f"tracker gave boxes of shape {boxes_xywh.shape}; expected {(frames, 4)}")
    (bad,) = np.nonzero(~np.isfinite(boxes_xywh).all(axis=1))
    if len(bad):
      raise ValueError(
        f"tracker gave {boxes_xywh[bad[0]].tolist()} for frame {bad[0]}; are the checkpoint's weights finite? In "
        "float16 numbers beyond 65504 are not: --dtype=bfloat16 and float32 hold them"
      )
    self._timing["per_sequence"][name] = _timing_of(tracked, frames)
    self.write_timing()
    results.write_scores(self.scores, name, np.asarray(tracked.scores))
    results.write_result(
      self.results,
      name,
      results.RecordedResult(boxes_xywh),
      integer_boxes=self._integer_boxes,
    )

  def write_timing(self, extra: Mapping[str, Any] | None = None) -> None:
    """Write timing.json, with further keys."""
    self._timing.update(extra or {})
    results.write_text(self._timing_path, json.dumps(self._timing) + "\n")


def merge_timing(output: pathlib.Path, processes: int) -> None:
  """Gather what each of several processes knows of times in timing.json, and remove their own files."""
  merged = results.read_timing(output / results.TIMING_FILE)
  merged.setdefault("per_sequence", {})
  runs = []
  parts = [output / _timing_name(number, processes) for number in range(processes)]
  for part in parts:
    timing = results.read_timing(part)
    merged["per_sequence"] |= timing.get("per_sequence", {})
    runs.append(timing.get("last_run"))
  if any(runs):
    merged["last_run"] = runs
  results.write_text(output / results.TIMING_FILE, json.dumps(merged) + "\n")
  for part in parts:
    part.unlink(missing_ok=True)


def _timing_name(process: int, processes: int) -> str:
  name = pathlib.PurePath(results.TIMING_FILE)
  return name.name if processes == 1 else f"{name.stem}.{process}{name.suffix}"


def _timing_of(tracked: TrackedSequence, frames: int) -> dict[str, Any]:
  each = np.atleast_1d(np.asarray(tracked.seconds, dtype=np.float64))
  timing: dict[str, Any] = {"tracked_frames": frames - 1, "tracked_seconds": float(each.sum())}
  if each.size == 1:
    return timing
  steps = float(each[1:].sum())
  fps = (frames - 1) / steps if steps > 0 else None
  return timing | {"fps": fps, "seconds": each.round(6).tolist()}


def _remove_half_written(*folders: pathlib.Path) -> None:
  """Remove what a killed run left under temporary names."""
  for folder in folders:
    for path in folder.glob(".*.tmp"):
      path.unlink(missing_ok=True)
