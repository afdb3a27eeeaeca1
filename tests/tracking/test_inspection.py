import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ostrack_jax import crop
from ostrack_jax.models.ostrack import OSTrack, normalise_images
from ostrack_jax.tracking import inspection
from ostrack_jax.tracking.tracker import Tracker
from ostrack_jax.training.state import init_variables

_BOX = (20.0, 15, 24, 20)
_SMALL = dict(
  variant="custom", width=32, depth=2, num_heads=2, template_size=32, search_size=64,
  head_channels=16, elimination_layers=(0, 1), keep_ratios=(0.7, 0.6),
)  # fmt: skip
_NO_ELIMINATION = dict(depth=1, elimination_layers=(), keep_ratios=())


def _checkpoint(**fields):
  model = OSTrack(**{**_SMALL, **fields})
  # Drawn here, since init compiles; larger than initial weights are, so that attention is not flat.
  rng = np.random.default_rng(3)
  variables = jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      np.ones(leaf.shape, np.float32)
      if path[-1].key in ("var", "scale")
      else 0.1 * rng.normal(size=leaf.shape).astype(np.float32)
    ),
    jax.eval_shape(lambda: init_variables(model, 0)),
  )
  factors = {"template_factor": 2.0, "search_factor": 4.0}
  about = {"complete": True, "tracker": factors}
  return types.SimpleNamespace(model=model, variables=variables, description=about)


@pytest.fixture(scope="module")
def frames():
  return list(np.random.default_rng(4).integers(0, 256, (5, 60, 80, 3), np.uint8))


@pytest.fixture(scope="module")
def checkpoint():
  return _checkpoint()


@pytest.fixture(scope="module")
def inspected(checkpoint, frames):
  before = inspection._run._cache_size()
  seen = list(inspection.inspect(checkpoint, frames, _BOX, layers=(1, 0)))
  assert inspection._run._cache_size() == before + 1, "a frame compiled anew"
  return seen


def test_the_track_is_the_trackers(checkpoint, frames, inspected):
  tracker = Tracker(checkpoint)
  tracker.init(frames[0], _BOX)
  assert [frame.index for frame in inspected] == [1, 2, 3, 4]
  for frame in inspected:
    np.testing.assert_array_equal(frame.image, frames[frame.index])
    result = tracker.update(frames[frame.index])
    np.testing.assert_allclose(frame.box_xywh, result.box_xywh, atol=1e-3)
    np.testing.assert_allclose(frame.inspection.score_map.max(), result.score, atol=1e-5)


def test_each_stage_removes_the_cells_that_its_block_attends_to_least(inspected):
  for frame in inspected:
    seen = frame.inspection
    assert list(seen.attention) == [0, 1] and list(seen.removed) == [0, 1]
    gone = np.zeros(16, bool)
    # Of 16 cells 12 stay, of those 8.
    for block, count in ((0, 4), (1, 4)):
      weights = seen.attention[block].ravel()
      np.testing.assert_array_equal(seen.left_before[block].ravel(), gone)
      assert (weights[gone] == 0).all() and (weights[~gone] > 0).all()
      assert 0 < weights.sum() < 1
      least = np.argsort(np.where(gone, np.inf, weights))[:count]
      assert set(least) == set(seen.removed[block])
      gone[least] = True
    np.testing.assert_array_equal(seen.eliminated.ravel(), gone)
    np.testing.assert_array_equal(seen.activation.ravel() == 0, gone)


def test_numbers_are_those_of_the_plain_network(checkpoint, inspected):
  seen = inspected[2].inspection
  output = jax.jit(checkpoint.model.apply, static_argnames="attention_layers")(
    checkpoint.variables,
    normalise_images(seen.template[None]),
    normalise_images(seen.search[None]),
    attention_layers=(1,),
  )
  # The centre token alone: one row, averaged over heads; four template tokens stand in front.
  assert output.attention[0].shape == (1, 2, 1, 4 + 16)
  expected = np.asarray(output.attention[0])[0, :, 0, 4:].mean(axis=0)
  np.testing.assert_allclose(seen.attention[1].ravel(), expected, rtol=1e-5)
  assert seen.template_cells.tolist() == [[True, False], [False, False]]
  np.testing.assert_allclose(seen.score_map, output.score_map[0, :, :, 0], rtol=1e-5)
  ramp = np.sin(np.pi * np.arange(1, 5) / 5) ** 2
  np.testing.assert_allclose(seen.window, np.outer(ramp, ramp), rtol=1e-6)
  np.testing.assert_allclose(seen.windowed, seen.score_map * seen.window, rtol=1e-6)
  row, column = np.unravel_index(seen.windowed.argmax(), (4, 4))
  offset, size = (np.asarray(m)[0, row, column] for m in (output.offset_map, output.size_map))
  corner = (np.array([column, row]) + offset) / 4 - size / 2
  np.testing.assert_allclose(seen.box_xywh, [*corner, *size], atol=1e-5)
  features = np.asarray(output.features)[0, 4:].reshape(4, 4, 32)
  np.testing.assert_allclose(
    seen.activation, inspection.activations(features, seen.eliminated), rtol=1e-4
  )


def test_activation_is_the_distance_from_the_mean_of_those_that_stayed():
  features = np.zeros((2, 2, 2), np.float32)
  features[0, 0], features[0, 1], features[1, 0] = (10, 4), (10, 4), (13, 8)
  eliminated = np.array([[False, False], [False, True]])
  # Mean (11, 16/3); distances 5/3, 5/3, 10/3, whose mean is 20/9.
  expected = np.array([[0.75, 0.75], [1.5, 0]])
  np.testing.assert_allclose(inspection.activations(features, eliminated), expected, rtol=1e-6)
  np.testing.assert_allclose(inspection.activations(7 * features, eliminated), expected, rtol=1e-6)
  alike = np.ones((2, 2, 3), np.float32)
  assert (inspection.activations(alike, np.zeros((2, 2), bool)) == 0).all()


def test_a_second_network_sees_the_same_squares_in_the_frames_asked_for(checkpoint, frames):
  other = _checkpoint(**_NO_ELIMINATION, search_size=32)
  # Its own factor does not count, nor that its head is untrained.
  other.description = {"complete": False, "tracker": {"search_factor": 7.0, "template_factor": 5.0}}
  seen = list(
    inspection.inspect(checkpoint, frames, _BOX, layers=(0, 1), compared=other, compare_at=(1, 3))
  )
  assert [frame.compared is not None for frame in seen] == [True, False, True, False]
  third = seen[2]
  square, _ = crop.crop_square(frames[3], seen[1].box_xywh, 4.0, 32)
  np.testing.assert_array_equal(third.compared.search, square)
  np.testing.assert_array_equal(third.compared.template, third.inspection.template)
  assert third.compared.activation.shape == (2, 2) and not third.compared.eliminated.any()
  assert third.compared.attention == {} and third.compared.removed == {}


def test_a_box_choice_shows_the_tokens_on_the_target_and_a_head_without_scores_has_no_map(frames):
  model = _checkpoint(
    **_NO_ELIMINATION, template_tokens="ground_truth_box", template_size=64, head="mlp"
  )
  (frame,) = inspection.inspect(model, frames[:2], (10, 20, 20, 20), layers=(0,))
  seen = frame.inspection
  # The template is twice as wide and high as the box: the inner four of 4 x 4 tokens.
  assert np.argwhere(seen.template_cells).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
  assert seen.score_map is None and seen.window is None and seen.windowed is None
  output = jax.jit(model.model.apply, static_argnames="attention_layers")(
    model.variables,
    normalise_images(seen.template[None]),
    normalise_images(seen.search[None]),
    template_mask=jnp.asarray(seen.template_cells.reshape(1, 16)),
    attention_layers=(0,),
  )
  rows = np.asarray(output.attention[0])[0].mean(axis=0)[:, 16:]
  np.testing.assert_allclose(
    seen.attention[0].ravel(), rows[seen.template_cells.ravel()].mean(axis=0), rtol=1e-5
  )
  x, y, w, h = seen.box_xywh
  np.testing.assert_allclose([x + w / 2, y + h / 2, w, h], output.boxes_cxcywh[0], atol=1e-5)


def test_layers_worth_a_look():
  assert inspection.default_layers(OSTrack()) == (0, 3, 6, 9, 11)
  plain = OSTrack(elimination_layers=(), keep_ratios=())
  assert inspection.default_layers(plain) == (0, 3, 7, 11)
  assert inspection.default_layers(plain.clone(relation="stark")) == ()


def test_what_cannot_be_used_is_named(checkpoint, frames):
  with pytest.raises(ValueError, match="layer 2 is not in the model, whose blocks are 0 to 1"):
    inspection.Inspector(checkpoint, (0, 2))
  related = types.SimpleNamespace(
    model=OSTrack(**{**_SMALL, **_NO_ELIMINATION, "relation": "stark"})
  )
  with pytest.raises(ValueError, match="'stark' has no attention"):
    inspection.Inspector(related, (0,))
  with pytest.raises(RuntimeError, match="call start first"):
    inspection.Inspector(checkpoint).look(frames[0])
  with pytest.raises(ValueError, match="the sequence has no frames"):
    list(inspection.inspect(checkpoint, [], _BOX))
  with pytest.raises(ValueError, match="frame 0: box_xywh"):
    list(inspection.inspect(checkpoint, frames, (200, 0, 5, 5)))
  cut = [frames[0], frames[1], frames[2][:50]]
  with pytest.raises(ValueError, match="frame 2: frame of 80 x 50 pixels follows"):
    list(inspection.inspect(checkpoint, cut, _BOX, layers=(0, 1)))
