"""One mesh with one axis, `data`; the batch is split over it and everything else is copied."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices=None) -> Mesh:
  """Return a one-axis mesh over the given devices, by default all devices of all processes."""
  devices = jax.devices() if devices is None else list(devices)
  return jax.make_mesh((len(devices),), ("data",), devices=devices, axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """Return the sharding of state: a full copy on each device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Return the sharding of a batch: its first axis over `data`."""
  return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(mesh: Mesh, global_batch_size: int, parts: int = 1) -> int:
  """Return the batch size of this process.

  Args:
    parts: what the batch is worked off in, one after another.

  Raises:
    ValueError: the global batch does not divide over the devices, or their shares into the parts.
  """
  if global_batch_size % (mesh.size * parts):
    accumulated = f", each working in {parts} parts (train.accumulate_steps)" if parts > 1 else ""
    raise ValueError(
      f"batch size {global_batch_size} is not divisible by {mesh.size} devices{accumulated}; "
      f"set config.train.batch_size to a multiple of {mesh.size * parts}"
    )
  return global_batch_size // jax.process_count()


def copy_everywhere(mesh: Mesh, tree):
  """Copy a tree of arrays onto every device; each process passes the same values."""
  # device_put cannot place typed keys on the devices of other processes; a compiled identity can.
  return jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)


def train_step_options(mesh: Mesh) -> dict[str, Any]:
  """Return the options of jax.jit for a training step on the mesh: the state, its first argument, is given up."""
  options: dict[str, Any] = {"donate_argnums": 0, "out_shardings": replicated(mesh)}
  if mesh.size > 1:
    # XLA's pass copies gradients side by side, to exchange them as one array, and back: half a millisecond
    # (docs/training.md). In XLA_FLAGS the same option has no effect beside this.
    options["compiler_options"] = {"xla_disable_hlo_passes": "all-reduce-contiguous"}
  return options


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """Place this process's part of a batch on its devices; the result is the global batch."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()
  }
