"""One training step and one validation step, pure; the loop jits them over the mesh."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from ostrack_jax.models.candidates import template_mask_from_boxes
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.training.augmentation import prepare_images
from ostrack_jax.training.losses import LossWeights, total_loss
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
  model: OSTrack, optimizer: optax.GradientTransformation, weights: LossWeights
) -> Callable:
  """Return `train_step(state, batch, keep_counts=None) -> (state, metrics)`.

  `batch` holds what augmentation.prepare_images takes, and `search_box_xywh` (and
  `template_box_xywh`) float32 [b, 4], normalised to the crop as it is after the flips.
  `keep_counts` is OSTrack.__call__'s. Metrics are scalars over the global batch: loss, giou, l1,
  focal, iou, and grad_norm before clipping.
  """

  def train_step(state: TrainState, batch, keep_counts=None):
    drop_path = jax.random.fold_in(state.rng, state.step)

    def loss_fn(params):
      output, updated = _forward(
        model,
        {"params": params, "batch_stats": state.batch_stats},
        batch,
        keep_counts,
        train=True,
        rngs={"drop_path": drop_path},
        mutable=["batch_stats"],
      )
      loss, parts = total_loss(output, batch["search_box_xywh"], weights)
      return loss, (parts, updated["batch_stats"])

    gradients, (parts, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    state = state.replace(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      batch_stats=batch_stats,
      opt_state=opt_state,
    )
    return state, {**parts, "grad_norm": optax.tree.norm(gradients)}

  return train_step


def make_validation_step(model: OSTrack, weights: LossWeights) -> Callable:
  """Return `validation_step(variables, batch, keep_counts=None) -> metrics`, in evaluation mode."""

  def validation_step(variables, batch, keep_counts=None):
    output = _forward(model, variables, batch, keep_counts)
    _, parts = total_loss(output, batch["search_box_xywh"], weights)
    return parts

  return validation_step


def stage_counts_array(model: OSTrack, keep_ratio: float) -> jax.Array:
  """Return the int32 [stages] keep counts of a ratio, to pass as `keep_counts`."""
  return jnp.asarray(model.stage_counts(keep_ratio), jnp.int32)
