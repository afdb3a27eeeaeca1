"""How large crops are, as multiples of the root of the box's area."""

from collections.abc import Mapping
from typing import Any

from ostrack_jax.tracking.weights import TrackableCheckpoint


def tracking_factors(
  checkpoint: TrackableCheckpoint,
  search_factor: float | None = None,
  template_factor: float | None = None,
) -> tuple[float, float]:
  """Return the factors of search region and template: the given, or where None the description's.

  Raises:
    ValueError: a factor out of range, or a checkpoint whose head was never trained.
  """
  if not checkpoint.description.get("complete", True):
    raise ValueError("this checkpoint is an encoder with an untrained head; train it first")
  described = checkpoint.description["tracker"]
  return (
    _factor("search_factor", search_factor, described),
    _factor("template_factor", template_factor, described),
  )


def _factor(name: str, given: float | None, described: Mapping[str, Any]) -> float:
  factor = float(described[name] if given is None else given)
  if not 1 <= factor <= 100:
    raise ValueError(f"{name} {factor} must lie between 1 and 100: the crop's side over the box's")
  return factor
