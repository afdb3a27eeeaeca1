"""A step on several devices exchanges gradients where they lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ostrack_jax import sharding


def _compiled(mesh):
  def step(weights, images):
    def loss(weights):
      tokens = images
      for weight in weights:
        tokens = jnp.tanh(tokens @ weight)
      return tokens.mean()

    gradients = jax.grad(loss)(weights)
    length = jnp.sqrt(sum(jnp.square(gradient).sum() for gradient in gradients))
    return [weight - gradient / length for weight, gradient in zip(weights, gradients)]

  draw = np.random.default_rng(0)
  weights = [draw.normal(0, 0.1, (64, 64)).astype(np.float32) for _ in range(3)]
  images = draw.normal(size=(8, 64)).astype(np.float32)
  placed = sharding.copy_everywhere(mesh, weights)
  batch = sharding.put_batch(mesh, {"images": images})["images"]
  compiled = jax.jit(step, **sharding.train_step_options(mesh)).lower(placed, batch).compile()
  return compiled.as_text(), compiled(placed, batch), placed


def test_the_options_change_no_number_and_give_up_the_state(four_devices):
  found = {}
  for count in (1, 4):
    text, found[count], state = _compiled(sharding.make_mesh(four_devices[:count]))
    assert ("all-reduce" in text) == (count > 1)
    assert all(one.is_fully_replicated for one in found[count])
    assert all(weight.is_deleted() for weight in state)
  for one, many in zip(found[1], found[4], strict=True):
    np.testing.assert_allclose(many, one, atol=1e-6)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="XLA packs gradients on GPUs alone")
def test_gradients_are_not_copied_side_by_side():
  if len(jax.devices()) < 2:
    pytest.skip("this test needs 2 GPUs; here is one")
  text, _, _ = _compiled(sharding.make_mesh(jax.devices()[:2]))
  assert "all-reduce" in text and "concatenate" not in text
