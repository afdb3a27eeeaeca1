"""Many sequences in lanes are tracked as each is alone."""

import functools
import itertools

import cv2
import jax
import numpy as np
import pytest
from lane_runs import LENGTHS, SMALL, alone, track

from ostrack_jax import load
from ostrack_jax.models import fused_blocks
from ostrack_jax.tracking import agreement, frames, lane, lanes, sharing
from ostrack_jax.tracking.cutting import starting_boxes
from ostrack_jax.tracking.lane import LaneSequence


@pytest.mark.parametrize(
  ("batch_size", "groups", "order", "processes"),
  [(1, 1, 1, 0), (2, 2, -1, 0), (3, 2, 1, 0), (1, 1, 1, 1), (3, 2, -1, 2)],
)
def test_forced_lanes_give_the_trackers_boxes_in_any_batch_order_and_process(
  checkpoint, sequences, batch_size, groups, order, processes
):
  tracker = lanes.LaneTracker(
    checkpoint,
    batch_size=batch_size,
    groups=groups,
    threads=2,
    processes=processes,
    devices=jax.devices()[:1],
  )
  found = track(tracker, sequences[::order])
  assert sorted(found) == [f"s{number}" for number in range(len(LENGTHS))]
  for sequence in sequences:
    boxes, scores = alone(checkpoint, sequence)
    result = found[sequence.name]
    assert result.error is None
    np.testing.assert_allclose(result.boxes_xywh, boxes, atol=1e-3)
    np.testing.assert_allclose(result.scores, scores, atol=1e-5)
  stages = tracker.stages
  assert stages.frames == sum(LENGTHS) - len(LENGTHS)
  assert min(stages.read, stages.decode, stages.crop, stages.transfer, stages.network) > 0
  assert (stages.processes > 0) == (processes > 0)


def test_lanes_over_devices_and_with_template_masks_give_the_trackers_boxes(
  make_checkpoint, sequences, four_devices
):
  checkpoint = make_checkpoint(**SMALL, template_tokens="ground_truth_box")
  tracker = lanes.LaneTracker(checkpoint, batch_size=4, groups=1, threads=2, devices=four_devices)
  found = track(tracker, sequences)
  for sequence in sequences:
    boxes, _ = alone(checkpoint, sequence)
    np.testing.assert_allclose(found[sequence.name].boxes_xywh, boxes, atol=1e-3)
  with pytest.raises(ValueError, match="batch_size 6 is not divisible by 4 devices"):
    lanes.LaneTracker(checkpoint, batch_size=6, devices=four_devices)


def test_fused_blocks_are_made_for_each_devices_lanes(make_checkpoint, four_devices, monkeypatch):
  checkpoint = make_checkpoint(**{**SMALL, "width": 64})
  monkeypatch.setattr(fused_blocks, "suits", lambda batch, *_: batch == 8)
  kinds = {}
  for asked in (False, True):
    tracker = lanes.LaneTracker(
      checkpoint, batch_size=32, groups=1, processes=0, devices=four_devices, fuse_blocks=asked
    )
    kinds[asked] = "blocks" in tracker._weights.unpack()
  assert kinds == {False: False, True: True}


def test_fused_blocks_are_refused_where_there_are_none(checkpoint):
  with pytest.raises(ValueError, match=r"Hopper GPU.* this is float32, 8 lanes a device, cpu"):
    lanes.LaneTracker(checkpoint, batch_size=8, devices=jax.devices()[:1], fuse_blocks=True)


def free(sequence):
  return LaneSequence(
    name=sequence.name, frames=sequence.frames, init_box_xywh=sequence.init_box_xywh
  )


def test_free_lanes_follow_the_tracker_until_a_crop_parts_them(checkpoint, sequences):
  tracker = lanes.LaneTracker(checkpoint, batch_size=3, devices=jax.devices()[:1])
  found = track(tracker, [free(sequence) for sequence in sequences])
  for sequence in sequences:
    boxes, _ = alone(checkpoint, free(sequence))
    same = agreement.compare_runs(found[sequence.name].boxes_xywh, boxes, tracker.search_factor)
    assert same.largest_px < 0.5
    assert same.parted_at is None or same.parted_at > 1


def test_the_frame_where_runs_part_is_named():
  ours = np.tile([10.0, 10, 20, 20], (5, 1))
  ours[:, 0] += 7 * np.arange(5)
  theirs = ours.copy()
  theirs[1, 0] += 0.2
  theirs[2, 0] += 0.7
  theirs[3] += 40
  assert agreement.compare_runs(ours, theirs, 4.0) == agreement.Agreement(
    parted_at=3, largest_px=pytest.approx(0.7)
  )
  assert agreement.compare_runs(ours[:2], theirs[:2], 4.0).parted_at is None
  with pytest.raises(ValueError, match=r"\(5, 4\) and \(4, 4\)"):
    agreement.compare_runs(ours, theirs[:4], 4.0)


def test_nothing_compiles_after_the_first_batch(make_checkpoint, sequences):
  # A size that no other test compiles.
  checkpoint = make_checkpoint(**SMALL, search_size=48)
  tracker = lanes.LaneTracker(checkpoint, batch_size=3, devices=jax.devices()[:1])
  compiled, after_each = [], []

  def listen(event, duration, **_):
    if event.endswith("backend_compile_duration"):
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    track(tracker, sequences, progress=lambda count: after_each.append(len(compiled)))
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert after_each[0] >= 1
  assert after_each[-1] == after_each[0]
  assert len(after_each) >= 8


def test_finished_sequences_may_be_left_out_and_the_rest_stays_equal_to_the_bit(
  checkpoint, sequences
):
  tracker = lanes.LaneTracker(checkpoint, batch_size=2, devices=jax.devices()[:1])
  everything = [free(sequence) for sequence in sequences]
  plan = sharing.plan_lanes(everything, LENGTHS, tracker.lanes)
  whole = {result.sequence.name: result for result in tracker.track(plan)}
  rest = [[s for s in share if s.name in ("s0", "s1", "s4")] for share in plan]
  again = {result.sequence.name: result for result in tracker.track(rest)}
  assert sorted(again) == ["s0", "s1", "s4"]
  for name, result in again.items():
    np.testing.assert_array_equal(result.boxes_xywh, whole[name].boxes_xywh)
    np.testing.assert_array_equal(result.scores, whole[name].scores)


@pytest.mark.parametrize("processes", [0, 1])
def test_an_error_ends_its_sequence_alone_and_the_lane_goes_on(checkpoint, sequences, processes):
  tracker = lanes.LaneTracker(
    checkpoint, batch_size=1, groups=1, processes=processes, devices=jax.devices()[:1]
  )
  clean = track(tracker, sequences)
  sequences[2].frames[3].write_bytes(b"broken")
  cv2.imwrite(str(sequences[6].frames[2]), np.zeros((50, 60, 3), np.uint8))
  sequences[4].init_box_xywh[0] = 900
  found = track(tracker, sequences)
  assert str(found["s2"].error).endswith("3.png is not a readable image")
  assert "frame 2: frame of 60 x 50 pixels follows frames of 120 x 90" in str(found["s6"].error)
  assert "frame 0: box_xywh" in str(found["s4"].error)
  for name in ("s0", "s1", "s3", "s5"):
    assert found[name].error is None
    np.testing.assert_array_equal(found[name].boxes_xywh, clean[name].boxes_xywh)
  np.testing.assert_array_equal(found["s2"].boxes_xywh[:3], clean["s2"].boxes_xywh[:3])
  assert np.isnan(found["s2"].boxes_xywh[3:]).all()


def test_one_group_is_cut_while_the_other_is_on_the_device(checkpoint, sequences):
  order = []

  class Answer:
    def __init__(self, number, value):
      self.number, self.value = number, value

    def copy_to_host_async(self):
      order.append(f"ask {self.number}")

    def __array__(self, dtype=None, copy=None):
      order.append(f"take {self.number}")
      return self.value

  numbers = itertools.count()

  def locate(model, variables, template, search, *rest):
    number = next(numbers)
    return Answer(number, np.full((1, 5), 0.5, np.float32))

  tracker = lanes.LaneTracker(checkpoint, batch_size=1, devices=jax.devices()[:1], locate=locate)
  track(tracker, sequences)
  # Each batch is asked for before the one before it is waited for.
  assert order.index("ask 1") < order.index("take 0")
  assert order.index("ask 4") < order.index("take 3")


def test_boxes_that_no_track_could_start_from_repeat_the_one_before():
  nan = np.nan
  boxes = [[1, 2, 3, 4], [nan] * 4, [5, 6, 0, 8], [5, 6, 7, 8], [0, 0, 0.5, 3]]
  # Outside a frame of 40 x 30, and more than twice as wide.
  boxes += [[41, 5, 6, 7], [0, 0, 81, 5]]
  expected = [[1, 2, 3, 4]] * 3 + [[5, 6, 7, 8]] * 4
  np.testing.assert_array_equal(starting_boxes(boxes, (30, 40)), expected)


def test_images_decoded_ahead_come_in_order_and_errors_in_their_place(sequences):
  paths = sequences[2].frames
  for path, image in zip(paths, lane.decoded_ahead(paths, 3), strict=True):
    np.testing.assert_array_equal(image, frames.read_image(path))
  paths[4].write_bytes(b"broken")
  seen = []
  with pytest.raises(ValueError, match=r"4\.png is not a readable image"):
    seen.extend(image is not None for image in lane.decoded_ahead(paths, 3))


_REAL = {"Couple": 15, "Skiing": 20, "MotorRolling": 8, "Crossing": 12}


@functools.cache
def _real_sequences(root):
  found = [*(root / "OTB" / name for name in _REAL), root / "LaSOT" / "airplane" / "airplane-1"]
  videos = []
  for folder in found:
    text = next(folder.glob("groundtruth*.txt")).read_text().replace("\t", ",")
    boxes = np.array([row.split(",") for row in text.split()], float)
    paths = sorted((folder / "img").glob("*.jpg"))[: _REAL.get(folder.name, 10)]
    videos.append((folder.name, paths, boxes[: len(paths)]))
  return videos


@pytest.mark.parametrize("forced", [True, False])
def test_lanes_agree_with_the_tracker_on_real_sequences(reference_dir, forced):
  checkpoint = load("ostrack_tiny")
  videos = _real_sequences(reference_dir / "data" / "sequences")
  sequences = [
    LaneSequence(
      name=name,
      frames=paths,
      init_box_xywh=boxes[0],
      start_boxes_xywh=boxes if forced else None,
    )
    for name, paths, boxes in videos
  ]
  tracker = lanes.LaneTracker(checkpoint, batch_size=2, devices=jax.devices()[:1])
  found = track(tracker, sequences)
  for sequence in sequences:
    boxes, _ = alone(checkpoint, sequence)
    ours = found[sequence.name].boxes_xywh
    if forced:
      np.testing.assert_allclose(ours, boxes, atol=1e-3)
    else:
      same = agreement.compare_runs(ours, boxes, tracker.search_factor)
      assert same.largest_px < 0.5
      assert same.parted_at is None or same.parted_at > 5
