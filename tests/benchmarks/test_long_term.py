"""The command benchmarks.long_term: what it counts, of runs made by hand, and what it shows trackers."""

import json

import cv2
import numpy as np
import pytest

from benchmarks import long_term


def _run(frames, lost=(), visible=None):
  """A run whose boxes lie at the numbers that overlaps are later given for."""
  is_lost = np.isin(np.arange(frames), list(lost))
  seen = ~is_lost if visible is None else np.isin(np.arange(frames), list(visible))
  return long_term.Run(np.zeros((frames, 4)), seen, is_lost, np.full(frames, 0.01))


def _overlaps(frames, right):
  return np.where(np.isin(np.arange(frames), list(right)), 0.8, 0.1)


def test_found_again_is_the_first_right_frame_that_is_not_frozen():
  # Gone in frames 20 to 39; frozen from 25, which overlaps by chance from 42 on; found in 45.
  run = _run(120, lost=range(25, 45))
  told = long_term.measure_absence(run, _overlaps(120, [*range(20), *range(42, 120)]), 20, 40)
  assert told["held_before"] and told["found_after"] == 5 and told["found_at_end"]
  assert told["false_finds"] == 0
  assert told["lost_while_gone"] == pytest.approx(15 / 20)
  assert told["seen_while_gone"] == pytest.approx(5 / 20)
  assert told["mean_iou_behind"] == pytest.approx((2 * 0.1 + 78 * 0.8) / 80)


def test_after_sixty_frames_it_is_too_late():
  run = _run(120)
  assert long_term.measure_absence(run, _overlaps(120, [100]), 20, 40)["found_after"] is None
  told = long_term.measure_absence(run, _overlaps(120, [99]), 20, 40)
  assert told["found_after"] == 59 and told["found_at_end"] and not told["held_before"]


def test_a_find_while_it_is_gone_is_false():
  # Lost in 25 to 29, found in 30, lost anew, and found in 40, when it is back.
  run = _run(120, lost=[*range(25, 30), *range(35, 40)])
  assert long_term.measure_absence(run, _overlaps(120, []), 20, 40)["false_finds"] == 1
  # Where doubt ends and the target does not count as visible, nothing was said to be found.
  run.visible[30:40] = False
  assert long_term.measure_absence(run, _overlaps(120, []), 20, 40)["false_finds"] == 0


def test_absences_leave_room_before_and_behind():
  rng = np.random.default_rng(0)
  spans = np.array([long_term.choose_absence(75, rng) for _ in range(500)])
  lengths = spans[:, 1] - spans[:, 0]
  assert (lengths.min(), lengths.max()) == (20, 45)
  assert (spans[:, 0].min(), spans[:, 1].max()) == (10, 55)
  longer = np.array([long_term.choose_absence(500, rng) for _ in range(500)])
  assert (longer[:, 1] - longer[:, 0]).max() == 60
  assert long_term.choose_absence(49, rng) is None


def test_shares_are_of_all_absences_and_waits_of_those_that_ended():
  run = _run(120)
  found = long_term.measure_absence(run, _overlaps(120, range(50, 120)), 20, 40)
  never = long_term.measure_absence(run, _overlaps(120, []), 20, 40)
  told = long_term.summary([found, never])
  assert (told["absences"], told["found_again"], told["frames_until"]) == (2, 0.5, 10)
  assert long_term.summary([])["found_again"] is None


def _moving(length=60):
  """A bright square that moves right over a dark ground, and its boxes."""
  frames, boxes = [], []
  for step in range(length):
    frame = np.full((120, 200, 3), 40, np.uint8)
    frame[50:70, 5 + 3 * step : 25 + 3 * step] = 230
    frames.append(frame)
    boxes.append([5 + 3 * step, 50, 20, 20])
  return frames, np.array(boxes, float)


@pytest.mark.parametrize("is_blank", [False, True])
def test_the_target_is_gone_in_those_frames_alone(is_blank):
  frames, boxes = _moving()
  visible = np.arange(60) != 15
  held = long_term.Held("s", frames, boxes, visible)
  shown = held.without_target(10, 20, is_blank, np.random.default_rng(0))
  for number, (ours, theirs) in enumerate(zip(shown, frames, strict=True)):
    if not 10 <= number < 20 or (number == 15 and not is_blank):
      assert ours is theirs
    else:
      assert ours.max() == (0 if is_blank else 40) and theirs.max() == 230


def test_without_a_calibrator_the_command_says_how_to_get_one(tmp_path):
  folder = tmp_path / "root" / "square"
  folder.mkdir(parents=True)
  frames, boxes = _moving(3)
  for number, frame in enumerate(frames):
    cv2.imwrite(str(folder / f"{number}.png"), frame)
  (folder / "groundtruth.txt").write_text("\n".join(",".join(map(str, box)) for box in boxes))
  long_term.FLAGS(["x", "--checkpoint=ostrack_tiny", f"--root={tmp_path / 'root'}"])
  with pytest.raises(SystemExit, match=r"^benchmarks\.long_term: .*python -m ostrack_jax\.calib"):
    long_term.main([])


def test_the_report_is_json_and_has_both_modes(tmp_path, capsys):
  boxes = _moving()[1]
  held = long_term.Held("s", [], boxes, np.ones(60, bool))
  right = long_term.Run(boxes, np.ones(60, bool), np.zeros(60, bool), np.full(60, 0.01))
  wrong = long_term.Run(boxes + 300, np.zeros(60, bool), np.arange(60) > 9, np.full(60, 0.02))
  runs = {"plain": right, "long_term": wrong}
  overlaps = {mode: held.overlaps(run) for mode, run in runs.items()}
  measures = {mode: long_term.measure_absence(runs[mode], overlaps[mode], 10, 35) for mode in runs}
  absence = {
    "sequence": "s", "turn": 0, "span": (10, 35), "runs": runs, "overlaps": overlaps, "measures": measures,
  }  # fmt: skip
  found = {"s": {"untouched": runs, "absences": [absence]}}
  content = json.loads(json.dumps(long_term.content_of(found, {"s": boxes})))
  assert content["plain"]["all"]["found_again"] == 1
  assert content["long_term"]["all"]["found_again"] == 0
  assert content["plain"]["untouched_success_auc"] > 0.9
  assert not content["untouched_is_within_bar"]
  assert content["long_term"]["milliseconds"] == {"followed": 20, "lost": 20}
  assert content["plain"]["milliseconds"]["lost"] is None
  long_term.show(content)
  assert "NOT within the bar of -0.005" in capsys.readouterr().out
  long_term.plot([absence], tmp_path / "o.png")
  assert cv2.imread(str(tmp_path / "o.png")).shape[1] == 990
