"""Boxes, trails and insets of several objects, pixel by pixel."""

import numpy as np
import pytest

from ostrack_jax import track_drawing
from ostrack_jax.track_drawing import PALETTE, DrawingOptions, TrackPainter
from ostrack_jax.tracking.tracker import TrackResult

_RED, _BLUE = (255, 0, 0), (0, 0, 255)


def _grey(height=120, width=160):
  return np.full((height, width, 3), 90, np.uint8)


def _at(*box_xywh, score=float("nan"), **fields):
  return TrackResult(np.array(box_xywh, np.float64), score, **fields)


def _has(image, colour):
  return (image == colour).all(axis=2)


def test_each_object_has_a_colour_of_its_own_and_the_next_round_begins_anew():
  painter = TrackPainter(DrawingOptions(colours=[_RED, _BLUE]))
  frame = _grey()
  painted = painter.paint(
    frame, {0: _at(10, 10, 20, 20), 1: _at(50, 50, 20, 20), 2: _at(90, 9, 9, 9)}
  )
  assert _has(painted, _RED)[10:31, 10].all() and _has(painted, _BLUE)[50:71, 50].all()
  assert _has(painted, _RED)[9:19, 90].all()
  assert (frame == 90).all()
  assert len(set(PALETTE.values())) == len(PALETTE) == 7


@pytest.mark.parametrize(
  ("numbered", "found", "label"),
  [
    (False, _at(0, 0, 9, 9, score=0.875), "0.88"),
    (True, _at(0, 0, 9, 9, score=0.875), "4 0.88"),
    (True, _at(0, 0, 9, 9), "4"),
    (False, _at(0, 0, 9, 9, score=0.9, confidence=0.125, visible=False), "0.12 absent"),
  ],
)
def test_labels_say_the_object_and_how_sure_the_tracker_is(monkeypatch, numbered, found, label):
  labels = []
  monkeypatch.setattr(
    track_drawing.visualization,
    "draw_box",
    lambda image, box, text, *_: labels.append(text) or image,
  )
  TrackPainter(DrawingOptions(numbered=numbered)).paint(_grey(), {4: found})
  assert labels == [label]


def test_a_trail_goes_back_as_many_frames_as_asked_and_gets_fainter():
  painter = TrackPainter(DrawingOptions(colours=[_RED], trail=2))
  painted = _grey()
  for x in (20, 50, 80, 110):
    painted = painter.paint(_grey(), {0: _at(x - 5, 75, 10, 10)})
  row = painted[80].astype(int)
  # From 110 over 80 to 50, not as far as 20.
  assert (row[52:104, 1] < 90).all() and (row[:45] == 90).all()
  assert row[95, 0] > row[65, 0] > 90


def test_an_inset_shows_the_search_region_around_the_box_before():
  frame = _grey()
  frame[40:60, 60:80] = (255, 255, 255)
  painter = TrackPainter(DrawingOptions(colours=[_RED], inset=True, search_factor=4.0))
  painter.paint(frame, {0: _at(55, 40, 20, 20)})
  painted = painter.paint(frame.copy(), {0: _at(60, 40, 20, 20)})
  # 0.28 of 120 pixels, 80 pixels of the frame, centred at x 65: the white square is right of its centre.
  inset = painted[-34:, :34]
  assert _has(inset, _RED)[[0, -1]].all() and _has(inset, _RED)[:, [0, -1]].all()
  rows, columns = np.nonzero((inset > 200).all(axis=2))
  assert abs(columns.mean() - (33 / 2 + 5 * 34 / 80)) < 0.75 and abs(rows.mean() - 33 / 2) < 0.75
  many = painter.paint(_grey(), {n: _at(10, 10, 20, 20) for n in range(9)})
  assert many.shape == (120, 160, 3)


def test_the_same_frame_is_painted_once_for_all_outputs():
  painter = TrackPainter(DrawingOptions(trail=3))
  frame, results = _grey(), {0: _at(10, 10, 20, 20)}
  assert painter.paint(frame, results) is painter.paint(frame, results)


@pytest.mark.parametrize(
  ("text", "colour"), [("orange", (230, 159, 0)), ("#0a10FF", (10, 16, 255))]
)
def test_colours_are_named_or_written_as_on_the_web(text, colour):
  assert track_drawing.parse_colour(text) == colour


@pytest.mark.parametrize("text", ["red", "#12345", "123456", ""])
def test_other_colours_are_refused(text):
  with pytest.raises(
    ValueError, match=f"--colour={text} is unknown; give #rrggbb or one of yellow"
  ):
    track_drawing.parse_colour(text)
