"""Where a crop waits for the device: memory of the host that programs on a GPU read by themselves."""

import ctypes
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding


class Staging:
  """Room for what every call of a jitted function is given anew.

  Of numpy a call makes a copy, which a thread sends: 0.1 to 0.2 ms on a GPU's host, and what was done meanwhile
  is in nobody's cache. An array of jax in pinned memory is read by the program as it lies, and can be written to where
  it lies. That jax takes arrays for constant does no harm as long as nobody writes while a program reads: wait
  for its answer first. Who does not, as after Ctrl-C, spoils that answer alone; the next program reads what is
  written before it is called.

  Args:
    shape: of the uint8 values.
    device: whose programs read.
    is_pinned: whether in pinned memory; None for GPUs. Others, whose memory is the host's, gain nothing.

  Attributes:
    room: numpy array to write to, zeros at first.
    given: the same, to call a jitted function with; such a function puts what lies in the host's memory on its device.
  """

  def __init__(self, shape: tuple[int, ...], device: jax.Device, is_pinned: bool | None = None):
    self.given: jax.Array | np.ndarray
    self.room = np.zeros(shape, np.uint8)
    self.given = self.room
    if device.platform == "gpu" if is_pinned is None else is_pinned:
      self._pin(device)

  def _pin(self, device: jax.Device) -> None:
    pinned = SingleDeviceSharding(device, memory_kind="pinned_host")
    self.given = jax.device_put(self.room, pinned).block_until_ready()
    values = ctypes.c_uint8 * self.room.size
    place: Any = values.from_address(self.given.unsafe_buffer_pointer())
    # So that whoever holds a view keeps the memory.
    place.owner = self.given
    self.room = np.ctypeslib.as_array(place).reshape(self.room.shape)


def on_device(array):
  """Return an array, traced by jit, put on the device if it lies in the host's memory."""
  is_on_host = jax.typeof(array).memory_space == jax.memory.Space.Host
  return jax.device_put(array, jax.memory.Space.Device) if is_on_host else array
