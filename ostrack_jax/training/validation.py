"""What a state is worth on held-out data."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from ostrack_jax import sharding


def run_validation(step: Callable, variables: dict, batches: Iterator, mesh) -> dict[str, float]:
  """Return the mean of each metric of a compiled validation step over equal batches.

  Raises:
    ValueError: there are no batches.
  """
  rows = jax.device_get([step(variables, sharding.put_batch(mesh, batch)) for batch in batches])
  if not rows:
    raise ValueError(
      "there is nothing to validate on; set config.data.validation_pairs to at least one batch"
    )
  return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def track(tracker: Callable[[dict], float], variables: dict) -> float:
  """Return the AO that tracking with these variables gives; the first process tracks for all."""
  ao = tracker(jax.device_get(variables)) if jax.process_index() == 0 else 0.0
  return float(multihost_utils.broadcast_one_to_all(np.float32(ao)))
