"""Multi-head self-attention between linear layers whose biases are added by what comes next."""

import flax.linen as nn
import jax.numpy as jnp

from ostrack_jax.models import attention as attention_lib
from ostrack_jax.models import candidates as candidates_lib
from ostrack_jax.models import packed_attention
from ostrack_jax.models.fused_norm import Branch
from ostrack_jax.models.relative_positions import position_bias

linear_init = nn.initializers.truncated_normal(stddev=0.02)


class BranchEnd(nn.Module):
  """A linear layer whose bias is left to whoever takes its result: the last layer of a branch, or the one that
  packs queries, keys and values."""

  features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, scale) -> Branch:
    """Map x, times scale already, and scale the bias: [b, 1, 1] float32, or None for 1."""
    kernel = self.param("kernel", linear_init, (x.shape[-1], self.features))
    bias = self.param("bias", nn.initializers.zeros, (self.features,))[None, None, :]
    shift = bias if scale is None else bias * scale
    return Branch(x.astype(self.dtype) @ kernel.astype(self.dtype), shift)


def scaled(x, scale):
  """Return x times scale, which broadcasts, in x's type; x itself for None."""
  return x if scale is None else (x.astype(jnp.float32) * scale).astype(x.dtype)


class Attention(nn.Module):
  """Multi-head self-attention that can also return the rows of a few queries."""

  width: int
  num_heads: int
  dtype: jnp.dtype
  # Of offsets between tokens, see relative_positions; 0 for no bias by them.
  offsets: int = 0

  def setup(self):
    if self.offsets:
      self.relative_position_bias_table = self.param(
        "relative_position_bias_table", linear_init, (self.num_heads, self.offsets)
      )
    self.qkv = BranchEnd(3 * self.width, self.dtype)
    self.proj = BranchEnd(self.width, self.dtype)

  def __call__(self, tokens, rows=None, key_valid=None, scale=None, offset_index=None):
    """Attend.

    Args:
      tokens: [b, n, width].
      rows: indices of the queries whose attention is wanted, or None.
      key_valid: [b, n] bool; tokens that nobody may attend to are false. None for all valid.
      scale: [b, 1, 1] float32 that multiplies each sample's result, or None.
      offset_index: [b or 1, n, n] int32, the offset from each token to each; None without `offsets`.

    Returns:
      (Branch [b, n, width], [b, h, len(rows), n] float32 or None).
    """
    batch, count, _ = tokens.shape
    packed = packed_attention.Packed(*self.qkv(tokens, None))
    queries, keys, values = packed_attention.split_heads(packed, self.num_heads)
    # Attention weights sum to 1, so this scales the result, in the pass that unpacks the values.
    values = scaled(values, None if scale is None else scale[..., None])
    bias = None
    if self.offsets:
      bias = position_bias(self.relative_position_bias_table, offset_index)
    if (
      scale is None
      and key_valid is None
      and bias is None
      and packed_attention.suits(batch, self.dtype, self.width // self.num_heads)
    ):
      mixed = packed_attention.attend_packed(self.num_heads, False, packed)
    else:
      mixed = attention_lib.attend(queries, keys, values, key_valid, bias)
    chosen = None
    if rows is not None:
      some = jnp.asarray(rows)
      chosen = candidates_lib.template_attention(
        queries[:, some], keys, key_valid, None if bias is None else bias[:, :, some]
      )
    return self.proj(mixed.reshape(batch, count, self.width), scale), chosen
