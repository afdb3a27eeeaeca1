"""Several objects in one forward are followed as each alone."""

import dataclasses
import threading

import jax
import numpy as np
import pytest
from lane_runs import SMALL, compilations

from ostrack_jax.tracking.multi_tracker import MultiTracker
from ostrack_jax.tracking.tracker import Tracker

# In the middle of large frames, since random weights lead a box away, to a border where all end alike.
_BOXES = ((150, 100, 30, 24), (120, 120, 18, 30), (180, 90, 24, 20))


@pytest.fixture
def images(make_frame):
  return [make_frame(number, 240, 320) for number in range(7)]


@pytest.fixture
def masked(make_checkpoint):
  return make_checkpoint(**SMALL, template_tokens="ground_truth_box")


def _alone(checkpoint, images, box, tracker=None):
  """Boxes and scores of a track from the first image on, without that one: of Tracker, or in a lane."""
  if tracker is None:
    tracker = Tracker(checkpoint)
    tracker.init(images[0], box)
    results = [tracker.update(image) for image in images[1:]]
  else:
    found = [one.results for one in tracker.track(images, {0: [box]})][1:]
    results = [next(iter(one.values())) for one in found]
  return np.array([result.box_xywh for result in results]), [result.score for result in results]


def _check_same(results, number, want):
  boxes, scores = want
  mine = [found[number] for found in results if number in found]
  np.testing.assert_allclose([one.box_xywh for one in mine], boxes, atol=1e-3)
  np.testing.assert_allclose([one.score for one in mine], scores, atol=1e-5)


_TWO_STREAMS = {
  "relation": "swintrack", "relation_layers": 1, "elimination_layers": (), "keep_ratios": (),
  "num_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize(
  ("changes", "cut_on_device"),
  [({"template_tokens": "ground_truth_box"}, True), (_TWO_STREAMS, False)],
  ids=["masked template, cut on the device", "two streams, cut here"],
)
def test_objects_that_come_and_go_are_followed_as_each_alone_and_compile_nothing(
  make_checkpoint, images, changes, cut_on_device
):
  checkpoint = make_checkpoint(**{**SMALL, **changes})
  tracker = MultiTracker(checkpoint, max_objects=3, cut_on_device=cut_on_device)
  assert tracker.update(images[0]) == {}
  with compilations() as compiled:
    assert tracker.add(images[0], _BOXES[0]) == 0
    results = [tracker.update(images[1])]
    first = len(compiled)
    assert tracker.add(images[1], _BOXES[1]) == 1
    results += [tracker.update(image) for image in images[2:4]]
    # The third takes the lane of the second.
    tracker.remove(1)
    assert tracker.add(images[3], _BOXES[2]) == 2
    assert tracker.objects == (0, 2)
    results += [tracker.update(image) for image in images[4:]]
  assert 0 < first == len(compiled)
  assert [sorted(found) for found in results] == [[0]] + [[0, 1]] * 2 + [[0, 2]] * 3
  for number, start, stop in ((0, 0, 7), (1, 1, 4), (2, 3, 7)):
    # Compiling another batch would take longer than all else; the two streams' is the same anyway.
    lane = None if cut_on_device else MultiTracker(checkpoint, max_objects=3)
    alone = _alone(checkpoint, images[start:stop], _BOXES[number], lane)
    _check_same(results, number, alone)
  assert results[-1][2].box_xywh.dtype == np.float64
  assert results[-1][2].confidence is None and results[-1][2].visible is None


@pytest.mark.parametrize("cut_on_device", [True, False])
def test_objects_are_added_in_the_frames_where_they_come(masked, images, cut_on_device):
  tracker = MultiTracker(masked, max_objects=3, cut_on_device=cut_on_device)
  found = list(tracker.track(iter(images), {1: [_BOXES[0]], 4: _BOXES[1:]}))
  assert [sorted(one.results) for one in found] == [[], [0], [0], [0], *[[0, 1, 2]] * 3]
  assert [one.index for one in found] == list(range(7))
  assert all(one.image is image for one, image in zip(found, images, strict=True))
  start = found[4].results[2]
  np.testing.assert_array_equal(start.box_xywh, _BOXES[2])
  assert np.isnan(start.score)
  _check_same([one.results for one in found[2:]], 0, _alone(masked, images[1:], _BOXES[0]))
  _check_same([one.results for one in found[5:]], 2, _alone(masked, images[4:], _BOXES[2]))
  assert found[3].seconds > 0
  assert not [thread for thread in threading.enumerate() if thread.name == "frames"]


def test_frames_are_on_their_way_to_a_device_that_cuts_unless_they_are_live(masked, images):
  handed = []

  class Noting(MultiTracker):
    def _find(self, frame):
      handed.append(1)
      return super()._find(frame)

  tracker = Noting(masked, max_objects=3, cut_on_device=True)
  counts = []
  for tracked in tracker.track(images, {0: _BOXES[:2]}):
    counts.append(len(handed))
    if tracked.index == 0:
      with pytest.raises(RuntimeError, match="on their way already; name the object in boxes_by"):
        tracker.add(tracked.image, _BOXES[2])
      with pytest.raises(RuntimeError, match="on their way already"):
        tracker.update(tracked.image)
      with pytest.raises(RuntimeError, match="on their way already"):
        next(tracker.track(images, {}))
    if tracked.index == 1:
      tracker.remove(1)
    assert sorted(tracked.results) == ([0, 1] if tracked.index < 2 else [0])
  assert counts == [5, 6, 7, 7, 7, 7, 7]
  assert tracker.add(images[-1], _BOXES[2]) == 2
  handed.clear()
  for tracked in tracker.track(images[:4], {}, is_live=True):
    assert len(handed) == tracked.index + 1
    if tracked.index == 1:
      assert tracker.add(tracked.image, _BOXES[1]) == 3
  assert tracker.objects == (0, 2, 3)
  # The device is ahead of what was told, so whoever leaves now has no track to go on with.
  for _ in tracker.track(images, {}):
    break
  assert tracker.objects == () and tracker.update(images[0]) == {}


def test_an_error_comes_after_the_results_before_it(masked, images, make_frame):
  tracker = MultiTracker(masked, max_objects=3, cut_on_device=True)
  found = []
  with pytest.raises(ValueError, match="frame 4: frame of 330 x 260 pixels follows"):
    found.extend(tracker.track([*images[:4], make_frame(0, 260, 330)], {0: [_BOXES[0]]}))
  assert len(found) == 4

  def broken():
    yield images[0]
    raise OSError("the camera is gone")

  with pytest.raises(OSError, match=r"^the camera is gone"):
    found.extend(tracker.track(broken(), {}))
  assert len(found) == 5


def test_frames_of_another_size_may_follow_when_nobody_is_left(masked, images, make_frame):
  tracker = MultiTracker(masked, max_objects=3)
  number = tracker.add(images[0], _BOXES[0])
  other = make_frame(0, 260, 330)
  with pytest.raises(ValueError, match="330 x 260 pixels follows frames of 320 x 240"):
    tracker.update(other)
  with pytest.raises(ValueError, match="330 x 260 pixels follows frames of 320 x 240"):
    tracker.add(other, _BOXES[0])
  tracker.remove(number)
  assert tracker.add(other, _BOXES[0]) == 1


def test_mistakes_are_named(masked, images):
  with pytest.raises(ValueError, match="max_objects 0 is too small; expected at least 1"):
    MultiTracker(masked, max_objects=0)
  tracker = MultiTracker(masked, max_objects=1)
  with pytest.raises(ValueError, match="lies outside the frame of 320 x 240"):
    tracker.add(images[0], (500, 1, 9, 9))
  assert tracker.objects == ()
  tracker.add(images[0], _BOXES[0])
  with pytest.raises(ValueError, match="there are 1 objects already, max_objects; remove one"):
    tracker.add(images[0], _BOXES[1])
  with pytest.raises(KeyError, match=r"object 4 is not followed; those that are: \[0\]"):
    tracker.remove(4)
  with pytest.raises(ValueError, match="frame has type float64"):
    tracker.update(images[0] / 255)
  with pytest.raises(ValueError, match="no frames"):
    list(tracker.track([], {}))
  with pytest.raises(ValueError, match=r"frame 2: .*lies outside"):
    list(MultiTracker(masked, max_objects=3).track(images, {0: [_BOXES[0]], 2: [(500, 1, 9, 9)]}))


@pytest.mark.parametrize("cut_on_device", [True, False])
def test_an_object_whose_box_is_no_number_is_named(masked, images, cut_on_device):
  bias = masked.variables["params"]["box_head"]["conv5_size"]["bias"]
  variables = jax.tree.map(lambda x: x * np.nan if x is bias else x, masked.variables)
  broken = dataclasses.replace(masked, variables=variables)
  tracker = MultiTracker(broken, max_objects=3, cut_on_device=cut_on_device)
  tracker.add(images[0], _BOXES[0])
  with pytest.raises(ValueError, match=r"object 0: the network found no box, but .*nan.*; are the"):
    tracker.update(images[1])
