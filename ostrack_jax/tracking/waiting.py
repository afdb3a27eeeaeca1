"""How the host waits for the device."""

import time

import jax
import numpy as np


def fetch(found: jax.Array) -> np.ndarray:
  """Return what locate told, awake meanwhile on GPUs: to wake a thread takes a twentieth of a step.

  Other threads go on; a processor is busy until the answer comes.
  """
  if any(device.platform == "gpu" for device in found.devices()):
    while not found.is_ready():  # pyrefly: ignore[missing-attribute]
      time.sleep(0)
  return jax.device_get(found)
