"""The pipeline is a function of its seed: not of threads, workers, restarts or other hosts."""

import dataclasses
import json
import threading

import cv2
import numpy as np
import pytest

from data_pipelines import augmentation as augmentation_lib
from data_pipelines import pair_transform, pipeline, sources
from data_pipelines.sources import FrameSource
from ostrack_jax import boxes

# In this process, in threads, in worker processes.
WAYS = [{"num_threads": 0}, {"num_threads": 2}, {"num_workers": 2}]


@pytest.fixture
def validate(settings):
  """A function that gives all validation batches: (source, settings=settings, **options)."""

  def run(source, settings=settings, **options):
    options = {"count": 16, "batch_size": 4, "seed": 1} | options
    return list(pipeline.validation_pairs([(source, 1.0)], settings, **options))

  return run


def assert_equal(first, second):
  assert len(first) == len(second)
  for a, b in zip(first, second):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def pair_keys(batches):
  """What tells pairs apart, without an order."""
  return {
    (template.tobytes(), search.tobytes(), box.tobytes())
    for batch in batches
    for template, search, box in zip(batch["template"], batch["search"], batch["search_box_xywh"])
  }


def test_a_batch_has_the_agreed_entries(source, take):
  (batch,) = take(source, 1)
  described = {name: (value.shape, value.dtype.name) for name, value in batch.items()}
  assert described == {
    "template": ((4, 32, 32, 3), "uint8"),
    "search": ((4, 64, 64, 3), "uint8"),
    "grey": ((4,), "bool"),
    "template_flip": ((4,), "bool"),
    "search_flip": ((4,), "bool"),
    "template_brightness": ((4,), "float32"),
    "search_brightness": ((4,), "float32"),
    "template_box_xywh": ((4, 4), "float32"),
    "search_box_xywh": ((4, 4), "float32"),
    "records": ((4, 3), "int64"),
  }
  # Half a pixel by the label's centre.
  centres = batch["template_box_xywh"][:, :2] + batch["template_box_xywh"][:, 2:] / 2
  np.testing.assert_allclose(centres, 0.5, atol=0.5 / 32 + 1e-6)


def test_records_say_which_frames_a_pair_shows(source, settings):
  iterator = pipeline.train_pipeline(
    [(FrameSource(source.directory), 0.0), (source, 1.0)],
    settings,
    batch_size=4,
    seed=0,
    num_threads=0,
  )
  records = next(iterator)["records"]
  assert (records[:, 0] == 1).all() and (records[:, 1] < records[:, 2]).all()
  _, template, search = records[0]
  assert iterator.describe(records[0]) == (
    f"template {source.describe(template)}, search region {source.describe(search)}"
  )


def test_the_seed_decides(source, take):
  assert_equal(take(source, 2), take(source, 2))
  assert not np.array_equal(take(source, 1)[0]["search"], take(source, 1, seed=8)[0]["search"])


def test_threads_do_not_change_the_data(source, take):
  assert_equal(take(source, 5), take(source, 5, num_threads=3))


VARIED = {
  "rotation_degrees": 20.0,
  "aspect_jitter": 0.2,
  "colour_jitter": 0.3,
  "blur_probability": 0.5,
  "distractor_probability": 0.5,
}


@pytest.fixture
def varied(settings):
  """The settings with all variations that the official code does not know."""
  augmentation = dataclasses.replace(settings.augmentation, **VARIED)
  return dataclasses.replace(settings, augmentation=augmentation)


def test_variations_are_repeatable_and_leave_validation_alone(
  source, take, validate, settings, varied
):
  assert_equal(take(source, 3, varied), take(source, 3, varied, num_threads=2))
  assert_equal(list(validate(source, varied)), list(validate(source, settings)))


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_distractors_come_from_other_sequences(source, take, settings, probability, monkeypatch):
  augmentation = dataclasses.replace(settings.augmentation, distractor_probability=probability)
  boxes = source.index.boxes_xywh
  pasted = []

  def make_pair(rng, template, template_box_xywh, *rest):
    distractor = rest[-1]
    if distractor is not None:
      sequences = [
        np.searchsorted(source.index.starts, np.flatnonzero((boxes == box).all(axis=1)), "right")
        for box in (template_box_xywh, distractor.box_xywh)
      ]
      assert not np.intersect1d(*sequences).size
    pasted.append(distractor is not None)
    return augmentation_lib.make_pair(rng, template, template_box_xywh, *rest)

  monkeypatch.setattr(pair_transform, "make_pair", make_pair)
  take(source, 20, dataclasses.replace(settings, augmentation=augmentation))
  # One draw in four meets the pair's own sequence.
  assert np.mean(pasted) == pytest.approx(0.75 * probability, abs=0.12)


def test_the_data_path_uses_one_opencv_thread(source, take):
  cv2.setNumThreads(2)
  take(source, 1)
  assert cv2.getNumThreads() == 1


def test_a_still_image_serves_twice_and_is_decoded_once(copy, monkeypatch, take, settings):
  manifest = json.loads((copy / sources.MANIFEST).read_text())
  (copy / sources.MANIFEST).write_text(json.dumps(manifest | {"is_video": False}))
  still = FrameSource(copy)
  asked = []
  stored_frame = still.stored_frame
  monkeypatch.setattr(still, "stored_frame", lambda at: asked.append(at) or stored_frame(at))
  plain = dataclasses.replace(
    settings.augmentation, search_centre_jitter=0.0, search_scale_jitter=0.0, search_factor=2.0
  )
  plain = dataclasses.replace(plain, template_size=64)
  (batch,) = take(still, 1, dataclasses.replace(settings, augmentation=plain))
  np.testing.assert_array_equal(batch["template"], batch["search"])
  assert len(asked) == 4 and set(asked) <= {0, 24, 48, 72}


@pytest.mark.parametrize("options", WAYS)
def test_going_on_from_a_state_equals_going_straight_through(source, options, take, start):
  straight = take(source, 5)
  iterator = start(source, **options)
  for _ in range(3):
    next(iterator)
  state = iterator.get_state()
  iterator.close()
  other = start(source)
  next(other)
  other.set_state(state)
  assert_equal([next(other), next(other)], straight[3:])
  assert state == {"step": 3}


def test_a_start_step_skips_that_many_batches(source, take):
  assert_equal(take(source, 2, start_step=2), take(source, 4)[2:])


def test_hosts_share_the_pairs_and_not_the_random_numbers(source, take):
  whole = np.concatenate([b["search"] for b in take(source, 4)])
  first = np.concatenate([b["search"] for b in take(source, 2, shard_index=0, shard_count=2)])
  second = np.concatenate([b["search"] for b in take(source, 2, shard_index=1, shard_count=2)])
  # Each step's first four pairs, and its other four.
  steps = whole.reshape(2, 2, 4, *whole.shape[1:])
  np.testing.assert_array_equal(first, steps[:, 0].reshape(first.shape))
  np.testing.assert_array_equal(second, steps[:, 1].reshape(second.shape))
  assert not any(np.array_equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("hosts", [2, 4])
def test_a_step_takes_the_same_pairs_on_any_number_of_hosts_and_from_any_state(source, hosts, take):
  one_host = take(source, 4, batch_size=8)
  # The first two steps on one host, the others on several, from its state.
  parts = [
    take(
      source,
      2,
      batch_size=8 // hosts,
      shard_index=host,
      shard_count=hosts,
      start_step=2,
      **WAYS[host % 2],
    )
    for host in range(hosts)
  ]
  for step in (0, 1):
    together = [part[step] for part in parts]
    assert sum(len(batch["search"]) for batch in together) == 8
    assert pair_keys(together) == pair_keys([one_host[2 + step]])
    assert len(pair_keys(together)) == 8


def test_validation_pairs_are_finite_repeatable_and_plain(source, take, validate):
  batches = validate(source, count=8)
  assert len(batches) == 2
  assert_equal(batches, validate(source, count=8, num_threads=0))
  assert all((b["search_brightness"] == 1).all() for b in batches)
  assert all((b["search_flip"] == b["template_flip"]).all() for b in batches)
  assert batches[0].keys() == take(source, 1)[0].keys() - {"records"}


@pytest.mark.parametrize("hosts", [2, 4])
def test_each_host_validates_its_part_of_the_same_pairs(source, hosts, validate):
  whole = validate(source, batch_size=8)
  parts = [
    validate(source, batch_size=8 // hosts, shard_index=host, shard_count=hosts)
    for host in range(hosts)
  ]
  for step in (0, 1):
    assert pair_keys([part[step] for part in parts]) == pair_keys([whole[step]])


def test_a_host_decodes_its_part_of_the_validation_only(source, monkeypatch, validate):
  asked = []
  stored_frame = source.stored_frame
  monkeypatch.setattr(source, "stored_frame", lambda at: asked.append(at) or stored_frame(at))
  validate(source, batch_size=2, shard_index=1, shard_count=2, num_threads=0)
  assert len(asked) == 16


def test_validation_reads_ahead_in_threads_and_ends_them(source, monkeypatch, settings):
  seen = set()
  stored_frame = source.stored_frame

  def watch(position):
    seen.add(threading.current_thread())
    return stored_frame(position)

  monkeypatch.setattr(source, "stored_frame", watch)
  batches = pipeline.validation_pairs(
    [(source, 1.0)], settings, count=64, batch_size=4, seed=1, num_threads=2
  )
  next(batches)
  batches.close()
  assert seen and threading.main_thread() not in seen
  for thread in seen:
    thread.join(timeout=10)
  assert not any(thread.is_alive() for thread in seen)


def test_validation_can_cut_at_the_previous_true_box(source, validate, settings):
  augmentation = dataclasses.replace(settings.augmentation, search_centre_from="previous_box")
  settings = dataclasses.replace(settings, augmentation=augmentation)
  (batch,) = validate(source, settings, count=32, batch_size=32)
  corners = boxes.xywh_to_xyxy(batch["search_box_xywh"])
  # The target moved by less than half its side, a quarter of which is the crop's side.
  assert (np.abs((corners[:, :2] + corners[:, 2:]) / 2 - 0.5) < 0.2).all()
  assert np.abs((corners[:, :2] + corners[:, 2:]) / 2 - 0.5).max() > 0.02


@pytest.mark.parametrize("wrong", [{"count": 10}, {"count": 12, "shard_count": 2}])
def test_a_count_that_leaves_a_rest_is_refused(source, wrong, validate):
  with pytest.raises(ValueError, match=f"count {wrong['count']}"):
    validate(source, **wrong)


def test_a_shard_out_of_range_is_refused(source, take):
  with pytest.raises(ValueError, match="shard 2 of 2"):
    take(source, 1, shard_index=2, shard_count=2)


def test_an_unknown_way_with_bad_records_is_refused():
  with pytest.raises(ValueError, match="'ignore': it must be 'stop' or 'skip'"):
    pipeline.PipelineSettings(on_bad_record="ignore")
