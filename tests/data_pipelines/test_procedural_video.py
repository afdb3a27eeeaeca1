"""Procedural video: deterministic, tight boxes, hard for a still box, easy to follow."""

import cv2
import numpy as np
import pytest

from data_pipelines import procedural_layers, procedural_video
from data_pipelines.procedural_video import ProceduralVideoSettings, render_sequence
from ostrack_jax import boxes

SMALL = ProceduralVideoSettings(width=96, height=72, length=8, max_target_size=30)


@pytest.fixture(scope="module")
def sequences():
  return [render_sequence([99, i]) for i in range(8)]


def iou(a_xywh, b_xywh):
  return boxes.iou(boxes.xywh_to_xyxy(a_xywh), boxes.xywh_to_xyxy(b_xywh))


def test_the_same_seed_gives_the_same_sequence():
  first, second = render_sequence([5, 1], SMALL), render_sequence([5, 1], SMALL)
  np.testing.assert_array_equal(first[0], second[0])
  np.testing.assert_array_equal(first[1], second[1])


def test_another_seed_gives_another_sequence():
  first, second = render_sequence([5, 1], SMALL), render_sequence([5, 2], SMALL)
  assert np.abs(np.asarray(first[0], np.float32) - np.asarray(second[0])).mean() > 10


def test_shapes_and_types():
  frames, boxes_xywh, visible = render_sequence(3, SMALL)
  assert len(frames) == 8
  assert {(f.shape, f.dtype) for f in frames} == {((72, 96, 3), np.dtype(np.uint8))}
  assert (boxes_xywh.shape, boxes_xywh.dtype) == ((8, 4), np.float32)
  assert (visible.shape, visible.dtype) == ((8,), bool)


def test_boxes_lie_in_the_frame_and_the_first_is_visible(sequences):
  for _, boxes_xywh, visible in sequences:
    corners = boxes.xywh_to_xyxy(boxes_xywh)
    assert visible[0]
    assert (corners[:, :2] >= 0).all() and (corners[:, 2:] <= (240, 180)).all()
    assert (boxes_xywh[:, 2:] > 4).all()


def test_a_box_is_the_extent_of_the_pixels_that_the_target_paints():
  settings = ProceduralVideoSettings(
    length=4, min_distractors=0, max_distractors=0, occlusion_probability=0.0
  )
  for seed in range(6):
    scene = procedural_video._Scene(np.random.default_rng([7, seed]), settings)
    with_target, box, _ = scene.draw(2)
    scene.target.sprite.rgba[..., :3] = 255 - scene.target.sprite.rgba[..., :3]
    other, _, _ = scene.draw(2)
    changed = np.abs(with_target.astype(int) - other).max(axis=2) > 12
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    painted = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(boxes.xywh_to_xyxy(box), painted, atol=2.5)


def test_extent_interpolates_partly_covered_pixels():
  alpha = np.zeros((6, 8), np.float32)
  alpha[1:4, 2:6] = 1
  np.testing.assert_allclose(procedural_layers.extent(alpha, (10, 20)), [12, 21, 4, 3])
  alpha[1:4, 6] = 0.5 + 1e-6  # half a pixel more on the right
  np.testing.assert_allclose(procedural_layers.extent(alpha, (0, 0)), [2, 1, 4.5, 3], atol=1e-4)


def test_extent_ends_at_the_border_and_is_zero_for_nothing():
  alpha = np.zeros((4, 4), np.float32)
  assert not procedural_layers.extent(alpha, (3, 3)).any()
  alpha[0:2, 2:4] = 1
  np.testing.assert_allclose(procedural_layers.extent(alpha, (0, 0)), [2, 0, 2, 2])


def test_cover_takes_away_what_a_patch_in_front_hides():
  remaining = np.ones((4, 4), np.float32)
  patch = np.zeros((10, 10, 4), np.uint8)
  patch[..., 3] = 255
  procedural_layers.cover(remaining, (5, 5), ((7, 0), patch))
  np.testing.assert_array_equal(remaining, [[1, 1, 0, 0]] * 4)
  procedural_layers.cover(remaining, (5, 5), ((20, 20), patch))
  assert remaining.sum() == 8


def test_keeping_the_first_box_fails(sequences):
  still = [iou(b[1:], np.repeat(b[:1], len(b) - 1, axis=0)).mean() for _, b, _ in sequences]
  assert np.mean(still) < 0.25


def test_a_target_moves_at_most_half_its_size_in_a_frame(sequences):
  steps = []
  for _, boxes_xywh, _ in sequences:
    centres = boxes_xywh[:, :2] + boxes_xywh[:, 2:] / 2
    steps.append(np.hypot(*np.diff(centres, axis=0).T) / np.sqrt(boxes_xywh[1:, 2:].prod(axis=1)))
  assert np.quantile(np.concatenate(steps), 0.99) < 0.5


def test_occlusion_hides_part_of_some_targets():
  settings = ProceduralVideoSettings(length=30, occlusion_probability=1.0)
  shares = []
  for seed in range(6):
    scene = procedural_video._Scene(np.random.default_rng([8, seed]), settings)
    shares += [scene.draw(i)[2] for i in range(8, 30, 3)]
  assert 0.05 < np.mean((np.array(shares) > 0.2) & (np.array(shares) < 0.8)) < 0.8


def test_distractors_are_drawn():
  settings = ProceduralVideoSettings(length=20, min_distractors=3, max_distractors=3)
  scene = procedural_video._Scene(np.random.default_rng(4), settings)
  assert len(scene.behind) + len(scene.front) >= 3
  image = scene.draw(0)[0]
  scene.behind, scene.front = [], []
  assert (image != scene.draw(0)[0]).any(axis=2).sum() > 300


def test_encoded_frames_decode_to_about_the_rendered_ones():
  jpegs, boxes_xywh, visible = procedural_video.encode_sequence(((1, 2), SMALL, 92))
  frames, expected_boxes, expected_visible = render_sequence((1, 2), SMALL)
  decoded = cv2.imdecode(np.frombuffer(jpegs[3], np.uint8), cv2.IMREAD_COLOR_RGB)
  assert np.abs(decoded.astype(int) - frames[3]).mean() < 8
  np.testing.assert_array_equal(boxes_xywh, expected_boxes)
  np.testing.assert_array_equal(visible, expected_visible)


@pytest.mark.parametrize(
  "wrong", [{"length": 1}, {"width": 20}, {"max_target_size": 150.0}, {"min_target_size": 1.0}]
)
def test_impossible_settings_are_refused(wrong):
  with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
    ProceduralVideoSettings(**wrong)
