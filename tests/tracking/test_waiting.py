"""How the host waits."""

import sys
import threading
import time
import types

import jax.numpy as jnp
import numpy as np

from ostrack_jax.tracking.waiting import fetch


class _Answer:
  """An array of a GPU that is ready when another thread has said so."""

  def __init__(self):
    self.said = threading.Event()

  def devices(self):
    return [types.SimpleNamespace(platform="gpu")]

  def is_ready(self):
    return self.said.is_set()

  def __array__(self, dtype=None, copy=None):
    assert self.said.is_set()
    return np.arange(5.0, dtype=dtype)


def test_other_threads_go_on_meanwhile():
  answer = _Answer()

  interval = sys.getswitchinterval()
  # So long would the other thread have to wait for a turn that it is not given.
  sys.setswitchinterval(60)
  try:
    thread = threading.Timer(0.01, answer.said.set)
    began = time.perf_counter()
    thread.start()
    assert fetch(answer).tolist() == [0, 1, 2, 3, 4]  # pyrefly: ignore[bad-argument-type]
    assert time.perf_counter() - began < 30
  finally:
    sys.setswitchinterval(interval)
  thread.join()


def test_what_a_cpu_tells():
  np.testing.assert_array_equal(fetch(jnp.arange(3)), [0, 1, 2])
