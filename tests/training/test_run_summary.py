"""What is told of a run before it starts."""

import dataclasses

import jax
import pytest

from ostrack_jax import sharding
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.training import compiled_steps, loop, run_summary
from ostrack_jax.training.optimizer import OptimizerSettings
from ostrack_jax.training.state import init_variables


@pytest.fixture(scope="module")
def vit_b():
  return jax.eval_shape(lambda: init_variables(OSTrack(), 0))


def test_parameters_by_part(vit_b):
  counts = run_summary.count_parameters(vit_b["params"])
  assert counts == {
    "patch embedding": 590_592,
    "position tables": (64 + 256) * 768,
    "blocks": 12 * 7_087_872,
    "norm": 1536,
    "head": 6_474_117,
  }
  with pytest.raises(ValueError, match="neck/scale belongs to no part"):
    run_summary.count_parameters({"neck": {"scale": vit_b["params"]["backbone"]["pos_embed_x"]}})


def test_memory_while_nothing_is_eliminated_is_what_the_authors_report(vit_b):
  # About 13 GB a GPU for 256 pixels at batch 32 in float32, say the authors.
  model = OSTrack(keep_ratios=(1.0, 1.0, 1.0))
  memory = run_summary.expected_memory(model, vit_b, 32)
  assert memory.total / 2**30 == pytest.approx(13, rel=0.15)
  assert memory.adam == 2 * memory.gradients == 8 * 92_366_469
  assert memory.ema == 0
  assert run_summary.expected_memory(model, vit_b, 1, ema=True).ema == memory.parameters


def test_activations_shrink_with_elimination_and_grow_with_the_batch():
  fields = dict(variant="custom", width=16, depth=2, num_heads=1, template_size=16)
  fields |= dict(search_size=64, head_channels=8, elimination_layers=(0,))
  small, large = (OSTrack(**fields, keep_ratios=(ratio,)) for ratio in (0.5, 1.0))
  variables = jax.eval_shape(lambda: init_variables(small, 0))
  count = run_summary.activation_bytes
  assert count(small, variables, 4) < count(large, variables, 4)
  assert count(small, variables, 8) == pytest.approx(2 * count(small, variables, 4), rel=0.01)
  assert count(large.clone(rematerialise=True), variables, 4) < count(large, variables, 4)


def test_table_tells_totals_and_stages(vit_b):
  text = run_summary.model_table(OSTrack(), vit_b["params"])
  assert "92,366,469" in text
  assert "22.640 GMACs, 45.28 GFLOPs; 30.912 GMACs while nothing is eliminated" in text
  assert "search tokens 256 -> 180 -> 126 -> 89" in text


def test_time_is_a_bound_where_the_peak_is_known():
  assert "at least 2.0 h at the devices' peak" in run_summary.time_line(7.2e18, 5e14, 2)
  assert run_summary.time_line(7.2e18, None, 2).endswith("time: told after the first steps")


def test_schedule_is_the_one_that_runs():
  model = OSTrack()
  settings = loop.LoopSettings()
  counts = run_summary.counts_by_epoch(model, 300, 20, 80)
  steps = compiled_steps.CompiledSteps(model, lambda m: lambda: None, settings)
  assert counts == [steps.keep_counts(epoch) for epoch in range(1, 301)]
  assert counts[18] == (256, 256, 256) and counts[99] == (180, 126, 89)
  assert run_summary.largest_model(model, counts).keep_ratios == (1.0, 1.0, 1.0)
  assert run_summary.largest_model(model, counts[99:]) == model
  final = run_summary.run_flops(model, counts[99:], 10)
  assert final == pytest.approx(201 * 10 * 6 * 22.640e9, rel=1e-3)
  assert run_summary.run_flops(model, counts[:1], 10) > 1.3 * final / 201


@pytest.mark.parametrize(
  ("seconds", "words"), [(45, "45 s"), (720, "12 min"), (12_240, "3.4 h"), (181_440, "2.1 days")]
)
def test_durations_in_words(seconds, words):
  assert run_summary.duration(seconds) == words


def test_learning_rate_tells_the_rule():
  official = OptimizerSettings()
  assert run_summary.learning_rate_line(official, 32).startswith(
    "learning rate 0.0001, backbone 1e-05 (0.0004 at batch 128, linear rule); times 0.1 after epoch 240"
  )
  as_configured = dataclasses.replace(official, reference_batch=0)
  assert "learning rate 0.0004, backbone 4e-05 (optim.reference_batch is 0" in (
    run_summary.learning_rate_line(as_configured, 32)
  )


def test_summary_holds_every_part(vit_b):
  settings = loop.LoopSettings(batch_size=64, ema_decay=0.999)
  mesh = sharding.make_mesh(jax.devices()[:2])
  text = run_summary.summarise(OSTrack(), vit_b, settings, OptimizerSettings(), mesh)
  for words in (
    "2 x cpu, 1 process(es); float32",
    "92,366,469",
    "22.640 GMACs",
    "EMA 0.34 GiB",
    "of 32 pairs",
    "300 epochs of 937 steps of 64 pairs: 281,100 steps, 17,990,400 pairs",
    "time: told after the first steps",
    "learning rate 0.0002",
  ):
    assert words in text, words
