"""Several trackers' result files, scored by one rule against the same annotations."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ostrack_jax import annotations as annotation_files
from ostrack_jax.evaluation import metrics, published, report, results
from ostrack_jax.evaluation.run_folder import RUN_FILE
from ostrack_jax.evaluation.videos import Video
from ostrack_jax.tracking import frames as frame_files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """Trackers by their labels, in the order given.

  predictions: label to sequence name to [n, 4] xywh pixels, as written. remarks: for the user, such
  as a result of another length.
  """

  trackers: dict[str, report.Summary]
  predictions: dict[str, dict[str, np.ndarray]]
  remarks: list[str]


def label_folders(
  folders: Sequence[pathlib.Path], labels: Sequence[str] | None = None
) -> dict[str, pathlib.Path]:
  """Return a label for each folder of result files.

  A folder that the evaluator wrote stands for the results in it; see results.locate. By default a
  folder's own name is its label, and where that is results, or a folder in such a one of the evaluator, the
  name of the run. Raises ValueError for labels that repeat or differ in number from the folders,
  FileNotFoundError for a folder without result files.
  """
  found = [results.locate(folder) for folder in folders]
  if labels is None:
    labels = [_label(folder.resolve()) for folder in found]
  if len(labels) != len(found):
    raise ValueError(f"{len(labels)} labels for {len(found)} result folders; give one for each")
  repeated = sorted({label for label in labels if list(labels).count(label) > 1})
  if repeated:
    raise ValueError(f"label {repeated[0]!r} occurs twice; name the folders with --labels=A,B")
  return dict(zip(labels, found, strict=True))


def _label(folder: pathlib.Path) -> str:
  for above in (folder, folder.parent):
    if above.name == "results" and (above == folder or (above.parent / RUN_FILE).is_file()):
      return above.parent.name
  return folder.name


def read_annotations(
  folder: pathlib.Path, known: Mapping[str, Video] | None = None
) -> dict[str, Video]:
  """Read a folder of <sequence>.txt; frames, visibility and attributes come from `known`, if given.

  Only the sequences of `known` are read then. Raises FileNotFoundError for one of them without a
  file, and ValueError for one whose number of frames differs.
  """
  names = results.names_in(folder)
  absent = [name for name in known or {} if name not in names]
  if absent:
    raise FileNotFoundError(f"{folder} has no {absent[0]}.txt; leave --annotations or --root out")
  videos = {}
  for name in names:
    boxes_xywh = annotation_files.read_boxes(folder / f"{name}.txt").boxes_xywh
    if known is None:
      videos[name] = Video(name=name, frames=(), boxes_xywh=boxes_xywh)
    elif name in known:
      frames = len(known[name].frames)
      if len(boxes_xywh) != frames:
        raise ValueError(
          f"{folder / name}.txt has {len(boxes_xywh)} boxes for {frames} frames of {name} under "
          "the root; give annotations and frames of the same benchmark"
        )
      videos[name] = dataclasses.replace(known[name], boxes_xywh=boxes_xywh, is_annotated=True)
  return videos


def score_folders(
  folders: Mapping[str, pathlib.Path],
  videos: Mapping[str, Video],
  *,
  rule: str,
  declared: int,
  allow_missing: bool = False,
) -> Comparison:
  """Score every tracker on the sequences that all of them have.

  Args:
    folders: label to a folder of result files. videos: annotated sequences by name.
    rule: a name in metrics.RULES. declared: how many sequences the benchmark has.
    allow_missing: leave out sequences that a tracker lacks, for all of them.

  Boxes are clipped for AO and SR where frames are at hand. Raises FileNotFoundError, naming each,
  for sequences that a tracker lacks unless allow_missing, and where none is left; ValueError for
  files that cannot be read, for sequences whose annotations are held back and for what the rule
  refuses.
  """
  hidden = [name for name, video in videos.items() if not video.is_annotated]
  if hidden:
    raise ValueError(
      f"the annotations of {', '.join(hidden[:5])} are held back, so that nothing can be scored; "
      "pack the results for the benchmark's server"
    )
  present = {label: set(results.names_in(folder)) for label, folder in folders.items()}
  remarks = [
    f"{name}: no result file of {label}"
    for label, names in present.items()
    for name in videos
    if name not in names
  ]
  if remarks and not allow_missing:
    raise FileNotFoundError(
      f"{len(remarks)} results are missing; pass --allow_missing to leave these sequences out for "
      "all trackers:" + "".join(f"\n  {line}" for line in remarks)
    )
  names = [name for name in videos if all(name in one for one in present.values())]
  if not names:
    raise FileNotFoundError(
      f"no annotated sequence has a result in all of {', '.join(map(str, folders.values()))}"
    )
  sizes = {
    name: frame_files.image_size(videos[name].frames[0]) for name in names if videos[name].frames
  }
  visible = {
    name: labels for name in names for labels in [videos[name].visible] if labels is not None
  }
  trackers, predictions = {}, {}
  for label, folder in folders.items():
    recorded = {name: results.read_result(folder, name) for name in names}
    for name, one in recorded.items():
      rows, frames = len(one.boxes_xywh), len(videos[name].boxes_xywh)
      if rows != frames:
        remarks.append(f"{name}: {rows} boxes of {label} for {frames} annotated frames")
    predictions[label] = {name: one.boxes_xywh for name, one in recorded.items()}
    try:
      trackers[label] = report.score(
        {
          name: metrics.match_length(boxes, len(videos[name].boxes_xywh), rule)
          for name, boxes in predictions[label].items()
        },
        {name: videos[name].boxes_xywh for name in names},
        sizes,
        rule=rule,
        seconds={name: one.seconds for name, one in recorded.items() if one.seconds is not None},
        declared=declared,
        visible=visible,
      )
    except ValueError as error:
      raise ValueError(f"{label}, {error}") from error
  return Comparison(trackers=trackers, predictions=predictions, remarks=remarks)


def write_json(comparison: Comparison, path: pathlib.Path, *, dataset: str) -> None:
  """Write the trackers' scores, and the paper's in percent where it has some, as JSON."""
  content: dict[str, Any] = {
    "dataset": dataset,
    "remarks": comparison.remarks,
    "trackers": {label: report.as_json(one) for label, one in comparison.trackers.items()},
  }
  printed = published.scores(dataset)
  if printed:
    content["published_percent"] = {"source": published.table_of(dataset), "trackers": printed}
  results.write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
