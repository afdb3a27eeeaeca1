"""The jitted steps of a run: few of them, whatever the elimination schedule does."""

import operator
from collections.abc import Callable

import jax
import numpy as np

from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.training import targets


def scheduled_ratios(
  model: OSTrack, epoch: int, *, start: int, warmup: int
) -> tuple[float, ...] | None:
  """Return each stage's keep ratio in an epoch, counted from 1; None where the model's own are in force.

  The official code gives all stages one ratio until the warm-up is over. Where a model's stages have different ones,
  each goes its own way from 1.
  """
  if not model.keep_ratios or epoch >= start + warmup:
    return None
  return tuple(
    targets.keep_ratio_at_epoch(epoch, final=ratio, start=start, warmup=warmup)
    for ratio in model.keep_ratios
  )


class CompiledSteps:
  """One step a bucket of keep ratios; the traced keep counts mask what the schedule drops beyond it.

  The official schedule changes the keep counts almost every epoch: 66 to 74 shapes in 300 epochs. Here
  the warm-up from ratio 1 to the final one is divided into `buckets` equal parts, and within a part
  every stage keeps as many candidates as at the part's beginning; those that the schedule would have
  dropped are masked from attention and from the head, so that numbers equal the official ones at every
  epoch. Before the warm-up and behind it nothing is masked. So at most buckets + 2 are compiled, each
  when it is first called.
  """

  def __init__(
    self,
    model: OSTrack,
    make_step: Callable[[OSTrack], Callable],
    settings,
    *,
    buckets: int = 1,
    **jit_options,
  ):
    """Take what to compile.

    Args:
      model: at its final keep ratios.
      make_step: makes a step, a pure function that takes keep counts last, for a model.
      settings: elimination_start, elimination_warmup (LoopSettings).
      buckets: parts of the warm-up; more waste less arithmetic and compile longer.
      jit_options: for jax.jit.
    """
    self._model, self._settings = model, settings
    ratios = model.keep_ratios
    # The largest ratios of each part, the smallest first.
    self._tops = [
      tuple(1.0 - (1.0 - ratio) * part / buckets for ratio in ratios)
      for part in reversed(range(buckets))
    ]
    self._traces = 0
    self._masked = {
      tops: self._jit(make_step(model.clone(keep_ratios=tops)), **jit_options)
      for tops in self._tops
    }
    self._exact = {
      counts: self._jit(make_step(model.clone(keep_ratios=kept)), **jit_options)
      for kept in dict.fromkeys(((1.0,) * len(ratios), ratios))
      for counts in (model.clone(keep_ratios=kept).stage_counts(),)
    }

  def _jit(self, step: Callable, **jit_options) -> Callable:
    # jit compiles what it traces; the entries of its own cache also grow without.
    def counted(*arguments):
      self._traces += 1
      return step(*arguments)

    return jax.jit(counted, **jit_options)

  def keep_counts(self, epoch: int) -> tuple[int, ...]:
    """Return the search tokens left after each stage in an epoch, counted from 1."""
    return self._model.stage_counts(self._ratios(epoch))

  def _ratios(self, epoch: int) -> tuple[float, ...] | None:
    settings = self._settings
    start, warmup = settings.elimination_start, settings.elimination_warmup
    return scheduled_ratios(self._model, epoch, start=start, warmup=warmup)

  def at_epoch(self, epoch: int) -> Callable:
    """Return the step of an epoch, counted from 1; it takes what the uncompiled step takes."""
    ratios, counts = self._ratios(epoch), self.keep_counts(epoch)
    if ratios is None or counts in self._exact:
      return self._exact[counts]
    holds = (tops for tops in self._tops if all(map(operator.le, ratios, tops)))
    masked = self._masked[next(holds)]
    traced = np.asarray(counts, np.int32)
    return lambda *arguments: masked(*arguments, traced)

  def compiled(self) -> int:
    """Return how many steps were compiled so far."""
    return self._traces
