"""Rows of the table that says what each tensor of a PyTorch file is called here."""

from typing import NamedTuple


class Entry(NamedTuple):
  """One tensor: its official name and shape, its path in our variables, and how axes move."""

  name: str
  shape: tuple[int, ...]
  path: tuple[str, ...]
  layout: str


def affine(name: str, path: tuple[str, ...], size: int) -> list[Entry]:
  """Return weight and bias of a norm."""
  return [
    Entry(f"{name}.weight", (size,), (*path, "scale"), "same"),
    Entry(f"{name}.bias", (size,), (*path, "bias"), "same"),
  ]


def linear(name: str, path: tuple[str, ...], inputs: int, outputs: int) -> list[Entry]:
  """Return weight and bias of a linear layer."""
  return [
    Entry(f"{name}.weight", (outputs, inputs), (*path, "kernel"), "linear"),
    Entry(f"{name}.bias", (outputs,), (*path, "bias"), "same"),
  ]


def conv(name: str, path: tuple[str, ...], inputs: int, outputs: int, side: int) -> list[Entry]:
  """Return weight and bias of a convolution."""
  return [
    Entry(f"{name}.weight", (outputs, inputs, side, side), (*path, "kernel"), "conv"),
    Entry(f"{name}.bias", (outputs,), (*path, "bias"), "same"),
  ]
