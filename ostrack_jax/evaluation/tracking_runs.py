"""The ways to track a benchmark: in lanes, as fast as it goes, or one frame after another, timed.

A single sequence has no other to take turns with: where a device computes beside the host, its search
regions are cut there, and no frame waits for the box before it to come back.

Starts jax when imported, so the command imports it only where something is tracked.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax

from ostrack_jax.evaluation import one_pass
from ostrack_jax.evaluation.run_folder import TrackedSequence, checkpoint_digest
from ostrack_jax.evaluation.videos import Video
from ostrack_jax.tracking import engine, lane, lanes, sharing
from ostrack_jax.tracking.tracker import Tracker
from ostrack_jax.tracking.weights import TrackableCheckpoint

_GROUPS = 2
_BATCH_SIZES = {"gpu": 32, "tpu": 32}
_BATCH_SIZE_ELSEWHERE = 4
# Where cutting takes nothing from the network.
PLATFORMS_THAT_CUT = ("gpu", "tpu")


class Run(Protocol):
  """Tracks some videos of those that it was planned for, and says what its results depend on."""

  @property
  def settings(self) -> dict[str, Any]: ...

  @property
  def videos(self) -> Sequence[Video]: ...

  def track(
    self, unfinished: Sequence[Video], progress: Callable[[int], object]
  ) -> Iterator[TrackedSequence]: ...

  def timing(self) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """How to track.

  Attributes:
    batch_size: lanes of a group, 0 for the device's default; see LaneTracker.
    threads: that decode, 0 for one a core.
    teacher_forced: every frame starts from the annotated box.
    fuse_blocks: of lanes; see LaneTracker.
  """

  one_by_one: bool = False
  batch_size: int = 0
  threads: int = 0
  teacher_forced: bool = False
  fuse_blocks: bool = False


def elimination_of(model) -> str:
  """Say where a model eliminates candidates, as in 'block 3 keeps 0.7, block 6 keeps 0.7' or 'none'."""
  stages = zip(model.elimination_layers, model.keep_ratios, strict=True)
  # In full: the text tells runs apart, whose results are never mixed.
  words = ((layer, str(float(ratio)).removesuffix(".0")) for layer, ratio in stages)
  return ", ".join(f"block {layer} keeps {ratio}" for layer, ratio in words) or "none"


def plan(checkpoint: TrackableCheckpoint, videos: Sequence[Video], options: Options) -> Run:
  """Plan this process's share of tracking videos; see share_out.

  Raises:
    ValueError: the options do not fit the devices or the annotations.
  """
  unannotated = [video.name for video in videos if not video.is_annotated]
  if options.teacher_forced and unannotated:
    raise ValueError(
      f"--teacher_forced needs every frame's box, which {unannotated[0]} has not; leave it away"
    )
  if options.fuse_blocks and (options.one_by_one or len(videos) == 1):
    raise ValueError(
      "--fuse_blocks is of many sequences at once; one after another have such blocks by themselves, where there are "
      "any: leave it out"
    )
  shares = sharing.share_out([len(video.frames) for video in videos], jax.process_count())
  mine = [videos[number] for number in sorted(shares[jax.process_index()])]
  settings = {
    "checkpoint": checkpoint_digest(checkpoint.variables, checkpoint.description),
    "dtype": checkpoint.model.dtype,
    "elimination": elimination_of(checkpoint.model),
    "devices": f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}",
    "processes": jax.process_count(),
    "teacher_forced": options.teacher_forced,
    "jax": jax.__version__,
  }
  kind: type[_OneByOne | _Followed | _InLanes] = _InLanes
  if options.one_by_one:
    kind = _OneByOne
  elif (
    len(videos) == 1
    and not (options.teacher_forced or options.batch_size)
    and jax.local_devices()[0].platform in PLATFORMS_THAT_CUT
  ):
    kind = _Followed
  return kind(checkpoint, mine, len(videos), options, settings)


class _OneByOne:
  def __init__(self, checkpoint, videos, total, options: Options, settings):
    del total
    self.videos: Sequence[Video] = videos
    self.settings: dict[str, Any] = settings | {"one_by_one": options.one_by_one}
    self._tracker = Tracker(checkpoint)
    self._options = options

  def track(self, unfinished, progress):
    self._warm_up(unfinished)
    return one_pass.one_by_one(self._track_one, unfinished, progress)

  def timing(self) -> dict[str, Any]:
    """Return what timing.json says of the whole run."""
    return {"seconds_are": "of the tracker for each frame, reading and decoding not counted"}

  def _track_images(self, video: Video, images, progress=None) -> engine.SequenceResult:
    tracker = self._tracker
    if self._options.teacher_forced:
      tracker = engine.TeacherForced(tracker, video.boxes_xywh)
    return engine.track_sequence(tracker, images, video.boxes_xywh[0], progress)

  def _track_one(self, video: Video, progress: Callable[[], object]) -> engine.SequenceResult:
    threads = self._options.threads or len(os.sched_getaffinity(0))
    with contextlib.closing(lane.decoded_ahead(video.frames, threads)) as images:
      return self._track_images(video, images, progress)

  def _warm_up(self, videos: Sequence[Video]) -> None:
    """Track a frame twice, so that no sequence's time holds the compilation."""
    for video in videos:
      try:
        (frame,) = lane.decoded_ahead(video.frames[:1], 1)
        self._track_images(video, [frame, frame])
        return
      except (ValueError, OSError):
        continue  # The sequence reports it when it is its turn.


class _Followed(_OneByOne):
  """With a sequence's frames on their way to the device while it works on those before."""

  def __init__(self, checkpoint, videos, total, options: Options, settings):
    super().__init__(checkpoint, videos, total, options, settings | {"cut_on_device": True})

  def timing(self) -> dict[str, Any]:
    """Return what timing.json says of the whole run."""
    return {"seconds_are": "of the sequence from start to end"}

  def _track_images(self, video, images, progress=None):
    return engine.follow_sequence(self._tracker, images, video.boxes_xywh[0], progress)


class _InLanes:
  def __init__(self, checkpoint, videos, total, options: Options, settings):
    devices = jax.local_device_count()
    platform = jax.local_devices()[0].platform
    wanted = options.batch_size or _BATCH_SIZES.get(platform, _BATCH_SIZE_ELSEWHERE) * devices
    # Of all sequences, so that every process records the same.
    share = -(-total // jax.process_count())
    groups = min(_GROUPS, share)
    fitting = -(-share // (groups * devices)) * devices
    if wanted % devices:
      raise ValueError(
        f"--batch_size={wanted} is not divisible by {devices} devices; take a multiple of {devices}"
      )
    self.videos: Sequence[Video] = videos
    self._tracker = lanes.LaneTracker(
      checkpoint,
      batch_size=min(wanted, fitting),
      groups=groups,
      threads=options.threads or None,
      fuse_blocks=options.fuse_blocks,
    )
    self.settings: dict[str, Any] = settings | {
      "one_by_one": False,
      "batch_size": self._tracker.batch_size,
    }
    if options.fuse_blocks:
      self.settings["fuse_blocks"] = True
    lengths = [len(video.frames) for video in videos]
    self._plan = sharing.plan_lanes(videos, lengths, self._tracker.lanes)
    self._forced = options.teacher_forced

  def track(self, unfinished, progress):
    names = {video.name for video in unfinished}
    by_name = {video.name: video for video in unfinished}
    # Planned with those that are finished, so that each keeps its place in the batch, on which the last
    # bits of its boxes depend.
    planned = [
      [self._sequence(video) for video in share if video.name in names] for share in self._plan
    ]
    for result in self._tracker.track(planned, progress):
      progress(1)  # The first frame is no step of the lanes.
      yield TrackedSequence(
        video=by_name[result.sequence.name],
        boxes_xywh=result.boxes_xywh,
        scores=result.scores,
        seconds=result.seconds,
        error=result.error,
      )

  def timing(self) -> dict[str, Any]:
    """Return what timing.json says of the whole run."""
    return {
      "seconds_are": f"of a sequence from start to end, while {self._tracker.lanes} lanes ran at once",
      "stages": dataclasses.asdict(self._tracker.stages),
    }

  def _sequence(self, video: Video) -> lane.LaneSequence:
    starts = video.boxes_xywh if self._forced else None
    return lane.LaneSequence(
      name=video.name,
      frames=video.frames,
      init_box_xywh=video.boxes_xywh[0],
      start_boxes_xywh=starts,
    )
