"""The time that training took, without what is not training."""

import time


class Stopwatch:
  """Seconds that ran between start and pause, on top of those of earlier parts of a run."""

  def __init__(self, seconds: float = 0.0):
    self._seconds, self._lap_began = seconds, seconds
    self._since: float | None = None

  @property
  def seconds(self) -> float:
    """All of them so far."""
    running = 0.0 if self._since is None else time.perf_counter() - self._since
    return self._seconds + running

  def start(self) -> None:
    """Go on, if it does not run."""
    if self._since is None:
      self._since = time.perf_counter()

  def pause(self) -> None:
    """Stand still until start."""
    self._seconds, self._since = self.seconds, None

  def set_back(self, seconds: float) -> None:
    """Go on from an earlier reading, as if no time had passed since."""
    self._seconds, self._since = seconds, time.perf_counter()

  def lap(self) -> float:
    """Return the seconds since the last lap, never 0."""
    now = self.seconds
    lap, self._lap_began = now - self._lap_began, now
    return max(lap, 1e-9)
