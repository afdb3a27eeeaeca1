"""Pair sampling against the official rule, and the mixture against its weights."""

import pickle
import tracemalloc

import numpy as np
import pytest

from data_pipelines import sampling


def test_the_search_frame_follows_within_the_gap():
  rng = np.random.default_rng(0)
  pairs = np.array([sampling.sample_pair(rng, np.ones(1000, bool)) for _ in range(10_000)])
  gaps = pairs[:, 1] - pairs[:, 0]
  assert (gaps.min(), gaps.max()) == (1, 199)
  early = gaps[pairs[:, 0] < 800]
  # Uniform on 1..199: mean 100, deviation 57.4, so the mean of 8,000 is within 2.6 at 4 sigma.
  assert abs(early.mean() - 100) < 2.6
  assert pairs[:, 0].max() == 998 and pairs[:, 1].max() == 999


def test_only_visible_frames_are_drawn():
  rng = np.random.default_rng(1)
  visible = rng.random(300) < 0.3
  pairs = np.array([sampling.sample_pair(rng, visible) for _ in range(500)])
  assert visible[pairs].all()


def test_templates_are_uniform_over_visible_frames_but_the_last():
  rng = np.random.default_rng(2)
  visible = np.zeros(50, bool)
  visible[[0, 10, 20, 49]] = True
  drawn = [sampling.sample_pair(rng, visible)[0] for _ in range(6000)]
  counts = np.bincount(drawn, minlength=50)
  assert counts.sum() == counts[[0, 10, 20]].sum()
  np.testing.assert_allclose(counts[[0, 10, 20]], 2000, atol=150)


def test_the_gap_widens_until_a_search_frame_is_in_reach():
  visible = np.zeros(400, bool)
  visible[[0, 350]] = True
  assert sampling.sample_pair(np.random.default_rng(0), visible) == (0, 350)


def test_what_lies_farther_apart_than_any_gap_is_still_drawn_in_bounded_time():
  class Counting:
    """Stops what asks for random numbers without end."""

    def __init__(self):
      self._rng, self.asked = np.random.default_rng(0), 0

    def integers(self, *bounds):
      self.asked += 1
      assert self.asked < 100
      return self._rng.integers(*bounds)

  visible = np.zeros(201, bool)
  visible[[5, 150]] = True
  # The second is drawn as template in vain half of the time: in 100 tries never to an end.
  for _ in range(200):
    assert sampling.sample_pair(Counting(), visible) == (5, 150)  # pyrefly: ignore[bad-argument-type]


def test_widening_keeps_the_chances_of_redrawing():
  # In reach of 200: (0, 1) alone; else redrawn with a wider gap until something fits.
  visible = np.zeros(1000, bool)
  visible[[0, 1, 500, 900]] = True
  rng = np.random.default_rng(0)
  drawn = [sampling.sample_pair(rng, visible, max_gap=399) for _ in range(3000)]
  # Reach 399: 0 -> 1 only; 1 -> none (499 off); 500 -> none (400 off); 900 -> none. 404: 500 -> 900 too.
  first_try = sum(pair == (0, 1) for pair in drawn)
  # First round 1/4 succeeds; every later round, 1/4 each for (0, 1) and (500, 900), until reach 500
  # after 21 rounds: P(0, 1) = 1/4 + 3/4 * 1/2 = .625 up to 1e-4; deviation of 3000 draws: 26.5.
  assert abs(first_try - 0.625 * 3000) < 4 * 26.5


def test_a_still_image_is_its_own_search_frame():
  assert sampling.sample_pair(np.random.default_rng(0), np.ones(1, bool), is_video=False) == (0, 0)


def test_one_visible_frame_is_refused():
  with pytest.raises(ValueError, match="1 of 3"):
    sampling.sample_pair(np.random.default_rng(0), np.array([False, True, False]))


def test_data_sets_are_drawn_by_weight_and_sequences_alike(make_source, tmp_path):
  a = make_source(tmp_path / "a", [20, 200, 30])
  b = make_source(tmp_path / "b", [25])
  sampler = sampling.PairSampler([(a, 3.0), (b, 1.0)])
  rng = np.random.default_rng(0)
  drawn = [sampler.draw(rng) for _ in range(4000)]
  of_a = [draw.template for draw in drawn if draw.source is a]
  # Binomial(4000, .75): deviation 27; 3 sequences alike within a: deviation 26 of 1000.
  assert abs(len(of_a) - 3000) < 110
  counts = np.histogram(of_a, bins=[0, 20, 220, 250])[0]
  np.testing.assert_allclose(counts, len(of_a) / 3, atol=110)


def test_both_frames_belong_to_one_sequence(make_source, tmp_path):
  source = make_source(tmp_path / "a", [20, 40, 60])
  sampler = sampling.PairSampler([(source, 1.0)])
  rng = np.random.default_rng(0)
  for _ in range(300):
    draw = sampler.draw(rng)
    positions = source.positions(draw.sequence)
    assert positions.start <= draw.template < draw.search < positions.stop


def test_short_and_hidden_sequences_do_not_take_part(make_source, tmp_path):
  visible = np.ones(19 + 30 + 30, bool)
  visible[19 + 4 : 49] = False  # the second keeps 4 visible frames, one too few
  source = make_source(tmp_path / "a", [19, 30, 30], visible)
  np.testing.assert_array_equal(
    sampling.eligible_sequences(source, sampling.SamplingSettings()), [2]
  )
  relaxed = sampling.SamplingSettings(min_length=19, min_visible_over=3)
  np.testing.assert_array_equal(sampling.eligible_sequences(source, relaxed), [0, 1, 2])


def test_still_images_all_take_part(make_source, tmp_path):
  source = make_source(tmp_path / "a", [1, 1], is_video=False)
  sampler = sampling.PairSampler([(source, 1.0)])
  drawn = {sampler.draw(np.random.default_rng(i))[1:] for i in range(20)}
  assert drawn == {(0, 0, 0), (1, 1, 1)}


def test_still_images_without_a_usable_box_are_left_out(make_source, tmp_path):
  boxes = [[1, 1, 5, 5], [1, 1, 0, 5], [np.nan, 1, 5, 5], [1, np.inf, 5, 5], [1, 1, 0.5, 60]]
  source = make_source(tmp_path / "a", [1] * 5, is_video=False, boxes_xywh=boxes)
  eligible = sampling.eligible_sequences(source, sampling.SamplingSettings())
  np.testing.assert_array_equal(eligible, [0, 4])


def test_small_targets_of_still_images_can_be_left_out(make_source, tmp_path):
  boxes = [[1, 1, 5, 20], [1, 1, 20, 5.1], [1, 1, 3, 3], [np.nan, 1, 50, 50], [1, 1, 9, 40]]
  source = make_source(tmp_path / "a", [1] * 5, is_video=False, boxes_xywh=boxes)
  settings = sampling.SamplingSettings(min_image_side=10.0)
  np.testing.assert_array_equal(sampling.eligible_sequences(source, settings), [0, 1, 4])
  with pytest.raises(ValueError, match=r"at least min_image_side 90"):
    sampling.eligible_sequences(source, sampling.SamplingSettings(min_image_side=90.0))


def test_still_images_without_any_usable_box_are_named(make_source, tmp_path):
  source = make_source(tmp_path / "flat", [1], is_video=False, boxes_xywh=[[1, 1, 0, 0]])
  with pytest.raises(ValueError, match=r"flat.*positive width and height"):
    sampling.PairSampler([(source, 1.0)])


@pytest.mark.parametrize("is_video", [True, False])
def test_only_chosen_sequences_take_part(make_source, tmp_path, is_video):
  chosen = ["s2", "s0"]
  source = make_source(tmp_path / "a", [20] * 4, is_video=is_video, sequences=chosen)
  sampler = sampling.PairSampler([(source, 1.0)])
  rng = np.random.default_rng(0)
  assert {sampler.draw(rng).sequence for _ in range(50)} == {0, 2}


def test_a_long_index_is_not_copied(make_source, tmp_path):
  # 2 million frames: their cumulative sum alone would be 16 MB.
  source = make_source(tmp_path / "a", [20_000] * 100)
  assert source.index.visible.shape == (2_000_000,)
  tracemalloc.start()
  sampling.PairSampler([(source, 1.0)])
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 200_000


def test_a_sampler_travels_to_a_worker_without_its_index(make_source, tmp_path):
  source = make_source(tmp_path / "a", [500] * 20)
  sampler = sampling.PairSampler([(source, 1.0)])
  sent = pickle.dumps(sampler)
  assert len(sent) < 3000
  draws = [
    sampler.draw(np.random.default_rng(3)),
    pickle.loads(sent).draw(np.random.default_rng(3)),
  ]
  assert draws[0][1:] == draws[1][1:]


def test_a_source_without_an_eligible_sequence_is_named(make_source, tmp_path):
  source = make_source(tmp_path / "short", [5])
  with pytest.raises(ValueError, match=r"short.*20 frames"):
    sampling.PairSampler([(source, 1.0)])


@pytest.mark.parametrize(
  "wrong", [{"max_gap": 1}, {"gap_step": 0}, {"min_visible_over": 0}], ids=lambda w: next(iter(w))
)
def test_settings_that_could_search_for_ever_are_refused(wrong):
  with pytest.raises(ValueError, match=next(iter(wrong))):
    sampling.SamplingSettings(**wrong)


@pytest.mark.parametrize("weights", [[], [0.0], [-1.0], [float("nan")]])
def test_senseless_weights_are_refused(make_source, tmp_path, weights):
  source = make_source(tmp_path / "a", [30])
  with pytest.raises(ValueError, match="weights"):
    sampling.PairSampler([(source, weight) for weight in weights])


def test_the_previous_visible_frame_is_the_last_one_before(make_source, tmp_path):
  visible = np.ones(30, bool)
  visible[7:10] = False
  source = make_source(tmp_path / "a", [30], visible)
  sampler = sampling.PairSampler([(source, 1.0)])
  for search, expected in ((10, 6), (12, 11), (3, 2)):
    draw = sampling.PairDraw(source, 0, 2, search)
    assert sampler.previous_visible(draw) == expected
