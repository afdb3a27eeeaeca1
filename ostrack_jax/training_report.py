"""What a training run shows at its end: tracks on held-out sequences, beside simple baselines."""

import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import tqdm

from ostrack_jax import visualization
from ostrack_jax.evaluation import plots, report
from ostrack_jax.tracking.engine import FrameTracker, track_sequence
from ostrack_jax.tracking.tracker import TrackResult

TRUTH_COLOUR, RESULT_COLOUR = (80, 220, 100), (255, 140, 0)


class StillBox:
  """The tracker that never moves: what any other must beat."""

  def __init__(self):
    self._box_xywh = np.zeros(4)

  def init(self, frame, box_xywh) -> None:
    """Remember the box."""
    del frame
    self._box_xywh = np.asarray(box_xywh, np.float64)

  def update(self, frame) -> TrackResult:
    """Return the first box."""
    del frame
    return TrackResult(box_xywh=self._box_xywh, score=float("nan"))


def mean_ao(tracker: FrameTracker, sequences: Sequence) -> float:
  """Track sequences, as for track_held_out, and return the mean of their AO."""
  tracks, sizes = {}, {}
  for sequence in sequences:
    result = track_sequence(tracker, sequence.frames, sequence.boxes_xywh[0])
    tracks[sequence.name] = result.boxes_xywh
    height, width = sequence.frames[0].shape[:2]
    sizes[sequence.name] = (width, height)
  annotations = {s.name: np.asarray(s.boxes_xywh, np.float64) for s in sequences}
  return report.score(tracks, annotations, sizes).mean["ao"]


def track_held_out(
  trackers: Mapping[str, FrameTracker], sequences: Sequence, workdir: pathlib.Path
) -> dict:
  """Track sequences with several trackers and write what people look at.

  Args:
    trackers: label to tracker; the last one is the run's result.
    sequences: with `name`, `frames` (RGB uint8) and `boxes_xywh` [n, 4] pixels.
    workdir: gets success.png, track.mp4 and track.png; the last two show the result on the sequence
      of its median AO, neither its best nor its worst.

  Returns:
    label to its mean measures over the sequences, AO among them.
  """
  annotations = {s.name: np.asarray(s.boxes_xywh, np.float64) for s in sequences}
  frames = sum(len(boxes) for boxes in annotations.values())
  measures, curves = {}, {}
  tracks: dict[str, np.ndarray] = {}
  by_ao = list(sequences)
  for label, tracker in trackers.items():
    tracks, sizes, seconds = {}, {}, {}
    with tqdm.tqdm(total=frames, desc=f"tracking, {label}", unit="frame") as bar:
      for sequence in sequences:
        result = track_sequence(tracker, sequence.frames, annotations[sequence.name][0], bar.update)
        tracks[sequence.name], seconds[sequence.name] = result.boxes_xywh, result.seconds
        height, width = sequence.frames[0].shape[:2]
        sizes[sequence.name] = (width, height)
    summary = report.score(tracks, annotations, sizes, seconds=seconds)
    measures[label], curves[label] = summary.mean, summary.success_curve
    by_ao = sorted(sequences, key=lambda s, scores=summary.sequences: scores[s.name].measures["ao"])
  plots.plot_success(curves, workdir / "success.png")
  typical = by_ao[len(by_ao) // 2]
  _draw_track(typical, tracks[typical.name], workdir)
  return measures


def _draw_track(sequence, boxes_xywh: np.ndarray, workdir: pathlib.Path) -> None:
  """Write a sequence with its true box and the result's as video and as a strip of frames."""
  annotated = []
  for image, truth, box in zip(sequence.frames, sequence.boxes_xywh, boxes_xywh, strict=True):
    image = visualization.draw_box(image, truth, colour=TRUTH_COLOUR)
    annotated.append(visualization.draw_box(image, box, colour=RESULT_COLOUR))
  with visualization.VideoWriter(workdir / "track.mp4", fps=20) as video:
    for image in annotated:
      video.write(image)
  picks = np.linspace(0, len(annotated) - 1, 8).round().astype(int)
  visualization.write_image(
    workdir / "track.png", visualization.frame_strip([annotated[i] for i in picks], columns=4)
  )


def format_measures(measures: Mapping[str, Mapping[str, float]]) -> str:
  """Return an aligned table: a line a tracker."""
  width = max(len(label) for label in measures)
  lines = [f"{'on held-out sequences':<{width}}      AO   SR.5  success AUC"]
  width = max(width, len("on held-out sequences"))
  for label, mean in measures.items():
    lines.append(
      f"{label:<{width}}  {mean['ao']:6.3f} {mean['sr_0.5']:6.3f} {mean['success_auc']:12.3f}"
    )
  return "\n".join(lines)


def write_report(content: dict, workdir: pathlib.Path) -> None:
  """Write report.json and draw the training curves."""
  temporary = workdir / ".report.json.tmp"
  temporary.write_text(json.dumps(content, indent=2) + "\n")
  temporary.replace(workdir / "report.json")
  plots.plot_training_curves(workdir / "scalars.jsonl", workdir / "curves.png")
