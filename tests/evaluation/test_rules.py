"""The table of rules in docs/evaluation.md, cell by cell, on boxes made by hand."""

import math

import numpy as np
import pytest

from ostrack_jax.evaluation import curves, metrics

NAN, INF = math.nan, math.inf
BOX = (10.0, 10, 10, 20)
AWAY = (90.0, 90, 5, 5)
# 3 and 8 pixels off: 7 x 12 pixels are shared of 200 each.
NEAR = (13.0, 18, 10, 20)
PLAIN = (84 / 316, math.hypot(3, 8), 0.5)
LEFT_OUT, FAILED = None, (NAN, NAN, NAN)

PYTRACKING = ("pytracking", "pytracking_uav", "pytracking_lasot")
RULES = (*PYTRACKING, "got10k", "trackingnet", "otb", "absent_hits", "visible")


def errors_of(rule, predicted, annotated, visible=None):
  """Return the errors, one (overlap, centre, normalised) a counted frame."""
  if visible is None and rule == "pytracking_lasot":
    visible = np.ones(len(annotated), bool)
  errors = metrics.RULES[rule](np.array(predicted), np.array(annotated), visible)
  return list(zip(errors.overlaps, errors.centre_errors, errors.normalised_errors, strict=True))


def assert_frame(rule, found, frames_before, expected, frames=3):
  """Check the frame behind `frames_before` others; GOT-10k leaves out the first frame."""
  first_counts = rule != "got10k"
  position = frames_before - (not first_counts)
  assert len(found) == frames - (not first_counts) - (expected is LEFT_OUT)
  if expected is not LEFT_OUT:
    np.testing.assert_allclose(found[position], expected, rtol=1e-12)


def test_the_table_covers_every_rule():
  assert set(RULES) == set(metrics.RULES)


@pytest.mark.parametrize("rule", RULES)
def test_first_frame(rule):
  found = errors_of(rule, [AWAY, NEAR], [BOX, BOX])
  if rule == "got10k":
    assert len(found) == 1
    np.testing.assert_allclose(found[0], PLAIN, rtol=1e-12)
  else:
    np.testing.assert_allclose(found, [(1, 0, 0), PLAIN], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
  ("rule", "expected"),
  [
    ("pytracking", "choose rule pytracking_uav"),
    ("pytracking_uav", (-1, -1, -1)),
    ("pytracking_lasot", "choose rule pytracking_uav"),
    ("got10k", LEFT_OUT),
    ("trackingnet", (NAN, NAN, INF)),
    ("otb", (NAN, NAN, INF)),
    ("absent_hits", (-1, -1, -1)),
    ("visible", LEFT_OUT),
  ],
)
def test_annotated_box_is_nan(rule, expected):
  predicted, annotated = [BOX, NEAR, NEAR], [BOX, (NAN,) * 4, BOX]
  if isinstance(expected, str):
    with pytest.raises(ValueError, match=f"frame 1 is NaN.*{expected}"):
      errors_of(rule, predicted, annotated)
  else:
    assert_frame(rule, errors_of(rule, predicted, annotated), 1, expected)


@pytest.mark.parametrize(
  ("rule", "expected"),
  [
    ("pytracking", (-1, INF, -1)),
    ("pytracking_uav", (-1, -1, -1)),
    ("pytracking_lasot", (-1, INF, -1)),
    ("got10k", LEFT_OUT),
    ("trackingnet", (0, math.hypot(8, 8), INF)),
    ("otb", (0, math.hypot(8, 8), INF)),
    ("absent_hits", (-1, -1, -1)),
    ("visible", LEFT_OUT),
  ],
)
def test_annotated_box_has_no_area(rule, expected):
  found = errors_of(rule, [BOX, NEAR, NEAR], [BOX, (10, 10, 0, 20), BOX])
  assert_frame(rule, found, 1, expected)


@pytest.mark.parametrize(
  ("rule", "expected"),
  [
    ("pytracking", (-1, INF, -1)),
    ("pytracking_uav", (-1, -1, -1)),
    ("pytracking_lasot", (-1, INF, INF)),
    ("got10k", LEFT_OUT),
    ("trackingnet", PLAIN),
    ("otb", PLAIN),
    ("absent_hits", (-1, -1, -1)),
    ("visible", LEFT_OUT),
  ],
)
def test_frame_is_marked_invisible(rule, expected):
  visible = np.array([True, False, True])
  assert_frame(rule, errors_of(rule, [BOX, NEAR, NEAR], [BOX] * 3, visible), 1, expected)


@pytest.mark.parametrize("rule", RULES)
def test_result_is_too_long(rule):
  predicted = [BOX, NEAR, AWAY]
  if rule in (*PYTRACKING, "trackingnet"):
    np.testing.assert_allclose(errors_of(rule, predicted, [BOX] * 2)[1], PLAIN, rtol=1e-12)
  else:
    with pytest.raises(ValueError, match=r"3 predicted boxes for 2 annotated.*match_length"):
      errors_of(rule, predicted, [BOX] * 2)


@pytest.mark.parametrize(
  ("rule", "expected"),
  [
    # A box of zeros, whose centre is that of inclusive pixels: (-0.5, -0.5).
    ("pytracking", (0, 25, math.hypot(1.5, 1))),
    ("pytracking_uav", (0, 25, math.hypot(1.5, 1))),
    ("pytracking_lasot", "refuses results that are too short"),
    ("got10k", "match_length"),
    ("trackingnet", FAILED),
    ("otb", "match_length"),
    ("absent_hits", "match_length"),
    ("visible", "match_length"),
  ],
)
def test_result_is_too_short(rule, expected):
  if isinstance(expected, str):
    with pytest.raises(ValueError, match=f"2 predicted boxes for 3 annotated ones; .*{expected}"):
      errors_of(rule, [BOX, NEAR], [BOX] * 3)
  else:
    assert_frame(rule, errors_of(rule, [BOX, NEAR], [BOX] * 3), 2, expected)


@pytest.mark.parametrize("rule", RULES)
def test_predicted_box_has_no_area(rule):
  found = errors_of(rule, [AWAY, (13, 18, 0, 20), NEAR], [BOX] * 3)
  replaced = (0, math.hypot(77.5, 72.5), math.hypot(7.75, 3.625))
  as_written = (0, math.hypot(2, 8), math.hypot(0.2, 0.4))
  assert_frame(rule, found, 1, replaced if rule in PYTRACKING else as_written)


def test_replacement_goes_on_over_several_frames_and_stops_at_absent_ones():
  empty = (0.0, 0, 0, 0)
  predicted = [BOX, NEAR, empty, empty, empty, empty]
  annotated = [BOX, BOX, BOX, BOX, (NAN,) * 4, BOX]
  found = errors_of("pytracking_uav", predicted, annotated)
  np.testing.assert_allclose(found[2:4], [PLAIN, PLAIN], rtol=1e-12)
  # Not replaced where the target is absent, so that the next row repeats a box of zeros.
  np.testing.assert_allclose(found[5], (0, 25, math.hypot(1.5, 1)), rtol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_predicted_box_is_nan(rule):
  predicted = [BOX, (NAN,) * 4, NEAR]
  if rule in PYTRACKING:
    with pytest.raises(ValueError, match="of frame 1: pytracking's rules refuse NaN"):
      errors_of(rule, predicted, [BOX] * 3)
  else:
    assert_frame(rule, errors_of(rule, predicted, [BOX] * 3), 1, FAILED)


@pytest.mark.parametrize("rule", RULES)
def test_predicted_size_is_negative(rule):
  predicted = [BOX, (13, 18, -4, 20), NEAR]
  if rule in PYTRACKING:
    with pytest.raises(ValueError, match="refuse NaN and negative sizes"):
      errors_of(rule, predicted, [BOX] * 3)
  else:
    found = errors_of(rule, predicted, [BOX] * 3)
    assert_frame(rule, found, 1, (0, math.hypot(4, 8), math.hypot(0.4, 0.4)))


@pytest.mark.parametrize("rule", RULES)
def test_first_annotated_box_is_invalid(rule):
  """It counts like any other absent frame; only GOT-10k's rules leave it out anyway."""
  visible = np.array([False, True])
  found = errors_of(rule, [BOX, NEAR], [(0, 0, 0, 0), BOX], visible)
  first = {
    "pytracking": (-1, INF, -1),
    "pytracking_uav": (-1, -1, -1),
    "pytracking_lasot": (-1, INF, INF),
    "trackingnet": (0, 0, INF),
    "otb": (0, 0, INF),
    "absent_hits": (-1, -1, -1),
  }
  if rule in first:
    np.testing.assert_allclose(found, [first[rule], PLAIN], rtol=1e-12)
  else:
    np.testing.assert_allclose(found, [PLAIN], rtol=1e-12)


def test_invisible_is_not_enough_for_a_normalised_failure_outside_lasot():
  """LaSOT-ext's invisible frames hit Pnorm, LaSOT's do not: the trap of one loader's name."""
  visible = np.array([True, False])
  scores = {
    rule: curves.normalised_precision_curve(
      metrics.RULES[rule](np.array([BOX, AWAY]), np.array([BOX, BOX]), visible).normalised_errors
    )[20]
    for rule in ("pytracking", "pytracking_lasot")
  }
  assert scores == {"pytracking": 1.0, "pytracking_lasot": 0.5}


def test_pytracking_divides_before_it_subtracts():
  """4 of 20 pixels are exactly 0.2, but not when each centre is divided by 20 first."""
  annotated = np.array([BOX, (2.0, 10, 20, 20)])
  predicted = np.array([BOX, (6.0, 10, 20, 20)])
  found = {rule: errors_of(rule, predicted, annotated)[1][2] for rule in ("pytracking", "otb")}
  assert found["otb"] == 0.2
  assert 0.2 < found["pytracking"] < 0.2 + 1e-15


def test_lasot_needs_to_know_what_is_visible():
  with pytest.raises(ValueError, match="give visible, or choose rule pytracking"):
    metrics.RULES["pytracking_lasot"](np.array([BOX]), np.array([BOX]))


def test_visible_must_have_a_value_a_frame():
  with pytest.raises(ValueError, match=r"shape \(3,\) for 2 annotated"):
    metrics.RULES["otb"](np.array([BOX] * 2), np.array([BOX] * 2), np.ones(3, bool))


def test_cover_decides_alone_where_it_is_known():
  """A box without area that is labelled visible counts, and fails."""
  annotated = np.array([BOX, (10, 10, 0, 20), BOX])
  overlaps = metrics.got10k_overlaps(annotated, annotated, None, np.array([True, True, False]))
  assert overlaps.tolist() == [0.0]


def test_got10k_clips_both_boxes_where_the_size_is_known():
  annotated = np.array([BOX, (90.0, 0, 20, 10)])
  predicted = np.array([BOX, (90.0, 0, 10, 10)])
  rule = metrics.RULES["got10k"]
  assert rule(predicted, annotated).overlaps.tolist() == [0.5]
  assert rule(predicted, annotated, image_size=(100, 50)).overlaps.tolist() == [1.0]
  # No other rule clips.
  assert metrics.RULES["otb"](predicted, annotated, None, (100, 50)).overlaps[1] == 0.5


def test_trackingnet_rounds_to_whole_pixels_and_to_even_halves():
  found = errors_of("trackingnet", [BOX, (10.4, 9.6, 9.5, 20.5)], [BOX, (9.7, 10.3, 10.4, 20.2)])
  np.testing.assert_allclose(found[1], (1, 0, 0), atol=1e-12)


def test_trackingnet_thresholds_and_areas():
  rule = metrics.RULES["trackingnet"]
  assert rule.precision_thresholds[[0, 1, 20]].tolist() == [0, 2.5, 50]
  np.testing.assert_allclose(rule.normalised_thresholds[[0, 1, 20]], [0, 0.025, 0.5])
  # Half of the ends, whole steps between: 19.5 + 0.5 of 20.
  assert curves.area(np.ones(21)) == 1.0
  assert curves.area(np.r_[np.ones(20), 0]) == pytest.approx(19.5 / 20)
  assert curves.area(np.r_[0, np.ones(20)]) == pytest.approx(19.5 / 20)


def test_got10k_has_the_toolkits_101_thresholds():
  np.testing.assert_allclose(metrics.RULES["got10k"].success_thresholds, np.arange(101) / 100)


@pytest.mark.parametrize("rule", RULES)
def test_match_length_leaves_a_rules_own_convention_alone(rule):
  matched = metrics.match_length(np.array([BOX]), 2, rule)
  if rule in (*PYTRACKING, "trackingnet"):
    assert len(matched) == 1
  else:
    assert len(matched) == 2
    assert np.isnan(matched[1]).all()
