"""Context regions hold what jittered crops can show, and no more than pays."""

import dataclasses
import math

import numpy as np
import pytest

from configs import ostrack_256, ostrack_384
from data_pipelines import context
from data_pipelines.augmentation import AugmentationSettings, jitter_box
from ostrack_jax import crop


@pytest.mark.parametrize(("size", "config"), [(256, ostrack_256), (384, ostrack_384)])
def test_presets_are_made_for_the_official_configurations(size, config):
  values = config.get_config()
  made_for = context.PRESETS[size].augmentation()
  for group, names in (
    ("model", ("template_size", "search_size")),
    ("tracker", ("template_factor", "search_factor")),
    ("augmentation", values.augmentation.keys()),
  ):
    for name in names:
      assert getattr(made_for, name) == values[group][name], name


@pytest.mark.parametrize("size", [256, 384])
def test_no_jitter_of_a_hundred_thousand_leaves_the_region(size):
  settings = context.PRESETS[size]
  share = AugmentationSettings().max_missing_share
  box = np.array([50_000.0, 50_000.0, 40.0, 90.0])  # far from any border
  region = context.plan_region(box, (10**5, 10**5), settings)
  rng = np.random.default_rng(0)
  left, top, right, bottom = region.xyxy
  worst = 0.0
  for _ in range(100_000):
    around = jitter_box(rng, box, settings.search_centre_jitter, settings.search_scale_jitter)
    window = crop.crop_window(around, settings.search_factor)
    x = min(window.x1 + window.side, right) - max(window.x1, left)
    y = min(window.y1 + window.side, bottom) - max(window.y1, top)
    worst = max(worst, 1 - x * y / window.side**2)
  assert worst <= share


def test_reach_and_resolution_by_hand():
  settings = context.PRESETS[256]
  assert settings.reach == pytest.approx(3.5 * math.exp(0.75))
  assert settings.resolution == pytest.approx(64 * math.exp(3.5 * 0.25 / 2**0.5))
  region = context.plan_region([[1000, 1000, 20, 20]], (4000, 3000), settings)
  reach = math.ceil(3.5 * math.exp(0.75) * 20 + 2)
  assert region.xyxy == (1010 - reach, 1010 - reach, 1010 + reach, 1010 + reach)
  assert region.stored_wh == (2 * reach, 2 * reach)


def test_large_targets_are_shrunk_and_cut_at_the_border():
  region = context.plan_region([[400, 300, 400, 400]], (1280, 720), context.PRESETS[256])
  assert region.xyxy == (0, 0, 1280, 720)
  scale = 64 * math.exp(3.5 * 0.25 / 2**0.5) / 400
  assert region.stored_wh == (math.ceil(1280 * scale), math.ceil(720 * scale))


def test_a_frame_that_would_hardly_get_smaller_stays_whole():
  region = context.plan_region([[100, 100, 120, 140]], (640, 480), context.PRESETS[256])
  assert region == context.Region((0, 0, 640, 480), (640, 480))


def test_several_targets_share_a_region_that_serves_the_smallest():
  small, large = [100, 100, 20, 20], [900, 500, 400, 400]
  both = context.plan_region([small, large], (4000, 3000), context.PRESETS[256])
  alone = context.plan_region([large], (4000, 3000), context.PRESETS[256])
  assert both.xyxy[2:] == alone.xyxy[2:] and both.xyxy[:2] == (0, 0)
  assert both.stored_wh == (both.xyxy[2], both.xyxy[3])


def test_a_target_far_outside_has_no_region():
  assert context.plan_region([[5000, 0, 10, 10]], (640, 480), context.PRESETS[256]) is None


def test_what_an_augmentation_lacks_is_named():
  settings = context.PRESETS[256]
  assert settings.shortcomings(AugmentationSettings()) == []
  smaller = AugmentationSettings(search_size=128, template_size=64, search_centre_jitter=1.0)
  assert settings.shortcomings(smaller) == []
  wider = dataclasses.replace(AugmentationSettings(), search_factor=5.0)
  (lacking,) = settings.shortcomings(wider)
  assert "crops reach 8.47 box sides" in lacking
  # A smaller factor shows the target larger than it is stored.
  for closer in ({"search_factor": 2.0}, {"template_factor": 1.0}, {"search_size": 384}):
    (lacking,) = settings.shortcomings(dataclasses.replace(AugmentationSettings(), **closer))
    assert "are stored: the size is larger or the factor smaller" in lacking
  assert context.PRESETS[384].shortcomings(AugmentationSettings()) == []
