"""What is left to do to a batch of crops on the device: grey, flips, brightness, normalisation."""

import jax
import jax.numpy as jnp

from ostrack_jax.models.ostrack import normalise_images

# ITU-R BT.601, as OpenCV has it.
_GREY_WEIGHTS = (0.299, 0.587, 0.114)


def _grey(images: jax.Array) -> jax.Array:
  # A sum of products, not a matrix product, whose precision a GPU cuts.
  grey = sum(
    images[..., channel].astype(jnp.float32) * weight
    for channel, weight in enumerate(_GREY_WEIGHTS)
  )
  grey = jnp.round(grey).astype(images.dtype)
  return jnp.broadcast_to(grey[..., None], images.shape)


def _prepare(batch, name: str) -> jax.Array:
  images = jnp.asarray(batch[name])
  if "grey" in batch:
    images = jnp.where(batch["grey"][:, None, None, None], _grey(images), images)
  if f"{name}_flip" in batch:
    images = jnp.where(batch[f"{name}_flip"][:, None, None, None], images[:, :, ::-1], images)
  return normalise_images(images, batch.get(f"{name}_brightness"))


def prepare_images(batch) -> tuple[jax.Array, jax.Array]:
  """Turn the crops of a batch into the network's input, as the host decided; to be jitted.

  Args:
    batch: template and search, uint8 RGB [b, size, size, 3]; grey, template_flip, search_flip: bool
      [b]; template_brightness, search_brightness: float32 [b]. What is missing but the crops is not
      done.

  Returns:
    The template and the search region, float32, normalised. Within one grey level of what OpenCV and
    numpy make of the same crops. Follows OSTrack, lib/train/data/transforms.py, where grey and the
    first flip come before the crop.
  """
  return _prepare(batch, "template"), _prepare(batch, "search")
