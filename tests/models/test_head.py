"""Batch statistics, decoding and the Hann window."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ostrack_jax.models import head


def test_batch_norm_normalises_and_keeps_unbiased_variance():
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5)) * 3 + 1
  layer = head.BatchNorm()
  variables = layer.init(jax.random.key(0), x, True)
  assert np.all(variables["batch_stats"]["mean"] == 0)
  y, updated = layer.apply(variables, x, True, mutable=["batch_stats"])
  rows = np.asarray(x).reshape(-1, 5)
  np.testing.assert_allclose(
    np.asarray(y).reshape(-1, 5), (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5), atol=1e-5
  )
  np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * rows.mean(0), rtol=1e-5)
  np.testing.assert_allclose(
    updated["batch_stats"]["var"], 0.9 + 0.1 * rows.var(0, ddof=1), rtol=1e-5
  )
  still = layer.apply({**variables, **updated}, x, False)
  mean, var = updated["batch_stats"]["mean"], updated["batch_stats"]["var"]
  np.testing.assert_allclose(
    np.asarray(still).reshape(-1, 5),
    (rows - mean[None]) / np.sqrt(var[None] + 1e-5),
    rtol=1e-4,
    atol=1e-5,
  )


def test_batch_norm_in_evaluation_equals_flax():
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
  stats = {"mean": jnp.arange(5.0), "var": jnp.arange(1.0, 6.0)}
  params = {"scale": jnp.linspace(0.5, 2, 5), "bias": jnp.linspace(-1, 1, 5)}
  variables = {"params": params, "batch_stats": stats}
  want = nn.BatchNorm(use_running_average=True, epsilon=1e-5).apply(variables, x)
  np.testing.assert_allclose(
    head.BatchNorm().apply(variables, x, False), want, rtol=1e-4, atol=1e-5
  )


def test_boxes_decode_at_the_first_maximum():
  score = np.zeros((2, 4, 4, 1), np.float32)
  score[0, 1, 2] = score[0, 3, 3] = 0.9
  score[1, 3, 0] = 0.5
  size = np.tile(np.float32([0.25, 0.5]), (2, 4, 4, 1))
  offset = np.zeros((2, 4, 4, 2), np.float32)
  offset[0, 1, 2] = [0.5, -0.25]
  boxes = head.decode_boxes(score, size, offset)
  np.testing.assert_allclose(
    boxes, [[2.5 / 4, 0.75 / 4, 0.25, 0.5], [0, 3 / 4, 0.25, 0.5]], rtol=1e-6
  )


def test_hann_window_is_the_official_one():
  line = head.hann_window(16)[0] / head.hann_window(16)[0, 0] * 0.0337639
  np.testing.assert_allclose(line[:4], [0.0337639, 0.1304955, 0.2771308, 0.4538658], rtol=1e-4)
  np.testing.assert_allclose(
    np.sqrt(np.diag(head.hann_window(24)))[:3], [0.0157084, 0.0618467, 0.1355157], rtol=1e-4
  )
  np.testing.assert_allclose(
    np.sqrt(np.diag(head.hann_window(16))), np.hanning(18)[1:-1], rtol=1e-5
  )


def test_clamped_sigmoid_has_no_gradient_outside():
  x = jnp.array([-20.0, 0.0, 20.0])
  np.testing.assert_allclose(head.clamped_sigmoid(x), [1e-4, 0.5, 1 - 1e-4], rtol=1e-6)
  np.testing.assert_allclose(jax.vmap(jax.grad(head.clamped_sigmoid))(x), [0, 0.25, 0], atol=1e-6)
