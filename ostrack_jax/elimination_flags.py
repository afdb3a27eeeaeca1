"""--keep_ratios and --elimination_layers: candidate elimination changed for one run of a command."""

from collections.abc import Callable
from typing import Any

from absl import flags


def define(own: flags.FlagValues) -> None:
  """Define both flags among a command's own."""
  flags.DEFINE_list(
    "keep_ratios", None, "share of candidates that every elimination stage keeps, or one for each; 1 for no elimination; default: the checkpoint's", flag_values=own
  )  # fmt: skip
  flags.DEFINE_list(
    "elimination_layers", None, "blocks, from 0, that eliminate candidates; '' for none; default: the checkpoint's", flag_values=own
  )  # fmt: skip


def read(own: flags.FlagValues) -> dict[str, Any]:
  """Return both as keyword arguments of ostrack_jax.load, None where not given.

  Raises:
    ValueError: a word is no number.
  """
  ratios, layers = own["keep_ratios"].value, own["elimination_layers"].value
  return {
    "keep_ratios": None
    if ratios is None
    else tuple(_number("keep_ratios", one, float, "a number") for one in ratios),
    "elimination_layers": None
    if layers is None
    else tuple(_number("elimination_layers", one, int, "a whole number") for one in layers),
  }


def _number(name: str, word: str, kind: Callable[[str], float], what: str) -> float:
  try:
    return kind(word)
  except ValueError:
    raise ValueError(f"--{name} has {word!r}; expected {what}") from None
