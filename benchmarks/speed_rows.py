"""Frames per second at batch 1, as Tables 3 and 5 print them: measured together, kept with their device."""

from collections.abc import Mapping
from typing import Any

import jax

from benchmarks import inference
from benchmarks.gathered_runs import UNRUN
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.training.state import init_variables


def key(variant: str, search_size: int, eliminates: bool, relation: str = "one_stream") -> str:
  """Return under which name a model's speed is kept."""
  return f"{relation} {variant} {search_size} {'with' if eliminates else 'without'} elimination"


def make_model(
  variant: str, search_size: int, eliminates: bool, relation: str = "one_stream"
) -> OSTrack:
  """Return the model as the paper has it: elimination behind blocks 3, 6 and 9, keeping 0.7, or nowhere."""
  model = OSTrack(
    variant=variant,
    search_size=search_size,
    template_size=search_size // 2,
    relation=relation,
    elimination_layers=(),
    keep_ratios=(),
  )
  if not eliminates:
    return model
  return model.clone(elimination_layers=(3, 6, 9), keep_ratios=(0.7, 0.7, 0.7))


def measure(
  models: Mapping[str, OSTrack], seconds: float, variables: Any = None
) -> dict[str, dict[str, Any]]:
  """Return the speeds of models, which take turns.

  Args:
    models: name to model. seconds: that each is measured for.
    variables: of all of them, {"params", "batch_stats"}; None for random ones.

  Returns:
    name to {"network": frames per second from crops on the device to a box on the host, "step": from a frame of
    1280 x 720 on the host to a box, "device", "dtype", "jax"}.
  """
  inference.FLAGS(["inference", f"--seconds={seconds}"])
  steps: dict[str, dict] = {"network": {}, "step": {}}
  for name, model in models.items():
    given = init_variables(model, 0) if variables is None else variables
    steps["network"][name] = inference.network_step(model, given, 1)
    steps["step"][name] = inference.tracking_step(model, given)
  found = {kind: inference.median_ms(one) for kind, one in steps.items()}
  about = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
  return {
    name: {
      **{kind: round(1e3 / found[kind][name], 2) for kind in steps},
      "dtype": model.dtype,
      **about,
    }
    for name, model in models.items()
  }


def text(measured: Mapping[str, Any] | None, kind: str = "network") -> str:
  """Return a speed for a table."""
  return UNRUN if measured is None else f"{measured[kind]:.1f}"


def ratio(
  faster: Mapping[str, Any] | None, slower: Mapping[str, Any] | None, kind: str = "network"
) -> float | None:
  """Return how many times as fast one is as the other, None unless both ran on one device in one type."""
  if faster is None or slower is None:
    return None
  if any(faster[name] != slower[name] for name in ("device", "dtype", "jax")):
    return None
  return faster[kind] / slower[kind]


def ratio_text(faster: Mapping[str, Any] | None, slower: Mapping[str, Any] | None) -> str:
  """Return the ratio for a table."""
  value = ratio(faster, slower)
  return UNRUN if value is None else f"{value:.2f}"


def devices(measured: Mapping[str, Mapping[str, Any]]) -> str:
  """Say on what speeds were measured."""
  return "; ".join(sorted({f"{one['device']}, {one['dtype']}" for one in measured.values()}))
