"""Compare computing in bfloat16 and float16 with float32 on annotated sequences.

  python -m benchmarks.compare_dtypes --checkpoint=PATH --dataset=otb,folder --root=OTB,LaSOT --allow_missing

Every frame's search region is cut around the annotated box before it, so that all types see the same
pixels: boxes, their mean overlap with the annotation, and the search tokens that elimination keeps. One at a time
(--batch_size=1) they go through what tracks a single target, which has kernels of its own on some GPUs, as
several have with --fuse_blocks. Then all track freely, through what evaluates many sequences, without these.
Several data sets are one pool of frames. Of the comparison frame by frame float32 is in full precision.
"""

import functools
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from ostrack_jax import boxes, command_line, loading
from ostrack_jax.evaluation import benchmarks, report
from ostrack_jax.evaluation.results import write_text
from ostrack_jax.models import head
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.tracking import frames, lanes, motion, sharing, tracker
from ostrack_jax.tracking.cutting import cut_search, cut_template, starting_boxes
from ostrack_jax.tracking.factors import tracking_factors
from ostrack_jax.tracking.lane import LaneSequence
from ostrack_jax.tracking.weights import prepare

_NAME = "benchmarks.compare_dtypes"

FLAGS = command_line.new_flags()
flags.DEFINE_string("checkpoint", None, "Trained weights.", required=True, flag_values=FLAGS)
flags.DEFINE_list("dataset", ["folder"], "Layout of each --root.", flag_values=FLAGS)
flags.DEFINE_list("root", None, "Folders of real sequences.", required=True, flag_values=FLAGS)
flags.DEFINE_bool("allow_missing", False, "Leave out incomplete sequences.", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 32, "Frames at a time.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_bool("fuse_blocks", False, "Of several frames at a time.", flag_values=FLAGS)
flags.DEFINE_string("output", None, "JSON file to write.", flag_values=FLAGS)

HALVES = ("bfloat16", "float16")
DTYPES = ("float32", *HALVES)


def find_videos() -> list[benchmarks.Video]:
  """Return the sequences of all roots.

  Raises:
    SystemExit: not one data set a root, an unknown one, or two sequences of one name.
  """
  unknown = set(FLAGS.dataset) - set(benchmarks.BENCHMARKS)
  if unknown or len(FLAGS.dataset) != len(FLAGS.root):
    raise SystemExit(
      f"{_NAME}: --dataset {FLAGS.dataset} must name one of "
      f"{', '.join(sorted(benchmarks.BENCHMARKS))} for each --root, of which there are {len(FLAGS.root)}"
    )
  videos = [
    video
    for dataset, root in zip(FLAGS.dataset, FLAGS.root)
    for video in benchmarks.select(
      benchmarks.BENCHMARKS[dataset], pathlib.Path(root), allow_missing=FLAGS.allow_missing
    ).videos
  ]
  if len({video.name for video in videos}) < len(videos):
    raise SystemExit(f"{_NAME}: two sequences have one name; compare them apart")
  return videos


def crops(
  model: OSTrack, factors: tuple[float, float], video: benchmarks.Video
) -> tuple[list[tuple], tuple[int, int]]:
  """Return of each frame but the first template, search crop, crop pixels per frame pixel, and the box
  that it was cut around; and the frames' (height, width)."""
  search_factor, template_factor = factors
  first = frames.read_image(video.frames[0])
  template, _, _, size = cut_template(
    first, video.boxes_xywh[0], model.template_size, template_factor
  )
  starts = starting_boxes(video.boxes_xywh, size)
  rows = []
  for path, start in zip(video.frames[1:], starts):
    image = frames.read_image(path)
    search, resize_factor = cut_search(image, start, model.search_size, search_factor, size)
    rows.append((template, search, resize_factor, start))
  return rows, size


def kept(removed: Sequence[np.ndarray], batch_size: int, cells: int) -> np.ndarray:
  """Return [stages, b, cells] bool: the search tokens that are left after each stage, of which there may be none."""
  stages = np.ones((len(removed), batch_size, cells), bool)
  for number, indices in enumerate(removed):
    for later in stages[number:]:
      np.put_along_axis(later, indices, False, axis=1)
  return stages


def forward(network: loading.Checkpoint) -> Callable:
  """Return the jitted step from crops to boxes [b, 4] and removed tokens, through what tracks a batch of this size."""
  weights = prepare(
    network.model, network.variables, FLAGS.batch_size, fuse_blocks=FLAGS.fuse_blocks
  )
  weights = jax.device_put(weights)
  window = head.hann_window(network.model.search_grid)

  @jax.jit
  def run(weights, template, search):
    template = tracker.remember(network.model, weights, template)
    output = tracker.forward(network.model, weights, template, search)
    return output.boxes_near(window), output.removed

  return functools.partial(run, weights)


def from_annotated_boxes(
  networks: dict[str, loading.Checkpoint], videos: Sequence[benchmarks.Video]
) -> dict[str, Any]:
  """Compare what each type says of the same crops with what float32 says."""
  model = networks["float32"].model
  factors = tracking_factors(networks["float32"])
  run = {name: forward(network) for name, network in networks.items()}
  found: dict[str, list] = {name: [] for name in networks}
  overlaps: dict[str, list] = {name: [] for name in networks}
  halves = [name for name in networks if name != "float32"]
  common: dict[str, list[np.ndarray]] = {name: [] for name in halves}
  for video in videos:
    rows, size = crops(model, factors, video)
    truth = np.asarray(video.boxes_xywh[1:], float)
    usable = np.isfinite(truth).all(axis=1) & (truth[:, 2:] > 0).all(axis=1)
    in_frame: dict[str, list] = {name: [] for name in networks}
    for first in range(0, len(rows), FLAGS.batch_size):
      part = rows[first : first + FLAGS.batch_size]
      # One shape for every batch.
      padded = part + part[-1:] * (FLAGS.batch_size - len(part))
      templates, searches = (np.stack([row[column] for row in padded]) for column in (0, 1))
      sets = {}
      for name in networks:
        boxes_cxcywh, removed = jax.device_get(run[name](templates, searches))
        for (_, _, resize_factor, start), box in zip(part, boxes_cxcywh):
          in_frame[name].append(
            motion.next_box(box, start, resize_factor, model.search_size, *size)
          )
        sets[name] = kept(removed, FLAGS.batch_size, model.search_grid**2)[:, : len(part)]
      for name in halves:
        both = (sets[name] & sets["float32"]).sum(axis=2)
        common[name].append(both / sets["float32"].sum(axis=2))
    for name in networks:
      found[name] += in_frame[name]
      pair = (boxes.xywh_to_xyxy(one[usable]) for one in (np.array(in_frame[name]), truth))
      overlaps[name].append(boxes.iou(*pair))
  means = {name: float(np.concatenate(overlaps[name]).mean()) for name in networks}
  against = {}
  for name in halves:
    # Of every frame the coordinate that differs most.
    apart = np.abs(np.array(found[name]) - np.array(found["float32"])).max(axis=1)
    stages = np.concatenate(common[name], axis=1).mean(axis=1)
    against[name] = {
      "mean_iou_difference": means[name] - means["float32"],
      "px_apart": {
        "median": float(np.median(apart)),
        "99th percentile": float(np.percentile(apart, 99)),
      },
      "kept_in_common_by_stage": [float(share) for share in stages],
    }
  return {"frames": len(found["float32"]), "mean_iou": means, "against_float32": against}


def free_runs(network: loading.Checkpoint, videos: Sequence[benchmarks.Video]) -> dict[str, float]:
  """Track all sequences from their first boxes; return the success AUC of each."""
  devices = jax.local_device_count()
  lane_tracker = lanes.LaneTracker(
    network,
    batch_size=-(-min(FLAGS.batch_size, len(videos)) // devices) * devices,
    threads=len(os.sched_getaffinity(0)),
  )
  sequences = [
    LaneSequence(name=v.name, frames=v.frames, init_box_xywh=v.boxes_xywh[0]) for v in videos
  ]
  plan = sharing.plan_lanes(sequences, [len(v.frames) for v in videos], lane_tracker.lanes)
  found = {}
  for run in lane_tracker.track(plan):
    if run.error is not None:
      raise ValueError(f"sequence {run.sequence.name}: {run.error}")
    found[run.sequence.name] = run.boxes_xywh
  summary = report.score(found, {v.name: v.boxes_xywh for v in videos}, rule="visible")
  return {name: one.measures["success_auc"] for name, one in summary.sequences.items()}


def _compare() -> None:
  videos = find_videos()
  networks = {dtype: loading.load(FLAGS.checkpoint, dtype=dtype) for dtype in DTYPES}
  device = jax.local_devices()[0].device_kind
  compared: dict[str, Any] = {"device": device, "jax": jax.__version__}
  with jax.default_matmul_precision("float32"):
    compared |= from_annotated_boxes(networks, videos)
  print(f"{device}, jax {jax.__version__}; {compared['frames']} frames of {len(videos)} sequences")
  means = ", ".join(f"{name} {value:.4f}" for name, value in compared["mean_iou"].items())
  print(f"mean IoU from annotated boxes: {means}")
  for half, said in compared["against_float32"].items():
    apart = ", ".join(f"{name} {px:.3f} px" for name, px in said["px_apart"].items())
    shares = [f"{share:.2%}" for share in said["kept_in_common_by_stage"]]
    print(
      f"{half} against float32: mean IoU {said['mean_iou_difference']:+.4f}; boxes apart: {apart}; search tokens "
      f"that both keep, after each stage: {', '.join(shares) or 'all, nothing is eliminated'}"
    )
  runs = {name: free_runs(network, videos) for name, network in networks.items()}
  compared["free_success_auc"] = runs
  print(f"{'success of free runs':<24}" + "".join(f"{dtype:>9}" for dtype in runs))
  for name in runs["float32"]:
    print(f"{name:<24}" + "".join(f"{run[name]:>9.4f}" for run in runs.values()))
  if FLAGS.output:
    settings = {name: FLAGS[name].value for name in FLAGS if name != "help"}
    text = json.dumps({"settings": settings} | compared, indent=2)
    write_text(pathlib.Path(FLAGS.output), text + "\n")


def main(argv: list[str]) -> None:
  """Compare, print, and write what --output names."""
  del argv
  try:
    _compare()
  except (ValueError, OSError) as error:
    sys.exit(f"{_NAME}: {error}")


if __name__ == "__main__":
  command_line.run(main, _NAME, FLAGS, __doc__)
