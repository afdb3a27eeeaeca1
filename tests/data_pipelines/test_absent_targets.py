"""Pairs whose search region shows another target: how many, of what, and nothing changed without them."""

import dataclasses

import numpy as np
import pytest

from data_pipelines import augmentation as augmentation_lib
from data_pipelines import pair_transform, pipeline, preview, sampling, sources
from ostrack_jax import visualization


@pytest.fixture
def absent(settings):
  """The settings with targets absent in half of the pairs."""
  half = dataclasses.replace(settings.sampling, absent_probability=0.5)
  return dataclasses.replace(settings, sampling=half)


def sequence_of(source, positions):
  """Return the numbers of the tracks that own positions."""
  return np.searchsorted(source.index.starts, positions, side="right") - 1


def together(batches):
  """Return the batches as one."""
  return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def test_without_them_a_pair_is_what_the_sampler_and_make_pair_give(source, settings):
  transform = pair_transform.PairTransform([(source, 1.0)], settings)
  sampler = sampling.PairSampler([(source, 1.0)], settings.sampling)
  for seed in range(3):
    got = transform.random_map(0, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    draw = sampler.draw(rng)
    frames = ((source.stored_frame(p), source.index.boxes_xywh[p]) for p in draw[2:])
    want = augmentation_lib.make_pair(rng, *next(frames), *next(frames), settings.augmentation)
    # No draw came to nothing, or this test would compare another one.
    assert want is not None and got["redraws"] == 0
    assert got.keys() == want.keys() | {"records", "redraws", "skipped"}
    for name, value in want.items():
      np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_the_search_regions_are_of_other_videos_in_that_share(source, take, absent, monkeypatch):
  cut = []

  def make_pair(rng, template, template_box_xywh, search, search_box_xywh, *rest):
    pair = augmentation_lib.make_pair(
      rng, template, template_box_xywh, search, search_box_xywh, *rest
    )
    if pair is not None:
      cut.append((template_box_xywh, search_box_xywh))
    return pair

  monkeypatch.setattr(pair_transform, "make_pair", make_pair)
  batch = together(take(source, 100, absent))
  present, (number, template, search) = batch["present"], batch["records"].T
  assert present.dtype == bool and (number == 0).all()
  # 400 draws: five deviations are 0.125.
  assert abs(present.mean() - 0.5) < 0.125
  np.testing.assert_array_equal(
    present, sequence_of(source, template) == sequence_of(source, search)
  )
  assert (template < search)[present].all()
  assert source.index.visible[search].all() and len(set(sequence_of(source, search))) == 4
  boxes_xywh = source.index.boxes_xywh
  np.testing.assert_array_equal(
    np.array(cut), np.stack([boxes_xywh[template], boxes_xywh[search]], axis=1)
  )


def test_they_are_the_same_for_threads_workers_and_hosts(source, take, absent):
  whole = take(source, 3, absent)
  assert not together(whole)["present"].all()
  hosts = [
    take(source, 3, absent, batch_size=2, shard_index=0, shard_count=2, num_workers=1),
    take(source, 3, absent, batch_size=2, shard_index=1, shard_count=2, num_threads=2),
  ]
  for step, batch in enumerate(whole):
    both = together([host[step] for host in hosts])
    assert both.keys() == batch.keys()
    for name, value in batch.items():
      np.testing.assert_array_equal(both[name], value, err_msg=name)


def test_validation_has_none(source, settings, absent):
  options = {"count": 16, "batch_size": 16, "seed": 1}
  (got,), (want,) = (
    pipeline.validation_pairs([(source, 1.0)], chosen, **options) for chosen in (absent, settings)
  )
  assert got.keys() == want.keys() and "present" not in got
  for name, value in want.items():
    np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_the_search_centre_of_the_previous_box_is_that_of_the_other_video(source, absent, take):
  there = dataclasses.replace(absent.augmentation, search_centre_from="previous_box")
  batch = together(take(source, 20, dataclasses.replace(absent, augmentation=there)))
  centres = batch["search_box_xywh"][:, :2] + batch["search_box_xywh"][:, 2:] / 2
  # A target moves little between two frames, and another video's is anywhere.
  assert np.abs(centres[~batch["present"]] - 0.5).max() < 0.2


def test_no_other_target_of_the_same_video_is_taken(make_source, tmp_path):
  source = make_source(tmp_path, [30, 30, 30, 30])
  # Two targets in each of two videos.
  records = np.concatenate([np.arange(30), np.arange(30), 30 + np.arange(30), 30 + np.arange(30)])
  np.save(sources.index_path(tmp_path, "train") / "records.npy", records)
  settings = sampling.SamplingSettings(absent_probability=0.5)
  sampler = sampling.PairSampler([(source, 1.0)], settings)
  rng, seen = np.random.default_rng(0), set()
  for _ in range(200):
    draw = sampler.draw(rng)
    seen.add((draw.sequence, sampler.draw_elsewhere(rng, draw).sequence))
  assert seen == {(a, b) for a in range(4) for b in range(4) if a // 2 != b // 2}


def test_nothing_of_the_same_video_is_pasted_where_its_target_is_absent(
  make_source, tmp_path, absent, monkeypatch
):
  source = make_source(tmp_path, [30, 30, 30, 30])
  # Two targets in each of two videos.
  records = np.concatenate([np.arange(30), np.arange(30), 30 + np.arange(30), 30 + np.arange(30)])
  np.save(sources.index_path(tmp_path, "train") / "records.npy", records)
  transform = pair_transform.PairTransform([(source, 1.0)], absent)
  monkeypatch.setattr(source, "stored_frame", lambda position: position)
  draws = [sampling.PairDraw(source, n, 30 * n, 30 * n + 1) for n in range(4)]

  def pasted(other, absent):
    monkeypatch.setattr(transform._sampler, "draw", lambda rng: draws[other])
    found = transform._distractor(np.random.default_rng(0), draws[0], absent=absent)
    return found is not None

  assert [pasted(other, False) for other in range(4)] == [False, True, True, True]
  assert [pasted(other, True) for other in range(4)] == [False, False, True, True]


def test_empty_tracks_do_not_shift_the_footage_of_others(make_source, tmp_path):
  source = make_source(tmp_path, [0, 3, 0, 2, 0])
  assert sampling.footage_of_tracks(source).tolist() == [-1, 2, -1, 4, -1]


def test_the_only_video_of_a_data_set_keeps_its_target(source, absent):
  alone = sources.FrameSource(source.directory, sequences=[str(source.index.names[2])])
  batches = pipeline.train_pipeline(
    [(alone, 1.0), (source, 1.0)], absent, batch_size=64, seed=0, num_threads=0
  )
  batch = next(batches)
  of_alone = batch["records"][:, 0] == 0
  assert of_alone.any() and batch["present"][of_alone].all()
  assert not batch["present"][~of_alone].all()


def test_a_mixture_of_single_videos_is_refused(source, absent):
  alone = sources.FrameSource(source.directory, sequences=[str(source.index.names[2])])
  for mixture in ([(alone, 1.0)], [(alone, 1.0), (source, 0.0)]):
    with pytest.raises(ValueError, match=r"absent_probability 0.5: .* has only one; add a data"):
      pipeline.train_pipeline(mixture, absent, batch_size=2, seed=0)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_a_bad_probability_is_refused_in_a_sentence(value):
  with pytest.raises(
    ValueError, match=f"absent_probability {value}: it must be at least 0 and less"
  ):
    sampling.SamplingSettings(absent_probability=value)


def test_the_template_s_own_target_is_not_pasted_in(source, take, absent, monkeypatch):
  pasted = []

  def make_pair(*arguments):
    pasted.append((arguments[2], arguments[-1]))
    return augmentation_lib.make_pair(*arguments)

  monkeypatch.setattr(pair_transform, "make_pair", make_pair)
  always = dataclasses.replace(absent.augmentation, distractor_probability=1.0)
  take(source, 10, dataclasses.replace(absent, augmentation=always))
  boxes_xywh = source.index.boxes_xywh

  def sequences(box_xywh):
    return set(sequence_of(source, np.flatnonzero((boxes_xywh == box_xywh).all(axis=1))))

  assert any(distractor is not None for _, distractor in pasted)
  for template_box_xywh, distractor in pasted:
    if distractor is not None:
      assert not sequences(template_box_xywh) & sequences(distractor.box_xywh)


def test_the_preview_names_them_and_draws_no_box(source, settings):
  pairs = preview.sample_pairs([(source, 1.0)], settings.augmentation, 8, 0, 0.5)
  assert {pair.present for pair in pairs} == {True, False}
  for pair in pairs:
    assert pair.words[1].startswith("absent") != pair.present
    tile = preview.draw_pair(pair)[:64, -64:]
    boxed = visualization.draw_box(pair.search, pair.search_box_xywh)
    np.testing.assert_array_equal(tile, boxed if pair.present else pair.search)
    assert not np.array_equal(boxed, pair.search)
