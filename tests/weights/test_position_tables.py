"""Position tables equal those of the official code."""

import numpy as np
import pytest

from ostrack_jax.weights.position_tables import bicubic_matrix, resample
from ostrack_jax.weights.torch_file import read_state_dict

_RAMP = np.arange(196, dtype=np.float32).reshape(1, 196, 1)


# Computed with torch.nn.functional.interpolate.
@pytest.mark.parametrize(
  ("grid", "first", "last"),
  [
    (8, [4.416504, 6.288086, 7.956055, 9.717773, 11.526367], 190.583496),
    (12, [0.939678, 2.173908, 3.313955, 4.440113, 5.580158], 194.060333),
    (16, [-0.617981, 0.166687, 1.070435, 1.970337, 2.876099], 195.617996),
    (24, [-1.468913, -1.076552, -0.432201, 0.160337, 0.795030], 196.468887),
  ],
)
def test_a_ramp_is_resampled_as_by_pytorch(grid, first, last):
  table = resample(_RAMP, grid)
  assert table.shape == (1, grid * grid, 1)
  np.testing.assert_allclose(table[0, :5, 0], first, atol=2e-5)
  np.testing.assert_allclose(table[0, -1, 0], last, atol=2e-5)


def test_an_impulse_spreads_over_rows_and_columns_as_by_pytorch():
  impulse = np.zeros((1, 196, 1), np.float32)
  impulse[0, 5 * 14 + 6] = 1
  table = resample(impulse, 8)[0, :, 0].reshape(8, 8)
  found = [table[2, 3], table[2, 4], table[3, 3], table[3, 4]]
  np.testing.assert_allclose(found, [-0.053798, 0.007886, 0.319494, -0.046831], atol=1e-6)


@pytest.mark.parametrize(("inputs", "outputs"), [(14, 8), (14, 24), (24, 16), (3, 7), (1, 5)])
def test_the_matrix_equals_pytorchs_interpolation(inputs, outputs):
  torch = pytest.importorskip("torch")
  table = np.random.default_rng(0).standard_normal((1, inputs * inputs, 3)).astype(np.float32)
  cells = torch.from_numpy(table.reshape(1, inputs, inputs, 3)).permute(0, 3, 1, 2)
  expected = torch.nn.functional.interpolate(
    cells, size=(outputs, outputs), mode="bicubic", align_corners=False
  )
  expected = expected.permute(0, 2, 3, 1).reshape(1, -1, 3).numpy()
  np.testing.assert_allclose(resample(table, outputs), expected, atol=2e-5)


@pytest.mark.parametrize(("inputs", "outputs"), [(37, 8), (37, 24), (14, 16), (5, 5)])
def test_antialiasing_equals_pytorchs(inputs, outputs):
  torch = pytest.importorskip("torch")
  table = np.random.default_rng(0).standard_normal((1, inputs * inputs, 3)).astype(np.float32)
  cells = torch.from_numpy(table.reshape(1, inputs, inputs, 3)).permute(0, 3, 1, 2)
  expected = torch.nn.functional.interpolate(
    cells, size=(outputs, outputs), mode="bicubic", antialias=True
  )
  expected = expected.permute(0, 2, 3, 1).reshape(1, -1, 3).numpy()
  found = resample(table, outputs, antialias=True)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_antialiasing_averages_what_plain_resampling_skips():
  impulse = np.zeros((1, 37 * 37, 1), np.float32)
  impulse[0, 18 * 37 + 18] = 1  # between the taps of every position of an 8 x 8 grid
  assert np.abs(resample(impulse, 8)).max() < 1e-6
  assert resample(impulse, 8, antialias=True).max() > 0.01


def test_weights_of_every_position_sum_to_one():
  np.testing.assert_allclose(bicubic_matrix(14, 12).sum(axis=1), 1, atol=1e-12)


def test_the_same_grid_changes_nothing():
  np.testing.assert_array_equal(bicubic_matrix(14, 14), np.eye(14))


def test_a_table_that_is_not_square_is_refused():
  with pytest.raises(ValueError, match="197 rows; expected a square number"):
    resample(np.zeros((1, 197, 4), np.float32), 8)


def test_tables_of_a_real_encoder_file_equal_the_official_ones(golden):
  expected = np.load(golden("mae_tiny_expected.npz"))
  table = read_state_dict(golden("mae_tiny.pth")).tensors["pos_embed"][:, 1:]
  for name, grid in (("z_256", 8), ("x_256", 16), ("z_384", 12), ("x_384", 24)):
    np.testing.assert_allclose(resample(table, grid), expected[f"pos_embed_{name}"], atol=1e-5)
