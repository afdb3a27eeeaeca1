"""A window of steps under jax's profiler; read with XProf or Perfetto."""

import contextlib
import pathlib

import jax


class ProfilerWindow:
  """Trace steps `first` to `last`, both included, into a folder; without steps, do nothing.

  Only the first process traces. A run that resumes inside the window traces the rest of it; one that
  ends inside keeps what was traced.
  """

  def __init__(self, steps: tuple[int, ...], folder: pathlib.Path):
    """Take (first, last), or () for none.

    Raises:
      ValueError: steps are neither.
    """
    steps = tuple(steps)
    if steps and (len(steps) != 2 or not 1 <= steps[0] <= steps[1]):
      raise ValueError(
        f"train.profile_steps {steps} must be (first, last), steps counted from 1, or () for none"
      )
    self._first, self._last = steps or (0, 0)
    self._active = bool(steps) and jax.process_index() == 0
    self._folder, self._tracing = folder, False

  def step(self, step: int) -> contextlib.AbstractContextManager:
    """Return the context to dispatch a step in, counted from 1."""
    if not self._active or not self._first <= step <= self._last:
      return contextlib.nullcontext()
    if not self._tracing:
      jax.profiler.start_trace(self._folder)
      self._tracing = True
    return jax.profiler.StepTraceAnnotation("train", step_num=step)

  def after(self, step: int, results) -> None:
    """Stop behind the last step of the window, once its results are there."""
    if self._tracing and step >= self._last:
      jax.block_until_ready(results)
      self.close()

  def close(self) -> None:
    """Write what was traced."""
    if self._tracing:
      self._tracing = False
      jax.profiler.stop_trace()
