"""AdamW with two learning rates, a joint gradient clip and one step decay."""

import dataclasses
from collections.abc import Hashable

import jax
import optax


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
  """The official values are the defaults.

  Attributes:
    learning_rate: of the head; the backbone's is `backbone_multiplier` times it.
    weight_decay: decoupled, on every parameter, biases and norms included.
    clip_norm: largest joint L2 norm of all gradients.
    drop_epoch, drop_factor: after so many epochs the rate is multiplied by the factor, once.
    warmup_steps: linear warm-up, 0 for none (official).
  """

  learning_rate: float = 4e-4
  backbone_multiplier: float = 0.1
  weight_decay: float = 1e-4
  clip_norm: float = 0.1
  drop_epoch: int = 240
  drop_factor: float = 0.1
  warmup_steps: int = 0


def learning_rate_schedule(settings: OptimizerSettings, steps_per_epoch: int) -> optax.Schedule:
  """Return the head's learning rate as a function of the step, counted from 0."""
  decay = optax.piecewise_constant_schedule(
    settings.learning_rate, {settings.drop_epoch * steps_per_epoch: settings.drop_factor}
  )
  if settings.warmup_steps == 0:
    return decay
  return lambda step: decay(step) * jax.numpy.minimum(1.0, (step + 1) / settings.warmup_steps)


def parameter_groups(params) -> dict:
  """Label each leaf `backbone` or `head` by its path, as the official code does by name."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: (
      "backbone" if any(getattr(key, "key", "") == "backbone" for key in path) else "head"
    ),
    params,
  )


def make_optimizer(
  settings: OptimizerSettings, steps_per_epoch: int
) -> optax.GradientTransformation:
  """Return the optimiser: clip jointly, then AdamW (0.9, 0.999, 1e-8) in two groups.

  PyTorch adds 1e-6 to the norm when it clips; optax does not. Adam does not see a gradient's scale, so
  weights differ by less than float32 rounding.
  """
  schedule = learning_rate_schedule(settings, steps_per_epoch)
  multipliers = {"head": 1.0, "backbone": settings.backbone_multiplier}
  groups: dict[Hashable, optax.GradientTransformation] = {
    group: optax.adamw(
      lambda step, m=multiplier: m * schedule(step), weight_decay=settings.weight_decay
    )
    for group, multiplier in multipliers.items()
  }
  return optax.chain(
    optax.clip_by_global_norm(settings.clip_norm), optax.partition(groups, parameter_groups)
  )
