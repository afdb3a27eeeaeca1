"""A fit finds the weights that made its labels, and each measure is its definition."""

import functools

import numpy as np
import pytest

from ostrack_jax.evaluation import calibration

_WEIGHTS, _BIAS = np.array([1.5, -0.8, 0.0]), 0.4


@pytest.fixture(scope="module")
def drawn():
  """Values of unlike scales, and labels drawn with the probabilities of known weights."""
  rng = np.random.default_rng(0)
  values = rng.normal([3.0, -20.0, 0.5], [2.0, 10.0, 0.1], (40_000, 3))
  standard = (values - values.mean(axis=0)) / values.std(axis=0)
  odds = standard @ _WEIGHTS + _BIAS
  return values, rng.random(len(values)) < 1 / (1 + np.exp(-odds)), odds


def test_a_fit_recovers_known_weights(drawn):
  values, labels, odds = drawn
  fit = calibration.fit_logistic(values, labels, l2=0.0)
  np.testing.assert_allclose(fit.weights, _WEIGHTS, atol=0.06)
  assert fit.bias == pytest.approx(_BIAS, abs=0.05)
  np.testing.assert_allclose(fit.log_odds(values), odds, atol=0.4)


def test_l2_and_signs_hold_weights_back(drawn):
  values, labels, _ = drawn
  free = calibration.fit_logistic(values, labels, l2=0.0)
  held = calibration.fit_logistic(values, labels, l2=0.5)
  assert np.linalg.norm(held.weights) < 0.6 * np.linalg.norm(free.weights)
  signed = calibration.fit_logistic(values, labels, l2=0.0, signs=[1, 1, 0])
  assert signed.weights[0] > 1 and signed.weights[1] == 0


def test_a_fit_needs_both_labels_and_no_spread():
  with pytest.raises(ValueError, match="all 3 samples are positive"):
    calibration.fit_logistic(np.zeros((3, 1)), np.ones(3), l2=0.1)
  constant = calibration.fit_logistic(np.ones((4, 1)), np.array([0, 1, 1, 1]), l2=0.1)
  assert constant.bias == pytest.approx(np.log(3), abs=1e-3) and constant.weights[0] == 0


def test_scaled_odds_are_calibrated_and_keep_their_order(drawn):
  values, labels, _ = drawn
  fit = calibration.fit_logistic(values, labels, l2=0.0)
  off = calibration.Fit(mean=fit.mean, scale=fit.scale, weights=3 * fit.weights, bias=fit.bias - 2)
  scaled = off.scaled(*calibration.platt_scaling(off.log_odds(values), labels))
  np.testing.assert_allclose(scaled.log_odds(values), fit.log_odds(values), atol=0.05)
  assert (np.argsort(scaled.log_odds(values)) == np.argsort(off.log_odds(values))).mean() > 0.999


def test_scaled_odds_stay_finite_where_nothing_is_mistaken():
  values, labels = np.array([[-1.0], [-2.0], [1.0], [2.0]]), np.array([0, 0, 1, 1], bool)
  fit = calibration.fit_logistic(values, labels, l2=1e-3)
  fit = fit.scaled(*calibration.platt_scaling(fit.log_odds(values), labels))
  chances = 1 / (1 + np.exp(-fit.log_odds(values)))
  # Platt's targets of two positives and two negatives: 3 / 4 and 1 / 4.
  assert chances.min() > 0.1 and chances.max() < 0.9


def test_auroc_is_the_share_of_pairs_in_order():
  scores, labels = np.array([0.9, 0.5, 0.5, 0.2, 0.7]), np.array([1, 1, 0, 0, 0])
  pairs = [
    1.0 if a > b else 0.5 if a == b else 0.0
    for a in scores[labels == 1]
    for b in scores[labels == 0]
  ]
  assert calibration.auroc(scores, labels) == pytest.approx(np.mean(pairs))
  assert np.isnan(calibration.auroc(scores, np.ones(5)))


def test_the_area_under_the_roc_is_auroc():
  rng = np.random.default_rng(1)
  scores, labels = rng.integers(0, 8, 200), rng.random(200) < 0.3
  false, true = calibration.roc(scores, labels)
  assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
  assert len(false) == 9
  assert np.trapezoid(true, false) == pytest.approx(calibration.auroc(scores, labels))


def test_expected_calibration_error_is_the_gap_of_each_bin_by_its_samples():
  confidences = np.array([0.05, 0.15, 0.2, 0.9, 1.0])
  labels = np.array([0, 1, 0, 1, 1])
  found = calibration.reliability(confidences, labels, bins=5)
  # (0, 0.2] holds three samples of mean 0.4 / 3, one right; (0.8, 1] two of mean 0.95, both right.
  np.testing.assert_array_equal(found.counts, [3, 2])
  np.testing.assert_allclose(found.confidence, [0.4 / 3, 0.95])
  np.testing.assert_allclose(found.accuracy, [1 / 3, 1])
  assert found.error == pytest.approx((3 * 0.2 + 2 * 0.05) / 5)
  assert calibration.reliability(np.array([0.0]), np.array([0])).error == 0


@pytest.fixture
def groups():
  """Of 1,200 samples: three of 400."""
  return ["a"] * 400 + ["b"] * 400 + ["c"] * 400


def test_the_spread_is_of_groups_and_not_of_their_samples(groups):
  # All told 0.5, and right always, never, and half the time: of three drawn with repetition, the
  # error is how far the mean of what they have is from a half.
  labels = np.concatenate([np.ones(400), np.zeros(400), np.arange(400) % 2]).astype(bool)
  means = np.mean(np.array(np.meshgrid(*[[1, 0, 0.5]] * 3)).reshape(3, -1), axis=0)
  confidences = np.full(1200, 0.5)
  found = calibration.error_spread(confidences, labels, groups)
  assert found == pytest.approx(np.std(np.abs(means - 0.5)), rel=0.1)
  assert calibration.error_spread(confidences, labels, groups) == found


def test_groups_that_are_alike_have_no_spread_and_one_tells_none(groups):
  confidences, labels = np.full(1200, 0.3), np.arange(1200) % 2 == 0
  found = calibration.error_spread(confidences, labels, groups)
  assert found == pytest.approx(0, abs=1e-12)
  assert np.isnan(calibration.error_spread(confidences[:400], labels[:400], groups[:400]))


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3])
def test_the_threshold_gives_the_false_alarm_rate_it_was_asked_for(rate):
  rng = np.random.default_rng(2)
  confidences, labels = rng.random(1000), rng.random(1000) < 0.4
  threshold = calibration.threshold_at(confidences, labels, rate)
  alarms = np.mean(confidences[~labels] > threshold)
  assert rate - 1 / (~labels).sum() <= alarms <= rate


def test_shares_are_samples_taken_so_many_times():
  rng = np.random.default_rng(3)
  values, times = rng.normal(size=(60, 2)), rng.integers(1, 5, 60)
  labels = rng.random(60) < 1 / (1 + np.exp(-values[:, 0]))
  many = functools.partial(np.repeat, repeats=times, axis=0)
  # Their mean and scale are not weighed, so compare what comes out, without weight decay.
  weighed = calibration.fit_logistic(values, labels, l2=0.0, shares=times / 7)
  taken = calibration.fit_logistic(many(values), many(labels), l2=0.0)
  np.testing.assert_allclose(weighed.log_odds(values), taken.log_odds(values), atol=1e-4)
  confidences = rng.random(60)
  for rate in (0.0, 0.1, 0.4):
    assert calibration.threshold_at(
      confidences, labels, rate, times / 7
    ) == calibration.threshold_at(many(confidences), many(labels), rate)


def test_scaled_odds_follow_the_samples_that_count_for_more(drawn):
  values, labels, _ = drawn
  odds = calibration.fit_logistic(values, labels, l2=0.0).log_odds(values)
  stretch, shift = calibration.platt_scaling(odds, labels, np.where(labels, 9.0, 1.0))
  # Positives nine times over have nine times the odds.
  assert stretch == pytest.approx(1, abs=0.02)
  assert shift == pytest.approx(np.log(9), abs=0.05)


def test_each_group_counts_as_much_as_any_other():
  shares = calibration.shares_alike(["b", "a", "b", "b"])
  np.testing.assert_allclose(shares, [1 / 3, 1, 1 / 3, 1 / 3])


def test_a_threshold_needs_negatives_and_a_rate():
  with pytest.raises(ValueError, match="no negative"):
    calibration.threshold_at(np.ones(2), np.ones(2), 0.1)
  with pytest.raises(ValueError, match="false-alarm rate of 1"):
    calibration.threshold_at(np.ones(2), np.zeros(2), 1.5)
