"""The training loss: focal on the score map, GIoU and L1 on the decoded box; always in float32.

Follows OSTrack, Ye et al. 2022, Sec. 3.3 (Eq. 11), and the official code: the supervised box is the
one decoded at the predicted maximum, not at the true cell.

Pairs whose search region does not show the target are a departure, off unless config.sampling asks for them:
their score map is to be empty, and no box is learnt from them.
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


def mean_where(values, chosen=None) -> jax.Array:
  """Return the mean of [b] values, where [b] bool `chosen` is given of those; 0 if none is."""
  if chosen is None:
    return values.mean()
  return jnp.where(chosen, values, 0.0).sum() / jnp.maximum(chosen.sum(), 1)


def box_losses(
  predicted_cxcywh, target_xywh, present=None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Return (GIoU loss, L1 loss, IoU [b]).

  Args:
    predicted_cxcywh: [b, 4] in the unit square of the search crop, not clamped.
    target_xywh: [b, 4] likewise; its corners are clamped to [0, 1].
    present: [b] bool, the samples that both losses are means over; None for all.

  L1 is the mean over corners' coordinates.
  """
  predicted = boxes.cxcywh_to_xyxy(predicted_cxcywh)
  target = jnp.clip(boxes.xywh_to_xyxy(target_xywh), 0.0, 1.0)
  generalised, overlap = boxes.giou(predicted, target)
  giou = mean_where(1 - generalised, present)
  distance = jnp.abs(predicted - target)
  l1 = distance.mean() if present is None else mean_where(distance.mean(axis=-1), present)
  return giou, l1, overlap


def total_loss(
  output, target_xywh, weights: LossWeights, present=None
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Return the loss of a batch and its parts.

  Args:
    output: OSTrackOutput.
    target_xywh: [b, 4] normalised to the search crop.
    present: [b] bool, whether a search crop shows its target; None where all do. Of the others all cells
      of the score map are negatives, and their target_xywh counts for nothing.

  Returns:
    (scalar, {"loss", "giou", "l1", "focal", "iou"}), each a mean over the batch, giou, l1 and iou over
    what is present in it, so that the numbers do not depend on how many devices share it. Focal is 0 for a
    head without a score map. With `present` and a score map also peak and peak_absent, the mean maximum
    of the score map where the target is present and where not; 0 where a batch has no such sample.
  """
  peaks = {}
  if output.score_map is None:
    focal = jnp.zeros(())
  else:
    score_map = output.score_map[..., 0]
    target_map = targets.score_map_targets(target_xywh, score_map.shape[1])
    if present is not None:
      target_map = jnp.where(present[:, None, None], target_map, 0.0)
      peak = score_map.max(axis=(1, 2))
      peaks = {"peak": mean_where(peak, present), "peak_absent": mean_where(peak, ~present)}
    focal = focal_loss(score_map, target_map)
  giou, l1, overlap = box_losses(output.boxes_cxcywh, target_xywh, present)
  loss = weights.focal * focal + weights.giou * giou + weights.l1 * l1
  iou = mean_where(overlap, present)
  return loss, {"loss": loss, "giou": giou, "l1": l1, "focal": focal, "iou": iou, **peaks}
