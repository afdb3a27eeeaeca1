"""A schedule of many keep counts needs few compiled steps."""

import types

import pytest

from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.training import targets
from ostrack_jax.training.compiled_steps import CompiledSteps
from ostrack_jax.training.loop import LoopSettings

SCHEDULE = LoopSettings()


def trace_steps(model, settings=SCHEDULE, **options):
  """Return CompiledSteps of a step that gives its counts back, and the keep ratios it was traced with."""
  traced = []

  def make_step(clone):
    def step(counts=None):
      traced.append(clone.keep_ratios)
      return 0 if counts is None else counts

    return step

  return CompiledSteps(model, make_step, settings, **options), traced


@pytest.mark.parametrize("search_size", [256, 384])
def test_300_epochs_need_at_most_8_compiled_steps_validation_included(search_size):
  model = OSTrack(search_size=search_size, template_size=search_size // 2)
  train, traced = trace_steps(model, buckets=SCHEDULE.elimination_buckets)
  validation, also_traced = trace_steps(model)
  given = set()
  for epoch in range(1, 301):
    counts = train.at_epoch(epoch)()
    given.add(train.keep_counts(epoch))
    if not isinstance(counts, int) and counts.ndim:
      assert tuple(counts.tolist()) == train.keep_counts(epoch)
    if epoch % SCHEDULE.validate_every_epochs == 0:
      validation.at_epoch(epoch)()
  assert len(given) >= 66
  assert len(traced) == train.compiled() == 5
  assert train.compiled() + validation.compiled() <= 8
  assert len(also_traced) == validation.compiled()


def test_every_epoch_has_the_official_counts():
  steps, _ = trace_steps(OSTrack(), buckets=3)
  # REFERENCE: search tokens after blocks 3, 6 and 9 by epoch.
  known = {
    25: (256, 256, 256),
    26: (255, 254, 253),
    40: (245, 235, 225),
    60: (218, 186, 159),
    80: (191, 143, 107),
    100: (180, 126, 89),
    300: (180, 126, 89),
  }
  assert {epoch: steps.keep_counts(epoch) for epoch in known} == known


def test_a_bucket_holds_what_its_epochs_keep_and_wastes_little():
  model = OSTrack()
  steps, traced = trace_steps(model, buckets=3)
  for epoch in range(20, 100):
    counts = steps.keep_counts(epoch)
    before = len(traced)
    steps.at_epoch(epoch)()
    if len(traced) > before:
      capacity = model.clone(keep_ratios=traced[-1]).stage_counts()
    ratio = targets.keep_ratio_at_epoch(epoch, final=0.7, start=20, warmup=80)
    assert all(kept <= held for kept, held in zip(counts, capacity))
    assert traced[-1][0] - ratio <= 0.1 + 1e-9


def test_outside_the_warm_up_nothing_is_masked():
  steps, traced = trace_steps(OSTrack(), buckets=3)
  assert int(steps.at_epoch(1)()) == int(steps.at_epoch(100)()) == 0
  assert traced == [(1.0,) * 3, (0.7,) * 3]


def test_a_model_without_elimination_has_one_step():
  model = OSTrack(elimination_layers=(), keep_ratios=())
  steps, traced = trace_steps(
    model, types.SimpleNamespace(elimination_start=2, elimination_warmup=9)
  )
  for epoch in (1, 5, 50):
    steps.at_epoch(epoch)()
  assert traced == [()]


def test_stages_of_different_ratios_go_their_own_way_inside_the_buckets():
  model = OSTrack(keep_ratios=(0.9, 0.7, 0.5))
  steps, traced = trace_steps(model, buckets=3)
  for epoch in range(1, 121):
    counts = steps.keep_counts(epoch)
    given = steps.at_epoch(epoch)()
    if not isinstance(given, int) and given.ndim:
      capacity = model.clone(keep_ratios=traced[-1]).stage_counts()
      assert tuple(given.tolist()) == counts
      assert all(kept <= held for kept, held in zip(counts, capacity))
  # Half way down the cosine every stage is half way: 0.95, 0.85, 0.75.
  assert steps.keep_counts(60) == model.stage_counts((0.95, 0.85, 0.75))
  assert steps.keep_counts(100) == model.stage_counts()
  assert steps.compiled() == 5
