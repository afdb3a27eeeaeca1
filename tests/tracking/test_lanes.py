import functools
import itertools
import subprocess
import threading

import cv2
import jax
import numpy as np
import pytest

from ostrack_jax import load
from ostrack_jax.tracking import agreement, engine, frames, lane, lanes
from ostrack_jax.tracking.cutting import starting_boxes
from ostrack_jax.tracking.lane import LaneSequence
from ostrack_jax.tracking.lane_process import RemoteHost
from ostrack_jax.tracking.tracker import Tracker

_LENGTHS = (5, 2, 7, 1, 4, 3, 6)
# Compiling is most of the time here.
_SMALL = {"width": 16, "depth": 1, "num_heads": 1, "head_channels": 8, "elimination_layers": (0,)}


@pytest.fixture
def checkpoint(make_checkpoint):
  return make_checkpoint(**_SMALL)


@pytest.fixture
def write_sequence(tmp_path, make_frame):
  """A function from a number and a length to a sequence of frames on disk, of a size of its own."""

  def write(number, length, **changes):
    folder = tmp_path / f"s{number}"
    folder.mkdir()
    height, width = 90 + 10 * (number % 3), 120 + 10 * (number % 2)
    suffix = ("png", "jpg")[number % 2]
    paths = [folder / f"{index}.{suffix}" for index in range(length)]
    for index, path in enumerate(paths):
      cv2.imwrite(str(path), make_frame(100 * number + index, height, width)[..., ::-1])
    rng = np.random.default_rng(number)
    boxes = np.c_[rng.uniform(20, 60, (length, 2)), rng.uniform(12, 30, (length, 2))]
    values = {"init_box_xywh": boxes[0], "start_boxes_xywh": boxes, **changes}
    return LaneSequence(name=f"s{number}", frames=paths, **values)

  return write


@pytest.fixture
def sequences(write_sequence):
  return [write_sequence(number, length) for number, length in enumerate(_LENGTHS)]


def track(tracker, sequences, **options):
  plan = lanes.plan_lanes(sequences, [len(s.frames) for s in sequences], tracker.lanes)
  return {result.sequence.name: result for result in tracker.track(plan, **options)}


def alone(checkpoint, sequence):
  """Track with Tracker; start every frame from the given boxes if there are some."""
  tracker = Tracker(checkpoint)
  if sequence.start_boxes_xywh is not None:
    tracker = engine.TeacherForced(tracker, sequence.start_boxes_xywh)
  images = (frames.read_image(path) for path in sequence.frames)
  found = engine.track_sequence(tracker, images, sequence.init_box_xywh)
  return found.boxes_xywh, found.scores


def test_the_longest_comes_first_and_goes_where_it_is_free_next():
  assert lanes.share_out([3, 9, 4, 4, 2], 2) == [[1, 4], [2, 3, 0]]
  assert lanes.share_out([5, 5], 3) == [[0], [1], []]
  with pytest.raises(ValueError, match="over 0 parts"):
    lanes.share_out([1], 0)


@pytest.mark.parametrize("parts", [1, 3, 8])
def test_shares_cover_all_and_none_waits_longer_than_one_sequence(parts):
  lengths = np.random.default_rng(0).integers(1, 3000, 100).tolist()
  shares = lanes.share_out(lengths, parts)
  assert sorted(itertools.chain(*shares)) == list(range(100))
  loads = [sum(lengths[number] for number in share) for share in shares]
  last = max(lengths[share[-1]] for share in shares)
  assert max(loads) - min(loads) <= last
  assert all(lengths[a] >= lengths[b] for share in shares for a, b in itertools.pairwise(share))


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
  assert sorted(found) == [f"s{number}" for number in range(len(_LENGTHS))]
  for sequence in sequences:
    boxes, scores = alone(checkpoint, sequence)
    result = found[sequence.name]
    assert result.error is None
    np.testing.assert_allclose(result.boxes_xywh, boxes, atol=1e-3)
    np.testing.assert_allclose(result.scores, scores, atol=1e-5)
  stages = tracker.stages
  assert stages.frames == sum(_LENGTHS) - len(_LENGTHS)
  assert min(stages.read, stages.decode, stages.crop, stages.transfer, stages.network) > 0
  assert (stages.processes > 0) == (processes > 0)


def test_lanes_over_devices_and_with_template_masks_give_the_trackers_boxes(
  make_checkpoint, sequences
):
  checkpoint = make_checkpoint(**_SMALL, template_tokens="ground_truth_box")
  tracker = lanes.LaneTracker(checkpoint, batch_size=4, groups=1, threads=2)
  assert len(jax.devices()) == 4
  found = track(tracker, sequences)
  for sequence in sequences:
    boxes, _ = alone(checkpoint, sequence)
    np.testing.assert_allclose(found[sequence.name].boxes_xywh, boxes, atol=1e-3)
  with pytest.raises(ValueError, match="batch_size 6 is not divisible by 4 devices"):
    lanes.LaneTracker(checkpoint, batch_size=6)


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
  checkpoint = make_checkpoint(**_SMALL, search_size=48)
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
  plan = lanes.plan_lanes(everything, _LENGTHS, tracker.lanes)
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


@pytest.mark.parametrize("processes", [0, 2])
def test_a_run_that_is_left_early_ends_its_threads_and_processes(
  checkpoint, sequences, processes, monkeypatch
):
  started = _watch_processes(monkeypatch)
  tracker = lanes.LaneTracker(
    checkpoint, batch_size=2, groups=1, processes=processes, devices=jax.devices()[:1]
  )
  plan = lanes.plan_lanes(sequences, _LENGTHS, 2)
  run = tracker.track(plan)
  next(run)
  run.close()
  assert not [t for t in threading.enumerate() if t.name.startswith(("decode", "cut"))]
  assert [process.returncode for process in started] == [0] * processes
  with pytest.raises(ValueError, match="3 lanes are planned; 1 x 2 fit"):
    next(tracker.track([[], [], []]))


def _watch_processes(monkeypatch):
  """Return the list that holds the processes that will be started."""
  started, popen = [], subprocess.Popen

  def start(*arguments, **options):
    started.append(popen(*arguments, **options))
    return started[-1]

  monkeypatch.setattr(subprocess, "Popen", start)
  return started


def test_processes_are_used_again_and_end_with_the_tracker(checkpoint, sequences, monkeypatch):
  started = _watch_processes(monkeypatch)
  tracker = lanes.LaneTracker(
    checkpoint, batch_size=2, groups=1, processes=3, devices=jax.devices()[:1]
  )
  first, second = (track(tracker, sequences[:count]) for count in (4, 1))
  assert len(first) == 4
  np.testing.assert_array_equal(second["s0"].boxes_xywh, first["s0"].boxes_xywh)
  # As many as lanes.
  assert [process.poll() for process in started] == [None, None]
  del tracker
  assert [process.returncode for process in started] == [0, 0]


def test_a_process_that_dies_stops_the_run_with_its_signal(checkpoint, sequences, monkeypatch):
  started = _watch_processes(monkeypatch)
  tracker = lanes.LaneTracker(
    checkpoint, batch_size=2, groups=1, processes=2, devices=jax.devices()[:1]
  )
  run = tracker.track(lanes.plan_lanes(sequences, _LENGTHS, 2))
  next(run)
  started[0].kill()
  with pytest.raises(ChildProcessError, match=r"ended by signal 9; if memory was short"):
    list(run)
  assert [process.poll() is None for process in started] == [False, False]
  # Another run starts others.
  (again,) = tracker.track([[sequences[0]]])
  np.testing.assert_allclose(again.boxes_xywh, alone(checkpoint, sequences[0])[0], atol=1e-3)
  assert len(started) == 4


def test_an_error_of_a_process_is_told_as_it_is(checkpoint, sequences):
  tracker = lanes.LaneTracker(
    checkpoint, batch_size=1, groups=1, processes=1, devices=jax.devices()[:1]
  )
  broken = LaneSequence(name="x", frames=sequences[0].frames, init_box_xywh=np.zeros(4))
  object.__setattr__(broken, "frames", [1, 2])
  (result,) = tracker.track([[broken]])
  assert isinstance(result.error, AttributeError)
  (host,) = tracker._remote
  with pytest.raises(ChildProcessError, match=r"failed:(.|\n)*IndexError"):
    host.begin(7, None)
    host.finish()


@pytest.mark.parametrize("processes", [0, 1])
def test_one_run_at_a_time(checkpoint, sequences, processes):
  tracker = lanes.LaneTracker(
    checkpoint, batch_size=1, groups=1, processes=processes, devices=jax.devices()[:1]
  )
  run = tracker.track([sequences[:2]])
  next(run)
  with pytest.raises(RuntimeError, match="tracks already; let that run end, or close it"):
    next(tracker.track([sequences[:1]]))
  run.close()
  assert len(list(tracker.track([sequences[:2]]))) == 2
  assert len(list(tracker.track([sequences[:2]]))) == 2


def test_few_lanes_have_a_process_each(checkpoint, sequences, monkeypatch):
  plans = []
  start = RemoteHost.start

  def note(host, plan, *rest):
    plans.append(sorted(plan))
    return start(host, plan, *rest)

  monkeypatch.setattr(RemoteHost, "start", note)
  tracker = lanes.LaneTracker(
    checkpoint, batch_size=3, groups=2, threads=4, processes=4, devices=jax.devices()[:1]
  )
  track(tracker, sequences[:4])
  assert [len(plan) for plan in plans] == [1, 1, 1, 1]
  plans.clear()
  track(tracker, sequences[:6])
  # (group, row): after three rows of the first group, the fourth process begins the second.
  assert plans == [[(0, 0), (1, 1)], [(0, 1), (1, 2)], [(0, 2)], [(1, 0)]]


def test_many_threads_are_spread_over_processes(checkpoint):
  def processes(**options):
    return lanes.LaneTracker(
      checkpoint, batch_size=1, devices=jax.devices()[:1], **options
    ).processes

  assert [processes(threads=count) for count in (1, 7, 8, 16)] == [0, 0, 4, 8]
  assert processes(threads=16, processes=0) == 0
  with pytest.raises(ValueError, match="processes -1 is too small; expected at least 0"):
    processes(processes=-1)


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
    return Answer(number, np.full((1, 4), 0.5, np.float32)), Answer(number, np.zeros(1, np.float32))

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
