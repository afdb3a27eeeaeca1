"""A network that compiles in seconds, and images for it."""

import jax.numpy as jnp
import numpy as np

from ostrack_jax.models.ostrack import OSTrack

_FIELDS = dict(
  variant="custom",
  width=64,
  depth=1,
  num_heads=2,
  template_size=32,
  search_size=64,
  head_channels=16,
  elimination_layers=(0,),
  keep_ratios=(0.5,),
)


def make_model(**fields) -> OSTrack:
  """Return the network with some fields changed."""
  return OSTrack(**{**_FIELDS, **fields})


def make_images(batch: int = 2):
  """Return templates and search regions, normalised."""
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.normal(size=(batch, s, s, 3)), jnp.float32) for s in (32, 64)]
