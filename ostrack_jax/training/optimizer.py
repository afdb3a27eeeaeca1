"""AdamW with two learning rates, a joint gradient clip and one step decay."""

import dataclasses
from collections.abc import Hashable

import jax
import optax

# Elements.
_SMALL = 65536


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
  """The official values are the defaults.

  Attributes:
    learning_rate: of the head; the backbone's is `backbone_multiplier` times it.
    reference_batch: the global batch that learning_rate is meant for, 0 for whatever is trained with;
      see scaled_to_batch.
    weight_decay: decoupled, on every parameter, biases and norms included.
    clip_norm: largest joint L2 norm of all gradients.
    drop_epoch, drop_factor: after so many epochs the rate is multiplied by the factor, once.
    warmup_steps: linear warm-up, 0 for none (official).
  """

  learning_rate: float = 4e-4
  reference_batch: int = 128
  backbone_multiplier: float = 0.1
  weight_decay: float = 1e-4
  clip_norm: float = 0.1
  drop_epoch: int = 240
  drop_factor: float = 0.1
  warmup_steps: int = 0


def scaled_to_batch(settings: OptimizerSettings, batch_size: int) -> OptimizerSettings:
  """Return the settings for a global batch: learning_rate times batch_size / reference_batch.

  The linear rule, Goyal et al. 2017, Sec. 2.1, and the authors' advice for other batches than their 128
  (github.com/botaoye/OSTrack/issues/15). The result's reference_batch is batch_size, so that scaling
  it once more changes nothing; with reference_batch 0 the settings return unchanged.

  Raises:
    ValueError: reference_batch is negative.
  """
  if settings.reference_batch < 0:
    raise ValueError(
      f"optim.reference_batch {settings.reference_batch} must be a global batch size, or 0 for no scaling"
    )
  if settings.reference_batch == 0:
    return settings
  rate = settings.learning_rate * batch_size / settings.reference_batch
  return dataclasses.replace(settings, learning_rate=rate, reference_batch=batch_size)


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


def global_norm(tree) -> jax.Array:
  """Return the joint L2 norm of all leaves, float32.

  As optax's, in fewer kernels: small leaves, most of all, are summed as one.
  """
  leaves = [x.astype(jax.numpy.float32) for x in jax.tree.leaves(tree)]
  small = [x.ravel() for x in leaves if x.size < _SMALL]
  large = [x for x in leaves if x.size >= _SMALL]
  joined = [jax.numpy.concatenate(small)] if small else []
  return jax.numpy.sqrt(sum(jax.numpy.sum(jax.numpy.square(x)) for x in (*large, *joined)))


def _clip(largest_norm: float) -> optax.GradientTransformation:
  def clip(updates, params):
    del params
    norm = global_norm(updates)
    factor = jax.numpy.where(norm < largest_norm, 1.0, largest_norm / norm)
    return jax.tree.map(lambda x: (x * factor).astype(x.dtype), updates)

  return optax.stateless(clip)


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
  return optax.chain(_clip(settings.clip_norm), optax.partition(groups, parameter_groups))
