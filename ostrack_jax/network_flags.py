"""How a command loads its network: --dtype, --num_heads, and candidate elimination changed for one run."""

from collections.abc import Callable
from typing import Any

from absl import flags

CHECKPOINT_HELP = (
  "converted folder, training work folder or its checkpoints/STEP, official .pth/.pth.tar file, or ostrack_tiny, "
  "which ships with the package"
)
SHIPPED = "ostrack_tiny"
SHIPPED_NOTE = (
  "a toy of 2 MB that has seen procedural video alone; real video needs other weights, see 'Official weights' in "
  "the README"
)


def define(own: flags.FlagValues) -> None:
  """Define the flags among a command's own."""
  flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16", "float16"], "to compute in; by default what the checkpoint says, but float16 for bfloat16 on CUDA from Ampere on", flag_values=own
  )  # fmt: skip
  flags.DEFINE_integer(
    "num_heads", None, "attention heads of an official file, where width/64 is wrong", flag_values=own
  )  # fmt: skip
  flags.DEFINE_list(
    "keep_ratios", None, "share of candidates that every elimination stage keeps, or one for each; 1 for no elimination; default: the checkpoint's", flag_values=own
  )  # fmt: skip
  flags.DEFINE_list(
    "elimination_layers", None, "blocks, from 0, that eliminate candidates; '' for none; default: the checkpoint's", flag_values=own
  )  # fmt: skip


def load_arguments(own: flags.FlagValues) -> dict[str, Any]:
  """Return all of them as keyword arguments of ostrack_jax.load; raises as read_elimination."""
  return {"dtype": own["dtype"].value, "num_heads": own["num_heads"].value, **read_elimination(own)}


def read_elimination(own: flags.FlagValues) -> dict[str, Any]:
  """Return keep_ratios and elimination_layers of ostrack_jax.load, None where not given.

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
