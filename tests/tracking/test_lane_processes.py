"""Threads and processes that cut frames: when they start, end, fail and are used again."""

import subprocess
import threading

import jax
import numpy as np
import pytest
from lane_runs import LENGTHS, alone, track

from ostrack_jax.tracking import lanes, sharing
from ostrack_jax.tracking.lane import LaneSequence
from ostrack_jax.tracking.lane_process import RemoteHost


@pytest.mark.parametrize("processes", [0, 2])
def test_a_run_that_is_left_early_ends_its_threads_and_processes(
  checkpoint, sequences, processes, monkeypatch
):
  started = _watch_processes(monkeypatch)
  tracker = lanes.LaneTracker(
    checkpoint, batch_size=2, groups=1, processes=processes, devices=jax.devices()[:1]
  )
  plan = sharing.plan_lanes(sequences, LENGTHS, 2)
  run = tracker.track(plan)
  next(run)
  run.close()
  assert not [t for t in threading.enumerate() if t.name.startswith(("decode", "cut"))]
  assert [process.returncode for process in started] == [0] * processes
  with pytest.raises(ValueError, match="3 lanes are planned; 1 x 2 fit"):
    next(tracker.track([[], [], []]))


def _watch_processes(monkeypatch):
  """Return the list that holds the processes that will be started."""
  started, popen = [], subprocess.Popen

  def start(*arguments, **options):
    started.append(popen(*arguments, **options))
    return started[-1]

  monkeypatch.setattr(subprocess, "Popen", start)
  return started


def test_processes_are_used_again_and_end_with_the_tracker(checkpoint, sequences, monkeypatch):
  started = _watch_processes(monkeypatch)
  tracker = lanes.LaneTracker(
    checkpoint, batch_size=2, groups=1, processes=3, devices=jax.devices()[:1]
  )
  first, second = (track(tracker, sequences[:count]) for count in (4, 1))
  assert len(first) == 4
  np.testing.assert_array_equal(second["s0"].boxes_xywh, first["s0"].boxes_xywh)
  # As many as lanes.
  assert [process.poll() for process in started] == [None, None]
  del tracker
  assert [process.returncode for process in started] == [0, 0]


def test_a_process_that_dies_stops_the_run_with_its_signal(checkpoint, sequences, monkeypatch):
  started = _watch_processes(monkeypatch)
  tracker = lanes.LaneTracker(
    checkpoint, batch_size=2, groups=1, processes=2, devices=jax.devices()[:1]
  )
  run = tracker.track(sharing.plan_lanes(sequences, LENGTHS, 2))
  next(run)
  started[0].kill()
  with pytest.raises(ChildProcessError, match=r"ended by signal 9; if memory was short"):
    list(run)
  assert [process.poll() is None for process in started] == [False, False]
  # Another run starts others.
  (again,) = tracker.track([[sequences[0]]])
  np.testing.assert_allclose(again.boxes_xywh, alone(checkpoint, sequences[0])[0], atol=1e-3)
  assert len(started) == 4


def test_an_error_of_a_process_is_told_as_it_is(checkpoint, sequences):
  tracker = lanes.LaneTracker(
    checkpoint, batch_size=1, groups=1, processes=1, devices=jax.devices()[:1]
  )
  broken = LaneSequence(name="x", frames=sequences[0].frames, init_box_xywh=np.zeros(4))
  object.__setattr__(broken, "frames", [1, 2])
  (result,) = tracker.track([[broken]])
  assert isinstance(result.error, AttributeError)
  (host,) = tracker._remote
  with pytest.raises(ChildProcessError, match=r"failed:(.|\n)*IndexError"):
    host.begin(7, None)
    host.finish()


@pytest.mark.parametrize("processes", [0, 1])
def test_one_run_at_a_time(checkpoint, sequences, processes):
  tracker = lanes.LaneTracker(
    checkpoint, batch_size=1, groups=1, processes=processes, devices=jax.devices()[:1]
  )
  run = tracker.track([sequences[:2]])
  next(run)
  with pytest.raises(RuntimeError, match="tracks already; let that run end, or close it"):
    next(tracker.track([sequences[:1]]))
  run.close()
  assert len(list(tracker.track([sequences[:2]]))) == 2
  assert len(list(tracker.track([sequences[:2]]))) == 2


def test_few_lanes_have_a_process_each(checkpoint, sequences, monkeypatch):
  plans = []
  start = RemoteHost.start

  def note(host, plan, *rest):
    plans.append(sorted(plan))
    return start(host, plan, *rest)

  monkeypatch.setattr(RemoteHost, "start", note)
  tracker = lanes.LaneTracker(
    checkpoint, batch_size=3, groups=2, threads=4, processes=4, devices=jax.devices()[:1]
  )
  track(tracker, sequences[:4])
  assert [len(plan) for plan in plans] == [1, 1, 1, 1]
  plans.clear()
  track(tracker, sequences[:6])
  # (group, row): after three rows of the first group, the fourth process begins the second.
  assert plans == [[(0, 0), (1, 1)], [(0, 1), (1, 2)], [(0, 2)], [(1, 0)]]


def test_many_threads_are_spread_over_processes(checkpoint):
  def processes(**options):
    return lanes.LaneTracker(
      checkpoint, batch_size=1, devices=jax.devices()[:1], **options
    ).processes

  assert [processes(threads=count) for count in (1, 7, 8, 16)] == [0, 0, 4, 8]
  assert processes(threads=16, processes=0) == 0
  with pytest.raises(ValueError, match="processes -1 is too small; expected at least 0"):
    processes(processes=-1)
