"""What chance decides, over 10,000 draws, against the formulas.

A share p of n draws has the deviation sqrt(p (1 - p) / n), a mean the deviation sigma / sqrt(n); five of
them are allowed. Seeds are fixed: a test that passes always passes.
"""

import dataclasses
import math

import numpy as np
import pytest

from data_pipelines import augmentation, sampling
from data_pipelines.augmentation import AugmentationSettings
from data_pipelines.sources import StoredFrame

DRAWS = 10_000
SIGMAS = 5


def assert_share(hits, expected):
  """Compare the share of true values with a probability."""
  hits = np.asarray(hits)
  tolerance = SIGMAS * math.sqrt(expected * (1 - expected) / len(hits))
  assert abs(hits.mean() - expected) <= tolerance, (hits.mean(), expected, tolerance)


def assert_distribution(values, distribution):
  """Compare samples with a continuous distribution: mean, deviation, and all of it (Kolmogorov-Smirnov).

  A deviation is off by sigma sqrt((kurtosis - 1) / 4 n), of which 3 is the normal kurtosis and the larger.
  sqrt(n) times the largest distance exceeds x with probability 2 exp(-2 x^2): 2.7 once in a million.
  """
  mean, deviation, cumulative = distribution
  error = deviation / math.sqrt(len(values))
  assert abs(values.mean() - mean) < SIGMAS * error
  assert abs(values.std() - deviation) < SIGMAS * error / math.sqrt(2)
  values = np.sort(values)
  at = np.array([cumulative(v) for v in values])
  steps = np.arange(len(values) + 1) / len(values)
  distance = max(np.max(steps[1:] - at), np.max(at - steps[:-1]))
  assert math.sqrt(len(values)) * distance < 2.7, distance


def uniform(low, high):
  """Return mean, deviation and cumulative distribution."""
  return (
    (low + high) / 2,
    (high - low) / math.sqrt(12),
    lambda value: min(max((value - low) / (high - low), 0.0), 1.0),
  )


def normal(deviation):
  """Return mean, deviation and cumulative distribution."""
  return 0.0, deviation, lambda value: 0.5 * (1 + math.erf(value / deviation / math.sqrt(2)))


def assert_unrelated(first, second):
  """The correlation of unrelated numbers has the deviation 1 / sqrt(n)."""
  assert abs(np.corrcoef(first, second)[0, 1]) < SIGMAS / math.sqrt(len(first))


# The jitters of the 256 and the 384 configurations.
@pytest.mark.parametrize(("centre", "scale"), [(3.0, 0.25), (4.5, 0.5)])
def test_jitter_is_log_normal_in_size_and_uniform_in_place(centre, scale):
  rng = np.random.default_rng(0)
  box = np.array([10.0, 20.0, 40.0, 10.0])
  boxes = np.array([augmentation.jitter_box(rng, box, centre, scale) for _ in range(DRAWS)])
  logs = np.log(boxes[:, 2:] / box[2:])
  sides = np.sqrt(boxes[:, 2:].prod(axis=1))
  shifts = (boxes[:, :2] + boxes[:, 2:] / 2 - (30, 25)) / sides[:, None]
  for axis in (0, 1):
    assert_distribution(logs[:, axis], normal(scale))
    assert_distribution(shifts[:, axis], uniform(-centre / 2, centre / 2))
    assert_unrelated(logs[:, axis], shifts[:, axis])
  assert_unrelated(logs[:, 0], logs[:, 1])
  assert_unrelated(shifts[:, 0], shifts[:, 1])


def test_gaps_are_uniform_from_1_to_199():
  rng = np.random.default_rng(0)
  visible = np.ones(10_000, bool)
  pairs = np.array([sampling.sample_pair(rng, visible) for _ in range(DRAWS)])
  gaps = (pairs[:, 1] - pairs[:, 0])[pairs[:, 0] < 9_800]
  counts = np.bincount(gaps, minlength=201)
  assert counts[0] == counts[200] == 0
  # Chi square of 199 alike cells has mean 198 and deviation sqrt(2 * 198).
  expected = len(gaps) / 199
  chi_square = ((counts[1:200] - expected) ** 2 / expected).sum()
  assert abs(chi_square - 198) < SIGMAS * math.sqrt(2 * 198)
  assert_distribution(pairs[:, 0], uniform(0, 9_999))


def test_sets_are_drawn_by_weight_and_their_sequences_alike(make_source, tmp_path):
  weights = {"a": 1.0, "b": 2.5, "none": 0.0, "c": 0.5}
  lengths = {"a": [20, 500, 60], "b": [30] * 7, "none": [20], "c": [1] * 10}
  mixture = {
    name: (make_source(tmp_path / name, lengths[name], is_video=name != "c"), weight)
    for name, weight in weights.items()
  }
  sampler = sampling.PairSampler(list(mixture.values()))
  rng = np.random.default_rng(0)
  draws = [sampler.draw(rng) for _ in range(DRAWS)]
  for name, (source, weight) in mixture.items():
    assert_share([draw.source is source for draw in draws], weight / 4)
    sequences = np.array([draw.sequence for draw in draws if draw.source is source])
    for sequence in range(len(lengths[name]) if weight else 0):
      assert_share(sequences == sequence, 1 / len(lengths[name]))


SMALL = AugmentationSettings(
  template_size=16, search_size=16, search_centre_jitter=1.0, brightness=0.2
)


def draw_pairs(settings):
  rng = np.random.default_rng(0)
  frame = StoredFrame.from_image(np.zeros((120, 120, 3), np.uint8))
  box = np.array([50.0, 50.0, 20.0, 20.0])
  pairs = [augmentation.make_pair(rng, frame, box, frame, box, settings) for _ in range(DRAWS)]
  return {name: np.array([pair[name] for pair in pairs if pair]) for name in pairs[0] or {}}


def test_official_flips_mirror_template_and_search_against_each_other_in_half_of_the_pairs():
  pairs = draw_pairs(SMALL)
  assert_share(pairs["template_flip"], 0.5)
  assert_share(pairs["search_flip"], 0.5)
  assert_share(pairs["template_flip"] != pairs["search_flip"], 0.5)


def test_without_the_independent_flip_both_are_flipped_together():
  pairs = draw_pairs(dataclasses.replace(SMALL, independent_flip=False))
  assert_share(pairs["search_flip"], 0.5)
  np.testing.assert_array_equal(pairs["template_flip"], pairs["search_flip"])


def test_each_flip_has_its_own_probability():
  pairs = draw_pairs(
    dataclasses.replace(SMALL, joint_flip_probability=0.1, separate_flip_probability=0.3)
  )
  # One of the two flips and not the other; against each other: one second flip and not the other.
  assert_share(pairs["template_flip"], 0.1 * 0.7 + 0.9 * 0.3)
  assert_share(pairs["template_flip"] != pairs["search_flip"], 2 * 0.3 * 0.7)


def test_greys_come_in_pairs_and_brightness_is_uniform_and_each_crops_own():
  pairs = draw_pairs(SMALL)
  assert_share(pairs["grey"], 0.05)
  for name in ("template", "search"):
    assert_distribution(pairs[f"{name}_brightness"], uniform(0.8, 1.2))
  assert_unrelated(pairs["template_brightness"], pairs["search_brightness"])
  assert_unrelated(pairs["grey"], pairs["template_flip"])


def test_validation_draws_no_brightness_and_no_second_flip():
  pairs = draw_pairs(SMALL.for_validation())
  assert (pairs["template_brightness"] == 1).all() and (pairs["search_brightness"] == 1).all()
  assert_share(pairs["search_flip"], 0.5)
  np.testing.assert_array_equal(pairs["template_flip"], pairs["search_flip"])
