"""Products of batches, run step by step, equal those by hand; on a Hopper GPU the compiled ones, too."""

import functools

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from linear_layers import added_by_hand, make_layers, make_tokens, normed_by_hand

from ostrack_jax.models import attention, batched_products, turned_products
from ostrack_jax.models.fused_products import row_sums


def _close_to_sums(sums, found, **tolerance):
  for parts, want in zip(sums, row_sums(found), strict=True):
    np.testing.assert_allclose(parts.sum(axis=0), want[0], **tolerance)


@pytest.mark.parametrize(
  ("shape", "outputs", "gelu", "parts"),
  [
    # Three tiles of rows, of which the last two overlap, of 64 columns each.
    ((2, 132, 64), 192, False, 3),
    # Fewer rows than a tile has, in tiles of 192 columns.
    ((1, 43, 64), 384, True, 1),
    # One row more than there is room for without filling up.
    ((1, 129, 128), 128, True, 1),
  ],
)
def test_a_product_behind_a_normalisation(shape, outputs, gelu, parts):
  tokens, layers = (
    make_tokens(shape, jnp.float32, 0),
    make_layers(shape[2], outputs, 7, jnp.float32),
  )
  found = batched_products.normed_product(
    tokens, row_sums(tokens), layers, 1, gelu=gelu, parts=parts, interpret=True
  )
  assert [part.shape for part in found] == [(*shape[:2], outputs // parts)] * parts
  want = normed_by_hand(tokens, layers, gelu)
  np.testing.assert_allclose(np.concatenate(found, axis=2), want, atol=5e-5 if gelu else 1e-5)


@pytest.mark.parametrize(("shape", "inputs"), [((3, 90, 64), 128), ((2, 33, 192), 64)])
def test_a_product_that_ends_a_branch_and_its_sums(shape, inputs):
  stream, x = make_tokens(shape, jnp.float32, 0), make_tokens((*shape[:2], inputs), jnp.float32, 1)
  layers = make_layers(inputs, shape[2], 3, jnp.float32)
  found, sums = batched_products.added_product(stream, x, layers, 1, interpret=True)
  np.testing.assert_allclose(found, added_by_hand(stream, x, layers), atol=1e-5)
  _close_to_sums(sums, found, rtol=1e-5, atol=1e-4)


def test_sums_in_several_parts_are_added_up():
  tokens, layers = make_tokens((2, 64, 64), jnp.float32, 0), make_layers(64, 64, 0, jnp.float32)
  whole = row_sums(tokens)
  parted = type(whole)(*(jnp.concatenate([0.25 * one, 0.75 * one]) for one in whole))
  one, other = (
    batched_products.normed_product(tokens, sums, layers, 0, gelu=False, parts=1, interpret=True)[0]
    for sums in (whole, parted)
  )
  np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_token_that_is_not_finite_is_not_hidden():
  tokens, layers = make_tokens((2, 70, 64), jnp.float32, 0), make_layers(64, 64, 0, jnp.float32)
  tokens = tokens.at[1, 3, 5].set(jnp.nan)
  (found,) = batched_products.normed_product(
    tokens, row_sums(tokens), layers, 1, gelu=True, parts=1, interpret=True
  )
  is_nan = np.isnan(found).all(axis=2)
  assert np.argwhere(is_nan).tolist() == [[1, 3]] and np.isnan(found).sum() == 64


def test_gelu_is_exact_to_what_it_says():
  near, far = np.linspace(-14, 14, 200_001), np.geomspace(14, 60_000, 500)
  x = np.concatenate([near, far, -far]).astype(np.float32)
  want = x.astype(np.float64) * scipy.special.ndtr(x.astype(np.float64))
  found = np.asarray(jax.jit(batched_products.gelu)(x))
  assert np.abs(found[: len(near)] - want[: len(near)]).max() < 4e-5
  np.testing.assert_allclose(found[len(near) :], want[len(near) :], rtol=1e-6, atol=1e-30)
  assert np.isnan(batched_products.gelu(jnp.float32(np.nan)))


@pytest.mark.skipif(
  not hasattr(plgpu, "InterpretGPUParams"), reason="jax 0.10 finds no races in kernels"
)
@pytest.mark.parametrize("adds", [False, True])
def test_no_group_reads_what_another_writes(adds, monkeypatch, capfd):
  interpreter = plgpu.InterpretGPUParams(detect_races=True)
  monkeypatch.setattr(turned_products, "_interpreter", lambda: interpreter)
  # Three runs of columns through two slots, several tiles for each group; no tile overlaps another.
  tokens, layers = make_tokens((3, 128, 192), jnp.float32, 0), make_layers(192, 384, 0, jnp.float32)
  if adds:
    stream = make_tokens((3, 128, 384), jnp.float32, 1)
    batched_products.added_product(stream, tokens, layers, 1, interpret=True)
  else:
    batched_products.normed_product(
      tokens, row_sums(tokens), layers, 1, gelu=True, parts=1, interpret=True
    )
  assert "RACE" not in capfd.readouterr().out


def _plain(rows_seen, arrays, ending, results, **plan):
  """Do what the kernel does, without it."""
  layer, x, kernels, shifts, *others = arrays
  rows_seen.add(len(x))
  kernel = kernels[layer[0]]
  shift = shifts[layer[0], plan["start"] :][None, : kernel.shape[1]]
  if ending is batched_products._Added:
    added = others[0] + x @ kernel + shift
    sums = added.sum(axis=1), jnp.square(added).sum(axis=1)
    return [
      added,
      *(jnp.broadcast_to(one / len(part), part.shape) for one, part in zip(sums, results[1:])),
    ]
  mean, square = (one.sum(axis=0) / x.shape[1] for one in others)
  factor = jax.lax.rsqrt(square - mean * mean + 1e-6)
  return jnp.split(x @ kernel * factor[:, None] + shift, plan["parts"], axis=1)


def test_each_device_multiplies_its_own_samples(four_devices, monkeypatch):
  rows_seen: set[int] = set()
  monkeypatch.setattr(turned_products, "call", functools.partial(_plain, rows_seen))
  calls = batched_products._normed_call, batched_products._added_call
  for call in calls:
    call.cache_clear()
  mesh = jax.sharding.Mesh(np.array(four_devices), ("data",))
  samples = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  tokens, x = make_tokens((8, 64, 64), jnp.float32, 0), make_tokens((8, 64, 128), jnp.float32, 1)
  into, out_of = make_layers(128, 64, 3, jnp.float32), make_layers(64, 192, 5, jnp.float32)

  @jax.jit
  def run(tokens, x):
    added, sums = batched_products.added_product(tokens, x, into, 1, interpret=False)
    return batched_products.normed_product(
      added, sums, out_of, 1, gelu=False, parts=3, interpret=False
    )

  placed = jax.device_put((tokens, x), samples)
  compiled = run.lower(*placed).compile()
  text = compiled.as_text()
  assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all", "permute"))
  found = compiled(*placed)
  want = normed_by_hand(added_by_hand(tokens, x, into), out_of, False)
  np.testing.assert_allclose(np.concatenate(found, axis=2), want, atol=3e-5)
  assert all(part.sharding.is_equivalent_to(samples, 3) for part in found)
  # Each device's two samples, and, where shapes alone were asked for, all eight.
  assert rows_seen == {2 * 64, 8 * 64}
  for call in calls:
    call.cache_clear()


_ON_HOPPER = pytest.mark.skipif(not attention.is_hopper(), reason="needs a Hopper GPU")


@_ON_HOPPER
@pytest.mark.parametrize(
  ("batch", "count", "width", "dtype"),
  [
    (16, 320, 768, jnp.float16),
    (9, 153, 768, jnp.bfloat16),
    (8, 244, 1024, jnp.float16),
    (16, 190, 384, jnp.bfloat16),
    (8, 12, 64, jnp.float16),
  ],
)
def test_compiled_products_equal_those_by_hand(batch, count, width, dtype):
  # Of the type's rounding, relative to what is added up.
  tolerance = dict(rtol=4 * float(jnp.finfo(dtype).eps), atol=4 * float(jnp.finfo(dtype).eps))
  tokens = make_tokens((batch, count, width), dtype, 0)
  product = functools.partial(batched_products.normed_product, interpret=False)
  for outputs, gelu, parts in ((3 * width, False, 3), (4 * width, True, 1)):
    layers = make_layers(width, outputs, 5, dtype)
    # Twice: what one group had not yet done when another read would differ.
    for _ in range(2):
      found = product(tokens, row_sums(tokens), layers, 1, gelu=gelu, parts=parts)
      found = np.concatenate([np.asarray(part, np.float64) for part in found], axis=2)
      np.testing.assert_allclose(found, normed_by_hand(tokens, layers, gelu), **tolerance)
  for inputs in (width, 4 * width):
    x, layers = make_tokens((batch, count, inputs), dtype, 1), make_layers(inputs, width, 5, dtype)
    found, sums = batched_products.added_product(tokens, x, layers, 1, interpret=False)
    want = added_by_hand(tokens, x, layers)
    np.testing.assert_allclose(np.asarray(found, np.float64), want, **tolerance)
    _close_to_sums(sums, found, rtol=1e-4, atol=1e-2)
