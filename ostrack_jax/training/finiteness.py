"""Metrics that are still on the device, and the check that they are numbers."""

from collections.abc import Callable

import jax
import numpy as np

from ostrack_jax.training.state import TrainState


class NonFiniteLossError(RuntimeError):
  """The loss, the gradient or the state stopped being a number."""


class UnreadMetrics:
  """The metrics of the steps since they were last read, with the records of their batches.

  Reading waits for the device, so it is done seldom; a state is saved only behind it.
  """

  def __init__(self, describe: Callable[[np.ndarray], str] | None = None):
    """Take what names a row of a batch's `records`, if batches have them."""
    self._describe = describe
    self._rows: list[tuple[int, dict[str, jax.Array], np.ndarray | None]] = []

  def add(self, step: int, metrics: dict[str, jax.Array], records: np.ndarray | None) -> None:
    """Keep the metrics of a step.

    Args:
      step: counted from 1.
      metrics: scalars.
      records: int64 [b, 3] of this process's part of the batch, or None.
    """
    self._rows.append((step, metrics, records))

  def read(self) -> dict[str, float]:
    """Return the means since the last time.

    Raises:
      NonFiniteLossError: names the first step that gave no number, what did not, and the batch's records.
    """
    rows, self._rows = self._rows, []
    values = jax.device_get([metrics for _, metrics, _ in rows])
    for (step, _, records), row in zip(rows, values, strict=True):
      bad = [f"{name} ({value})" for name, value in row.items() if not np.isfinite(value)]
      if bad:
        raise NonFiniteLossError(
          f"{', '.join(bad)} stopped being finite at step {step}; the last checkpoint is untouched. "
          f"Lower config.optim.learning_rate or look at that batch{self._names(records)}"
        )
    return {name: float(np.mean([row[name] for row in values])) for name in values[0]}

  def _names(self, records: np.ndarray | None) -> str:
    if records is None or self._describe is None:
      return ""
    lines = [f"\n  {self._describe(row)}" for row in records]
    return f"; process {jax.process_index()} had in it:{''.join(lines)}"


def check_state(state: TrainState, step: int) -> None:
  """Raise NonFiniteLossError, naming the array, where a state must not be saved.

  An update can overflow although loss and gradient were finite.
  """
  kept = {"params": state.params, "batch_stats": state.batch_stats, "ema": state.ema_variables}
  for path, array in jax.tree_util.tree_leaves_with_path(kept):
    if not np.isfinite(np.asarray(array)).all():
      raise NonFiniteLossError(
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} stopped being finite at or before step "
        f"{step}, while loss and gradient were; the last checkpoint is untouched. Lower config.optim.learning_rate"
      )
