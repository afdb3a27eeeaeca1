"""Track many sequences at once: each is a lane of a fixed batch, and one compiled step serves them all.

While the device works on one group of lanes, threads cut the search regions of another. Frames are read
and decoded ahead, since only where they are cut depends on the box before.
"""

import collections
import concurrent.futures
import dataclasses
import heapq
import os
import pathlib
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from ostrack_jax import sharding
from ostrack_jax.models import candidates, head
from ostrack_jax.tracking import tracker as tracker_lib
from ostrack_jax.tracking.lane import Lane, LaneResult, LaneSequence, Reader

# Frames in memory for every decoding thread, beside the least that a lane needs to go on.
_AHEAD_PER_THREAD = 2
_LEAST_AHEAD = 2

T = TypeVar("T")


@dataclasses.dataclass(kw_only=True)
class Stages:
  """Where the time of tracking went, in seconds.

  Attributes:
    read, decode, crop: of threads, summed over them.
    transfer: handing batches to the device. network: waiting for its answers. boxes: mapping those.
    frames: how many were tracked, first frames not counted.
  """

  read: float = 0.0
  decode: float = 0.0
  crop: float = 0.0
  transfer: float = 0.0
  network: float = 0.0
  boxes: float = 0.0
  frames: int = 0


def share_out(lengths: Sequence[int], parts: int) -> list[list[int]]:
  """Share sequences out over lanes or processes: the longest first, each to the part that is free next.

  Args:
    lengths: frames of each sequence.
    parts: at least one.

  Returns:
    For each part the numbers of its sequences in the order of tracking. It depends on the lengths alone,
    so that every process, and a run that goes on after a kill, gets the same.
  """
  if parts < 1:
    raise ValueError(f"cannot share sequences out over {parts} parts; expected at least 1")
  shares: list[list[int]] = [[] for _ in range(parts)]
  free = [(0, part) for part in range(parts)]
  for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
    busy_until, part = free[0]
    shares[part].append(number)
    heapq.heapreplace(free, (busy_until + lengths[number], part))
  return shares


def plan_lanes(sequences: Sequence[T], lengths: Sequence[int], lanes: int) -> list[list[T]]:
  """Return what each lane tracks, one sequence after another; see share_out."""
  return [[sequences[number] for number in share] for share in share_out(lengths, lanes)]


class _Group:
  """Lanes that step together, and their batch in memory."""

  def __init__(self, lanes: Sequence[Lane], batch_size: int, engine: "LaneTracker"):
    model = engine.model
    self.lanes = lanes
    self.search = np.zeros((batch_size, model.search_size, model.search_size, 3), np.uint8)
    self.template = np.zeros((batch_size, model.template_size, model.template_size, 3), np.uint8)
    self.template_mask = None
    if model.template_tokens == "ground_truth_box":
      grid = model.template_size // candidates.PATCH_SIZE
      self.template_mask = np.ones((batch_size, grid**2), bool)
    self.boxes_xywh = np.tile([0.0, 0.0, 1.0, 1.0], (batch_size, 1))
    self.resize_factors = np.ones(batch_size)
    self.frame_sizes = np.full((batch_size, 2), 32)
    self.active: list[Lane] = []
    self.on_device: tuple[jax.Array, jax.Array | None] | None = None
    self.pending: Any = None

  def prepare(self, lane: Lane) -> None:
    """Let a lane cut its next search region into its row of the batch."""
    row = lane.row
    cut = lane.prepare()
    if cut is None:
      return
    self.search[row], self.resize_factors[row] = cut
    self.boxes_xywh[row] = lane.box_xywh
    self.frame_sizes[row] = lane.frame_size
    if lane.new_template is not None:
      self.template[row], mask = lane.new_template
      if self.template_mask is not None:
        self.template_mask[row] = mask


class LaneTracker:
  """Track many sequences with one checkpoint.

  Args:
    checkpoint: what `ostrack_jax.load` returns.
    batch_size: lanes of a group; all take part in every step, idle ones as padding. Over several devices
      a multiple of their number.
    groups: of lanes that take turns on the device.
    threads: that decode; by default one a core.
    search_factor, template_factor: as for Tracker.
    devices: the batch is split over them; by default all of this process.
    locate: as tracker.locate; for measurements without a network.

  Every lane gives the boxes that Tracker gives, but for the rounding of other matrix products.

  Raises:
    ValueError: a number cannot be used; and as Tracker does.
  """

  def __init__(
    self,
    checkpoint: tracker_lib.TrackableCheckpoint,
    *,
    batch_size: int,
    groups: int = 2,
    threads: int | None = None,
    search_factor: float | None = None,
    template_factor: float | None = None,
    devices: Sequence[jax.Device] | None = None,
    locate: Callable = tracker_lib.locate,
  ):
    self.search_factor, self.template_factor = tracker_lib.tracking_factors(
      checkpoint, search_factor, template_factor
    )
    self.model = checkpoint.model
    self.batch_size, self.groups = batch_size, groups
    self.threads = len(os.sched_getaffinity(0)) if threads is None else threads
    for name in ("batch_size", "groups", "threads"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} {getattr(self, name)} is too small; expected at least 1")
    mesh = sharding.make_mesh(jax.local_devices() if devices is None else devices)
    if batch_size % mesh.size:
      raise ValueError(
        f"batch_size {batch_size} is not divisible by {mesh.size} devices; take a multiple of {mesh.size}"
      )
    self._batch_sharding = sharding.batch_sharding(mesh)
    everywhere = sharding.replicated(mesh)
    self._variables = jax.device_put(
      {name: checkpoint.variables[name] for name in ("params", "batch_stats")}, everywhere
    )
    self._window = jax.device_put(head.hann_window(self.model.search_grid), everywhere)
    self._locate = locate
    self.stages = Stages()

  @property
  def lanes(self) -> int:
    """How many sequences are tracked at once."""
    return self.batch_size * self.groups

  def track(
    self,
    plan: Sequence[Sequence[LaneSequence]],
    progress: Callable[[int], object] = lambda frames: None,
  ) -> Generator[LaneResult]:
    """Track sequences and yield each as it ends, whole or with the error that ended it.

    Args:
      plan: what each lane tracks in turn, at most `lanes` of them; plan_lanes makes it. A lane's place
        in the batch is its place in the plan, so that its results do not depend on the other lanes.
      progress: called after every step with the number of frames that it did.

    Raises:
      ValueError: the plan has too many lanes.
    """
    if len(plan) > self.lanes:
      raise ValueError(f"{len(plan)} lanes are planned; {self.groups} x {self.batch_size} fit")
    self.stages = Stages()
    working = max(sum(bool(sequences) for sequences in plan), 1)
    depth = max(_LEAST_AHEAD, -(-_AHEAD_PER_THREAD * self.threads // working))
    # Two pools, since cutting waits for decoding.
    decoders = concurrent.futures.ThreadPoolExecutor(self.threads, "decode")
    cutters = concurrent.futures.ThreadPoolExecutor(min(self.threads, self.batch_size), "cut")
    ended: collections.deque[LaneResult] = collections.deque()
    lanes = [
      Lane(number // self.groups, Reader(sequences, decoders, depth), self, ended)
      for number, sequences in enumerate(plan)
    ]
    groups = [_Group(lanes[i :: self.groups], self.batch_size, self) for i in range(self.groups)]
    for group in groups:
      group.active = [lane for lane in group.lanes if not lane.is_idle]
    try:
      while any(group.active for group in groups):
        for group in groups:
          if group.pending is not None:
            progress(self._collect(group))
          self._dispatch(group, cutters)
          while ended:
            yield ended.popleft()
    finally:
      # Those ahead are not needed any more; the one that each thread has begun is waited for.
      cutters.shutdown(cancel_futures=True)
      decoders.shutdown(cancel_futures=True)
      for lane in lanes:
        self.stages.read += lane.reader.seconds_reading
        self.stages.decode += lane.reader.seconds_decoding
        self.stages.crop += lane.seconds_cutting

  def _dispatch(self, group: _Group, cutters: concurrent.futures.Executor) -> None:
    """Cut a group's next search regions and hand them to the device."""
    active = group.active
    if len(active) == 1:
      group.prepare(active[0])
    else:
      workers = min(self.threads, len(active))
      shares = [active[i::workers] for i in range(workers)]
      list(cutters.map(lambda share: [group.prepare(lane) for lane in share], shares))
    began = time.perf_counter()
    group.active = [lane for lane in active if not lane.is_idle]
    if not group.active:
      return
    if group.on_device is None or any(lane.new_template is not None for lane in group.active):
      # Copies, because on a CPU the device may read this very memory.
      mask = group.template_mask
      group.on_device = jax.device_put(
        (group.template.copy(), None if mask is None else mask.copy()), self._batch_sharding
      )
      for lane in group.active:
        lane.new_template = None
    template, mask = group.on_device
    search = jax.device_put(group.search, self._batch_sharding)
    group.pending = self._locate(self.model, self._variables, template, search, self._window, mask)
    for array in group.pending:
      array.copy_to_host_async()
    self.stages.transfer += time.perf_counter() - began

  def _collect(self, group: _Group) -> int:
    """Wait for a group's boxes and give them to its lanes; return how many."""
    began = time.perf_counter()
    found, scores = jax.device_get(group.pending)
    group.pending = None
    answered = time.perf_counter()
    moved = tracker_lib.next_box(
      found,
      group.boxes_xywh,
      group.resize_factors,
      self.model.search_size,
      group.frame_sizes[:, 0],
      group.frame_sizes[:, 1],
    )
    scores = scores.tolist()
    for lane in group.active:
      lane.accept(moved[lane.row], scores[lane.row])
    self.stages.network += answered - began
    self.stages.boxes += time.perf_counter() - answered
    self.stages.frames += len(group.active)
    return len(group.active)


def decoded_ahead(paths: Sequence[pathlib.Path], threads: int) -> Generator[np.ndarray]:
  """Yield the images in order while threads decode the next ones; raises where an image cannot be read."""
  with concurrent.futures.ThreadPoolExecutor(threads, "decode") as pool:
    reader = Reader(
      [LaneSequence(name="", frames=paths, init_box_xywh=np.zeros(4))],
      pool,
      _AHEAD_PER_THREAD * threads,
    )
    try:
      for _ in paths:
        yield reader.next_frame()
    finally:
      pool.shutdown(cancel_futures=True)
