"""The training loss: focal on the score map, GIoU and L1 on the decoded box; always in float32.

Follows OSTrack, Ye et al. 2022, Sec. 3.3 (Eq. 11), and the official code: the supervised box is the
one decoded at the predicted maximum, not at the true cell.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ostrack_jax import boxes
from ostrack_jax.training import targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossWeights:
  """Weights of the three parts; the defaults are the paper's."""

  focal: float = 1.0
  giou: float = 2.0
  l1: float = 5.0


def focal_loss(score_map, target_map) -> jax.Array:
  """Return CornerNet's weighted focal loss (alpha 2, beta 4).

  Args:
    score_map: [...] predicted scores inside (0, 1).
    target_map: same shape; positives are exactly 1.

  Returns:
    Scalar: the sum over all cells divided by the number of positives in the whole batch; without a
    positive, the negative part undivided.
  """
  positive = target_map == 1
  count = positive.sum()
  negative_weight = jnp.square(jnp.square(1 - target_map))
  gain = jnp.where(
    positive,
    jnp.square(1 - score_map) * jnp.log(score_map),
    negative_weight * jnp.square(score_map) * jnp.log(1 - score_map),
  )
  return -gain.sum() / jnp.maximum(count, 1)


def box_losses(predicted_cxcywh, target_xywh) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Return (GIoU loss, L1 loss, IoU [b]).

  Args:
    predicted_cxcywh: [b, 4] in the unit square of the search crop, not clamped.
    target_xywh: [b, 4] likewise; its corners are clamped to [0, 1].

  L1 is the mean over corners' coordinates.
  """
  predicted = boxes.cxcywh_to_xyxy(predicted_cxcywh)
  target = jnp.clip(boxes.xywh_to_xyxy(target_xywh), 0.0, 1.0)
  generalised, overlap = boxes.giou(predicted, target)
  return (1 - generalised).mean(), jnp.abs(predicted - target).mean(), overlap


def total_loss(output, target_xywh, weights: LossWeights) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Return the loss of a batch and its parts.

  Args:
    output: OSTrackOutput.
    target_xywh: [b, 4] normalised to the search crop.

  Returns:
    (scalar, {"loss", "giou", "l1", "focal", "iou"}), each a mean over the batch, so that the numbers
    do not depend on how many devices share it. Focal is 0 for a head without a score map.
  """
  if output.score_map is None:
    focal = jnp.zeros(())
  else:
    score_map = output.score_map[..., 0]
    target_map = targets.score_map_targets(target_xywh, score_map.shape[1])
    focal = focal_loss(score_map, target_map)
  giou, l1, overlap = box_losses(output.boxes_cxcywh, target_xywh)
  loss = weights.focal * focal + weights.giou * giou + weights.l1 * l1
  return loss, {"loss": loss, "giou": giou, "l1": l1, "focal": focal, "iou": overlap.mean()}
