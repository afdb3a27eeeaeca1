"""Batch statistics, decoding and the Hann window."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ostrack_jax import sharding
from ostrack_jax.models import head


def test_batch_norm_normalises_and_keeps_unbiased_variance():
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5)) * 3 + 1
  layer = head.BatchNorm(5)
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
    head.BatchNorm(5).apply(variables, x, False), want, rtol=1e-4, atol=1e-5
  )


# (1, 8) is official BatchNorm over all of 8 devices; in (8, 4) and (2, 2) each has its groups to itself.
@pytest.mark.parametrize(("groups", "shards"), [(1, 2), (1, 8), (2, 8), (8, 4), (2, 2)])
@pytest.mark.parametrize("offset", [0, 100])
def test_combined_statistics_are_those_of_the_whole(groups, shards, offset):
  rng = np.random.default_rng(0)
  # Images differ in the mean, so that variances of shards alone would not do.
  x = rng.normal(size=(8, 4, 4, 5)) + rng.normal(size=(8, 1, 1, 5)) + offset
  x, weights = np.float32(x), rng.normal(size=x.shape).astype(np.float32)
  layer = head.BatchNorm(5)
  variables = layer.init(jax.random.key(0), x, True)

  def gradients(shards):
    def loss(params, x):
      variables_then = {**variables, "params": params}
      y, updated = layer.apply(variables_then, x, True, groups, shards, mutable=["batch_stats"])
      return (y * weights).sum(), (y, updated["batch_stats"])

    found, (y, running) = jax.grad(loss, (0, 1), has_aux=True)(variables["params"], x)
    return running, (y, found)

  (want_running, want), (running, got) = gradients(1), gradients(shards)
  for name in ("mean", "var"):
    np.testing.assert_allclose(running[name], want_running[name], rtol=1e-6)
  # A mean of 100 is known to 1e-5 at best.
  tolerance = 3e-5 if offset else 1e-6
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, tolerance, 10 * tolerance), got, want)
  rows = x.astype(np.float64).reshape(groups, -1, 5)
  var = rows.var(axis=1, ddof=1).mean(axis=0)
  np.testing.assert_allclose(running["var"], 0.9 + 0.1 * var, rtol=1e-6)


def test_devices_talk_once_a_row_of_layers(four_devices):
  mesh = sharding.make_mesh(four_devices)
  module = head.CenterHead(16, jnp.dtype("float32"))
  features = np.random.default_rng(0).normal(size=(8, 4, 4, 12)).astype(np.float32)
  variables = jax.device_put(
    module.init(jax.random.key(0), features, False), sharding.replicated(mesh)
  )
  placed = sharding.put_batch(mesh, {"features": features})["features"]

  def messages(groups, shards):
    """Return the numbers of collectives of the head, forwards and with the gradient of features."""

    def forward(features):
      return module.apply(variables, features, True, groups, shards, mutable=["batch_stats"])

    def both(features):
      maps, pullback, updated = jax.vjp(forward, features, has_aux=True)
      return maps, updated, pullback(maps)

    texts = [jax.jit(f).lower(placed).compile().as_text() for f in (forward, both)]
    assert not re.search(r"all-gather|all-to-all|collective-permute", "".join(texts))
    return [len(re.findall(r" all-reduce(?:-start)?\(", text)) for text in texts]

  assert messages(1, 4) == messages(2, 4) == [4, 8]
  # Only what the running statistics take of them.
  assert messages(4, 4) == messages(8, 4) == [1, 1]
  assert min(messages(1, 1)) > 12


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
