"""What is said of boxes, on arrays alone: each defect by its kind, its frames and its words."""

import pathlib

import numpy as np
import pytest

from data_pipelines import box_checks
from data_pipelines.builders.raw_data import RawSequence, Target
from data_pipelines.raw_findings import Place

WIDTH, HEIGHT = 96, 64
WALK = [[20 + i, 15 + i / 2, 24, 20] for i in range(24)]


def check(boxes, visible=None, size_wh=(WIDTH, HEIGHT), name="walk"):
  """Return the findings on boxes; None is no box, and the target then not visible."""
  if visible is None:
    visible = [box is not None for box in boxes]
  rows = np.array([[0, 0, 0, 0] if box is None else box for box in boxes], np.float64)
  target = Target(name, rows, np.array(visible))
  frames = tuple(pathlib.Path(f"/raw/walk/{i:04d}.jpg") for i in range(len(boxes)))
  place = Place("train", RawSequence("walk", frames, (target,)), pathlib.Path("/raw"))
  return box_checks.check_boxes(place, target, np.tile(np.array(size_wh, float), (len(boxes), 1)))


def walk_with(frame: int, box):
  boxes = list(WALK)
  boxes[frame] = box
  return boxes


def test_boxes_inside_that_move_smoothly_are_fine():
  assert check(WALK) == []


@pytest.mark.parametrize(
  "box", [[200, 10, 24, 20], [-30, 10, 24, 20], [40, 64, 9, 9], [40, -9, 9, 9]]
)
def test_a_box_wholly_outside_is_an_error_and_no_jump_besides(box):
  (finding,) = check(walk_with(12, box))
  assert (finding.kind, finding.severity, finding.frames) == ("outside", "error", (12,))
  assert finding.file == "walk/0012.jpg"
  assert "of frame 12" in finding.text and "96 x 64" in finding.text
  assert finding.pictures[0].box_xywh == tuple(box)


@pytest.mark.parametrize(
  ("box", "share"),
  [([84, 20, 24, 20], "50%"), ([26, -5, 24, 20], "25%"), ([22, 50, 24, 20], "30%")],
)
def test_a_box_partly_outside_is_a_note_that_says_how_much(box, share):
  boxes = [None] * 12 + [box] + [None] * 11
  (finding,) = check(boxes)
  assert (finding.kind, finding.severity, finding.frames) == ("partly_outside", "note", (12,))
  assert share in finding.text


def test_a_box_one_pixel_over_the_border_is_usual():
  assert check([[72.9, 44.9 - i / 4, 24, 20] for i in range(24)]) == []
  assert check([[-0.9, -0.9 + i / 4, 24, 20] for i in range(24)]) == []


def test_nothing_is_said_of_places_in_frames_of_unknown_size():
  assert check(walk_with(3, [24, 50, 24, 20]), size_wh=(np.nan, np.nan)) == []


@pytest.mark.parametrize("box", [[20, 20, 0, 9], [20, 20, -5, 9], [np.nan] * 4, [1, 1, np.inf, 1]])
def test_a_visible_target_needs_a_box(box):
  (finding,) = check(walk_with(5, box))
  assert (finding.kind, finding.severity, finding.frames) == ("impossible_box", "error", (5,))
  assert finding.file == "walk/0005.jpg"


def test_a_target_that_is_not_visible_needs_none():
  boxes = walk_with(5, [np.nan] * 4)
  assert check(boxes, visible=[i != 5 for i in range(24)]) == []


@pytest.mark.parametrize(
  ("box", "words"),
  [
    ([60, 40, 12, 12], "moves by 4.9 times its size"),
    ([4, 4, 30, 30], "its area becomes 6.2 times"),
    ([14, 14, 5, 5], "its area becomes 0.17 times"),
  ],
)
def test_a_jump_names_its_frame_and_shows_the_one_before(box, words):
  (finding,) = check([[10, 10, 12, 12]] * 12 + [box] * 12)
  assert (finding.kind, finding.severity, finding.frames) == ("jump", "warning", (12,))
  assert [picture.frame for picture in finding.pictures] == [11, 12]
  assert [picture.box_xywh for picture in finding.pictures] == [(10, 10, 12, 12), tuple(box)]
  assert "from frame 11 to frame 12" in finding.text and words in finding.text


@pytest.mark.parametrize("box", [[45, 10, 12, 12], [6, 6, 24, 24], [14, 14, 6, 6]])
def test_what_a_tracker_could_follow_is_no_jump(box):
  assert check([[10, 10, 12, 12]] * 12 + [box] * 12) == []


def test_a_target_that_reappears_elsewhere_does_not_jump():
  assert check([[5, 5, 10, 10]] * 10 + [None] + [[70, 40, 10, 10]] * 13) == []


def test_all_jumps_are_counted_in_one_finding():
  (finding,) = check([[5, 5, 10, 10], [70, 40, 10, 10]] * 12)
  assert (finding.count, len(finding.frames)) == (23, 23)
  assert finding.sentence.endswith("(and 22 more)")


def test_corners_instead_of_sizes_are_recognised():
  found = {f.kind: f for f in check([[x, y, x + w, y + h] for x, y, w, h in WALK])}
  assert set(found) == {"corners", "partly_outside"}
  assert found["corners"].severity == "warning" and "x1, y1, x2, y2" in found["corners"].text


def test_a_target_that_leaves_the_frame_is_not_taken_for_corners():
  boxes = [[50 + i, 20, 40, 30] for i in range(24)]
  assert [finding.kind for finding in check(boxes)] == ["partly_outside"]


def test_fractions_instead_of_pixels_are_recognised_and_said_once():
  (finding,) = check([[x / 96, y / 64, w / 96, h / 64] for x, y, w, h in WALK])
  assert (finding.kind, finding.severity, finding.count) == ("fractions", "error", 24)


def test_a_tiny_box_is_a_note():
  (finding,) = check([[20 + i, 15, 1.5, 9] for i in range(24)])
  assert (finding.kind, finding.severity, finding.count) == ("tiny_box", "note", 24)


@pytest.mark.parametrize(("frames", "found"), [(49, []), (50, ["still_box"])])
def test_a_box_that_stays_for_fifty_frames_is_a_note(frames, found):
  findings = check([[20, 15, 24, 20]] * frames + [[21, 15, 24, 20]] * 3)
  assert [finding.kind for finding in findings] == found
  assert all("frame 0 to frame 49" in finding.text for finding in findings)


def test_a_target_among_others_is_named():
  (finding,) = check(walk_with(12, [200, 10, 24, 20]), name="walk_2")
  assert "the box of walk_2 of frame 12" in finding.text


@pytest.mark.parametrize(
  "layout", ["groundtruth.txt", "../groundtruth_rect.txt", "../../anno/img.txt"]
)
def test_boxes_as_written_are_found_in_the_layouts_in_use(tmp_path, layout):
  folder = tmp_path / "frames" / "walk" / "img"
  folder.mkdir(parents=True)
  (folder / layout).resolve().parent.mkdir(exist_ok=True)
  (folder / layout).resolve().write_text("1,2,3,4\nnan,nan,nan,nan\n5,6,-7,8\n")
  written = box_checks.written_boxes(folder / "0001.jpg")
  np.testing.assert_array_equal(written, [[1, 2, 3, 4], [np.nan] * 4, [5, 6, -7, 8]])


def test_without_an_annotation_file_nothing_is_written(tmp_path):
  assert box_checks.written_boxes(tmp_path / "0001.jpg") is None
  assert box_checks.written_boxes(b"made, not found") is None
