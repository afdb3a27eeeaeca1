"""Signals that ask training to stop: finish the step, save, leave."""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

# EX_TEMPFAIL of sysexits.h: come again, and it goes on.
EXIT_CODE = 75


class StoppedBySignalError(KeyboardInterrupt):
  """A signal ended training, and what there was to save is saved.

  Like KeyboardInterrupt no Exception, so that nothing on the way takes it for an error of its own.

  Attributes:
    step: the last one, which is saved; None where training had not begun.
    signal_name: SIGTERM, SIGINT, or the two where a cluster's processes agreed.
  """

  def __init__(self, step: int | None, signal_name: str):
    self.step, self.signal_name = step, signal_name
    super().__init__(signal_name)


def raise_on_sigterm() -> None:
  """Let SIGTERM raise StoppedBySignalError wherever the program is; StopSignals defers it.

  In a cluster jax has taken the signal, to tell all processes, and it stays with jax.
  """
  if jax.distributed.is_initialized():
    return

  def stop(number, frame):
    del number, frame
    raise StoppedBySignalError(None, "SIGTERM")

  signal.signal(signal.SIGTERM, stop)


class StopSignals:
  """While this context lasts, SIGTERM and the first Ctrl-C are noted for the loop to ask about.

  A second Ctrl-C interrupts at once. In a cluster jax notices SIGTERM in any process and has all stop
  at the same step; Ctrl-C takes the same way. Outside the main thread, which alone gets signals, this
  does nothing.
  """

  def __init__(self):
    self._in_cluster = jax.distributed.is_initialized()
    self._received: str | None = None
    self._agreed = False
    self._before = {}

  def __enter__(self) -> "StopSignals":
    if threading.current_thread() is threading.main_thread():
      numbers = [signal.SIGINT] if self._in_cluster else [signal.SIGINT, signal.SIGTERM]
      self._before = {number: signal.signal(number, self._note) for number in numbers}
    return self

  def __exit__(self, *exception) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number, frame) -> None:
    del frame
    name = signal.Signals(number).name
    if name == self._received == "SIGINT":
      raise KeyboardInterrupt
    self._received = name
    if self._in_cluster:
      os.kill(os.getpid(), signal.SIGTERM)

  def reached(self, step: int) -> bool:
    """Return whether this step is to be the last; every process asks once a step."""
    if self._in_cluster:
      self._agreed = multihost_utils.reached_preemption_sync_point(step)
    return self.is_over

  @property
  def is_over(self) -> bool:
    """Whether training is to end here; the same in all processes."""
    return self._agreed if self._in_cluster else self._received is not None

  @property
  def signal_name(self) -> str:
    """What came; in a cluster perhaps to another process."""
    return self._received or "SIGTERM"
