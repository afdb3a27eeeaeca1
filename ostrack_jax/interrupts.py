"""Ctrl-C that never falls into the middle of writing."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupts:
  """While it is entered, Ctrl-C raises KeyboardInterrupt only in the blocks that say so.

  Only the main thread gets signals; in another one nothing is changed.
  """

  def __init__(self):
    self._has_come = self._may_raise = False

  def __enter__(self):
    self._previous = None
    if threading.current_thread() is threading.main_thread():
      self._previous = signal.signal(signal.SIGINT, self._take)
    return self

  def __exit__(self, *error):
    if self._previous is not None:
      signal.signal(signal.SIGINT, self._previous)

  def _take(self, number, frame) -> None:
    del number, frame
    self._has_come = True
    if self._may_raise:
      raise KeyboardInterrupt

  @contextlib.contextmanager
  def raised(self) -> Iterator[None]:
    """Let KeyboardInterrupt be raised in a block, and before it for what came earlier."""
    self._may_raise = True
    try:
      if self._has_come:
        raise KeyboardInterrupt
      yield
    finally:
      self._may_raise = False
