"""Track many sequences at once: each is a lane of a fixed batch, and one compiled step serves them all.

While the device works on one group of lanes, threads or processes cut the search regions of another.
Frames are read and decoded ahead, since only where they are cut depends on the box before.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ostrack_jax import sharding
from ostrack_jax.models import candidates, head
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.tracking import motion
from ostrack_jax.tracking import tracker as tracker_lib
from ostrack_jax.tracking.factors import tracking_factors
from ostrack_jax.tracking.lane import (
  AHEAD_PER_THREAD,
  CropSettings,
  LaneResult,
  LaneSequence,
)
from ostrack_jax.tracking.lane_host import Batches, BatchShape, Cut, Found, LaneHost, LocalHost
from ostrack_jax.tracking.lane_process import RemoteHost, close_all
from ostrack_jax.tracking.weights import fuses_blocks, prepare

_LEAST_AHEAD = 2
# With fewer, one interpreter does.
_LEAST_THREADS_FOR_PROCESSES = 8
# Of a process, where there are fewer lanes than processes.
_THREADS_OF_FEW = 6


@dataclasses.dataclass(kw_only=True)
class Stages:
  """Where the time of tracking went, in seconds.

  Attributes:
    read, decode, crop: of threads, summed over them.
    transfer: handing batches to the device. network: waiting for its answers. boxes: mapping those.
    frames: how many were tracked, first frames not counted.
    processes: CPU time of the processes that cut.
  """

  read: float = 0.0
  decode: float = 0.0
  crop: float = 0.0
  transfer: float = 0.0
  network: float = 0.0
  boxes: float = 0.0
  frames: int = 0
  processes: float = 0.0


class _Group:
  """Lanes that step together, and what is known of their batch."""

  def __init__(self, number: int, batches: Batches, model: OSTrack):
    batch_size = batches.shape.batch_size
    self.number = number
    self.search, self.template = batches.search[number], batches.template[number]
    self.template_mask = None
    if model.template_tokens == "ground_truth_box":
      grid = model.template_size // candidates.PATCH_SIZE
      self.template_mask = np.ones((batch_size, grid**2), bool)
    self.boxes_xywh = np.tile([0.0, 0.0, 1.0, 1.0], (batch_size, 1))
    self.resize_factors = np.ones(batch_size)
    self.frame_sizes = np.full((batch_size, 2), 32)
    # For each host the rows it cut, and what was found in them.
    self.rows: list[list[int]] = []
    self.found: list[Found | None] = []
    self.on_device: tuple[jax.Array, jax.Array | None] | None = None
    self.pending: Any = None

  @property
  def is_over(self) -> bool:
    """Whether all of its lanes are idle."""
    return bool(self.rows) and not any(self.rows)

  def take(self, cut: Cut, model: OSTrack) -> None:
    """Note what a host has cut."""
    rows = cut.rows
    self.rows.append(rows)
    self.boxes_xywh[rows] = cut.boxes_xywh
    self.resize_factors[rows] = cut.resize_factors
    self.frame_sizes[rows] = cut.frame_sizes
    for row, box_xywh, resize_factor in cut.templates:
      self.on_device = None
      if self.template_mask is not None:
        self.template_mask[row] = tracker_lib.template_mask(model, box_xywh, resize_factor)


class LaneTracker:
  """Track many sequences with one checkpoint.

  Args:
    checkpoint: what `ostrack_jax.load` returns.
    batch_size: lanes of a group; all take part in every step, idle ones as padding. Over several devices
      a multiple of their number.
    groups: of lanes that take turns on the device.
    threads: that decode; by default one a core.
    processes: that they are spread over, 0 for this one; by default one for two threads where there are
      at least eight. In one process, many threads wait for its interpreter more than they decode.
    search_factor, template_factor: as for Tracker.
    devices: the batch is split over them; by default all of this process.
    fuse_blocks: on Hopper GPUs, take less time in each step and more at the start; see weights.prepare.
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
    processes: int | None = None,
    search_factor: float | None = None,
    template_factor: float | None = None,
    devices: Sequence[jax.Device] | None = None,
    fuse_blocks: bool = False,
    locate: Callable = tracker_lib.locate,
  ):
    self.search_factor, self.template_factor = tracking_factors(
      checkpoint, search_factor, template_factor
    )
    self.model = checkpoint.model
    self.batch_size, self.groups = batch_size, groups
    self.threads = len(os.sched_getaffinity(0)) if threads is None else threads
    if processes is None:
      processes = -(-self.threads // 2) if self.threads >= _LEAST_THREADS_FOR_PROCESSES else 0
    self.processes = processes
    for name, least in (("batch_size", 1), ("groups", 1), ("threads", 1), ("processes", 0)):
      if getattr(self, name) < least:
        raise ValueError(f"{name} {getattr(self, name)} is too small; expected at least {least}")
    mesh = sharding.make_mesh(jax.local_devices() if devices is None else devices)
    if batch_size % mesh.size:
      raise ValueError(
        f"batch_size {batch_size} is not divisible by {mesh.size} devices; take a multiple of {mesh.size}"
      )
    self._batch_sharding = sharding.batch_sharding(mesh)
    everywhere = sharding.replicated(mesh)
    share = batch_size // mesh.size
    if fuse_blocks and (share == 1 or not fuses_blocks(self.model, share, True)):
      raise ValueError(
        "fuse_blocks needs a Hopper GPU, a one-stream model in half precision without relative positions, whose width is a "
        "multiple of 64, and at least 8 lanes a device, which as many sequences fill; this is "
        f"{self.model.dtype}, {share} lanes a device, {mesh.devices.flat[0].device_kind}: leave it out"
      )
    weights = prepare(
      self.model,
      checkpoint.variables,
      batch=share if fuse_blocks else None,
      fuse_blocks=fuse_blocks,
    )
    self._weights = jax.device_put(weights, everywhere)
    self._window = jax.device_put(head.hann_window(self.model.search_grid), everywhere)
    self._locate = locate
    self.stages = Stages()
    self._batches = Batches(
      BatchShape(
        groups=groups,
        batch_size=batch_size,
        template_size=self.model.template_size,
        search_size=self.model.search_size,
      )
    )
    self._is_tracking = False
    self._remote: list[RemoteHost] = []
    weakref.finalize(self, self._batches.close)
    weakref.finalize(self, close_all, self._remote)
    self._start_processes()

  def _start_processes(self) -> None:
    for _ in range(min(self.processes, self.lanes)):
      self._remote.append(RemoteHost(self._batches))

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
      plan: what each lane tracks in turn, at most `lanes` of them; sharing.plan_lanes makes it. A lane's place
        in the batch is its place in the plan, so that its results do not depend on the other lanes.
      progress: called after every step with the number of frames that it did.

    Raises:
      ValueError: the plan has too many lanes.
      RuntimeError: another run of this tracker has not ended.
      ChildProcessError: a process that cuts frames failed.
    """
    if len(plan) > self.lanes:
      raise ValueError(f"{len(plan)} lanes are planned; {self.groups} x {self.batch_size} fit")
    with self._alone(), contextlib.ExitStack() as stack:
      self.stages = Stages()
      hosts = self._open_hosts(plan, stack)
      groups = [_Group(number, self._batches, self.model) for number in range(self.groups)]
      while not all(group.is_over for group in groups):
        for group in groups:
          if group.is_over:
            continue
          if group.pending is not None:
            progress(self._collect(group))
          cuts = self._cut(group, hosts)
          self._dispatch(group)
          seconds = np.sum([cut.seconds for cut in cuts], axis=0).tolist()
          self.stages.read, self.stages.decode, self.stages.crop = seconds
          self.stages.processes = sum(cut.cpu_seconds for cut in cuts)
          for cut in cuts:
            yield from cut.ended
      if self._remote:
        # All they were asked for is done: they can be asked again.
        stack.pop_all()

  @contextlib.contextmanager
  def _alone(self) -> Iterator[None]:
    """Refuse a second run beside the first, whose processes and batches it would take."""
    if self._is_tracking:
      raise RuntimeError("this LaneTracker tracks already; let that run end, or close it, first")
    self._is_tracking = True
    try:
      yield
    finally:
      self._is_tracking = False

  def _open_hosts(
    self, plan: Sequence[Sequence[LaneSequence]], stack: contextlib.ExitStack
  ) -> list[LocalHost] | list[RemoteHost]:
    """Prepare what cuts frames; the stack ends it."""
    # Group by group, so that every host gets a part of each, as far as the lanes reach.
    busy = [
      ((group, row), sequences)
      for group in range(self.groups)
      for row, sequences in enumerate(plan[group :: self.groups])
      if sequences
    ]
    working = max(len(busy), 1)
    depth = max(_LEAST_AHEAD, -(-AHEAD_PER_THREAD * self.threads // working))
    settings = CropSettings(
      template_size=self.model.template_size,
      search_size=self.model.search_size,
      template_factor=self.template_factor,
      search_factor=self.search_factor,
    )
    count = min(self.processes or self.threads, working)
    plans: list[dict[tuple[int, int], Sequence[LaneSequence]]] = [{} for _ in range(count)]
    for number, (place, sequences) in enumerate(busy):
      plans[number % count][place] = sequences
    if not self.processes:
      # Two pools, since cutting waits for decoding.
      decoders = concurrent.futures.ThreadPoolExecutor(self.threads, "decode")
      cutters = concurrent.futures.ThreadPoolExecutor(count, "cut") if count > 1 else None
      # Those ahead are not needed any more; the one that each thread has begun is waited for.
      for pool in filter(None, (decoders, cutters)):
        stack.callback(pool.shutdown, cancel_futures=True)
      return [
        LocalHost(LaneHost(one, settings, decoders, depth, self._batches), cutters) for one in plans
      ]
    stack.callback(close_all, self._remote)
    if not self._remote:
      self._start_processes()
    # Few lanes leave few processes, which then need more threads each to be ahead; not all, since a
    # process's threads keep each other, and the cutting, from its interpreter.
    threads = -(-self.threads // self.processes)
    if count < self.processes:
      threads = max(threads, min(_THREADS_OF_FEW, self.threads))
    hosts = self._remote[:count]
    for host, one in zip(hosts, plans, strict=True):
      host.start(one, settings, threads, depth)
    return hosts

  def _cut(self, group: _Group, hosts: Sequence[LocalHost] | Sequence[RemoteHost]) -> list[Cut]:
    """Let all hosts cut a group's next search regions."""
    found = group.found or [None] * len(hosts)
    for host, one in zip(hosts, found, strict=True):
      host.begin(group.number, one)
    cuts = [host.finish() for host in hosts]
    group.rows = []
    for cut in cuts:
      group.take(cut, self.model)
    return cuts

  def _dispatch(self, group: _Group) -> None:
    """Hand a group's batch to the device."""
    if group.is_over:
      return
    began = time.perf_counter()
    if group.on_device is None:
      template, mask = jax.device_put((group.template, group.template_mask), self._batch_sharding)
      group.on_device = tracker_lib.remember(self.model, self._weights, template), mask
    template, mask = group.on_device
    # On a CPU it may read this very memory, which changes only once its answer is here.
    search = jax.device_put(group.search, self._batch_sharding)
    group.pending = self._locate(self.model, self._weights, template, search, self._window, mask)
    group.pending.copy_to_host_async()
    self.stages.transfer += time.perf_counter() - began

  def _collect(self, group: _Group) -> int:
    """Wait for a group's boxes; return how many there are."""
    began = time.perf_counter()
    found = jax.device_get(group.pending)
    group.pending = None
    answered = time.perf_counter()
    moved = motion.next_box(
      found[:, :4],
      group.boxes_xywh,
      group.resize_factors,
      self.model.search_size,
      group.frame_sizes[:, 0],
      group.frame_sizes[:, 1],
    )
    group.found = [
      Found(boxes_xywh=moved[rows], scores=found[rows, 4].tolist()) for rows in group.rows
    ]
    count = sum(map(len, group.rows))
    self.stages.network += answered - began
    self.stages.boxes += time.perf_counter() - answered
    self.stages.frames += count
    return count
