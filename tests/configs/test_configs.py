"""Configurations hold the official values and refuse what they do not know."""

import importlib

import pytest

from benchmarks import ablation_runs
from ostrack_jax.configuration import build_model
from ostrack_jax.training.loop import LoopSettings
from ostrack_jax.training.losses import LossWeights
from ostrack_jax.training.optimizer import OptimizerSettings

OFFICIAL = ("ostrack_256", "ostrack_384", "ostrack_256_got10k", "ostrack_384_got10k")


def _config(name, arg=""):
  return importlib.import_module(f"configs.{name}").get_config(arg)


@pytest.mark.parametrize("arg", ["", "no_ce"])
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_values(name, arg):
  config = _config(name, arg)
  large, got10k = "384" in name, "got10k" in name
  assert (config.model.template_size, config.model.search_size) == (
    (192, 384) if large else (128, 256)
  )
  assert config.model.variant == "b"
  assert config.model.head_channels == 256
  assert config.model.drop_path_rate == 0.1
  assert config.model.template_tokens == "centre_point"
  stages = ((), ()) if arg else ((3, 6, 9), (0.7, 0.7, 0.7))
  assert (config.model.elimination_layers, config.model.keep_ratios) == stages
  assert (config.tracker.template_factor, config.tracker.search_factor) == (
    2.0,
    5.0 if large else 4.0,
  )
  jitter = config.augmentation.search_centre_jitter, config.augmentation.search_scale_jitter
  assert jitter == ((4.5, 0.5) if large else (3.0, 0.25))
  assert (
    config.augmentation.template_centre_jitter == config.augmentation.template_scale_jitter == 0
  )
  assert config.sampling.max_gap == 200
  assert (config.train.epochs, config.optim.drop_epoch) == ((100, 80) if got10k else (300, 240))
  assert (config.train.elimination_start, config.train.elimination_warmup) == (
    20,
    50 if got10k else 80,
  )
  assert (config.train.batch_size, config.train.pairs_per_epoch, config.train.seed) == (
    128,
    60_000,
    42,
  )
  assert config.train.validate_every_epochs == 20
  assert (config.optim.learning_rate, config.optim.backbone_multiplier) == (4e-4, 0.1)
  assert (config.optim.weight_decay, config.optim.clip_norm) == (1e-4, 0.1)
  assert (config.loss.focal, config.loss.giou, config.loss.l1) == (1.0, 2.0, 5.0)
  assert len(config.data.train) == (1 if got10k else 4) == len(config.data.weights)


def test_starks_learning_rates_are_its_own():
  # github.com/researchmm/Stark, experiments/stark_s/baseline.yaml: 1e-4, and 1e-5 in the backbone.
  config = importlib.import_module("configs.stark_aligned").get_config()
  assert build_model(config).relation == "stark"
  changes = {f"optim.{key}": value for key, value in config.optim.items()}
  planned = ablation_runs.PLANNED["stark"].changes
  for optim in (changes, planned):
    assert optim["optim.learning_rate"] == pytest.approx(1e-4)
    backbone = optim["optim.learning_rate"] * optim["optim.backbone_multiplier"]
    assert backbone == pytest.approx(1e-5)


@pytest.mark.parametrize("arg", ["", "scratch", "pretrain", "no_ce", "scratch_no_ce"])
def test_tiny_kinds_build(arg):
  config = _config("tiny", arg)
  model = build_model(config)
  assert bool(model.elimination_layers) == ("no_ce" not in arg)
  assert (config.model.pretrained == "ostrack_tiny") == (arg in ("", "no_ce"))


@pytest.mark.parametrize(
  "arg", ["", "no_ce", "long", "long_no_ce", "absent", "absent_no_ce", "long_absent"]
)
def test_little_video_kinds_keep_the_schedule_in_shares_of_the_pairs(arg):
  config = _config("ostrack_s_256", arg)
  assert bool(build_model(config).elimination_layers) == ("no_ce" not in arg)
  assert config.sampling.absent_probability == (0.2 if "absent" in arg else 0)
  train = config.train
  assert train.pairs_per_epoch == 128 * (198 if "long" in arg else 66)
  assert (train.epochs, train.elimination_start, train.elimination_warmup) == (100, 10, 25)
  assert config.optim.drop_epoch == 80
  # Three times the steps at a third of the rate move the backbone as far.
  assert config.optim.backbone_multiplier == (0.01 if "long" in arg else 0.03)
  assert config.model.drop_path_rate == (0.2 if "long" in arg else 0.1)
  assert train.ema_decay == (0.9998 if "long" in arg else 0.999)
  # 2.5 times the 322,000 pairs of the official code in the same time, or more.
  assert train.epochs * train.pairs_per_epoch >= 805_000
  assert config.data.validation not in config.data.train
  for held_out in ("car-shadow", "libby", "book"):
    assert held_out in config.data.validation
  assert {"davis[!car-shadow,libby]", "vot[!book]"} < set(config.data.train)
  assert sum(config.data.weights) == pytest.approx(1)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_configurations_vary_nothing_more(name):
  augmentation = _config(name).augmentation
  for key in ("rotation_degrees", "aspect_jitter", "colour_jitter", "blur_probability"):
    assert augmentation[key] == 0
  sampling = _config(name).sampling
  assert augmentation.distractor_probability == sampling.min_image_side == 0
  assert sampling.absent_probability == 0


@pytest.mark.parametrize("arg", ["absent_long", "longabsent", "long_", "n"])
def test_little_video_names_its_kinds_where_one_is_unknown(arg):
  with pytest.raises(ValueError, match=f"'{arg}' is unknown; join some of long, absent, no_ce by"):
    _config("ostrack_s_256", arg)


@pytest.mark.parametrize("name", [*OFFICIAL, "ostrack_s_256", "tiny"])
def test_every_group_is_what_its_settings_take(name):
  config = _config(name)
  build_model(config)
  OptimizerSettings(**config.optim)
  LossWeights(**config.loss)
  LoopSettings(**config.train)


@pytest.mark.parametrize("name", [*OFFICIAL, "ostrack_s_256", "tiny"])
def test_unknown_argument_is_refused_in_words(name):
  with pytest.raises(ValueError, match="config argument 'fast' is unknown"):
    _config(name, "fast")
