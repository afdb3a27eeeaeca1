"""What is written to a staging's room is what the next call of a program reads."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ostrack_jax import Tracker
from ostrack_jax.tracking import staging, tracker


@pytest.mark.parametrize("is_pinned", [False, True])
def test_every_call_reads_what_lies_there_then(is_pinned):
  device = jax.devices()[0]
  place = staging.Staging((2, 3, 5), device, is_pinned)
  assert isinstance(place.given, jax.Array) == is_pinned
  traced = []

  @jax.jit
  def total(values):
    traced.append(jax.typeof(values).memory_space)
    return staging.on_device(values).sum(dtype=jnp.int32)

  assert total(place.given) == 0
  for values in np.random.default_rng(0).integers(0, 256, (4, 2, 3, 5), np.uint8):
    place.room[:] = values
    assert total(place.given) == values.sum()
  host, here = jax.memory.Space.Host, jax.memory.Space.Device
  assert traced == [host if is_pinned else here]


def test_a_tracker_finds_the_same_from_pinned_memory(make_checkpoint, make_frame, monkeypatch):
  checkpoint, images = make_checkpoint(), [make_frame(seed, 90, 120) for seed in range(5)]
  found = {}
  for is_pinned in (False, True):
    monkeypatch.setattr(tracker, "Staging", functools.partial(staging.Staging, is_pinned=is_pinned))
    one = Tracker(checkpoint)
    one.init(images[0], (40, 30, 20, 25))
    found[is_pinned] = [one.update(image).box_xywh for image in images[1:]]
  assert len(np.unique(found[True], axis=0)) == 4
  np.testing.assert_array_equal(found[True], found[False])


def test_trackers_of_one_model_do_not_share_a_crop(make_checkpoint):
  checkpoint = make_checkpoint()
  first, second = Tracker(checkpoint), Tracker(checkpoint)
  assert not np.shares_memory(first._staging.room, second._staging.room)


def test_a_view_keeps_the_memory_that_it_shows():
  place = staging.Staging((64, 1024), jax.devices()[0], is_pinned=True)
  given, view = weakref.ref(place.given), place.room[3:5]
  del place
  gc.collect()
  assert given() is not None
  view[:] = 7
  del view
  gc.collect()
  assert given() is None
