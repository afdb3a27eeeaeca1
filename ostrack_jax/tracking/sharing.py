"""How sequences are shared out over lanes and processes."""

import heapq
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


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
