import math

import numpy as np
import pytest

from ostrack_jax.evaluation import box_errors, curves, metrics


def boxes(*rows):
  return np.array(rows, dtype=np.float64)


NAN = (math.nan,) * 4


def test_overlap_of_hand_computed_pairs():
  a = boxes((0, 0, 10, 10), (0, 0, 10, 10), (0, 0, 10, 10), (0, 0, 10, 10), (1, 1, 0, 0))
  b = boxes((0, 0, 10, 10), (5, 0, 10, 10), (10, 0, 10, 10), (2, 2, 5, 4), (1, 1, 0, 0))
  np.testing.assert_allclose(box_errors.overlap(a, b), [1, 50 / 150, 0, 20 / 100, 0], rtol=1e-15)
  assert np.isnan(box_errors.overlap(boxes(NAN), a[:1])).all()


def test_centre_error_is_between_centres_in_pixels():
  error = box_errors.centre_error(boxes((0, 0, 10, 10)), boxes((3, 4, 10, 10)))
  assert error[0] == 5.0
  # A larger box around the same centre has no error.
  assert box_errors.centre_error(boxes((0, 0, 10, 10)), boxes((-5, -5, 20, 20)))[0] == 0.0


def test_normalised_error_is_in_annotated_widths_and_heights():
  error = box_errors.normalised_error(boxes((3, 8, 10, 20)), boxes((0, 0, 10, 20)))
  np.testing.assert_allclose(error, [math.hypot(0.3, 0.4)], rtol=1e-15)
  assert box_errors.normalised_error(boxes((0, 0, 9, 9)), boxes((0, 0, 0, 9)))[0] == math.inf


def test_success_is_strict_and_precision_is_not():
  success = curves.success_curve(np.array([0.5, 1.0]))
  assert success[9] == 1.0
  assert success[10] == 0.5
  assert success[20] == 0.0
  precision = curves.precision_curve(np.array([20.0, 21.0, math.nan, -1.0]))
  assert precision[[0, 19, 20, 21]].tolist() == [0.25, 0.25, 0.5, 0.75]
  normalised = curves.normalised_precision_curve(np.array([0.2, 0.5, math.inf]))
  np.testing.assert_allclose(normalised[[19, 20, 50]], [0, 1 / 3, 2 / 3])


def test_thresholds_are_the_published_ones():
  assert len(curves.SUCCESS_THRESHOLDS) == 21
  assert len(curves.PRECISION_THRESHOLDS) == len(curves.NORMALISED_THRESHOLDS) == 51
  assert curves.PRECISION_THRESHOLDS[curves.SCORE_POSITION] == 20
  assert curves.NORMALISED_THRESHOLDS[curves.SCORE_POSITION] == 0.2


def test_curves_of_no_frames_are_refused():
  for curve in (
    curves.success_curve,
    curves.precision_curve,
    curves.normalised_precision_curve,
  ):
    with pytest.raises(ValueError, match="no frame counts"):
      curve(np.zeros(0))


@pytest.mark.parametrize(
  ("rule", "frames", "success", "precision", "normalised"),
  [
    ("otb", 4, [1, 0, math.nan, 0], [0, 3, math.nan, 10], [0, 0.3, math.inf, math.inf]),
    ("absent_hits", 4, [1, 0, -1, -1], [0, 3, -1, -1], [0, 0.3, -1, -1]),
    ("visible", 2, [1, 0], [0, 3], [0, 0.3]),
  ],
)
def test_rules_differ_in_absent_frames(rule, frames, success, precision, normalised):
  annotated = boxes((5, 5, 10, 10), (5, 5, 10, 10), NAN, (0, 0, 0, 0))
  # The first row is wrong, and is replaced; the second has no area; the last is 10 px away.
  predicted = boxes((90, 90, 1, 1), (13, 10, 0, 0), (1, 1, 5, 5), (5, 5, 2, 6))
  errors = metrics.RULES[rule](predicted, annotated)
  assert len(errors.overlaps) == frames
  np.testing.assert_allclose(errors.overlaps, success)
  np.testing.assert_allclose(errors.centre_errors, precision, atol=1e-12)
  np.testing.assert_allclose(errors.normalised_errors, normalised)


@pytest.mark.parametrize("rule", sorted(metrics.RULES))
def test_rules_leave_their_arguments_alone(rule):
  predicted, annotated = boxes((1, 2, 3, 4), (0, 0, 0, 0)), boxes((5, 5, 10, 10), (5, 5, 10, 10))
  visible = np.array([True, False])
  metrics.RULES[rule](predicted, annotated, visible, (6, 6))
  np.testing.assert_array_equal(predicted, [[1, 2, 3, 4], [0, 0, 0, 0]])
  np.testing.assert_array_equal(annotated, [[5, 5, 10, 10]] * 2)
  assert visible.tolist() == [True, False]


@pytest.mark.parametrize("rule", sorted(metrics.RULES))
def test_rules_refuse_wrong_shapes(rule):
  with pytest.raises(ValueError, match=r"shape \(3, 5\)"):
    metrics.RULES[rule](np.ones((3, 5)), np.ones((3, 4)))
  with pytest.raises(ValueError, match="n at least 1"):
    metrics.RULES[rule](np.ones((0, 4)), np.ones((0, 4)))


def test_match_length_drops_excess_and_fails_missing_rows():
  rows = boxes((1, 1, 1, 1), (2, 2, 2, 2))
  np.testing.assert_array_equal(metrics.match_length(rows, 1), rows[:1])
  longer = metrics.match_length(rows, 3)
  np.testing.assert_array_equal(longer[:2], rows)
  assert np.isnan(longer[2]).all()


def test_ao_leaves_out_the_first_and_the_absent_frames():
  annotated = boxes((0, 0, 10, 10), (0, 0, 10, 10), NAN, (0, 0, 0, 0), (0, 0, 10, 10))
  predicted = boxes((50, 50, 1, 1), (5, 0, 10, 10), (0, 0, 1, 1), (0, 0, 1, 1), NAN)
  overlaps = metrics.got10k_overlaps(predicted, annotated)
  np.testing.assert_allclose(overlaps, [1 / 3, 0.0])
  assert curves.average_overlap(overlaps) == pytest.approx(1 / 6)
  assert curves.success_rate(np.array([0.5, 0.51]), 0.5) == 0.5


def test_ao_of_one_frame_is_unknown():
  overlaps = metrics.got10k_overlaps(boxes((0, 0, 9, 9)), boxes((0, 0, 9, 9)))
  assert len(overlaps) == 0
  assert math.isnan(curves.average_overlap(overlaps))
  assert math.isnan(curves.success_rate(overlaps, 0.5))


def test_clipping_follows_the_toolkit_at_every_side():
  first = (0, 0, 5, 5)
  annotated = boxes(first, (90, 0, 20, 10), (-10, 0, 20, 10))
  predicted = boxes(first, (90, 0, 10, 10), (0, 0, 20, 10))
  # Right: both end at 100. Left: the corner moves to 0 and the box keeps its width.
  np.testing.assert_allclose(metrics.got10k_overlaps(predicted, annotated, (100, 50)), [1.0, 1.0])
  np.testing.assert_allclose(metrics.got10k_overlaps(predicted, annotated), [0.5, 1 / 3])
  beyond = metrics.got10k_overlaps(boxes(first, (150, 60, 5, 5)), boxes(first, first), (100, 50))
  np.testing.assert_allclose(beyond, [0.0])


def slow_otb(predicted, annotated):
  """The same protocol, frame by frame and threshold by threshold, with corners."""
  success, precision, normalised = [0.0] * 21, [0.0] * 51, [0.0] * 51
  for frame, (truth, guess) in enumerate(zip(annotated.tolist(), predicted.tolist())):
    x, y, w, h = guess if frame else truth
    gx, gy, gw, gh = truth
    across = max(0.0, min(x + w, gx + gw) - max(x, gx))
    down = max(0.0, min(y + h, gy + gh) - max(y, gy))
    iou = across * down / (w * h + gw * gh - across * down)
    dx, dy = x + w / 2 - gx - gw / 2, y + h / 2 - gy - gh / 2
    for i in range(21):
      success[i] += (iou > i / 20) / len(annotated)
    for i in range(51):
      precision[i] += (math.sqrt(dx * dx + dy * dy) <= i) / len(annotated)
      normalised[i] += (math.sqrt((dx / gw) ** 2 + (dy / gh) ** 2) <= i / 100) / len(annotated)
  return success, precision, normalised


def test_curves_equal_a_slow_independent_implementation():
  rng = np.random.default_rng(0)
  annotated = np.concatenate([rng.uniform(0, 200, (300, 2)), rng.uniform(5, 80, (300, 2))], axis=1)
  noise = rng.normal(0, 1, (300, 4)) * rng.uniform(0, 20, (300, 1))
  predicted = annotated + noise
  predicted[:, 2:] = np.maximum(predicted[:, 2:], 1)
  errors = metrics.RULES["otb"](predicted, annotated)
  success, precision, normalised = slow_otb(predicted, annotated)
  np.testing.assert_allclose(curves.success_curve(errors.overlaps), success, atol=1e-12)
  # At threshold 0 the first frame hits or not by the rounding of its centre: left out.
  np.testing.assert_allclose(
    curves.precision_curve(errors.centre_errors)[1:], precision[1:], atol=1e-12
  )
  np.testing.assert_allclose(
    curves.normalised_precision_curve(errors.normalised_errors)[1:], normalised[1:], atol=1e-12
  )
  assert 0.2 < np.mean(success) < 0.8
