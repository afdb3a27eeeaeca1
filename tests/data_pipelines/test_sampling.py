"""Pair sampling against the official rule, and the mixture against its weights."""

import json

import numpy as np
import pytest

from data_pipelines import sampling, sources


def make_source(folder, lengths, visible=None, is_video=True):
  """A source of which only the index exists: sampling reads no frame."""
  folder.mkdir()
  starts = np.concatenate([[0], np.cumsum(lengths)])
  visible = np.ones(starts[-1], bool) if visible is None else np.asarray(visible)
  names = tuple(f"s{i}" for i in range(len(lengths)))
  index = sources.SequenceIndex(names, starts, np.ones((starts[-1], 4), np.float32), visible)
  index.save(sources.index_path(folder, "train"))
  (folder / sources.MANIFEST).write_text(json.dumps({"splits": {"train": {}}}))
  return sources.FrameSource(folder, is_video=is_video)


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


def test_a_still_image_is_its_own_search_frame():
  assert sampling.sample_pair(np.random.default_rng(0), np.ones(1, bool), is_video=False) == (0, 0)


def test_one_visible_frame_is_refused():
  with pytest.raises(ValueError, match="1 of 3"):
    sampling.sample_pair(np.random.default_rng(0), np.array([False, True, False]))


def test_data_sets_are_drawn_by_weight_and_sequences_alike(tmp_path):
  a = make_source(tmp_path / "a", [20, 200, 30])
  b = make_source(tmp_path / "b", [25])
  sampler = sampling.PairSampler([(a, 3.0), (b, 1.0)])
  rng = np.random.default_rng(0)
  drawn = [sampler.draw(rng) for _ in range(4000)]
  of_a = [template for source, template, _ in drawn if source is a]
  # Binomial(4000, .75): deviation 27; 3 sequences alike within a: deviation 26 of 1000.
  assert abs(len(of_a) - 3000) < 110
  counts = np.histogram(of_a, bins=[0, 20, 220, 250])[0]
  np.testing.assert_allclose(counts, len(of_a) / 3, atol=110)


def test_both_frames_belong_to_one_sequence(tmp_path):
  source = make_source(tmp_path / "a", [20, 40, 60])
  sampler = sampling.PairSampler([(source, 1.0)])
  rng = np.random.default_rng(0)
  for _ in range(300):
    _, template, search = sampler.draw(rng)
    assert np.searchsorted([20, 60], template, "right") == np.searchsorted(
      [20, 60], search, "right"
    )
    assert template < search


def test_short_and_hidden_sequences_do_not_take_part(tmp_path):
  visible = np.ones(19 + 30 + 30, bool)
  visible[19 + 4 : 49] = False  # the second keeps 4 visible frames, one too few
  source = make_source(tmp_path / "a", [19, 30, 30], visible)
  np.testing.assert_array_equal(
    sampling.eligible_sequences(source, sampling.SamplingSettings()), [2]
  )
  relaxed = sampling.SamplingSettings(min_length=19, min_visible_over=3)
  np.testing.assert_array_equal(sampling.eligible_sequences(source, relaxed), [0, 1, 2])


def test_still_images_all_take_part(tmp_path):
  source = make_source(tmp_path / "a", [1, 1], is_video=False)
  sampler = sampling.PairSampler([(source, 1.0)])
  assert {sampler.draw(np.random.default_rng(i))[1:] for i in range(20)} == {(0, 0), (1, 1)}


def test_a_source_without_an_eligible_sequence_is_named(tmp_path):
  source = make_source(tmp_path / "short", [5])
  with pytest.raises(ValueError, match=r"short.*20 frames"):
    sampling.PairSampler([(source, 1.0)])


@pytest.mark.parametrize("weights", [[], [0.0], [-1.0]])
def test_senseless_weights_are_refused(tmp_path, weights):
  source = make_source(tmp_path / "a", [30])
  with pytest.raises(ValueError, match="weights"):
    sampling.PairSampler([(source, weight) for weight in weights])


def test_the_previous_visible_frame_is_the_last_one_before(tmp_path):
  visible = np.ones(30, bool)
  visible[7:10] = False
  source = make_source(tmp_path / "a", [30], visible)
  sampler = sampling.PairSampler([(source, 1.0)])
  assert sampler.previous_visible(source, 2, 10) == 6
  assert sampler.previous_visible(source, 2, 12) == 11
  assert sampler.previous_visible(source, 2, 3) == 2
