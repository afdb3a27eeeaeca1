"""Follow several targets through the same frames, all of them in one forward of the network."""

import collections
import contextlib
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ostrack_jax.models import candidates, head
from ostrack_jax.tracking import confidence, cutting, device_crop, engine, motion
from ostrack_jax.tracking.factors import tracking_factors
from ostrack_jax.tracking.long_term import LongTermSettings, Recovery
from ostrack_jax.tracking.result import (
  NO_BOX,
  PendingFrame,
  TrackedObjects,
  TrackResult,
  result_of,
)
from ostrack_jax.tracking.tracker import (
  advance,
  locate,
  remember,
  template_mask,
)
from ostrack_jax.tracking.weights import TrackableCheckpoint, fuses_blocks, prepare
from ostrack_jax.tracking.wide_search import Templates, WideSearch

# Where cutting takes nothing from the network.
_PLATFORMS_THAT_CUT = ("gpu", "tpu")
_FRAMES_ON_THEIR_WAY = 4


class MultiTracker:
  """Follow several targets, each as Tracker would.

  Every object has a lane of a batch whose size is fixed, so that one more compiles nothing; empty lanes
  are computed as well. Objects are numbered from 0 in the order of their coming; no number comes twice.

  Args:
    checkpoint: what `ostrack_jax.load` returns.
    max_objects: lanes, the most objects at once.
    search_factor, template_factor: as for Tracker.
    cut_on_device: cut search regions there and keep the boxes there, in float32, as Tracker.follow does;
      by default on GPUs and TPUs. Boxes are the same until a rounded crop first differs.
    long_term: what to do after a loss; None follows as the official tracker does, whatever it sees.

  Raises:
    ValueError: max_objects is below 1; long_term without a calibrator; and as Tracker does.
  """

  def __init__(
    self,
    checkpoint: TrackableCheckpoint,
    max_objects: int = 8,
    search_factor: float | None = None,
    template_factor: float | None = None,
    cut_on_device: bool | None = None,
    long_term: LongTermSettings | None = None,
  ):
    if max_objects < 1:
      raise ValueError(f"max_objects {max_objects} is too small; expected at least 1")
    self.search_factor, self.template_factor = tracking_factors(
      checkpoint, search_factor, template_factor
    )
    self.model = checkpoint.model
    self.max_objects = max_objects
    # Named, because variables from a training mesh lie on all its devices and would stay there.
    self._device = next(iter(jnp.zeros(()).devices()))
    weights = prepare(self.model, checkpoint.variables, batch=max_objects)
    self._weights = jax.device_put(weights, self._device)
    self._window = jax.device_put(head.hann_window(self.model.search_grid), self._device)
    self.calibrator, self._weighing = confidence.on_device(
      checkpoint, self.search_factor, self.template_factor, self._device
    )
    search_size, template_size = self.model.search_size, self.model.template_size
    self._search = np.zeros((max_objects, search_size, search_size, 3), np.uint8)
    self._template = np.zeros((max_objects, template_size, template_size, 3), np.uint8)
    self._template_mask = None
    if self.model.template_tokens == "ground_truth_box":
      grid = template_size // candidates.PATCH_SIZE
      self._template_mask = np.ones((max_objects, grid**2), bool)
    # Of templates and masks; None once a lane has changed.
    self._on_device: Templates | None = None
    self.cut_on_device = (
      self._device.platform in _PLATFORMS_THAT_CUT if cut_on_device is None else cut_on_device
    )
    self._recovery = None
    if long_term is not None:
      weights, windows = self._weights, long_term.windows
      if fuses_blocks(self.model, windows) != fuses_blocks(self.model, max_objects):
        weights = prepare(self.model, checkpoint.variables, batch=windows)
        weights = jax.device_put(weights, self._device)
      look = self.model, weights, self._window, self._weighing, self.search_factor
      search = WideSearch(*look, batch=long_term.windows, cut_on_device=self.cut_on_device)
      self._recovery = Recovery(long_term, self.calibrator, search)
    # On the device those of the frame handed to it last, here those found last.
    self._boxes_xywh: np.ndarray | jax.Array = np.tile([0.0, 0.0, 1.0, 1.0], (max_objects, 1))
    if self.cut_on_device:
      self._boxes_xywh = jax.device_put(self._boxes_xywh.astype(np.float32), self._device)
    self._lanes: dict[int, int] = {}
    # By object, what was told last; none for those that have just started.
    self._confidences: dict[int, float | None] = {}
    self._next_id = 0
    self._frame_size = (0, 0)
    self._has_frames_on_their_way = False

  @property
  def objects(self) -> tuple[int, ...]:
    """The objects that are followed now, in the order of their coming."""
    return tuple(self._lanes)

  @property
  def lost(self) -> tuple[int, ...]:
    """Those of them that were lost and are sought; () without long_term."""
    return () if self._recovery is None else tuple(filter(self._recovery.is_lost, self._lanes))

  def add(self, frame, box_xywh) -> int:
    """Start following another object; return its number. The other objects stay where they are.

    Args:
      frame, box_xywh: as for Tracker.init; the frame is of the same size as those before, if any
        object is followed.

    Raises:
      ValueError: the frame or the box cannot be used, or all lanes are taken.
      RuntimeError: `track` has handed further frames to the device.
    """
    self._check_no_frames_on_their_way()
    return self._add(frame, box_xywh)

  def _check_no_frames_on_their_way(self) -> None:
    if self._has_frames_on_their_way:
      raise RuntimeError(
        "frames behind this one are on their way already; name the object in boxes_by_frame, or track "
        "with is_live=True"
      )

  def _add(self, frame, box_xywh) -> int:
    if len(self._lanes) == self.max_objects:
      raise ValueError(
        f"there are {self.max_objects} objects already, max_objects; remove one, or ask for more lanes"
      )
    if self._lanes:
      frame = cutting.checked_frame(frame, self._frame_size)
    template, resize_factor, box, self._frame_size = cutting.cut_template(
      frame, box_xywh, self.model.template_size, self.template_factor
    )
    self._size_on_device = jax.device_put(np.array(self._frame_size, np.int32), self._device)
    lane = min(set(range(self.max_objects)) - set(self._lanes.values()))
    self._template[lane] = template
    if self._template_mask is not None:
      self._template_mask[lane] = template_mask(self.model, box, resize_factor)
    self._put(lane, box)
    self._on_device = None
    number, self._next_id = self._next_id, self._next_id + 1
    self._lanes[number] = lane
    if self._recovery is not None:
      self._recovery.watch(number, box)
    return number

  def _put(self, lane: int, box_xywh: np.ndarray) -> None:
    if isinstance(self._boxes_xywh, np.ndarray):
      self._boxes_xywh[lane] = box_xywh
    else:
      self._boxes_xywh = _with_row(self._boxes_xywh, lane, box_xywh.astype(np.float32))

  def remove(self, number: int) -> None:
    """Stop following an object; raises KeyError where it is not followed."""
    if number not in self._lanes:
      raise KeyError(f"object {number} is not followed; those that are: {list(self._lanes)}")
    del self._lanes[number]
    self._confidences.pop(number, None)
    if self._recovery is not None:
      self._recovery.forget(number)

  def update(self, frame) -> dict[int, TrackResult]:
    """Find all objects in the next frame, by one call of the network. Without objects there is none.

    Raises:
      ValueError: the frame cannot be used, or the network gives a box that is not finite.
      RuntimeError: `track` has handed further frames to the device.
    """
    self._check_no_frames_on_their_way()
    return self._results(self._lanes, self._find(frame), frame)

  def _find(self, frame) -> np.ndarray | jax.Array | None:
    """Hand a frame to the network; return what PendingFrame calls found."""
    if not self._lanes:
      return None
    frame = cutting.checked_frame(frame, self._frame_size)
    template, mask = self._templates()
    if isinstance(self._boxes_xywh, np.ndarray):
      return self._find_around(frame, self._boxes_xywh, template, mask)
    search, side = device_crop.crop_squares(
      jax.device_put(frame, self._device),
      self._boxes_xywh,
      self.search_factor,
      self.model.search_size,
    )
    self._boxes_xywh, found = advance(
      self.model,
      self._weights,
      template,
      mask,
      self._window,
      search,
      side,
      self._boxes_xywh,
      self._size_on_device,
      self._weighing,
    )
    return found

  def _templates(self) -> Templates:
    """Return what the network needs of all lanes, on the device."""
    if self._on_device is None:
      # Copied, because the transfer may still be at work when the next object comes.
      ours = (
        self._template.copy(),
        None if self._template_mask is None else self._template_mask.copy(),
      )
      template, mask = jax.device_put(ours, self._device)
      self._on_device = remember(self.model, self._weights, template), mask
    return self._on_device

  def _find_around(self, frame, boxes_xywh: np.ndarray, template, mask) -> np.ndarray:
    """Cut search regions here, and change the boxes to those that were found."""
    taken = list(self._lanes.values())
    # One after another: threads take longer, for a crop is a quarter of a millisecond.
    factors = np.ones(self.max_objects)
    for lane in taken:
      self._search[lane], factors[lane] = cutting.cut_search(
        frame, boxes_xywh[lane], self.model.search_size, self.search_factor, self._frame_size
      )
    search = jax.device_put(self._search, self._device)
    found = jax.device_get(
      locate(self.model, self._weights, template, search, self._window, mask, self._weighing)
    )
    boxes_xywh[taken] = motion.next_box(
      found[taken, :4], boxes_xywh[taken], factors[taken], self.model.search_size, *self._frame_size
    )
    return np.concatenate([boxes_xywh, found[:, 4:]], axis=1)

  def _results(self, lanes: Mapping[int, int], found, frame) -> dict[int, TrackResult]:
    """Wait for what _find returned, and say it of every object that is still followed."""
    if found is None:
      return {}
    found = np.asarray(found, np.float64)
    results = {}
    for number, lane in lanes.items():
      if number not in self._lanes:
        continue
      if not np.isfinite(found[lane, :4]).all():
        raise ValueError(
          f"object {number}: the network found no box, but {found[lane, :4].tolist()}; {NO_BOX}"
        )
      what = found[lane, :4], found[lane, 4], found[lane, 5:], self.calibrator
      result = result_of(*what, self._confidences.get(number))
      if self._recovery is not None:
        # By itself: the mode looks back as far as it wants.
        said, place_xywh = self._recovery.judged(
          number, result_of(*what), frame, self._templates(), lane
        )
        result = said or result
        if place_xywh is not None:
          self._put(lane, place_xywh)
      results[number], self._confidences[number] = result, result.confidence
    return results

  def track(
    self,
    frames: Iterable[np.ndarray],
    boxes_by_frame: Mapping[int, Sequence],
    is_live: bool = False,
  ) -> Generator[TrackedObjects]:
    """Go through frames, which a thread reads ahead, and add objects where they come.

    Objects that are followed already go on. Where search regions are cut on the device, results come a
    few frames after their frame was read, so that the device waits for nobody. Whoever then leaves before the
    end, with frames on their way, ends all tracks: no object is followed any more.

    Args:
      frames: [H, W, 3] RGB uint8 each, from any iterable, all of one size.
      boxes_by_frame: frame number, from 0, to the boxes (as box_xywh of add) of the objects that start
        there.
      is_live: give every result before the next frame is handed to the network: for cameras, and where
        objects are added between two frames. They may be removed anyway.

    Raises:
      ValueError: there is no frame; or as add and update, with the frame's number; and whatever reading
        a frame raises, after the results before it.
      RuntimeError: another `track` has handed further frames to the device.
    """
    self._check_no_frames_on_their_way()
    # After a loss the next frame waits for where to look.
    waits = is_live or not self.cut_on_device or self._recovery is not None
    queued = 0 if waits else _FRAMES_ON_THEIR_WAY
    pending: collections.deque[PendingFrame] = collections.deque()
    error, count = None, 0
    with contextlib.closing(
      engine.read_ahead(frames, 1 if is_live else engine.FRAMES_AHEAD)
    ) as images:
      steps = self._steps(images, boxes_by_frame)
      try:
        while True:
          try:
            step = next(steps, None)
          except Exception as raised:
            # What was found before it comes first.
            error, step = raised, None
          if step is not None:
            pending.append(step)
          while pending and (step is None or len(pending) > queued):
            # Not when the last one is given: then objects can be added anew.
            self._has_frames_on_their_way = len(pending) > 1
            yield self._finished(pending.popleft())
            count += 1
          if step is None:
            break
      finally:
        self._has_frames_on_their_way = False
        if pending:
          # Boxes on the device are ahead of what was told.
          self._lanes.clear()
    if error is not None:
      raise error
    if not count:
      raise ValueError(engine.NO_FRAMES)

  def _steps(
    self, images: Iterable[np.ndarray], boxes_by_frame: Mapping[int, Sequence]
  ) -> Iterator[PendingFrame]:
    for index, image in enumerate(images):
      began = time.perf_counter()
      with engine.frame_named(index):
        lanes, found = dict(self._lanes), self._find(image)
        started = {
          self._add(image, box): TrackResult(np.array(box, np.float64), float("nan"))
          for box in boxes_by_frame.get(index, ())
        }
      yield PendingFrame(
        index=index,
        image=image,
        lanes=lanes,
        found=found,
        started=started,
        seconds=time.perf_counter() - began,
      )

  def _finished(self, step: PendingFrame) -> TrackedObjects:
    began = time.perf_counter()
    with engine.frame_named(step.index):
      results = self._results(step.lanes, step.found, step.image)
    results |= step.started
    seconds = step.seconds + time.perf_counter() - began
    return TrackedObjects(index=step.index, image=step.image, results=results, seconds=seconds)


@jax.jit
def _with_row(boxes_xywh, lane, box_xywh):
  return boxes_xywh.at[lane].set(box_xywh)
