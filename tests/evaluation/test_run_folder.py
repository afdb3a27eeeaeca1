import json
import types

import numpy as np
import pytest

from ostrack_jax.evaluation import packing, results, run_folder, videos

_DESCRIPTION = {"model": {"variant": "b"}, "tracker": {"search_factor": 4.0}, "source": "x"}


def variables(value=1.0):
  return {
    "params": {"b": {"kernel": np.full((2, 3), value)}, "a": np.arange(3.0)},
    "batch_stats": {"mean": np.zeros(3)},
  }


def digest(value=1.0, **changes):
  return run_folder.checkpoint_digest(variables(value), {**_DESCRIPTION, **changes})


def test_the_digest_depends_on_what_a_checkpoint_does():
  one = digest()
  assert one == digest(source="elsewhere")
  assert one == run_folder.checkpoint_digest(
    dict(reversed(variables().items())) | {"unused": 1}, _DESCRIPTION
  )
  others = [digest(1.0 + 1e-15), digest(tracker={"search_factor": 5.0}), digest(model={})]
  assert len({one, *others}) == 4


def test_the_sequences_digest_sees_order_length_and_boxes():
  def video(name, first=1.0, count=2, last=1.0):
    boxes = np.full((count, 4), first)
    boxes[-1] = last
    return videos.Video(name=name, frames=(None,) * count, boxes_xywh=boxes)

  lists = [
    [video("a"), video("b")],
    [video("b"), video("a")],
    [video("a"), video("b", 2.0)],
    [video("a"), video("b", count=3)],
    [video("a"), video("b", last=np.nan)],
  ]
  digests = [run_folder.sequences_digest(one) for one in lists]
  assert len(set(digests)) == len(lists)
  assert all(one.startswith("2 sequences, ") for one in digests)


def tracked(name="a", frames=3, seconds=0.6):
  return run_folder.TrackedSequence(
    video=types.SimpleNamespace(name=name, frames=[None] * frames),
    boxes_xywh=np.ones((frames, 4)),
    scores=np.ones(frames),
    seconds=seconds,
  )


def test_seconds_are_read_back_from_above_the_results(tmp_path):
  folder = run_folder.RunFolder(tmp_path, {}, result_folder="got10k")
  folder.write(tracked("sum", seconds=0.6))
  folder.write(tracked("each", seconds=np.array([5.0, 0.25, 0.75])))
  assert folder.results == tmp_path / "results" / "got10k"
  # A sum that other sequences share says nothing of the tracker's speed.
  assert results.read_result(folder.results, "sum").seconds is None
  each = results.read_result(folder.results, "each")
  np.testing.assert_array_equal(each.seconds, [5, 0.25, 0.75])
  assert each.frames_per_second() == 2.0
  timing = json.loads((tmp_path / "timing.json").read_text())["per_sequence"]
  assert timing["each"]["fps"] == 2.0
  assert timing["sum"] == {"tracked_frames": 2, "tracked_seconds": 0.6}
  assert packing.SERVERS["got10k_test"].needs_seconds


def test_a_run_that_goes_on_keeps_earlier_times(tmp_path):
  first = run_folder.RunFolder(tmp_path, {"checkpoint": "x"})
  first.write(tracked("a"))
  first.write_timing({"last_run": 1})
  second = run_folder.RunFolder(tmp_path, {"checkpoint": "x"})
  second.write(tracked("b"))
  second.write_timing({"last_run": 2})
  timing = json.loads((tmp_path / "timing.json").read_text())
  assert set(timing["per_sequence"]) == {"a", "b"}
  assert timing["last_run"] == 2


def test_several_processes_share_a_folder(tmp_path):
  folders = [run_folder.RunFolder(tmp_path, {}, process=n, processes=2) for n in range(2)]
  for number, folder in enumerate(folders):
    folder.write(tracked(f"s{number}"))
  assert sorted(path.name for path in tmp_path.glob("*.json")) == [
    "run.json",
    "timing.0.json",
    "timing.1.json",
  ]
  assert results.names_in(folders[0].results) == ["s0", "s1"]
  run_folder.merge_timing(tmp_path, 2)
  assert sorted(path.name for path in tmp_path.glob("*.json")) == ["run.json", "timing.json"]
  again = run_folder.RunFolder(tmp_path, {}, process=1, processes=2)
  again.write(tracked("s2"))
  run_folder.merge_timing(tmp_path, 2)
  assert set(results.read_timing(tmp_path / "timing.json")["per_sequence"]) == {"s0", "s1", "s2"}


@pytest.mark.parametrize("text", ["{", "[]", '{"settings": 3}'])
def test_a_damaged_record_is_refused(tmp_path, text):
  (tmp_path / "run.json").write_text(text)
  with pytest.raises(ValueError, match=r"run\.json is damaged"):
    run_folder.RunFolder(tmp_path, {})


def test_every_differing_setting_is_named(tmp_path):
  run_folder.RunFolder(tmp_path, {"a": 1, "b": 2, "c": 3})
  with pytest.raises(FileExistsError) as error:
    run_folder.RunFolder(tmp_path, {"a": 1, "b": 4, "d": 5})
  assert "b (2 there, 4 now), c (3 there, None now), d (None there, 5 now)" in str(error.value)
