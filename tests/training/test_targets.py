"""Score-map targets and the elimination schedule."""

import numpy as np
import pytest

from ostrack_jax.training import targets


@pytest.mark.parametrize(("size", "grid"), [(256, 16), (384, 24)])
def test_score_maps_equal_the_official_ones(size, grid, golden):
  expected = np.load(golden("score_map_targets.npz"))
  maps = targets.score_map_targets(expected["boxes_xywh_norm"], grid)
  np.testing.assert_allclose(maps, expected[f"maps_{size}"], rtol=1e-6, atol=1e-7)


def test_radius_is_cornernets_with_every_root_halved():
  quarter, small = [0.375, 0.375, 0.25, 0.25], [0.4, 0.4, 0.1875, 0.1875]
  maps = np.asarray(targets.score_map_targets(np.array([quarter, small]), 16))
  np.testing.assert_allclose(maps[0].sum(), 1.61460, rtol=1e-5)
  assert (maps[0] > 0).sum() == 9
  assert (maps[1] > 0).sum() == 1


def test_centre_is_rounded_half_to_even():
  boxes = np.array([[2.5 / 16, 3.5 / 16, 0, 0]])
  peak = np.argwhere(np.asarray(targets.score_map_targets(boxes, 16))[0] == 1)
  assert peak.tolist() == [[4, 2]]


def test_centre_outside_the_grid_has_no_positive():
  maps = np.asarray(targets.score_map_targets(np.array([[0.97, 0.5, 0.05, 0.05]]), 16))
  assert not (maps == 1).any()


def test_keep_ratio_follows_the_official_schedule(golden):
  expected = np.load(golden("keep_rate.npz"))
  got = [
    targets.keep_ratio_at_epoch(int(e), final=0.7, start=20, warmup=80) for e in expected["epoch"]
  ]
  np.testing.assert_allclose(got, expected["keep_rate_start20_warm80"], rtol=1e-12)


def test_keep_ratio_by_hand():
  ratio = [
    targets.keep_ratio_at_epoch(e, final=0.7, start=20, warmup=80)
    for e in (1, 20, 60, 99, 100, 300)
  ]
  assert ratio[:3] == [1.0, 1.0, pytest.approx(0.85)]
  assert ratio[3] > 0.7
  assert ratio[4:] == [0.7, 0.7]
