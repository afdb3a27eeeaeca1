"""OSTrack visual object tracking in JAX and Flax.

`load`, `Tracker` and the others are resolved on first use, so that data workers can import this package without
starting jax.
"""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
  "Checkpoint": "ostrack_jax.loading",
  "load": "ostrack_jax.loading",
  "LongTermSettings": "ostrack_jax.tracking.long_term",
  "MultiTracker": "ostrack_jax.tracking.multi_tracker",
  "Tracker": "ostrack_jax.tracking.tracker",
  "TrackResult": "ostrack_jax.tracking.tracker",
}


def __getattr__(name: str):
  if name in _PUBLIC:
    return getattr(importlib.import_module(_PUBLIC[name]), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
  return sorted([*globals(), *_PUBLIC])
