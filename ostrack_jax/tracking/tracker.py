"""The tracker: a crop around the last box, one jitted forward, the new box."""

import collections
import dataclasses
import functools
import math
from collections.abc import Generator, Iterable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from ostrack_jax import boxes, crop
from ostrack_jax.models import candidates, head
from ostrack_jax.models.ostrack import OSTrack, OSTrackOutput, normalise_images
from ostrack_jax.tracking import confidence, device_crop, motion
from ostrack_jax.tracking.cutting import (
  MARGIN_PX,
  checked_box,
  checked_frame,
  cut_search,
  cut_template,
)
from ostrack_jax.tracking.factors import tracking_factors
from ostrack_jax.tracking.result import NO_BOX, TrackResult, result_of
from ostrack_jax.tracking.staging import Staging, on_device
from ostrack_jax.tracking.waiting import fetch
from ostrack_jax.tracking.weights import TrackableCheckpoint, TrackingWeights, prepare


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackState:
  """All that a track remembers between frames.

  Attributes:
    template: of remember.
    template_mask: [1, Nz] bool, or None where the model needs none.
    box_xywh: [4] float64, the last box in pixels of the frame.
    frame_size: (height, width) of every frame.
    confidence: what was told of the last frame; None for the first, and without a calibrator.
  """

  template: jax.Array
  template_mask: jax.Array | None
  box_xywh: np.ndarray
  frame_size: tuple[int, int]
  confidence: float | None = None


@functools.partial(jax.jit, static_argnums=0)
def _encode_template(model: OSTrack, weights: TrackingWeights, template):
  variables = weights.unpack()
  variables.pop("head", None)
  return model.apply(variables, normalise_images(template), method=OSTrack.encode_template)


def remember(model: OSTrack, weights: TrackingWeights, template):
  """Return what locate needs of templates [b, Z, Z, 3] uint8 on the device, for as long as a track lasts.

  For a two-stream tracker their features; one that is one-stream needs the images anew for every frame. Where
  several tracks share a batch, all of its templates are encoded anew when one of them changes.
  """
  return _encode_template(model, weights, template) if model.is_two_stream else template


def forward(
  model: OSTrack, weights: TrackingWeights, template, search, template_mask=None, feature_layers=()
) -> OSTrackOutput:
  """Return what the network says; for use under jit. Arguments as for locate and the model."""
  variables = weights.unpack()
  head_folded, blocks_folded = (variables.pop(name, None) for name in ("head", "blocks"))
  if model.is_two_stream:
    images, encoded = None, template
  else:
    images, encoded = normalise_images(template), None
  return cast(
    OSTrackOutput,
    model.apply(
      variables,
      images,
      normalise_images(search),
      template_mask=template_mask,
      feature_layers=feature_layers,
      head_folded=head_folded,
      blocks_folded=blocks_folded,
      encoded_template=encoded,
    ),
  )


def _locate(model: OSTrack, weights, template, search, window, template_mask, weighing):
  layers = () if weighing is None else confidence.evidence_layers(model)
  output = forward(model, weights, template, search, template_mask, layers)
  found = output.boxes_near(window), output.scores
  return found if weighing is None else (*found, weighing.confidence(output, window))


@functools.partial(jax.jit, static_argnums=0)
def locate(model: OSTrack, weights, template, search, window, template_mask=None, weighing=None):
  """Find the target in a search crop. Compiled once for all equal models.

  Args:
    model: static.
    weights: of weights.prepare.
    template: of remember.
    search: [b, S, S, 3] uint8, on the device or in pinned memory of the host.
    window: [F, F] weights of the score map, head.hann_window(F).
    template_mask: [b, Nz] bool, for template_tokens `ground_truth_box`.
    weighing: a confidence.Weighing of the checkpoint's calibrator, if there is one.

  Returns:
    [b, 5] float32: OSTrackOutput's boxes_near the window, cxcywh in the unit square of the crop, and its
    scores; with weighing [b, 6], also confidences. In one array, since each is fetched by itself, and in
    the host's memory: a fetch that starts only then takes as long as a third of the network.
  """
  search = on_device(search)
  box, *said = _locate(model, weights, template, search, window, template_mask, weighing)
  return _told(box, said)


@functools.partial(jax.jit, static_argnums=0)
def advance(
  model, weights, template, template_mask, window, search, side, box_xywh, frame_size, weighing=None
):
  """Find targets in crops of one frame, and where they are in the frame.

  Args:
    search, side: of device_crop.crop_squares. frame_size: [2] int32 height and width.
    box_xywh: [b, 4] float32 what the crops were cut around.
    Others as for locate.

  Returns:
    [b, 4] float32 the next boxes; and [b, 5], the same and the scores, with weighing [b, 6], with the
    confidences, in the host's memory.
  """
  found, *said = _locate(model, weights, template, search, window, template_mask, weighing)
  moved = motion.moved(found, box_xywh, side)
  box = boxes.clip_box_xywh(moved, frame_size[0], frame_size[1], MARGIN_PX)
  return box, _told(box, said)


def _told(box, said):
  told = jnp.concatenate([box, *(values[:, None] for values in said)], axis=1)
  return jax.device_put(told, jax.memory.Space.Host)


def _check_found(found: np.ndarray) -> None:
  if not all(map(math.isfinite, found[:4].tolist())):
    raise ValueError(f"the network found no box, but {found[:4].tolist()}; {NO_BOX}")


def template_mask(model: OSTrack, box_xywh, resize_factor: float) -> np.ndarray | None:
  """Return [Nz] bool, which template tokens lie on the target; None where the model needs no such mask.

  Args:
    box_xywh: [4] the target in the first frame, pixels.
    resize_factor: template pixels per frame pixel.
  """
  if model.template_tokens != "ground_truth_box":
    return None
  size = model.template_size
  in_crop = crop.box_in_crop(box_xywh, box_xywh, resize_factor, size)
  (mask,) = candidates.template_mask_from_boxes(in_crop[None].astype(np.float32), size)
  return np.asarray(mask)


class Tracker:
  """Follow one target through the frames of a video.

  Args:
    checkpoint: what `ostrack_jax.load` returns.
    search_factor: side of the search region over the root of the box's area; None takes the
      description's, normally 4 for 256 pixels and 5 for 384.
    template_factor: the same for the template; None takes the description's, normally 2.

  Follows the official tracker: the template of the first frame is kept for good, and each box is
  searched around the one before. Trackers of equal models share one compiled function.
  """

  def __init__(
    self,
    checkpoint: TrackableCheckpoint,
    search_factor: float | None = None,
    template_factor: float | None = None,
  ):
    self.search_factor, self.template_factor = tracking_factors(
      checkpoint, search_factor, template_factor
    )
    self.model = checkpoint.model
    # Named, because variables from a training mesh lie on all its devices and would stay there.
    self._device = next(iter(jnp.zeros(()).devices()))
    self._weights = jax.device_put(prepare(self.model, checkpoint.variables, batch=1), self._device)
    self._window = jax.device_put(head.hann_window(self.model.search_grid), self._device)
    self.calibrator, self._weighing = confidence.on_device(
      checkpoint, self.search_factor, self.template_factor, self._device
    )
    size = self.model.search_size
    self._staging = Staging((1, size, size, 3), self._device)
    self._state: TrackState | None = None

  def init(self, frame, box_xywh) -> None:
    """Start a track, forgetting any other.

    Args:
      frame: [H, W, 3] RGB uint8; grey and RGBA are converted.
      box_xywh: four numbers, left, top, width, height in pixels of the frame.

    Raises:
      ValueError: the frame or the box cannot be used.
    """
    template, resize_factor, box, frame_size = cut_template(
      frame, box_xywh, self.model.template_size, self.template_factor
    )
    mask = template_mask(self.model, box, resize_factor)
    self._state = TrackState(
      template=remember(self.model, self._weights, jax.device_put(template[None], self._device)),
      template_mask=None if mask is None else jax.device_put(mask[None], self._device),
      box_xywh=box,
      frame_size=frame_size,
    )

  def update(self, frame) -> TrackResult:
    """Find the target in the next frame.

    Args:
      frame: as for init, of the same size.

    Raises:
      RuntimeError: no track was started.
      ValueError: the frame cannot be used, or the network gives a box that is not finite.
    """
    state = self._started("update")
    (room,) = self._staging.room
    _, resize_factor = cut_search(
      frame, state.box_xywh, len(room), self.search_factor, state.frame_size, out=room
    )
    (found,) = fetch(
      locate(
        self.model,
        self._weights,
        state.template,
        self._staging.given,
        self._window,
        state.template_mask,
        self._weighing,
      )
    )
    _check_found(found)
    box = motion.next_box_of_one(
      found[:4], state.box_xywh, resize_factor, self.model.search_size, state.frame_size
    )
    result = result_of(box, found[4], found[5:], self.calibrator, state.confidence)
    self._state = dataclasses.replace(state, box_xywh=box, confidence=result.confidence)
    return result

  def follow(self, frames: Iterable[np.ndarray], ahead: int = 6) -> Generator[TrackResult]:
    """Find the target in one frame after another, with the next ones on their way to the device.

    The search region of a frame is cut on the device, around a box that never left it. So the device
    waits for nobody, but a box comes `ahead` frames after its frame was asked for: for videos, not for
    cameras. Boxes are in float32; they are those of `update` until a rounded crop first differs.

    Args:
      frames: as for update; each array must stay as it is until its box is given.
      ahead: frames on their way, at least 1.

    Raises:
      As update, at the frame after the last whose box is given. RuntimeError: meanwhile another track was
      started, or this one moved or updated otherwise.
    """
    state = last = self._started("follow")
    if ahead < 1:
      raise ValueError(f"ahead {ahead} is too small; expected at least 1")
    size = jax.device_put(np.array(state.frame_size, np.int32), self._device)
    box = jax.device_put(state.box_xywh[None].astype(np.float32), self._device)
    # A copy waits for all that the device was told before, so a frame is sent before others are searched. A thread
    # prepares it, and whoever searches it earlier waits for that: so all but two of the frames ahead are on their way.
    most_sent = max(ahead - 2, ahead // 2)
    sent, pending = collections.deque[jax.Array](), collections.deque[jax.Array]()
    error, frames = None, iter(frames)
    while True:
      try:
        frame = next(frames, None)
        if frame is not None:
          frame = checked_frame(frame, state.frame_size)
      except Exception as raised:
        # What was found before it comes first.
        error, frame = raised, None
      if frame is not None:
        sent.append(jax.device_put(frame, self._device))
      while sent and (frame is None or len(sent) > most_sent):
        search, side = device_crop.crop_squares(
          sent.popleft(), box, self.search_factor, self.model.search_size
        )
        box, found = advance(
          self.model,
          self._weights,
          state.template,
          state.template_mask,
          self._window,
          search,
          side,
          box,
          size,
          self._weighing,
        )
        pending.append(found)
      while pending and (frame is None or len(sent) + len(pending) > ahead):
        (found,) = np.asarray(pending.popleft(), np.float64)
        if self._state is not last:
          raise RuntimeError("the track was changed while it was followed; follow it anew")
        _check_found(found)
        result = result_of(found[:4], found[4], found[5:], self.calibrator, last.confidence)
        self._state = last = dataclasses.replace(
          state, box_xywh=found[:4], confidence=result.confidence
        )
        yield result
      if frame is None:
        break
    if error is not None:
      raise error

  @property
  def box_xywh(self) -> np.ndarray:
    """The last box, [4] float64 pixels. Setting it moves the search region of the next update.

    Raises RuntimeError before init, and ValueError for a box that init would refuse.
    """
    return self._started("box_xywh").box_xywh.copy()

  @box_xywh.setter
  def box_xywh(self, box_xywh) -> None:
    state = self._started("box_xywh")
    self._state = dataclasses.replace(state, box_xywh=checked_box(box_xywh, state.frame_size))

  def _started(self, what: str) -> TrackState:
    if self._state is None:
      raise RuntimeError(f"{what} needs a track; call init(frame, box_xywh) first")
    return self._state
