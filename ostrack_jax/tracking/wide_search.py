"""Look for one target in many places of a frame by forwards of one fixed size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.tracking import cutting, device_crop, motion
from ostrack_jax.tracking.confidence import Weighing
from ostrack_jax.tracking.result import NO_BOX, TrackResult
from ostrack_jax.tracking.tracker import locate
from ostrack_jax.tracking.weights import TrackingWeights

# What tracker.remember returns, and template masks or None, a row each a target.
Templates = tuple[jax.Array, jax.Array | None]


class WideSearch:
  """Looks twice: everywhere for the highest score, then around what was found, which tells how sure to be.

  In the first look nothing is near or far, so scores are without the Hann window. The second look is cut
  around each box that was found, as large as the target was, and is as if the tracker had followed it there:
  a calibrator was fitted on such regions.

  Args:
    weights, window, weighing: as for tracker.locate, on the device.
    batch: places in a forward; fewer are filled up, so that nothing is compiled anew.
    cut_on_device: as MultiTracker's.
  """

  def __init__(
    self,
    model: OSTrack,
    weights: TrackingWeights,
    window: jax.Array,
    weighing: Weighing | None,
    search_factor: float,
    batch: int,
    cut_on_device: bool,
  ):
    self.search_factor = search_factor
    self._model, self._weights, self._weighing = model, weights, weighing
    self._window, self._flat = window, jnp.ones_like(window)
    self._batch, self._cut_on_device = batch, cut_on_device

  def repeated(self, templates: Templates, lane: int) -> Templates:
    """Return one target's templates for every place of the batch."""
    return _repeated(templates, lane, self._batch)

  def find(
    self, frame, boxes_xywh: np.ndarray, size: np.ndarray, templates: Templates
  ) -> list[TrackResult]:
    """Return what is found around boxes of a frame; `visible` is None.

    Args:
      frame: as for Tracker.update.
      boxes_xywh: [n, 4] pixels, n at most the batch.
      size: [2] width and height of the target, pixels.
      templates: of repeated.

    Raises:
      ValueError: the network gives a box that is not finite.
    """
    if not len(boxes_xywh):
      return []
    frame = cutting.checked_frame(frame, np.shape(frame)[:2])
    found, _ = self._look(frame, boxes_xywh, templates, self._flat)
    centres = found[:, :2] + 0.5 * found[:, 2:]
    around = np.concatenate([centres - 0.5 * size, np.broadcast_to(size, centres.shape)], axis=1)
    found, said = self._look(frame, around, templates, self._window)
    return [
      TrackResult(box_xywh, float(score), float(confidence))
      for box_xywh, (score, confidence) in zip(found, said, strict=True)
    ]

  def _look(self, frame: np.ndarray, boxes_xywh: np.ndarray, templates: Templates, window):
    """Return boxes [n, 4] in the frame, and [n, 2] scores and confidences."""
    count, frame_size = len(boxes_xywh), frame.shape[:2]
    filled = boxes_xywh[np.minimum(np.arange(self._batch), count - 1)]
    search, factors = self._crops(frame, filled, count)
    template, mask = templates
    told = jax.device_get(
      locate(self._model, self._weights, template, search, window, mask, self._weighing)
    )[:count]
    if not np.isfinite(told).all():
      raise ValueError(f"the network found no box in a wide search; {NO_BOX}")
    found = motion.next_box(
      told[:, :4], boxes_xywh, factors[:count], self._model.search_size, *frame_size
    )
    return found, told[:, 4:]

  def _crops(self, frame: np.ndarray, boxes_xywh: np.ndarray, count: int):
    """Return search regions [batch, S, S, 3], of which `count` are asked for, and crop pixels per frame pixel."""
    size = self._model.search_size
    if self._cut_on_device:
      search, sides = device_crop.crop_squares(
        jax.device_put(frame), boxes_xywh.astype(np.float32), self.search_factor, size
      )
      return search, size / np.asarray(sides, np.float64)
    search, factors = np.zeros((self._batch, size, size, 3), np.uint8), np.ones(self._batch)
    for row in range(count):
      search[row], factors[row] = cutting.cut_search(
        frame, boxes_xywh[row], size, self.search_factor, frame.shape[:2]
      )
    return search, factors


@functools.partial(jax.jit, static_argnums=2)
def _repeated(templates: Templates, lane, count: int):
  return jax.tree.map(
    lambda rows: jnp.broadcast_to(rows[lane], (count, *rows.shape[1:])), templates
  )
