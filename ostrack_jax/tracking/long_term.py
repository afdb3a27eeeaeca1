"""After a loss: the box that is told is frozen, and the target sought all over the frame, step by step.

Off unless asked for; nothing of it is in the paper or in the official tracker. Whether a target is lost,
and whether what was found is it, says the calibrated confidence (confidence.py), so a calibrator is needed.
wide_search.py does the looking.
"""

import collections
import dataclasses
import math

import numpy as np

from ostrack_jax.tracking.confidence import Calibrator, log_odds
from ostrack_jax.tracking.result import TrackResult
from ostrack_jax.tracking.wide_search import Templates, WideSearch

_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongTermSettings:
  """When a target is lost, and when it is found again.

  Odds are multiples of those of the calibrator's threshold, above which a target is visible.

  Attributes:
    loss_odds: a target is lost when its odds are at most these, and were so in more than half
    patience: of so many frames. Most trackers that are in doubt find back by themselves.
    accept_odds: a target that is found where the tracker went on needs more than these in one frame; one that is
      found elsewhere also as many as it had on average in frames in which it had more than these.
    regain_odds: where the tracker went on doubt also ends, though the target may not count as visible yet, when the
      geometric mean of its odds is more than this,
    regain_frames: over so many frames.
    proof: a target that had them in fewer frames is not given up: it could not be found again either, and
      in video of a kind that the calibrator does not know none may have them.
    windows: places looked at in a frame while a target is lost, all in one forward.

  Raises:
    ValueError: a number out of range.
  """

  loss_odds: float = 0.01
  patience: int = 25
  accept_odds: float = 1.3
  regain_odds: float = 0.25
  regain_frames: int = 3
  proof: int = 3
  windows: int = 16

  def __post_init__(self):
    if not 0 < self.loss_odds <= 1:
      raise ValueError(f"loss_odds {self.loss_odds} must lie above 0 and not above 1")
    if not 1 <= self.accept_odds < math.inf:
      raise ValueError(
        f"accept_odds {self.accept_odds} must be at least 1: stricter than what is visible"
      )
    if not self.loss_odds < self.regain_odds <= self.accept_odds:
      raise ValueError(
        f"regain_odds {self.regain_odds} must lie above loss_odds {self.loss_odds} and not above accept_odds "
        f"{self.accept_odds}"
      )
    for name in ("patience", "regain_frames", "proof", "windows"):
      value = getattr(self, name)
      if not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} {value!r} must be a whole number, at least 1")


def with_odds(probability: float, factor: float) -> float:
  """Return the probability whose odds are `factor` times those of another one."""
  return probability * factor / (1 - probability + probability * factor)


def search_windows(box_xywh, search_factor: float, frame_size: tuple[int, int]) -> np.ndarray:
  """Return boxes to look around for a target that left another box: [n, 4] pixels.

  They are as large as that box and lie on a grid around it, half a search region apart, so that regions
  overlap by half and each pixel of the frame is in the middle half of one. The box itself comes first, then
  those around it, then the next ring, to the frame's border.

  Args:
    box_xywh: [4] where the target was last, pixels, its centre in the frame.
    search_factor: side of a search region over the root of the box's area.
    frame_size: (height, width).
  """
  x, y, w, h = (float(value) for value in box_xywh)
  step = 0.5 * search_factor * math.sqrt(w * h)
  columns, rows = (
    np.arange(-_steps(centre, step), _steps(length - centre, step) + 1)
    for centre, length in ((x + 0.5 * w, frame_size[1]), (y + 0.5 * h, frame_size[0]))
  )
  cells = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
  rings, distances = np.abs(cells).max(axis=1), np.square(cells).sum(axis=1)
  cells = cells[np.lexsort((distances, rings))]
  corners = np.array([x, y]) + step * cells
  return np.concatenate([corners, np.broadcast_to([w, h], corners.shape)], axis=1)


def _steps(distance: float, step: float) -> int:
  # A window answers for half a step on either side of its centre.
  return max(0, math.ceil(distance / step - 0.5))


@dataclasses.dataclass
class _Loss:
  """A target that is sought.

  box_xywh: [4] where it was. windows: of search_windows. templates: the target's, for all windows.
  log_odds: of the last frames since, where the tracker went on, at most settings.regain_frames.
  at: the window to look at next.
  """

  box_xywh: np.ndarray
  windows: np.ndarray
  templates: Templates
  log_odds: collections.deque[float]
  at: int = 0

  def next_windows(self, count: int) -> np.ndarray:
    """Return the next ones, at most [count, 4]; behind the last comes the first again."""
    rows = (self.at + np.arange(min(count, len(self.windows)))) % len(self.windows)
    self.at += len(rows)
    return self.windows[rows]


@dataclasses.dataclass
class _Watched:
  """A target that is followed.

  box_xywh: [4] where it was last visible, or doubt last ended.
  doubts: whether it had at most settings.loss_odds in the last frames, at most settings.patience.
  sure: how many frames had settings.accept_odds. sure_log_odds: the sum of theirs.
  """

  box_xywh: np.ndarray
  doubts: collections.deque[bool]
  sure: int = 0
  sure_log_odds: float = 0.0
  loss: _Loss | None = None


class Recovery:
  """Watches targets, and seeks those that are lost.

  Args:
    calibrator: None raises.
    search: with a batch of settings.windows.

  Raises:
    ValueError: there is no calibrator.
  """

  def __init__(self, settings: LongTermSettings, calibrator: Calibrator | None, search: WideSearch):
    if calibrator is None:
      raise ValueError(
        "the long-term mode needs a confidence, and this checkpoint has no calibrator that fits; fit one with "
        "python -m ostrack_jax.calibrate"
      )
    self.settings = settings
    self._search = search
    self._doubt_up_to = with_odds(calibrator.threshold, settings.loss_odds)
    self._regain_above = log_odds(calibrator.threshold) + math.log(settings.regain_odds)
    self._accept_above = with_odds(calibrator.threshold, settings.accept_odds)
    self._watched: dict[int, _Watched] = {}

  def watch(self, number: int, box_xywh: np.ndarray) -> None:
    """Begin with an object, [4] pixels."""
    doubts = collections.deque[bool](maxlen=self.settings.patience)
    self._watched[number] = _Watched(box_xywh=box_xywh, doubts=doubts)

  def forget(self, number: int) -> None:
    """End with an object."""
    del self._watched[number]

  def is_lost(self, number: int) -> bool:
    """Return whether an object is sought."""
    return self._watched[number].loss is not None

  def judged(
    self, number: int, result: TrackResult, frame: np.ndarray, templates: Templates, lane: int
  ) -> tuple[TrackResult | None, np.ndarray | None]:
    """Return what to say of a frame, None unless the target is or was lost; and where to go on, or None.

    Without a place it goes on where the tracker is, also while the target is sought: doubt may be false, and a
    tracker that was taken off its target would have lost it.

    Args:
      result: what the tracker found, its confidence that of this frame by itself.
      frame: as for Tracker.update.
      templates, lane: of all lanes, and which is the object's.
    """
    watched = self._watched[number]
    if watched.loss is None:
      self._note(watched, result)
      if not self._is_given_up(watched):
        return None, None
      factor, templates = self._search.search_factor, self._search.repeated(templates, lane)
      windows = search_windows(watched.box_xywh, factor, np.shape(frame)[:2])
      watched.loss = _Loss(
        box_xywh=watched.box_xywh,
        windows=windows,
        templates=templates,
        log_odds=collections.deque(maxlen=self.settings.regain_frames),
      )
    loss = watched.loss
    loss.log_odds.append(log_odds(_confidence(result)))
    if self._is_accepted(result) or self._is_regained(loss):
      return self._found(watched, result), None
    found = self._search.find(
      frame, loss.next_windows(self.settings.windows), loss.box_xywh[2:], loss.templates
    )
    best = max(found, key=_confidence)
    # Less what a mean of equal numbers may be rounded by.
    usual = watched.sure_log_odds / watched.sure - _ROUNDING
    if self._is_accepted(best) and log_odds(_confidence(best)) >= usual:
      return self._found(watched, dataclasses.replace(best, visible=True)), best.box_xywh
    best = max(result, best, key=_confidence)
    return dataclasses.replace(best, box_xywh=loss.box_xywh.copy(), visible=False), None

  def _found(self, watched: _Watched, result: TrackResult) -> TrackResult:
    watched.box_xywh, watched.loss = result.box_xywh, None
    watched.doubts.clear()
    return result

  def _note(self, watched: _Watched, result: TrackResult) -> None:
    watched.doubts.append(_confidence(result) <= self._doubt_up_to)
    if self._is_accepted(result):
      watched.sure += 1
      watched.sure_log_odds += log_odds(_confidence(result))
    if result.visible:
      watched.box_xywh = result.box_xywh

  def _is_given_up(self, watched: _Watched) -> bool:
    is_proven = watched.sure >= self.settings.proof
    is_judged = len(watched.doubts) == self.settings.patience
    # A doubt that has passed condemns nobody.
    is_in_doubt = watched.doubts[-1] and sum(watched.doubts) > self.settings.patience / 2
    return is_proven and is_judged and is_in_doubt

  def _is_regained(self, loss: _Loss) -> bool:
    is_judged = len(loss.log_odds) == self.settings.regain_frames
    return is_judged and float(np.mean(loss.log_odds)) > self._regain_above

  def _is_accepted(self, result: TrackResult) -> bool:
    return _confidence(result) > self._accept_above


def _confidence(result: TrackResult) -> float:
  assert result.confidence is not None
  return result.confidence
