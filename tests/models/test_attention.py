"""Attention has the form that cuDNN's backward pass takes where gradients are wanted, and nothing else changes by that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ostrack_jax.models import attention

# Channels a head, as the networks have.
_SIZE = 64


def _tokens(count: int, dtype="float32"):
  """Queries, keys and values [2, count, 2, 64] whose logits all lie near -120."""
  rng = np.random.default_rng(0)
  queries, keys, values = 0.1 * rng.normal(size=(3, 2, count, 2, _SIZE))
  queries[..., 0], keys[..., 0] = 1.0, -120 * np.sqrt(_SIZE)
  return [jnp.asarray(x, dtype) for x in (queries, keys, values)]


def _gradients(tokens, change=lambda keys: keys):
  def loss(queries, keys, values):
    mixed = jax.nn.dot_product_attention(queries, change(keys), values)
    return (mixed * jnp.cos(jnp.arange(mixed.size, dtype=jnp.float32)).reshape(mixed.shape)).sum()

  return jax.value_and_grad(loss, argnums=(0, 1, 2))(*tokens)


def _log_sum_exp(queries, keys):
  logits = jnp.einsum("bmhd,bnhd->bhmn", queries, keys) / np.sqrt(_SIZE)
  return jax.nn.logsumexp(logits, axis=-1)


def test_centred_keys_attend_alike_with_the_same_gradients():
  tokens = _tokens(24)
  loss, plain = _gradients(tokens)
  same, centred = _gradients(tokens, attention.centred)
  np.testing.assert_allclose(same, loss, atol=1e-4)
  # The first number is the same for all keys: float32 holds the logits of plain keys to 1e-5.
  for one, other in zip(plain, centred, strict=True):
    np.testing.assert_allclose(other, one, atol=2e-5)
  assert min(float(jnp.abs(one).max()) for one in plain) > 5e-3


def test_centred_keys_bound_the_log_sum_exp_from_below():
  queries, keys, _ = _tokens(24)
  assert float(_log_sum_exp(queries, keys).max()) < -88
  assert float(_log_sum_exp(queries, attention.centred(keys)).min()) >= np.log(24) - 1e-4


@pytest.mark.parametrize(
  ("count", "given_lengths", "is_centred"),
  [
    (320, False, True),
    (64, False, True),
    (319, False, True),
    (384, False, False),
    (244, False, False),
    (320, True, False),
  ],
)
def test_keys_are_centred_where_half_a_tile_is_empty(monkeypatch, count, given_lengths, is_centred):
  seen = {}

  def kernel(queries, keys, values, **options):
    del queries, values
    seen["lengths"] = options["key_value_seq_lengths"]
    return keys

  monkeypatch.setattr(attention, "is_fused", lambda *_: True)
  monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
  tokens = _tokens(count)
  valid = jnp.ones((2, count), bool) if given_lengths else None
  # Without gradients nothing needs it.
  np.testing.assert_array_equal(attention.attend(*tokens, key_valid=valid), tokens[1])
  keys, backward = jax.vjp(lambda *x: attention.attend(*x, key_valid=valid), *tokens)
  assert (np.abs(keys.mean(axis=1)).max() < 1e-2) == is_centred
  assert (seen["lengths"] is not None) == (given_lengths or count % 2 == 1)
  # The stand-in returns its keys, so theirs is the gradient.
  np.testing.assert_array_equal(backward(jnp.ones_like(keys))[1], jnp.ones_like(keys))


def test_an_odd_number_of_tokens_is_padded_for_gradients_alone(monkeypatch):
  plain, seen = jax.nn.dot_product_attention, []

  def kernel(queries, keys, values, *, key_value_seq_lengths, query_seq_lengths, implementation):
    assert implementation == "cudnn"
    seen.append((keys.shape[1], key_value_seq_lengths))
    lengths = {
      "key_value_seq_lengths": key_value_seq_lengths,
      "query_seq_lengths": query_seq_lengths,
    }
    return plain(queries, keys, values, **lengths)

  tokens = _tokens(27)
  expected, backward = jax.vjp(plain, *tokens)
  monkeypatch.setattr(attention, "is_fused", lambda *_: True)
  monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
  np.testing.assert_allclose(attention.attend(*tokens), expected, atol=1e-4)
  assert seen == [(27, None)]
  mixed, own_backward = jax.vjp(attention.attend, *tokens)
  (count, lengths) = seen[-1]
  assert count == 28
  assert lengths.tolist() == [27, 27]
  np.testing.assert_allclose(mixed, expected, atol=1e-4)
  weights = jnp.cos(jnp.arange(mixed.size, dtype=jnp.float32)).reshape(mixed.shape)
  for one, other in zip(own_backward(weights), backward(weights), strict=True):
    np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN's kernels need CUDA")
@pytest.mark.parametrize("count", [427, 343, 153])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_odd_numbers_of_tokens_run_on_a_gpu(count, dtype):
  rng = np.random.default_rng(1)
  tokens = [jnp.asarray(x, dtype) for x in rng.normal(size=(3, 8, count, 2, _SIZE))]

  def run(attend, tokens):
    loss = lambda *tokens: jnp.square(attend(*tokens).astype(jnp.float32)).sum()  # noqa: E731
    return jax.jit(attend)(*tokens), *jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*tokens)

  with jax.default_matmul_precision("highest"):
    wide = run(jax.nn.dot_product_attention, [x.astype(jnp.float32) for x in tokens])
  step = float(jnp.finfo(dtype).eps)
  for one, other in zip(run(attention.attend, tokens), wide, strict=True):
    largest = float(jnp.abs(other).max())
    np.testing.assert_allclose(one.astype(jnp.float32), other, atol=4 * step * largest)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN's kernels need CUDA")
def test_gradients_are_finite_where_all_logits_are_low():
  tokens = [jnp.repeat(x, 4, axis=0) for x in _tokens(320, "bfloat16")]
  loss = lambda *tokens: attention.attend(*tokens).astype(jnp.float32).std()  # noqa: E731
  for gradient in jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*tokens):
    assert bool(jnp.isfinite(gradient).all())
