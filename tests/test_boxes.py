import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from ostrack_jax import boxes

_XYWH = np.array([[10.0, 20.0, 30.0, 40.0], [-5.0, 0.5, 8.0, 2.25]])
_XYXY = np.array([[10.0, 20.0, 40.0, 60.0], [-5.0, 0.5, 3.0, 2.75]])
_CXCYWH = np.array([[25.0, 40.0, 30.0, 40.0], [-1.0, 1.625, 8.0, 2.25]])


@pytest.mark.parametrize(
  ("convert", "given", "expected"),
  [
    (boxes.xywh_to_xyxy, _XYWH, _XYXY),
    (boxes.xyxy_to_xywh, _XYXY, _XYWH),
    (boxes.cxcywh_to_xyxy, _CXCYWH, _XYXY),
    (boxes.cxcywh_to_xywh, _CXCYWH, _XYWH),
    (boxes.xywh_to_cxcywh, _XYWH, _CXCYWH),
  ],
)
def test_formats_convert_as_computed_by_hand(convert, given, expected):
  np.testing.assert_array_equal(convert(given), expected)
  np.testing.assert_array_equal(convert(given[None, 0]), expected[None, 0])


def _random_xyxy(rng, count):
  corner = rng.uniform(0, 20, (count, 2))
  return np.concatenate([corner, corner + rng.uniform(0.5, 15, (count, 2))], axis=1)


def test_iou_equals_counted_pixels():
  rng = np.random.default_rng(0)
  corner = rng.integers(0, 12, (2, 200, 2))
  paired = np.concatenate([corner, corner + rng.integers(1, 12, (2, 200, 2))], axis=2)
  for a, b in zip(*paired, strict=True):
    covered = np.zeros((2, 24, 24), bool)
    for mask, (x1, y1, x2, y2) in zip(covered, (a, b), strict=True):
      mask[y1:y2, x1:x2] = True
    expected = covered.all(axis=0).sum() / covered.any(axis=0).sum()
    np.testing.assert_allclose(boxes.iou(a.astype(float), b.astype(float)), expected, rtol=1e-12)


def test_iou_of_disjoint_touching_and_empty_boxes_is_zero():
  a = np.array([[0.0, 0, 1, 1], [0, 0, 1, 1], [3, 3, 3, 3]])
  b = np.array([[5.0, 5, 6, 6], [1, 0, 2, 1], [3, 3, 3, 3]])
  np.testing.assert_array_equal(boxes.iou(a, b), [0, 0, 0])


def test_giou_loss_of_the_reference_pairs():
  a = np.array([[0.1, 0.1, 0.5, 0.6], [0.2, 0.2, 0.4, 0.4]])
  b = np.array([[0.2, 0.1, 0.6, 0.5], [0.6, 0.6, 0.9, 0.9]])
  generalised, overlap = boxes.giou(a, b)
  np.testing.assert_allclose(np.mean(1 - generalised), 1.137347, atol=5e-7)
  np.testing.assert_array_equal(overlap, boxes.iou(a, b))


def test_giou_subtracts_the_uncovered_share_of_the_hull():
  # Two unit squares at opposite corners of a 3 x 3 hull: 7 of 9 cells are covered by neither.
  generalised, overlap = boxes.giou(np.array([0.0, 0, 1, 1]), np.array([2.0, 2, 3, 3]))
  np.testing.assert_allclose(generalised, -7 / 9)
  assert overlap == 0


def test_giou_of_two_points_is_finite():
  point = np.array([2.0, 2.0, 2.0, 2.0])
  generalised, overlap = boxes.giou(point, point)
  assert (generalised, overlap) == (0, 0)


@pytest.mark.parametrize(
  ("box_xywh", "expected"),
  [
    ([-5, -5, 8, 8], [0, 0, 10, 10]),
    ([195, 95, 50, 50], [190, 90, 10, 10]),
    ([50, 50, 2, 3], [50, 50, 10, 10]),
    ([300, 300, 20, 20], [190, 90, 10, 10]),
    ([20, 30, 40, 50], [20, 30, 40, 50]),
    ([-40, -40, 400, 400], [0, 0, 200, 100]),
    ([-300, 10, 20, 20], [0, 10, 10, 20]),
  ],
)
def test_clip_box_gives_the_official_examples(box_xywh, expected):
  np.testing.assert_array_equal(
    boxes.clip_box_xywh(np.array(box_xywh, float), 100, 200), np.array(expected, float)
  )


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", range(4))
def test_a_number_that_is_not_finite_is_not_clipped_into_one_that_is(number, place):
  box_xywh = np.array([20.0, 30, 40, 50])
  box_xywh[place] = number
  assert np.isnan(boxes.clip_box_xywh(box_xywh, 100, 200)).any()


def test_clipped_boxes_lie_in_the_frame_and_keep_the_margin():
  rng = np.random.default_rng(1)
  drawn = np.concatenate([rng.uniform(-300, 300, (500, 2)), rng.uniform(0, 300, (500, 2))], axis=1)
  clipped = boxes.clip_box_xywh(drawn, 90, 160, margin=7)
  assert (clipped[:, :2] >= 0).all()
  assert (clipped[:, 2:] >= 7).all()
  assert (clipped[:, 0] + clipped[:, 2] <= 160 + 1e-9).all()
  assert (clipped[:, 1] + clipped[:, 3] <= 90 + 1e-9).all()
  np.testing.assert_allclose(boxes.clip_box_xywh(clipped, 90, 160, margin=7), clipped, atol=1e-9)


@pytest.mark.parametrize(
  "function",
  [
    boxes.xywh_to_xyxy,
    boxes.xyxy_to_xywh,
    boxes.cxcywh_to_xyxy,
    boxes.cxcywh_to_xywh,
    boxes.xywh_to_cxcywh,
    lambda b: boxes.clip_box_xywh(b, 12, 17),
    lambda b: boxes.iou(b, b[::-1]),
    lambda b: boxes.giou(b, b[::-1])[0],
  ],
)
def test_jax_and_numpy_agree_on_any_leading_axes(function):
  drawn = _random_xyxy(np.random.default_rng(2), 24).astype(np.float32)
  flat = function(drawn)
  assert isinstance(flat, np.ndarray)
  np.testing.assert_allclose(function(jnp.asarray(drawn)), flat, rtol=1e-5, atol=1e-5)


def test_leading_axes_are_free():
  drawn = _random_xyxy(np.random.default_rng(3), 24)
  other = _random_xyxy(np.random.default_rng(4), 24)
  for shape in itertools.permutations((2, 3, 4)):
    reshaped = boxes.iou(drawn.reshape(*shape, 4), other.reshape(*shape, 4))
    np.testing.assert_array_equal(reshaped.ravel(), boxes.iou(drawn, other))
