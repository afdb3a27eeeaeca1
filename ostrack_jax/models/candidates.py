"""Candidate elimination: how many search tokens stay, which, and where they return to.

Follows OSTrack, Ye et al. 2022, Sec. 3.2. Counts are plain Python numbers, fixed at trace time;
which tokens stay is a `top_k`. Departures from the paper, both in favour of the released weights: the
centre token is the upper left of the four central ones, and dropped cells return as zeros after the
final norm.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp

PATCH_SIZE = 16
TEMPLATE_TOKENS = (
  "centre_point",
  "centre_point_paper",
  "centre_rectangle",
  "all",
  "ground_truth_box",
)


class Candidates(flax.struct.PyTreeNode):
  """The search tokens still in the network.

  Attributes:
    index: [b, n] int32 cell of the search grid (row-major) that each token stands for.
    valid: [b, n] bool, false where a token is kept only to keep the shape; None when all are valid.
  """

  index: jax.Array
  valid: jax.Array | None


def stage_counts(num_search_tokens: int, keep_ratios) -> tuple[int, ...]:
  """Return how many search tokens are left after each stage.

  The product is taken in float64 and rounded up, as the official code does: 0.7 * 180 lies one ulp
  under 126, so another precision would change the count.
  """
  counts, left = [], num_search_tokens
  for ratio in keep_ratios:
    left = math.ceil(ratio * left)
    counts.append(left)
  return tuple(counts)


def template_token_indices(choice: str, grid: int) -> tuple[int, ...] | None:
  """Return the template tokens whose attention ranks the candidates, or None for the box choice.

  Args:
    choice: one of TEMPLATE_TOKENS.
    grid: template tokens per side, f.

  `centre_point` is ((f-1)//2)(f+1), 27 for f = 8 and 65 for f = 12, as released. The paper's formula
  (`centre_point_paper`) gives 36 and 78; released weights do not expect it.
  """
  if choice == "centre_point":
    return (((grid - 1) // 2) * (grid + 1),)
  if choice == "centre_point_paper":
    return (grid // 2 + grid * (grid // 2),)
  if choice == "centre_rectangle":
    rows = range((grid - 1) // 2, grid // 2 + 1)
    return tuple(row * grid + column for row in rows for column in rows)
  if choice == "all":
    return tuple(range(grid * grid))
  if choice == "ground_truth_box":
    return None
  raise ValueError(
    f"template_tokens {choice!r} is unknown; choose one of {', '.join(TEMPLATE_TOKENS)}"
  )


def template_mask_from_boxes(boxes_xywh, template_size: int) -> jax.Array:
  """Mark the template tokens that the target's box covers.

  Args:
    boxes_xywh: [b, 4] target in the template crop, normalised to it.
    template_size: side of the template crop in pixels.

  Returns:
    [b, Nz] bool, row-major. A token counts when one of its four central pixels lies in the box (the
    official code resizes a pixel mask by 1/16, bilinear without antialiasing). The official mask of a
    box between those pixels is empty, and its mean is NaN; here the centre token stands in.
  """
  boxes = jnp.asarray(boxes_xywh, jnp.float32) * template_size
  grid = template_size // PATCH_SIZE
  near = PATCH_SIZE * jnp.arange(grid) + PATCH_SIZE // 2 - 1

  def covered(start, extent):
    first = jnp.trunc(start)[:, None]
    end = jnp.trunc(start + extent - 1)[:, None]
    low, high = near[None, :], near[None, :] + 1
    return ((low >= first) & (low < end)) | ((high >= first) & (high < end))

  columns = covered(boxes[:, 0], boxes[:, 2])
  rows = covered(boxes[:, 1], boxes[:, 3])
  mask = (rows[:, :, None] & columns[:, None, :]).reshape(-1, grid * grid)
  (centre,) = template_token_indices("centre_point", grid) or (0,)
  fallback = jnp.broadcast_to(jnp.arange(grid * grid)[None, :] == centre, mask.shape)
  return jnp.where(mask.any(axis=1, keepdims=True), mask, fallback)


def template_attention(queries, keys, key_valid=None, bias=None) -> jax.Array:
  """Return the attention of a few template tokens over all tokens.

  Args:
    queries: [b, t, h, d] queries of the chosen template tokens.
    keys: [b, n, h, d] keys of all tokens.
    key_valid: [b, n] bool or None.
    bias: [b or 1, h, t, n] float32 added to the scaled logits, or None.

  Returns:
    [b, h, t, n] float32 softmax rows. Only these rows are formed, never the whole matrix.
  """
  logits = jnp.einsum("bthd,bnhd->bhtn", queries, keys, preferred_element_type=jnp.float32)
  logits = logits * queries.shape[-1] ** -0.5
  if bias is not None:
    logits = logits + bias
  if key_valid is not None:
    logits = jnp.where(key_valid[:, None, None, :], logits, -jnp.inf)
  return jax.nn.softmax(logits, axis=-1)


def candidate_scores(search_attention, template_mask=None) -> jax.Array:
  """Average template attention over heads and template tokens.

  Args:
    search_attention: [b, h, t, n] attention of template tokens over the search tokens.
    template_mask: [b, t] bool, which of the t tokens count; None, or a row without any, for all.

  Returns:
    [b, n] float32; not renormalised over the search tokens.
  """
  per_token = search_attention.mean(axis=1)
  if template_mask is None:
    return per_token.mean(axis=1)
  any_marked = template_mask.any(axis=1, keepdims=True)
  weights = jnp.where(any_marked, template_mask, True).astype(jnp.float32)
  weights = weights / weights.sum(axis=1, keepdims=True)
  return jnp.einsum("btn,bt->bn", per_token, weights)


def _ranked(scores, *arrays):
  """Return arrays [b, n] in the order of scores [b, n], the highest first, ties to the lower position.

  The order of lax.top_k, which would be gathered from all devices and found on each for all samples; and of
  a sort, which takes several times as long as this for so few.
  """
  place = jnp.arange(scores.shape[1])
  mine, other = scores[:, :, None], scores[:, None, :]
  earlier = (place[None, :] < place[:, None])[None]
  rank = ((other > mine) | ((other == mine) & earlier)).sum(axis=2, dtype=jnp.int32)

  def put(own_rank, *own):
    return tuple(jnp.zeros_like(one).at[own_rank].set(one, unique_indices=True) for one in own)

  # Sample by sample: indexed by the batch as well, it would be gathered from all devices.
  return jax.vmap(put)(rank, *arrays)


def select(candidates: Candidates, scores, capacity: int, keep_count=None):
  """Rank the candidates and keep the best.

  Args:
    candidates: n tokens.
    scores: [b, n] higher is better.
    capacity: how many tokens go on, static.
    keep_count: traced int32 scalar, how many of those count; None means all.

  Returns:
    (order [b, capacity] positions to gather, the Candidates that go on, removed). `removed` lists
    the search-grid cells dropped here: [b, n - capacity] without keep_count; with it [b, n], padded
    with -1. Kept tokens stand in score order, ties to the lower position.
  """
  scores = jax.lax.stop_gradient(scores)
  if candidates.valid is not None:
    scores = jnp.where(candidates.valid, scores, -jnp.inf)
  count = scores.shape[1]
  position = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32)[None, :], scores.shape)
  order, ranked = _ranked(scores, position, candidates.index)
  if keep_count is None and candidates.valid is None:
    return (
      order[:, :capacity],
      Candidates(index=ranked[:, :capacity], valid=None),
      ranked[:, capacity:],
    )
  keep_count = jnp.minimum(capacity if keep_count is None else keep_count, capacity)
  if candidates.valid is None:
    ranked_valid = jnp.ones_like(ranked, bool)
  else:
    ranked_valid = jnp.take_along_axis(candidates.valid, order, axis=1)
  kept = Candidates(
    index=ranked[:, :capacity],
    valid=ranked_valid[:, :capacity] & (position[:, :capacity] < keep_count),
  )
  source = jnp.minimum(position + keep_count, count - 1)
  dropped = jnp.take_along_axis(ranked_valid, source, axis=1) & (position + keep_count < count)
  removed = jnp.where(dropped, jnp.take_along_axis(ranked, source, axis=1), -1)
  return order[:, :capacity], kept, removed


def eliminate(tokens, candidates: Candidates, scores, capacity: int, keep_count=None):
  """Keep the best search tokens, behind the template's.

  Args:
    tokens: [b, Nz + n, d], template first.
    Others as for select.

  Returns:
    (tokens [b, Nz + capacity, d], and what select returns of the candidates that go on and that do not).
  """
  order, kept, removed = select(candidates, scores, capacity, keep_count)
  num_z = tokens.shape[1] - scores.shape[1]
  survivors = jnp.take_along_axis(tokens[:, num_z:], order[:, :, None], axis=1)
  return jnp.concatenate([tokens[:, :num_z], survivors], axis=1), kept, removed


def restore(tokens, candidates: Candidates, num_search_tokens: int) -> jax.Array:
  """Put search tokens back on their cells, with zeros where candidates were eliminated.

  Args:
    tokens: [b, n, d] in the order of `candidates`.
    num_search_tokens: cells of the search grid.

  Returns:
    [b, num_search_tokens, d], row-major.
  """
  if candidates.valid is not None:
    tokens = jnp.where(candidates.valid[:, :, None], tokens, jnp.zeros((), tokens.dtype))

  def scatter(own_tokens, cells):
    canvas = jnp.zeros((num_search_tokens, tokens.shape[2]), tokens.dtype)
    return canvas.at[cells].set(own_tokens, unique_indices=True)

  # Sample by sample: indexed by the batch as well, it would be gathered from all devices.
  return jax.vmap(scatter)(tokens, candidates.index)


def on_grid(tokens, candidates: Candidates, num_search_tokens: int) -> jax.Array:
  """Return template tokens, then search tokens on their cells as of restore: [b, Nz + num_search_tokens, d]."""
  num_z = tokens.shape[1] - candidates.index.shape[1]
  x = restore(tokens[:, num_z:], candidates, num_search_tokens)
  return jnp.concatenate([tokens[:, :num_z], x], axis=1)


def attention_on_grid(
  rows, candidates: Candidates, num_z: int, num_search_tokens: int
) -> jax.Array:
  """Put the search part of attention rows [b, h, t, Nz + n] on its cells: [b, h, t, Nz + num_search_tokens]."""
  batch, heads, count, _ = rows.shape
  columns = jnp.moveaxis(rows[..., num_z:], -1, 1).reshape(batch, -1, heads * count)
  grid = restore(columns, candidates, num_search_tokens)
  grid = jnp.moveaxis(grid.reshape(batch, num_search_tokens, heads, count), 1, -1)
  return jnp.concatenate([rows[..., :num_z], grid], axis=-1)
