"""How the host waits for the device."""

import os

import jax
import numpy as np


def fetch(found: jax.Array) -> np.ndarray:
  """Return what locate told, awake meanwhile on GPUs: to wake a thread takes a twentieth of a step.

  Other threads go on; a processor is busy until the answer comes. What locate told lies in the host's
  memory, and is not copied.
  """
  if any(device.platform == "gpu" for device in found.devices()):
    while not found.is_ready():  # pyrefly: ignore[missing-attribute]
      # Gives way to other threads, Python's too, and comes back at once; even an empty sleep is a sleep.
      os.sched_yield()
  return np.asarray(found)
