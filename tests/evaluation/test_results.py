import math

import numpy as np
import pytest

from ostrack_jax.evaluation import results


def test_results_survive_a_round_trip(tmp_path):
  boxes = np.array([[1.5, 2.25, 3.0, 4.0], [-1.0625, 0.1, 10.0, 20.0]])
  written = results.RecordedResult(boxes, np.array([0.5, 0.0125]))
  results.write_result(tmp_path / "new", "a", written)
  read = results.read_result(tmp_path / "new", "a")
  np.testing.assert_allclose(read.boxes_xywh, boxes, atol=5e-5)
  assert read.seconds is not None
  np.testing.assert_allclose(read.seconds, [0.5, 0.0125])
  assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.txt", "a_time.txt"]
  assert (tmp_path / "new" / "a.txt").read_text().startswith("1.5000,2.2500,3.0000,4.0000\n")


@pytest.mark.parametrize("text", ["1\t2\t3\t4\n", "1 2 3 4\n", "1,2,3,4"])
def test_any_separator_is_read(tmp_path, text):
  (tmp_path / "a.txt").write_text(text)
  read = results.read_result(tmp_path, "a")
  np.testing.assert_array_equal(read.boxes_xywh, [[1, 2, 3, 4]])
  assert read.seconds is None


def test_other_columns_than_four_are_refused(tmp_path):
  (tmp_path / "a.txt").write_text("1,2,3,4,5,6\n")
  with pytest.raises(ValueError, match=r"a\.txt has 6 columns"):
    results.read_result(tmp_path, "a")


def test_names_leave_out_times(tmp_path):
  for name in ("b.txt", "a.1.txt", "b_time.txt", "summary.json"):
    (tmp_path / name).write_text("1")
  assert results.names_in(tmp_path) == ["a.1", "b"]
  with pytest.raises(FileNotFoundError, match="not a folder"):
    results.names_in(tmp_path / "none")
  (tmp_path / "empty").mkdir()
  with pytest.raises(FileNotFoundError, match="holds no"):
    results.names_in(tmp_path / "empty")


def test_frames_per_second_leave_out_the_start():
  result = results.RecordedResult(np.ones((3, 4)), np.array([9.0, 0.1, 0.3]))
  assert result.frames_per_second() == pytest.approx(5.0)
  assert math.isnan(results.RecordedResult(np.ones((3, 4))).frames_per_second())
  assert math.isnan(results.RecordedResult(np.ones((1, 4)), np.ones(1)).frames_per_second())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
  results.write_text(tmp_path / "a.txt", "old")
  monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
  with pytest.raises(OSError, match="full"):
    results.write_text(tmp_path / "a.txt", "new")
  assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
  assert (tmp_path / "a.txt").read_text() == "old"
