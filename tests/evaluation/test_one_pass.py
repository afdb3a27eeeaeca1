import types

import cv2
import numpy as np

from ostrack_jax.evaluation import benchmarks, one_pass, results


def write_images(folder, count, size=(8, 6)):
  folder.mkdir(parents=True, exist_ok=True)
  paths = []
  for number in range(count):
    paths.append(folder / f"{number}.png")
    cv2.imwrite(str(paths[-1]), np.full((size[1], size[0], 3), (number, 0, 200), np.uint8))
  return tuple(paths)


def video(folder, name, count, size=(8, 6)):
  boxes = np.tile([1.0, 2, 3, 4], (count, 1))
  return benchmarks.Video(
    name=name, frames=write_images(folder / name, count, size), boxes_xywh=boxes
  )


def still(frames, box):
  count = sum(1 for _ in frames)
  return types.SimpleNamespace(boxes_xywh=np.tile(box, (count, 1)), seconds=np.full(count, 0.5))


def test_frames_reach_the_tracker_in_order_as_rgb(tmp_path):
  got = []

  def track(frames, box):
    got.extend(frames)
    return still(got, box)

  one_pass.run(track, [video(tmp_path, "a", 12)], tmp_path / "out")
  assert [frame[0, 0].tolist() for frame in got] == [[200, 0, number] for number in range(12)]
  assert got[0].shape == (6, 8, 3)


def test_results_sizes_and_progress_of_each_sequence(tmp_path):
  videos = [video(tmp_path, "a", 3), video(tmp_path, "b", 2, size=(20, 10))]
  seen = []
  outcome = one_pass.run(still, videos, tmp_path / "out", seen.append)
  assert seen == ["a"] * 3 + ["b"] * 2
  assert outcome.image_sizes == {"a": (8, 6), "b": (20, 10)}
  assert outcome.failed == {}
  assert outcome.results["a"].boxes_xywh.tolist() == [[1, 2, 3, 4]] * 3
  read = results.read_result(tmp_path / "out", "b")
  assert read.boxes_xywh.tolist() == [[1, 2, 3, 4]] * 2
  assert read.seconds.tolist() == [0.5, 0.5]


def test_a_failing_sequence_does_not_stop_the_others(tmp_path):
  videos = [video(tmp_path, name, 3) for name in "abcdef"]
  videos[1].frames[2].write_bytes(b"broken")

  def track(frames, box):
    result = still(frames, box)
    track.calls += 1
    match track.calls:
      case 2:
        raise KeyError("oops")
      case 3:
        result.boxes_xywh = result.boxes_xywh[1:]
      case 4:
        result.boxes_xywh[1, 0] = np.nan
    return result

  track.calls = 0
  outcome = one_pass.run(track, videos, tmp_path / "out")
  assert sorted(outcome.results) == ["a", "f"]
  assert outcome.failed["b"].endswith("2.png is not a readable image")
  assert outcome.failed["c"] == "KeyError: 'oops'"
  assert outcome.failed["d"] == "tracker gave boxes of shape (2, 4); expected (3, 4)"
  assert outcome.failed["e"] == "tracker gave [nan, 2.0, 3.0, 4.0] for frame 1"
  assert results.names_in(tmp_path / "out") == ["a", "f"]


def test_warm_up_tracks_two_frames_and_forgives(tmp_path):
  lengths = []

  def track(frames, box):
    lengths.append(len(list(frames)))
    raise RuntimeError("not ready")

  one_pass.warm_up(track, [video(tmp_path, "a", 3)])
  assert lengths == [2]
