"""One training step and one validation step, pure; the loop jits them over the mesh."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from ostrack_jax.models.candidates import template_mask_from_boxes
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.training.augmentation import prepare_images
from ostrack_jax.training.losses import LossWeights, total_loss
from ostrack_jax.training.optimizer import global_norm
from ostrack_jax.training.state import TrainState


def _forward(model: OSTrack, variables, batch, keep_counts, **kwargs):
  template, search = prepare_images(batch)
  mask = None
  if model.template_tokens == "ground_truth_box":
    mask = template_mask_from_boxes(batch["template_box_xywh"], model.template_size)
  return model.apply(
    variables, template, search, template_mask=mask, keep_counts=keep_counts, **kwargs
  )


def make_train_step(
  model: OSTrack,
  optimizer: optax.GradientTransformation,
  weights: LossWeights,
  ema_decay: float = 0.0,
  *,
  accumulate: int = 1,
  batch_norm_groups: int = 1,
  batch_norm_shards: int = 1,
) -> Callable:
  """Return `train_step(state, batch, keep_counts=None) -> (state, metrics)`.

  `batch` holds what augmentation.prepare_images takes, and `search_box_xywh` (and
  `template_box_xywh`) float32 [b, 4], normalised to the crop as it is after the flips; and where targets
  may be absent, `present` bool [b].
  `keep_counts` is OSTrack.__call__'s. Metrics are scalars over the global batch: total_loss's, and
  grad_norm before clipping. With `ema_decay` the state's ema_variables move towards
  its variables by 1 - min(ema_decay, (1 + step) / (10 + step)), so that the start is soon forgotten.

  Args:
    accumulate: parts that the batch is worked off in, one after another, for less memory. Part i takes
      every accumulate-th pair from the i-th on, so that every device has its share of it. Gradients are
      averaged, each part weighing alike however many of its targets are present; BatchNorm normalises
      each part by itself.
    batch_norm_groups: equal runs of the batch (of each part of it) that BatchNorm normalises apart; as
      many as there are devices for the official behaviour.
    batch_norm_shards: devices that the batch is split over (each part of it alike). Right numbers come of
      1, too, but of many more messages between the devices. One of the two must be a multiple of the other.
  """

  def train_step(state: TrainState, batch, keep_counts=None):
    drop_path = jax.random.fold_in(state.rng, state.step)

    def loss_fn(params, batch_stats, part, key):
      output, updated = _forward(
        model,
        {"params": params, "batch_stats": batch_stats},
        part,
        keep_counts,
        train=True,
        batch_norm_groups=batch_norm_groups,
        batch_norm_shards=batch_norm_shards,
        rngs={"drop_path": key},
        mutable=["batch_stats"],
      )
      loss, parts = total_loss(output, part["search_box_xywh"], weights, part.get("present"))
      return loss, (parts, updated.get("batch_stats", {}))

    gradient_fn = jax.grad(loss_fn, has_aux=True)
    if accumulate == 1:
      gradients, (parts, batch_stats) = gradient_fn(
        state.params, state.batch_stats, batch, drop_path
      )
    else:
      gradients, parts, batch_stats = _accumulated(gradient_fn, state, batch, drop_path, accumulate)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    state = state.replace(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      batch_stats=batch_stats,
      opt_state=opt_state,
    )
    if ema_decay:
      decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
      new = {"params": state.params, "batch_stats": state.batch_stats}
      state = state.replace(
        ema_variables=optax.incremental_update(new, state.ema_variables, 1 - decay)
      )
    return state, {**parts, "grad_norm": global_norm(gradients)}

  return train_step


def _accumulated(gradient_fn: Callable, state: TrainState, batch, key, count: int):
  """Return mean gradients and metrics over parts of the batch, and the last part's statistics."""
  size = batch["search"].shape[0]
  if size % count:
    raise ValueError(
      f"a batch of {size} pairs does not divide into {count} parts; change train.accumulate_steps"
    )
  split = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]), batch)

  def work_off(carry, number):
    total, batch_stats = carry
    part = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, 1, False), split)
    gradients, (metrics, batch_stats) = gradient_fn(
      state.params, batch_stats, part, jax.random.fold_in(key, number)
    )
    return (jax.tree.map(jnp.add, total, gradients), batch_stats), metrics

  zeros = jax.tree.map(jnp.zeros_like, state.params)
  (total, batch_stats), metrics = jax.lax.scan(
    work_off, (zeros, state.batch_stats), jnp.arange(count)
  )
  gradients = jax.tree.map(lambda x: x / count, total)
  return gradients, jax.tree.map(lambda x: x.mean(axis=0), metrics), batch_stats


def make_validation_step(model: OSTrack, weights: LossWeights) -> Callable:
  """Return `validation_step(variables, batch, keep_counts=None) -> metrics`, in evaluation mode."""

  def validation_step(variables, batch, keep_counts=None):
    output = _forward(model, variables, batch, keep_counts)
    _, parts = total_loss(output, batch["search_box_xywh"], weights, batch.get("present"))
    return parts

  return validation_step
