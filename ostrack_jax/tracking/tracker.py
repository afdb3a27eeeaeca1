"""The tracker: a crop around the last box, one jitted forward, the new box."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np

from ostrack_jax import boxes, crop
from ostrack_jax.models import candidates, head
from ostrack_jax.models.ostrack import OSTrack, OSTrackOutput, normalise_images
from ostrack_jax.tracking.frames import rgb_frame

# The official tracker never lets a box get smaller, or its visible part narrower, than this.
_MARGIN_PX = 10
# A larger first box is a mistake of unit, and its crop could fill the memory.
_LARGEST_SHARE_OF_FRAME = 2.0


class TrackableCheckpoint(Protocol):
  """What a Tracker needs: the model, {"params", "batch_stats"}, and the description as in JSON."""

  @property
  def model(self) -> OSTrack: ...

  @property
  def variables(self) -> Mapping[str, Any]: ...

  @property
  def description(self) -> Mapping[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class TrackResult:
  """Where the target is.

  Attributes:
    box_xywh: [4] float64 pixels of the frame, never smaller than 10 x 10.
    score: maximum of the raw score map, before the window, in (0, 1). It says how sure the network
      is of some target in the search region; it need not fall when the target is gone.
  """

  box_xywh: np.ndarray
  score: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackState:
  """All that a track remembers between frames.

  Attributes:
    template: [1, Z, Z, 3] uint8, on the device.
    template_mask: [1, Nz] bool, or None where the model needs none.
    box_xywh: [4] float64, the last box in pixels of the frame.
    frame_size: (height, width) of every frame.
  """

  template: jax.Array
  template_mask: jax.Array | None
  box_xywh: np.ndarray
  frame_size: tuple[int, int]


@functools.partial(jax.jit, static_argnums=0)
def locate(model: OSTrack, variables, template, search, window, template_mask=None):
  """Find the target in a search crop. Compiled once for all equal models.

  Args:
    model: static.
    variables: {"params", "batch_stats"}.
    template: [b, Z, Z, 3] uint8.
    search: [b, S, S, 3] uint8.
    window: [F, F] weights of the score map, head.hann_window(F).
    template_mask: [b, Nz] bool, for template_tokens `ground_truth_box`.

  Returns:
    ([b, 4] cxcywh at the windowed map's maximum, in the unit square of the crop; [b] maximum of the
    raw score map), float32.
  """
  output = cast(
    OSTrackOutput,
    model.apply(
      variables, normalise_images(template), normalise_images(search), template_mask=template_mask
    ),
  )
  windowed = output.score_map * window[None, :, :, None]
  box_cxcywh = head.decode_boxes(windowed, output.size_map, output.offset_map)
  return box_cxcywh, output.score_map.max(axis=(1, 2, 3))


def box_in_frame(box_cxcywh, previous_box_xywh, resize_factor, search_size: int) -> np.ndarray:
  """Map boxes from their search crops to the frame.

  Args:
    box_cxcywh: [..., 4] in the unit square of the crop.
    previous_box_xywh: [..., 4] the box the crop was cut around, pixels of the frame.
    resize_factor: [...] crop pixels per frame pixel.
    search_size: side of the crop in pixels.

  Returns:
    [..., 4] float64 xywh, pixels of the frame, not clipped. As in the official tracker the crop's
    centre counts as the previous box's centre, although the crop was cut at whole pixels.
  """
  side = (search_size / np.asarray(resize_factor, np.float64))[..., None]
  found = np.asarray(box_cxcywh, np.float64) * side
  previous = np.asarray(previous_box_xywh, np.float64)
  centre = previous[..., :2] + 0.5 * previous[..., 2:] - 0.5 * side
  corner = centre + found[..., :2] - 0.5 * found[..., 2:]
  return np.concatenate([corner, found[..., 2:]], axis=-1)


def next_box(
  box_cxcywh, previous_box_xywh, resize_factor, search_size: int, height, width
) -> np.ndarray:
  """Map boxes from their search crops to the frame as box_in_frame does, and clip them to it.

  height, width: [...] of the frames in pixels. Every side of the result is at least 10 pixels.
  """
  moved = box_in_frame(box_cxcywh, previous_box_xywh, resize_factor, search_size)
  return boxes.clip_box_xywh(moved, height, width, _MARGIN_PX)


def checked_box(box_xywh, frame_size: tuple[int, int]) -> np.ndarray:
  """Return a box as [4] float64 if a track can start from it.

  Args:
    box_xywh: four numbers, pixels of the frame.
    frame_size: (height, width).

  Raises:
    ValueError: not four finite numbers, smaller than a pixel, far larger than the frame, or outside.
  """
  try:
    box = np.array(box_xywh, np.float64)
  except (TypeError, ValueError):
    box = np.empty(0)
  if box.shape != (4,) or not np.isfinite(box).all():
    raise ValueError(f"box_xywh {box_xywh!r} must be four finite numbers: left, top, width, height")
  height, width = frame_size
  x, y, w, h = box.tolist()
  frame = f"the frame of {width} x {height} pixels"
  if w < 1 or h < 1:
    raise ValueError(
      f"box_xywh {box.tolist()} is smaller than a pixel; expected width, height >= 1"
    )
  if w > _LARGEST_SHARE_OF_FRAME * width or h > _LARGEST_SHARE_OF_FRAME * height:
    raise ValueError(f"box_xywh {box.tolist()} is more than twice as large as {frame}")
  if x >= width or y >= height or x + w <= 0 or y + h <= 0:
    raise ValueError(f"box_xywh {box.tolist()} lies outside {frame}")
  return box


def starting_boxes(boxes_xywh, frame_size: tuple[int, int]) -> np.ndarray:
  """Return boxes to search around: one that no track could start from repeats the one before.

  Args:
    boxes_xywh: [n, 4] annotated pixels, NaN where the target is absent, the first one usable.
    frame_size: (height, width).
  """
  boxes_xywh = np.array(boxes_xywh, np.float64)
  for row in range(1, len(boxes_xywh)):
    try:
      checked_box(boxes_xywh[row], frame_size)
    except ValueError:
      boxes_xywh[row] = boxes_xywh[row - 1]
  return boxes_xywh


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


def cut_template(
  frame, box_xywh, model: OSTrack, template_factor: float
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, tuple[int, int]]:
  """Cut what a track remembers of its first frame.

  Args:
    frame, box_xywh: as for Tracker.init, which also says what is raised.

  Returns:
    Template [Z, Z, 3] uint8; mask [Nz] bool of its tokens on the target, None where the model needs
    none; the box [4] float64; and the frame's (height, width).
  """
  frame = rgb_frame(frame)
  height, width = frame.shape[:2]
  if min(height, width) < _MARGIN_PX:
    raise ValueError(
      f"frame of {width} x {height} pixels is too small; expected at least {_MARGIN_PX} on each side"
    )
  box = checked_box(box_xywh, (height, width))
  size = model.template_size
  template, resize_factor = crop.crop_square(frame, box, template_factor, size)
  mask = None
  if model.template_tokens == "ground_truth_box":
    in_crop = crop.box_in_crop(box, box, resize_factor, size)
    (mask,) = candidates.template_mask_from_boxes(in_crop[None].astype(np.float32), size)
  return template, mask, box, (height, width)


def cut_search(
  frame, box_xywh, model: OSTrack, search_factor: float, frame_size: tuple[int, int]
) -> tuple[np.ndarray, float]:
  """Cut the search region around a box: [S, S, 3] uint8, and crop pixels per frame pixel.

  Raises:
    ValueError: the frame cannot be used or is not of frame_size (height, width).
  """
  frame = rgb_frame(frame)
  if frame.shape[:2] != frame_size:
    height, width = frame_size
    raise ValueError(
      f"frame of {frame.shape[1]} x {frame.shape[0]} pixels follows frames of {width} x {height}; "
      "resize the frames or call init again"
    )
  return crop.crop_square(frame, box_xywh, search_factor, model.search_size)


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
    self._variables = jax.device_put(
      {name: checkpoint.variables[name] for name in ("params", "batch_stats")}, self._device
    )
    self._window = jax.device_put(head.hann_window(self.model.search_grid), self._device)
    self._state: TrackState | None = None

  def init(self, frame, box_xywh) -> None:
    """Start a track, forgetting any other.

    Args:
      frame: [H, W, 3] RGB uint8; grey and RGBA are converted.
      box_xywh: four numbers, left, top, width, height in pixels of the frame.

    Raises:
      ValueError: the frame or the box cannot be used.
    """
    template, mask, box, frame_size = cut_template(
      frame, box_xywh, self.model, self.template_factor
    )
    self._state = TrackState(
      template=jax.device_put(template[None], self._device),
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
      ValueError: the frame cannot be used.
    """
    state = self._started("update")
    search, resize_factor = cut_search(
      frame, state.box_xywh, self.model, self.search_factor, state.frame_size
    )
    found, score = jax.device_get(
      locate(
        self.model,
        self._variables,
        state.template,
        search[None],
        self._window,
        state.template_mask,
      )
    )
    box = next_box(
      found[0], state.box_xywh, resize_factor, self.model.search_size, *state.frame_size
    )
    self._state = dataclasses.replace(state, box_xywh=box)
    return TrackResult(box_xywh=box.copy(), score=float(score[0]))

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


def _factor(name: str, given: float | None, described: Mapping[str, Any]) -> float:
  factor = float(described[name] if given is None else given)
  if not 1 <= factor <= 100:
    raise ValueError(f"{name} {factor} must lie between 1 and 100: the crop's side over the box's")
  return factor
