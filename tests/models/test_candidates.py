"""Counts, template tokens, selection and restoration of candidates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ostrack_jax.models import candidates as lib


@pytest.mark.parametrize(
  ("tokens", "counts"), [(256, (180, 126, 89)), (576, (404, 283, 199)), (64, (45, 32, 23))]
)
def test_stage_counts_are_the_official_ones(tokens, counts):
  assert lib.stage_counts(tokens, (0.7, 0.7, 0.7)) == counts


@pytest.mark.parametrize(
  ("choice", "grid", "indices"),
  [
    ("centre_point", 8, (27,)),
    ("centre_point", 12, (65,)),
    ("centre_point", 7, (24,)),
    ("centre_point", 14, (90,)),
    ("centre_point_paper", 8, (36,)),
    ("centre_point_paper", 12, (78,)),
    ("centre_rectangle", 8, (27, 28, 35, 36)),
    ("centre_rectangle", 12, (65, 66, 77, 78)),
    ("centre_rectangle", 7, (24,)),
    ("all", 2, (0, 1, 2, 3)),
    ("ground_truth_box", 8, None),
  ],
)
def test_template_token_indices(choice, grid, indices):
  assert lib.template_token_indices(choice, grid) == indices


def test_unknown_template_tokens_are_refused_with_the_choices():
  with pytest.raises(ValueError, match=r"'middle' is unknown; choose one of centre_point"):
    lib.template_token_indices("middle", 8)


def test_box_mask_equals_a_resized_pixel_mask():
  boxes = np.array(
    [[0.25, 0.25, 0.5, 0.5], [0.1, 0.3, 0.2, 0.61], [0.0, 0.0, 1.0, 1.0], [0.4, 0.1, 0.3, 0.2]]
  )
  mask = np.asarray(lib.template_mask_from_boxes(boxes, 128)).reshape(-1, 8, 8)
  for box, got in zip(boxes * 128, mask, strict=True):
    x, y, w, h = box
    pixels = np.zeros((128, 128))
    pixels[int(y) : int(y + h - 1), int(x) : int(x + w - 1)] = 1
    # Bilinear by 1/16 without antialiasing reads the four pixels around each patch centre.
    centre = pixels.reshape(8, 16, 8, 16)[:, 7:9, :, 7:9].sum(axis=(1, 3))
    np.testing.assert_array_equal(got, centre > 0)


def test_box_between_patch_centres_falls_back_to_the_centre_token():
  mask = np.asarray(lib.template_mask_from_boxes(np.array([[0.26, 0.26, 0.04, 0.04]]), 128))
  assert np.flatnonzero(mask[0]).tolist() == [27]


def test_template_attention_is_a_row_of_the_full_softmax():
  key = jax.random.split(jax.random.key(0), 2)
  queries, keys = (jax.random.normal(k, (2, 10, 3, 8)) for k in key)
  full = jax.nn.softmax(jnp.einsum("bthd,bnhd->bhtn", queries, keys) / 8**0.5, axis=-1)
  rows = lib.template_attention(queries[:, 4:6], keys)
  np.testing.assert_allclose(rows, full[:, :, 4:6], atol=1e-5)


def test_scores_average_over_heads_and_marked_tokens_per_sample():
  attention = jax.random.uniform(jax.random.key(1), (2, 3, 4, 5))
  mask = np.array([[True, False, True, False], [False, False, False, True]])
  scores = lib.candidate_scores(attention, mask)
  expected = [np.asarray(attention)[b].mean(axis=0)[mask[b]].mean(axis=0) for b in range(2)]
  np.testing.assert_allclose(scores, expected, rtol=1e-5)
  np.testing.assert_allclose(
    lib.candidate_scores(attention), attention.mean(axis=(1, 2)), rtol=1e-5
  )


def _all_alive(batch, count):
  return lib.Candidates(
    index=jnp.tile(jnp.arange(count, dtype=jnp.int32)[None], (batch, 1)), valid=None
  )


def test_select_keeps_the_highest_scores_and_lists_the_rest():
  scores = jnp.array([[0.1, 0.9, 0.5, 0.3, 0.7]])
  order, kept, removed = lib.select(_all_alive(1, 5), scores, 3)
  assert order.tolist() == [[1, 4, 2]]
  assert kept.index.tolist() == [[1, 4, 2]]
  assert removed.tolist() == [[3, 0]]
  assert kept.valid is None


def test_masked_selection_marks_and_lists_what_the_smaller_count_drops():
  scores = jnp.array([[0.1, 0.9, 0.5, 0.3, 0.7]])
  _, kept, removed = lib.select(_all_alive(1, 5), scores, 4, jnp.int32(2))
  assert kept.index.tolist() == [[1, 4, 2, 3]]
  assert kept.valid.tolist() == [[True, True, False, False]]
  assert removed.tolist() == [[2, 3, 0, -1, -1]]
  # A second stage never brings a masked token back, whatever its score.
  _, again, dropped = lib.select(kept, jnp.array([[0.1, 0.2, 9.0, 9.0]]), 4, jnp.int32(1))
  assert again.index[0, 0] == 4
  assert again.valid.tolist() == [[True, False, False, False]]
  assert dropped.tolist() == [[1, -1, -1, -1]]


def test_keep_count_beyond_the_capacity_is_held_to_it():
  _, kept, removed = lib.select(
    _all_alive(1, 4), jnp.array([[4.0, 3.0, 2.0, 1.0]]), 3, jnp.int32(4)
  )
  assert kept.valid.tolist() == [[True, True, True]]
  assert removed.tolist() == [[3, -1, -1, -1]]


def test_restore_puts_tokens_on_their_cells_and_zeros_elsewhere():
  tokens = jnp.arange(1.0, 7.0).reshape(1, 3, 2)
  alive = lib.Candidates(
    index=jnp.array([[4, 0, 2]], jnp.int32), valid=jnp.array([[True, True, False]])
  )
  grid = lib.restore(tokens, alive, 6)
  np.testing.assert_array_equal(grid[0], [[3, 4], [0, 0], [0, 0], [0, 0], [1, 2], [0, 0]])


def test_no_gradient_flows_through_the_choice():
  def loss(scores):
    order, _, _ = lib.select(_all_alive(1, 4), scores, 2)
    return jnp.take_along_axis(jnp.ones((1, 4)), order, axis=1).sum() + 0 * scores.sum()

  np.testing.assert_array_equal(jax.grad(loss)(jnp.array([[1.0, 2.0, 3.0, 4.0]])), 0)


def test_equal_scores_are_ranked_by_position_as_top_k_does():
  scores = np.random.default_rng(0).integers(0, 4, (5, 40)).astype(np.float32)
  index = jnp.broadcast_to(jnp.arange(40, dtype=jnp.int32)[None, :], (5, 40))
  order, kept, _ = lib.select(lib.Candidates(index=index, valid=None), jnp.asarray(scores), 28)
  np.testing.assert_array_equal(order, jax.lax.top_k(scores, 40)[1][:, :28])
  np.testing.assert_array_equal(kept.index, order)
