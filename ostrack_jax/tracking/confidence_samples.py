"""Annotated video in which a tracker is right or wrong, and its target there or not, to calibrate on.

No frame of most sets is truly without its target, so such frames are made: crops that miss the target,
crops of other videos, and videos from which the target was removed.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ostrack_jax import boxes, crop
from ostrack_jax.models import head
from ostrack_jax.tracking import confidence, cutting, motion, tracker
from ostrack_jax.tracking.factors import tracking_factors
from ostrack_jax.tracking.target_removal import (
  Sequenced,
  do_overlap,
  usable_frames,
  without_target,
)
from ostrack_jax.tracking.weights import TrackableCheckpoint, prepare

# A box that overlaps its target by more is right.
RIGHT_IOU = 0.5
PRESENCE, TRACKS = ("present", "missed", "foreign"), ("free", "removed")
_TRIES = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
  """One forward of the network.

  Attributes:
    kind: of PRESENCE or TRACKS. `present`: a crop around the annotated box, jittered as in training;
      `missed`: of the same video, without the target; `foreign`: of another video. `free`: a frame of a
      track that goes its own way; `removed`: the same where the target was removed.
    video: of the template.
    evidence: [k] of confidence.evidence.
    score: maximum of the raw score map.
    is_right: whether the target is there and the box overlaps it by more than RIGHT_IOU.
    track: of which track of that kind and video, whose frames come one after another; "" of crops.
  """

  kind: str
  video: str
  evidence: np.ndarray
  score: float
  is_right: bool
  track: str = ""


@functools.partial(jax.jit, static_argnums=0)
def _observe(model, weights, template, search, window, template_mask):
  layers = confidence.evidence_layers(model)
  output = tracker.forward(model, weights, template, search, template_mask, layers)
  return output.boxes_near(window), output.scores, confidence.evidence(output, window)


@dataclasses.dataclass(frozen=True)
class _Seen:
  box_xywh: np.ndarray
  score: float
  evidence: np.ndarray


class Observer:
  """Draws samples with a checkpoint's network.

  Args:
    jitter: (random generator, box_xywh) to the box that a search region is cut around.

  Raises:
    ValueError: the head has no score map; and as tracking_factors.
  """

  def __init__(
    self,
    checkpoint: TrackableCheckpoint,
    jitter: Callable[[np.random.Generator, np.ndarray], np.ndarray],
  ):
    self.model = checkpoint.model
    if self.model.head != "center":
      raise ValueError(
        f"the head {self.model.head!r} has no score map, so there is no evidence to calibrate; only a model "
        "with the head 'center' can be"
      )
    self.search_factor, self.template_factor = tracking_factors(checkpoint)
    self._weights = jax.device_put(prepare(self.model, checkpoint.variables))
    self._window = jnp.asarray(head.hann_window(self.model.search_grid))
    self._jitter = jitter

  def tracks(
    self, sequence: Sequenced, rng: np.random.Generator, first: int = 0
  ) -> Iterator[Sample]:
    """Track from a frame on which the target is annotated: as the video is, then with the target removed.

    Frames in which the target is not visible count as without it. Frames from which it cannot be removed
    (see without_target) are left out of that track.
    """
    shown = ((t, sequence.frames[t]) for t in range(first + 1, len(sequence.frames)))
    hidden = ((t, without_target(sequence, t, rng)) for t in range(first + 1, len(sequence.frames)))
    start = sequence.frames[first], sequence.boxes_xywh[first]
    for kind, images in zip(TRACKS, (shown, hidden), strict=True):
      remembered = self._remember(*start)
      box, (height, width) = np.asarray(start[1], np.float64), start[0].shape[:2]
      for t, image in images:
        if image is None:
          continue
        seen = self._look(remembered, image, box)
        box = boxes.clip_box_xywh(seen.box_xywh, height, width, cutting.MARGIN_PX)
        seen = dataclasses.replace(seen, box_xywh=box)
        is_there = kind == "free" and bool(sequence.visible[t])
        truth = sequence.boxes_xywh[t] if is_there else None
        yield _sample(kind, sequence, seen, truth, track=str(first))

  def presence(
    self, sequence: Sequenced, others: Sequence[Sequenced], rng: np.random.Generator, count: int
  ) -> Iterator[Sample]:
    """Look for the first frame's target in crops: each kind of PRESENCE in up to `count` frames."""
    usable = usable_frames(sequence)
    remembered = self._remember(sequence.frames[usable[0]], sequence.boxes_xywh[usable[0]])
    later = usable[1:] if len(usable) > 1 else usable
    for t in sorted(rng.choice(later, min(count, len(later)), replace=False).tolist()):
      image, box = sequence.frames[t], sequence.boxes_xywh[t]
      around = self._jitter(rng, box)
      yield _sample("present", sequence, self._look(remembered, image, around), box)
      around = self._beside(rng, box, image.shape[:2])
      if around is not None:
        yield _sample("missed", sequence, self._look(remembered, image, around), None)
      if others:
        other = others[int(rng.integers(len(others)))]
        place = int(rng.choice(usable_frames(other)))
        around = self._jitter(rng, other.boxes_xywh[place])
        seen = self._look(remembered, other.frames[place], around)
        yield _sample("foreign", sequence, seen, None)

  def _beside(self, rng, box_xywh, frame_size) -> np.ndarray | None:
    """Return a box in the frame whose search region shows nothing of the given one; None without luck."""
    for _ in range(_TRIES):
      around = self._jitter(rng, box_xywh)
      centre = rng.random(2) * np.array(frame_size[::-1])
      around = np.concatenate([centre - 0.5 * around[2:], around[2:]])
      window = crop.crop_window(around, self.search_factor)
      if not do_overlap(np.array([window.x1, window.y1, window.side, window.side]), box_xywh):
        return around
    return None

  def _remember(self, image, box_xywh):
    template, factor, box, _ = cutting.cut_template(
      image, box_xywh, self.model.template_size, self.template_factor
    )
    mask = tracker.template_mask(self.model, box, factor)
    kept = tracker.remember(self.model, self._weights, jnp.asarray(template[None]))
    return kept, None if mask is None else jnp.asarray(mask[None])

  def _look(self, remembered, image, around_xywh) -> _Seen:
    size = self.model.search_size
    search, factor = crop.crop_square(image, around_xywh, self.search_factor, size)
    template, mask = remembered
    found, score, evidence = jax.device_get(
      _observe(self.model, self._weights, template, search[None], self._window, mask)
    )
    box = motion.box_in_frame(found[0], around_xywh, factor, size)
    return _Seen(box_xywh=box, score=float(score[0]), evidence=evidence[0])


def _sample(kind: str, sequence: Sequenced, seen: _Seen, truth_xywh, track: str = "") -> Sample:
  is_right = False
  if truth_xywh is not None:
    pair = (boxes.xywh_to_xyxy(np.asarray(one, np.float64)) for one in (seen.box_xywh, truth_xywh))
    is_right = bool(boxes.iou(*pair) > RIGHT_IOU)
  return Sample(
    kind=kind,
    video=sequence.name,
    evidence=seen.evidence,
    score=seen.score,
    is_right=is_right,
    track=track,
  )


def of_kinds(samples: Iterable[Sample], kinds: Sequence[str]) -> list[Sample]:
  """Return the samples of some kinds."""
  return [sample for sample in samples if sample.kind in kinds]
