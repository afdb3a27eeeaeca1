"""Times come from a process of PyTorch's own, whatever else it prints, and it ends with the block that asks."""

import contextlib
import subprocess
import sys

import pytest

from benchmarks import peer_process

_SERVER = """
import time
from benchmarks import peer_process
answers = peer_process.answers_alone()
print("hello")
def make_step(search_size, keep_ratio, batch_size):
  print("compiling")
  return lambda: time.sleep(1e-3 * search_size * keep_ratio * batch_size)
peer_process.serve(make_step, answers)
"""


@pytest.fixture
def peer(monkeypatch):
  real = subprocess.Popen
  monkeypatch.setattr(
    peer_process.subprocess,
    "Popen",
    lambda command, **options: real([sys.executable, "-c", _SERVER], **options),
  )
  with contextlib.closing(peer_process.PeerProcess()) as process:
    yield process


def test_steps_are_timed_where_they_run(peer):
  quick, slow = peer.make_step(2, 0.5, 1), peer.make_step(10, 1.0, 3)
  assert len(slow.times(0)) == 1
  for step, seconds in ((quick, 0.001), (slow, 0.03), (quick, 0.001)):
    times = step.times(0.1)
    assert len(times) > 1 and min(times) >= seconds
  assert min(quick.times(0.1)) < 0.03


def test_a_process_that_ends_is_explained(peer):
  with pytest.raises(SystemExit, match="ended"):
    peer.ask({"step": 5, "seconds": 0})
  with pytest.raises(SystemExit, match="ended"):
    peer.make_step(1, 1.0, 1)
