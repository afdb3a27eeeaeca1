"""Boxes that stay on the device are those of one frame after another."""

import dataclasses

import jax
import numpy as np
import pytest
from lane_runs import compilations

from ostrack_jax import load
from ostrack_jax.tracking import agreement, device_crop, frames
from ostrack_jax.tracking.tracker import Tracker

_BOX = (60, 40, 30, 24)


@pytest.fixture
def images(make_frame):
  return [make_frame(number) for number in range(7)]


def _updates(checkpoint, images):
  tracker = Tracker(checkpoint)
  tracker.init(images[0], _BOX)
  return [tracker.update(image) for image in images[1:]], tracker


@pytest.mark.parametrize("ahead", [1, 3, 20])
@pytest.mark.parametrize("template_tokens", ["centre_point", "ground_truth_box"])
def test_a_video_is_followed_as_frame_by_frame(make_checkpoint, images, ahead, template_tokens):
  checkpoint = make_checkpoint(template_tokens=template_tokens)
  want, one_by_one = _updates(checkpoint, images)
  tracker = Tracker(checkpoint)
  tracker.init(images[0], _BOX)
  got = list(tracker.follow(iter(images[1:]), ahead=ahead))
  assert len(got) == len(want)
  for ours, theirs in zip(got, want, strict=True):
    np.testing.assert_allclose(ours.box_xywh, theirs.box_xywh, atol=1e-3)
    assert ours.score == pytest.approx(theirs.score, abs=1e-5)
    assert ours.box_xywh.dtype == np.float64
  # Either goes on where the other stopped.
  np.testing.assert_allclose(tracker.box_xywh, one_by_one.box_xywh, atol=1e-3)
  np.testing.assert_allclose(
    tracker.update(images[0]).box_xywh, one_by_one.update(images[0]).box_xywh, atol=2e-3
  )


def test_a_box_comes_so_many_frames_after_its_frame_was_asked_for(make_checkpoint, images):
  tracker = Tracker(make_checkpoint())
  tracker.init(images[0], _BOX)
  asked = []
  found = tracker.follow((asked.append(n) or image for n, image in enumerate(images)), ahead=2)
  counts = []
  for _ in found:
    counts.append(len(asked))
  assert counts == [3, 4, 5, 6, 7, 7, 7]


def test_frames_are_sent_before_others_are_searched(make_checkpoint, images, monkeypatch):
  tracker = Tracker(make_checkpoint())
  tracker.init(images[0], _BOX)
  asked, asked_when_searched = [], []
  crop_squares = device_crop.crop_squares

  def search(*arguments):
    asked_when_searched.append(len(asked))
    return crop_squares(*arguments)

  monkeypatch.setattr(device_crop, "crop_squares", search)
  list(tracker.follow((asked.append(n) or image for n, image in enumerate(images)), ahead=4))
  assert asked_when_searched == [3, 4, 5, 6, 7, 7, 7]


def test_an_error_comes_after_the_boxes_before_it(make_checkpoint, images, make_frame):
  tracker = Tracker(make_checkpoint())
  with pytest.raises(RuntimeError, match="init"):
    next(tracker.follow(images))
  tracker.init(images[0], _BOX)
  with pytest.raises(ValueError, match="ahead 0 is too small; expected at least 1"):
    next(tracker.follow(images, ahead=0))
  found = []
  height, width = images[0].shape[:2]
  with pytest.raises(ValueError, match=f"follows frames of {width} x {height}"):
    found.extend(tracker.follow([*images[1:4], make_frame(0, height + 8, width)]))
  assert len(found) == 3
  np.testing.assert_array_equal(tracker.box_xywh, found[-1].box_xywh)
  found.clear()

  def broken():
    yield images[1]
    raise OSError("the camera is gone")

  with pytest.raises(OSError, match="the camera is gone"):
    found.extend(tracker.follow(broken()))
  assert len(found) == 1
  assert list(tracker.follow([])) == []


def test_a_track_that_was_changed_meanwhile_is_followed_no_further(make_checkpoint, images):
  tracker = Tracker(make_checkpoint())
  tracker.init(images[0], _BOX)
  found = tracker.follow(images[1:])
  next(found)
  tracker.init(images[1], (20, 20, 30, 30))
  with pytest.raises(RuntimeError, match="changed while it was followed"):
    next(found)
  np.testing.assert_array_equal(tracker.box_xywh, (20, 20, 30, 30))


@pytest.mark.parametrize(("branch", "number"), [("size", np.nan), ("offset", np.inf)])
def test_a_box_that_is_no_number_ends_the_track_as_update_does(
  make_checkpoint, images, branch, number
):
  checkpoint = make_checkpoint()
  bias = checkpoint.variables["params"]["box_head"][f"conv5_{branch}"]["bias"]
  variables = jax.tree.map(lambda x: x + number if x is bias else x, checkpoint.variables)
  tracker = Tracker(dataclasses.replace(checkpoint, variables=variables))
  tracker.init(images[0], _BOX)
  with pytest.raises(ValueError, match=r"the network found no box, but .*(nan|inf)"):
    next(tracker.follow(images[1:]))
  with pytest.raises(ValueError, match=r"the network found no box, but .*(nan|inf)"):
    tracker.update(images[1])


def test_boxes_are_kept_in_a_frame_that_is_not_square(make_checkpoint, make_frame):
  checkpoint = make_checkpoint()
  images = [make_frame(number, 100, 200) for number in range(4)]
  runs = []
  for follows in (True, False):
    tracker = Tracker(checkpoint)
    tracker.init(images[0], (165, 40, 30, 24))
    results = tracker.follow(images[1:]) if follows else map(tracker.update, images[1:])
    runs.append([result.box_xywh for result in results])
  np.testing.assert_allclose(*runs, atol=1e-3)
  assert runs[0][0][0] > 100  # Where a frame of 100 pixels would have ended.


def test_nothing_compiles_behind_the_first_frame(make_checkpoint, images):
  tracker = Tracker(make_checkpoint(search_size=80))
  tracker.init(images[0], _BOX)
  with compilations() as compiled:
    list(tracker.follow(images[1:2]))
    first = len(compiled)
    list(tracker.follow(images[1:]))
  assert 0 < first == len(compiled)


def test_real_video_is_followed_until_a_crop_parts_them(reference_dir):
  folder = reference_dir / "data" / "sequences" / "OTB" / "Crossing"
  paths = sorted((folder / "img").glob("*.jpg"))[:40]
  images = [frames.read_image(path) for path in paths]
  truth = np.array((folder / "groundtruth_rect.txt").read_text().replace(",", " ").split(), float)
  box = truth.reshape(-1, 4)[0]
  checkpoint = load("ostrack_tiny")
  runs = []
  for follows in (True, False):
    tracker = Tracker(checkpoint)
    tracker.init(images[0], box)
    results = tracker.follow(images[1:]) if follows else map(tracker.update, images[1:])
    runs.append(np.stack([box, *(result.box_xywh for result in results)]))
  same = agreement.compare_runs(*runs, tracker.search_factor)
  assert same.largest_px < 0.01
  assert same.parted_at is None or same.parted_at > 5
