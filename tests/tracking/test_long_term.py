"""After a loss the box that is told is frozen and the target sought all over the frame; nobody else notices."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest
from lane_runs import SMALL, compilations

from ostrack_jax import boxes
from ostrack_jax.models import fused_blocks
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.tracking import confidence, motion, multi_tracker, wide_search
from ostrack_jax.tracking.long_term import LongTermSettings, Recovery, search_windows, with_odds
from ostrack_jax.tracking.multi_tracker import MultiTracker
from ostrack_jax.tracking.result import TrackResult

_FEATURES = tuple(confidence.evidence_signs(OSTrack()))
_SIZE = (240, 320)


def _calibrated(checkpoint, threshold=0.5, **weights):
  """A checkpoint whose confidence is the odds of a weighted sum of evidence."""
  calibrator = confidence.Calibrator(
    features=_FEATURES,
    mean=(0.0,) * len(_FEATURES),
    scale=(1.0,) * len(_FEATURES),
    weights=tuple(weights.get(name, 0.0) for name in _FEATURES),
    bias=0.0,
    threshold=threshold,
    false_alarm_rate=0.05,
    fitted_for={"search_factor": 4.0, "template_factor": 2.0},
  )
  kind = dataclasses.make_dataclass(
    "Calibrated", ["model", "variables", "description", "calibrator"]
  )
  return kind(checkpoint.model, checkpoint.variables, checkpoint.description, calibrator)


@pytest.mark.parametrize("seed", range(8))
def test_every_pixel_is_in_the_middle_half_of_a_region(seed):
  rng = np.random.default_rng(seed)
  height, width = rng.integers(60, 400, 2)
  w, h = rng.uniform(10, 90, 2)
  box = np.array([*(rng.uniform(0, 1, 2) * (width, height) - (w / 2, h / 2)), w, h])
  found = search_windows(box, 4.0, (height, width))
  np.testing.assert_allclose(found[:, 2:], np.broadcast_to([w, h], (len(found), 2)))
  centres = found[:, :2] + 0.5 * box[2:]
  reach = 0.25 * 4 * np.sqrt(w * h) + 1e-6
  ys, xs = np.mgrid[0 : height + 1 : 3, 0 : width + 1 : 3]
  apart = np.abs(np.stack([xs, ys], axis=-1).reshape(-1, 1, 2) - centres).max(axis=2)
  assert (apart.min(axis=1) <= reach).all()
  # And no region is in vain: each one's middle half has some of the frame.
  corners = np.clip(centres, 0, (width, height))
  assert (np.abs(corners - centres) <= reach).all()
  assert len(np.unique(centres.round(3), axis=0)) == len(centres)


def test_regions_lie_half_a_side_apart_and_nearer_rings_come_first():
  # Sides of 80 pixels about (160, 120): steps of 40.
  found = search_windows((150, 110, 20, 20), 4.0, _SIZE)
  steps = (found[:, :2] - (150, 110)) / 40
  np.testing.assert_array_equal(steps, steps.round())
  rings = np.abs(steps).max(axis=1)
  assert (np.diff(rings) >= 0).all()
  assert [int((rings == ring).sum()) for ring in (0, 1, 2)] == [1, 8, 16]
  # Within a ring those across come before the corners.
  assert np.abs(steps[1:5]).sum(axis=1).tolist() == [1, 1, 1, 1]


def test_around_a_box_that_fills_the_frame_there_is_nothing_else_to_look_at():
  np.testing.assert_array_equal(search_windows((0, 0, 320, 240), 4.0, _SIZE), [(0, 0, 320, 240)])


def test_odds_are_multiplied():
  assert with_odds(0.5, 3) == pytest.approx(0.75)
  assert with_odds(0.75, 1 / 9) == pytest.approx(0.25)
  assert with_odds(1.0, 2) == 1 and with_odds(0.0, 2) == 0


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"loss_odds": 0.0}, "loss_odds 0.0"),
    ({"loss_odds": 1.5}, "loss_odds 1.5"),
    ({"accept_odds": 0.9}, "accept_odds 0.9 must be at least 1"),
    ({"accept_odds": float("nan")}, "accept_odds nan"),
    ({"regain_odds": 0.01}, r"regain_odds 0\.01 must lie above loss_odds 0\.01 and not above"),
    ({"regain_odds": 1.4}, r"regain_odds 1\.4 .* not above accept_odds 1\.3"),
    ({"regain_odds": float("nan")}, "regain_odds nan"),
    ({"regain_frames": 0}, "regain_frames 0 must be a whole number"),
    ({"patience": 0}, "patience 0 must be a whole number, at least 1"),
    ({"proof": 0}, "proof 0 must be"),
    ({"windows": 0}, "windows 0 must be"),
    ({"patience": 1.5}, r"patience 1\.5 must be a whole number"),
  ],
)
def test_settings_out_of_range_are_named(changes, words):
  with pytest.raises(ValueError, match=words):
    LongTermSettings(**changes)


def test_without_a_calibrator_the_cure_is_told(checkpoint):
  with pytest.raises(ValueError, match=r"no calibrator.*python -m ostrack_jax\.calibrate"):
    MultiTracker(checkpoint, long_term=LongTermSettings())


class _Search:
  """A WideSearch that is as sure of each place as it is told, and notes where it was asked to look."""

  search_factor = 4.0

  def __init__(self, sure):
    self.asked, self._sure = [], sure

  def repeated(self, templates, lane):
    return templates

  def find(self, frame, boxes_xywh, size, templates):
    self.asked.append(boxes_xywh)
    return [TrackResult(box, 0.1, self._sure) for box in boxes_xywh]


def _watch(confidences, elsewhere=0.2, **settings):
  """What is said of one target with these confidences, one pixel further in each frame."""
  search = _Search(elsewhere)
  calibrator = types.SimpleNamespace(threshold=0.5)
  recovery = Recovery(LongTermSettings(**{"proof": 1, **settings}), calibrator, search)
  recovery.watch(0, np.array([100.0, 100, 20, 20]))
  frame, said = np.zeros((*_SIZE, 3), np.uint8), []
  for step, sure in enumerate(confidences, 1):
    result = TrackResult(np.array([100.0 + step, 100, 20, 20]), 0.5, sure, sure > 0.5)
    was_lost = recovery.is_lost(0)
    told, _ = recovery.judged(0, result, frame, ("a template", None), 0)
    assert told is not None or not (was_lost or recovery.is_lost(0))
    said.append(told or result)
  return said, search, recovery


def test_a_target_is_lost_when_the_odds_of_most_of_the_last_frames_are_low():
  # Odds of the threshold are 1: 0.2 is a quarter of them, 1 / 17 a sixteenth.
  rule = {"patience": 3, "loss_odds": 0.26, "regain_odds": 1.0}
  said, search, recovery = _watch([0.9, 0.8, 0.2, 1 / 17, 0.5], **rule)
  # Two of three in the fourth frame; in the fifth it is still sought.
  assert recovery.is_lost(0) and len(search.asked) == 2
  # Frozen where it was last visible, which the threshold itself is not; the best of what is seen is told.
  assert [one.box_xywh[0] for one in said] == [101, 102, 103, 102, 102]
  assert [one.visible for one in said] == [True, True, False, False, False]
  assert said[-1].confidence == 0.5
  rule["loss_odds"] = 0.24
  said, search, recovery = _watch([0.9, 0.8, 0.2, 1 / 17, 0.5], **rule)
  assert not search.asked and not recovery.is_lost(0) and said[-1].box_xywh[0] == 105
  # Half of them are not most.
  assert not _watch([0.9, 0.8, 0.005, 0.005], patience=4)[1].asked
  assert _watch([0.9, 0.005, 0.005, 0.005], patience=4)[1].asked


def test_few_frames_condemn_nobody():
  assert not _watch([0.9] * 9 + [0.0], patience=10)[1].asked
  # Nor do those right after the start.
  assert not _watch([0.9, 0.0, 0.0], patience=10)[1].asked


def test_a_doubt_that_has_passed_condemns_nobody():
  # Most frames are doubtful once they are as many as it takes, but the last one is not.
  assert not _watch([0.9, *[0.005] * 3, 0.55], patience=5)[1].asked
  assert _watch([0.9, *[0.005] * 3, 0.55, 0.005], patience=5)[1].asked


def test_doubt_ends_where_the_tracker_went_on_when_its_mean_odds_have_risen():
  # Odds of 1/4, 1 and 1/2: their geometric mean is 1/2.
  confidences = [0.9, 0.005, 0.005, 0.2, 0.5, 1 / 3, 0.3]
  rule = {"patience": 1, "regain_frames": 3}
  said, search, recovery = _watch(confidences, **rule, regain_odds=0.49)
  assert [one.box_xywh[0] for one in said] == [101, 101, 101, 101, 101, 106, 107]
  # It is followed, and still does not count as visible.
  assert [one.visible for one in said] == [True, *[False] * 6] and not recovery.is_lost(0)
  assert said[5].confidence == 1 / 3 and len(search.asked) == 4
  said, _, recovery = _watch(confidences[:-1], **rule, regain_odds=0.51)
  assert recovery.is_lost(0) and said[-1].box_xywh[0] == 101
  # Lost anew, it is frozen where doubt had ended.
  said, _, recovery = _watch([*confidences, 0.005], **rule, regain_odds=0.49)
  assert recovery.is_lost(0) and said[-1].box_xywh[0] == 106
  # Visible is what is above the threshold, though it be too little to be taken by itself.
  said, _, recovery = _watch([*confidences[:5], 0.51], **rule, regain_odds=0.49)
  assert said[-1].visible and not recovery.is_lost(0)
  # Frames in front of the loss do not count.
  said, _, recovery = _watch([0.9, 0.9, 0.005, 0.45, 0.45], **rule, regain_odds=0.2)
  assert recovery.is_lost(0)


def test_a_target_that_was_never_sure_is_not_given_up():
  # Odds of 2 are 2/3.
  rule = {"patience": 2, "accept_odds": 2.0}
  said, search, _ = _watch([0.6, *[0.005] * 5], **rule)
  assert not search.asked and said[-1].box_xywh[0] == 106
  assert _watch([0.7, *[0.005] * 5], **rule)[1].asked
  # Sure in so many frames, wherever they are.
  assert not _watch([0.7, 0.6, 0.7, *[0.005] * 5], proof=3, **rule)[1].asked
  assert len(_watch([0.7, 0.6, 0.7, 0.7, *[0.005] * 5], proof=3, **rule)[1].asked) == 4


def test_what_is_sure_where_the_tracker_went_on_is_taken_without_looking_further():
  said, search, recovery = _watch([0.9, 0.005, 0.6, 0.7, 0.005], patience=1, accept_odds=2.0)
  assert len(search.asked) == 3
  # Visible is not enough.
  assert [one.visible for one in said] == [True, False, False, True, False]
  # The box is the tracker's own, which went on; lost anew, it is frozen where it was found.
  assert [one.box_xywh[0] for one in said] == [101, 101, 101, 104, 104] and recovery.is_lost(0)
  assert said[2].confidence == 0.6


def test_elsewhere_a_target_must_be_as_sure_as_it_was_on_average_when_it_was_sure():
  # Odds of 9, 3 and, not sure, 1/4: the geometric mean of the first two is 27 ** 0.5, a probability of 0.8386.
  rule = {"patience": 1, "loss_odds": 0.2, "accept_odds": 2.0}
  confidences = [0.9, 0.75, 0.2, 0.005]
  _, search, recovery = _watch(confidences, elsewhere=0.838, **rule)
  assert len(search.asked) == 1 and recovery.is_lost(0)
  said, _, recovery = _watch(confidences, elsewhere=0.839, **rule)
  assert said[-1].confidence == 0.839 and said[-1].visible and not recovery.is_lost(0)


def test_frame_by_frame_all_regions_are_looked_at_and_then_again():
  every = search_windows((101, 100, 20, 20), 4.0, _SIZE)
  _, search, _ = _watch([0.9, *[0.005] * 20], patience=1, windows=10)
  assert len(every) == 63 and [len(one) for one in search.asked] == [10] * 20
  np.testing.assert_array_equal(np.concatenate(search.asked)[: len(every)], every)
  np.testing.assert_array_equal(np.concatenate(search.asked)[len(every) : 2 * len(every)], every)
  _, search, _ = _watch([0.9, 0.005], patience=1, windows=100)
  assert len(search.asked[0]) == 63


def _patch_finder(calls):
  """A network that finds a red patch in a search region, and is sure of one in the middle alone."""

  def locate(model, weights, template, search, window, mask, weighing):
    calls.append((np.asarray(template), np.asarray(window)))
    told = []
    for region in np.asarray(search):
      ys, xs = np.nonzero((region[..., 0] > 150) & (region[..., 1] < 100))
      if not len(xs):
        told.append([0.5, 0.5, 0.25, 0.25, 0.1, 0.005])
        continue
      size = len(region)
      low, high = (np.array([side(xs), side(ys)]) / size for side in (np.min, np.max))
      centre = (low + high + 1 / size) / 2
      sure = 0.95 if np.abs(centre - 0.5).max() < 0.1 else 0.3
      told.append([*centre, *(high - low + 1 / size), 0.9, sure])
    return np.array(told, np.float32)

  return locate


def _see_patches(monkeypatch, calls):
  """Let trackers find red patches, wherever they cut."""
  locate = _patch_finder(calls)

  def advance(
    model, weights, template, mask, window, search, side, box_xywh, frame_size, weighing=None
  ):
    told = locate(model, weights, template, search, window, mask, weighing)
    moved = motion.moved(told[:, :4], np.asarray(box_xywh), np.asarray(side))
    box = boxes.clip_box_xywh(moved, *np.asarray(frame_size)).astype(np.float32)
    return jnp.asarray(box), np.concatenate([box, told[:, 4:]], axis=1)

  for module in (multi_tracker, wide_search):
    monkeypatch.setattr(module, "locate", locate)
  monkeypatch.setattr(multi_tracker, "advance", advance)


def _scene(x, y):
  frame = np.full((*_SIZE, 3), 128, np.uint8)
  if x is not None:
    frame[y : y + 20, x : x + 24] = (220, 20, 20)
  return frame


@pytest.mark.parametrize("cut_on_device", [False, True])
def test_a_target_that_left_is_frozen_not_visible_and_found_elsewhere(
  checkpoint, monkeypatch, cut_on_device
):
  calls = []
  _see_patches(monkeypatch, calls)
  tracker = MultiTracker(
    _calibrated(checkpoint),
    max_objects=2,
    cut_on_device=cut_on_device,
    long_term=LongTermSettings(patience=3, windows=4),
  )
  places = [(60 + 2 * t, 80) for t in range(5)] + [(None, 0)] * 12 + [(270, 190)] * 40
  frames = [_scene(*place) for place in places]
  lost, results = [], []
  for tracked in tracker.track(frames, {0: [(60, 80, 24, 20)]}):
    results.append(tracked.results[0])
    lost.append(tracker.lost)
  assert all(one.visible for one in results[1:5])
  # Two of three frames are most of them.
  assert lost[:6] == [()] * 6 and lost[6] == (0,)
  back = lost.index((), 7)
  # 48 regions, of which 4 are looked at in a frame: all of them take 12 frames, and this one is not the last.
  assert 17 <= back < 27
  for one in results[6:back]:
    np.testing.assert_array_equal(one.box_xywh, results[4].box_xywh)
    assert one.visible is False and one.confidence < 0.5
  for one in results[back:]:
    np.testing.assert_allclose(one.box_xywh, (270, 190, 24, 20), atol=2)
    assert one.visible is True and one.confidence > 0.9
  # A forward of the ordinary lanes; two looks of 4 places, the first without a window, at one target's template.
  assert [len(template) for template, _ in calls[5:8]] == [2, 4, 4]
  template, window = calls[6]
  assert (window == 1).all() and calls[7][1].min() < 0.5
  assert all((row == calls[5][0][0]).all() for row in template)


@pytest.mark.parametrize("cut_on_device", [True, False])
def test_others_are_followed_to_the_last_bit_and_nothing_is_compiled_anew(
  make_checkpoint, make_frame, monkeypatch, cut_on_device
):
  # So strict that none is found; the first and the third object are lost at once, the second never.
  calibrated = _calibrated(make_checkpoint(**SMALL), threshold=0.999)
  settings = LongTermSettings(windows=40)

  def give_up(self, watched):
    watched.sure = 1
    return any(watched is self._watched.get(number) for number in (0, 2))

  monkeypatch.setattr(Recovery, "_is_given_up", give_up)
  frames = [make_frame(number, 240, 320) for number in range(10)]
  found, undoubted = {}, {}
  for long_term in (None, settings):
    tracker = MultiTracker(
      calibrated, max_objects=3, cut_on_device=cut_on_device, long_term=long_term
    )
    for box in ((150, 100, 30, 24), (120, 120, 18, 30)):
      tracker.add(frames[0], box)
    rows = [tracker.update(frame) for frame in frames[1:4]]
    with compilations() as compiled:
      # Another loss, with more places to look at than the batch has, where the first has fewer.
      tracker.add(frames[4], (60, 150, 20, 20))
      rows += [tracker.update(frame) for frame in frames[5:9]]
    assert not compiled
    found[long_term is not None] = rows
    lost = tracker.lost
    with monkeypatch.context() as doubt:
      doubt.setattr(Recovery, "_is_accepted", lambda self, result: True)
      undoubted[long_term is not None] = tracker.update(frames[9])
  assert lost == (0, 2)
  for ours, theirs in zip(found[True], found[False], strict=True):
    np.testing.assert_array_equal(ours[0].box_xywh, (150, 100, 30, 24))
    np.testing.assert_array_equal(ours[1].box_xywh, theirs[1].box_xywh)
    assert (ours[1].confidence, ours[1].score) == (theirs[1].confidence, theirs[1].score)
  assert (found[False][-1][0].box_xywh != (150, 100, 30, 24)).any()
  # Beneath the frozen box the tracker went on: once doubt ends, it is where it would have been.
  for number in range(3):
    np.testing.assert_array_equal(
      undoubted[True][number].box_xywh, undoubted[False][number].box_xywh
    )


def test_no_frame_is_on_its_way_while_the_last_one_is_judged(make_checkpoint, make_frame):
  handed = []

  class Noting(MultiTracker):
    def _find(self, frame):
      handed.append(1)
      return super()._find(frame)

  tracker = Noting(
    _calibrated(make_checkpoint(**SMALL)), max_objects=3, cut_on_device=True,
    long_term=LongTermSettings(windows=4),
  )  # fmt: skip
  frames = [make_frame(number, 240, 320) for number in range(4)]
  for tracked in tracker.track(frames, {0: [(150, 100, 30, 24)]}):
    assert len(handed) == tracked.index + 1


def test_an_object_that_takes_a_lost_ones_lane_is_not_lost(checkpoint, monkeypatch):
  _see_patches(monkeypatch, [])
  settings = LongTermSettings(patience=1, proof=1, windows=4)
  tracker = MultiTracker(_calibrated(checkpoint), max_objects=1, long_term=settings)
  first = tracker.add(_scene(60, 80), (60, 80, 24, 20))
  assert tracker.update(_scene(60, 80))[first].visible
  tracker.update(_scene(None, 0))
  assert tracker.lost == (first,)
  tracker.remove(first)
  second = tracker.add(_scene(200, 80), (200, 80, 24, 20))
  assert tracker.lost == ()
  np.testing.assert_allclose(
    tracker.update(_scene(204, 80))[second].box_xywh, (204, 80, 24, 20), atol=2
  )


@pytest.mark.parametrize("max_objects", [1, 2])
def test_windows_are_looked_at_through_the_blocks_of_their_number(
  make_checkpoint, monkeypatch, max_objects
):
  checkpoint = make_checkpoint(width=64)
  monkeypatch.setattr(fused_blocks, "suits", lambda batch, *_: batch == 1)
  settings = LongTermSettings(windows=4)
  tracker = MultiTracker(_calibrated(checkpoint), max_objects=max_objects, long_term=settings)
  ours, search = tracker._weights, tracker._recovery._search._weights
  assert ("blocks" in ours.unpack()) == (max_objects == 1)
  assert "blocks" not in search.unpack()
  # One copy where one serves both.
  assert (search is ours) == (max_objects == 2)
