"""Lanes that are worked on together, in a thread of this process or in a process of their own."""

import collections
import concurrent.futures
import dataclasses
import mmap
import os
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np

from ostrack_jax.tracking.lane import CropSettings, Lane, LaneResult, LaneSequence, Reader

# What a host's lanes track in turn, by (group, row).
HostPlan = Mapping[tuple[int, int], Sequence[LaneSequence]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchShape:
  """Sizes of what hosts cut: so many groups of lanes, so many lanes a group, sides in pixels."""

  groups: int
  batch_size: int
  template_size: int
  search_size: int


class Batches:
  """Templates and search regions of all lanes, in memory that other processes can map.

  Attributes:
    template: [groups, batch, Z, Z, 3] uint8. search: [groups, batch, S, S, 3] uint8.
    file: descriptor of the memory.
  """

  def __init__(self, shape: BatchShape, file: int | None = None):
    self.shape = shape
    sides = (shape.template_size, shape.search_size)
    sizes = [shape.groups * shape.batch_size * side * side * 3 for side in sides]
    self.file = _new_memory(sum(sizes)) if file is None else file
    memory = np.frombuffer(mmap.mmap(self.file, sum(sizes)), np.uint8)
    self.template, self.search = (
      part.reshape(shape.groups, shape.batch_size, side, side, 3)
      for part, side in zip(np.split(memory, sizes[:1]), sides, strict=True)
    )

  def close(self) -> None:
    """Give the descriptor back; the arrays stay."""
    os.close(self.file)


def _new_memory(size: int) -> int:
  if hasattr(os, "memfd_create"):
    file = os.memfd_create("ostrack-batches")
  else:
    with tempfile.TemporaryFile() as temporary:
      file = os.dup(temporary.fileno())
  os.truncate(file, size)
  return file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """What the network found in the search regions that a host cut last, in the order of its rows.

  Attributes:
    boxes_xywh: [k, 4] float64 pixels of the frames. scores: [k].
  """

  boxes_xywh: np.ndarray
  scores: Sequence[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
  """What a host has cut for a group; the pixels lie in its batch.

  Attributes:
    rows: k places in the batch, those of its lanes that are not idle.
    boxes_xywh: [k, 4] what the search regions were cut around, pixels of the frames.
    resize_factors: [k] crop pixels per frame pixel.
    frame_sizes: [k, 2] height and width.
    templates: (row, target's box_xywh, template pixels per frame pixel) of those that are new.
    ended: results of sequences.
    seconds: of reading, decoding and cutting, since the host began.
    cpu_seconds: of the host's process since then, if it has one of its own.
  """

  rows: list[int]
  boxes_xywh: np.ndarray
  resize_factors: np.ndarray
  frame_sizes: np.ndarray
  templates: list[tuple[int, np.ndarray, float]]
  ended: list[LaneResult]
  seconds: tuple[float, float, float]
  cpu_seconds: float = 0.0


class LaneHost:
  """Some lanes of every group.

  Args:
    decoders: threads that read and decode their frames.
    depth: frames that a lane is ahead.
    batches: where crops go.
  """

  def __init__(
    self,
    plan: HostPlan,
    settings: CropSettings,
    decoders: concurrent.futures.Executor,
    depth: int,
    batches: Batches,
  ):
    self._batches = batches
    self._ended: collections.deque[LaneResult] = collections.deque()
    self._lanes: list[list[Lane]] = [[] for _ in range(batches.shape.groups)]
    for (group, row), sequences in plan.items():
      lane = Lane(row, Reader(sequences, decoders, depth), settings, self._ended)
      self._lanes[group].append(lane)
    self._waiting: list[list[Lane]] = [[] for _ in self._lanes]

  def step(self, group: int, found: Found | None) -> Cut:
    """Give a group's lanes what was found, None at first, and cut their next search regions."""
    if found is not None:
      for lane, box_xywh, score in zip(
        self._waiting[group], found.boxes_xywh, found.scores, strict=True
      ):
        lane.accept(box_xywh, score)
    factors = []
    self._waiting[group] = []
    for lane in self._lanes[group]:
      cut = lane.prepare()
      if cut is None:
        continue
      self._batches.search[group, lane.row], factor = cut
      factors.append(factor)
      self._waiting[group].append(lane)
    cutting = self._waiting[group]
    templates = []
    for lane in cutting:
      if lane.new_template is not None:
        self._batches.template[group, lane.row], factor = lane.new_template
        templates.append((lane.row, lane.first_box_xywh, factor))
        lane.new_template = None
    ended = [self._ended.popleft() for _ in range(len(self._ended))]
    every = [lane for lanes in self._lanes for lane in lanes]
    return Cut(
      rows=[lane.row for lane in cutting],
      boxes_xywh=np.array([lane.box_xywh for lane in cutting]).reshape(-1, 4),
      resize_factors=np.array(factors),
      frame_sizes=np.array([lane.frame_size for lane in cutting]).reshape(-1, 2),
      templates=templates,
      ended=ended,
      seconds=(
        sum(lane.reader.seconds_reading for lane in every),
        sum(lane.reader.seconds_decoding for lane in every),
        sum(lane.seconds_cutting for lane in every),
      ),
    )


class LocalHost:
  """A host in this process.

  Args:
    cutters: threads that cut, or None to cut in the caller's.
  """

  def __init__(self, host: LaneHost, cutters: concurrent.futures.Executor | None):
    self._host = host
    self._cutters = cutters
    self._cut: concurrent.futures.Future[Cut] | Cut | None = None

  def begin(self, group: int, found: Found | None) -> None:
    """Begin what LaneHost.step does."""
    if self._cutters is None:
      self._cut = self._host.step(group, found)
    else:
      self._cut = self._cutters.submit(self._host.step, group, found)

  def finish(self) -> Cut:
    """Wait for what was begun."""
    cut, self._cut = self._cut, None
    assert cut is not None, "finish follows begin"
    return cut if isinstance(cut, Cut) else cut.result()
