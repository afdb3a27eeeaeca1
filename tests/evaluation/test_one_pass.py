import types

import numpy as np
import pytest

from ostrack_jax.evaluation import one_pass, results, run_folder, videos


def video(name, count):
  boxes = np.tile([1.0, 2, 3, 4], (count, 1))
  return videos.Video(name=name, frames=(), boxes_xywh=boxes)


def outcome(count, boxes_xywh=None):
  boxes = np.tile([1.0, 2, 3, 4], (count, 1)) if boxes_xywh is None else boxes_xywh
  return types.SimpleNamespace(boxes_xywh=boxes, scores=np.ones(count), seconds=np.ones(count))


@pytest.fixture
def folder(tmp_path):
  return run_folder.RunFolder(tmp_path / "out", {"checkpoint": "abc"})


def with_frames(one):
  return types.SimpleNamespace(name=one.name, frames=[None] * len(one.boxes_xywh))


def test_a_failing_sequence_does_not_stop_the_others(folder):
  taken = [with_frames(video(name, 3)) for name in "abcdef"]
  answers = {
    "b": OSError("2.png is not a readable image"),
    "c": KeyError("oops"),
    "d": outcome(2),
    "e": outcome(3, np.array([[1.0, 2, 3, 4], [np.nan, 2, 3, 4], [1, 2, 3, 4]])),
  }

  def track(one, progress):
    progress()
    answer = answers.get(one.name, outcome(3))
    if isinstance(answer, Exception):
      raise answer
    return answer

  steps = []
  failed = one_pass.record(one_pass.one_by_one(track, taken, steps.append), folder)
  assert failed == {
    "b": "2.png is not a readable image",
    "c": "KeyError: 'oops'",
    "d": "tracker gave boxes of shape (2, 4); expected (3, 4)",
    "e": "tracker gave [nan, 2.0, 3.0, 4.0] for frame 1; are the checkpoint's weights finite? In float16 numbers "
    "beyond 65504 are not: --dtype=bfloat16 and float32 hold them",
  }
  assert steps == [1] * 6
  assert results.names_in(folder.results) == ["a", "f"]
  assert sorted(path.stem for path in folder.scores.iterdir()) == ["a", "f"]
  assert folder.is_finished(taken[0]) and not folder.is_finished(taken[1])
