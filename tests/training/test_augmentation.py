"""Grey, flips and brightness on the device against OpenCV and numpy on the host."""

import cv2
import jax
import numpy as np
import pytest

from ostrack_jax.models.ostrack import normalise_images
from ostrack_jax.training.augmentation import prepare_images

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SIZES = {"template": 32, "search": 64}


def pictures(rng, count, size):
  """Smooth colours with edges and black padding, and among them every grey and pure colours."""
  small = rng.integers(0, 256, (count, size // 8, size // 8, 3), dtype=np.uint8)
  images = np.stack([cv2.resize(image, (size, size)) for image in small])
  images[:, : size // 4] = rng.integers(0, 256, (count, size // 4, size, 3))
  images[:, :, -5:] = 0
  images[0, 0, :8] = [
    [255, 0, 0],
    [0, 255, 0],
    [0, 0, 255],
    [255] * 3,
    [0] * 3,
    [1] * 3,
    [254] * 3,
    [128] * 3,
  ]
  return images


def make_batch(seed=0, count=16):
  rng = np.random.default_rng(seed)
  batch = {"grey": np.arange(count) % 2 == 0}
  for i, (name, size) in enumerate(SIZES.items()):
    batch[name] = pictures(rng, count, size)
    batch[f"{name}_flip"] = np.arange(count) // (2 << i) % 2 == 0
    batch[f"{name}_brightness"] = rng.uniform(0.8, 1.2, count).astype(np.float32)
    batch[f"{name}_box_xywh"] = rng.uniform(0.2, 0.5, (count, 4)).astype(np.float32)
  return batch


def on_the_host(batch, name):
  """The same with OpenCV and numpy, before normalisation: 0 to 1, [b, size, size, 3]."""
  results = []
  for i, image in enumerate(batch[name]):
    if batch["grey"][i]:
      image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if batch[f"{name}_flip"][i]:
      image = np.fliplr(image)
    results.append(np.clip(image * batch[f"{name}_brightness"][i].astype(np.float64) / 255, 0, 1))
  return np.stack(results)


def denormalise(images):
  return np.asarray(images, np.float64) * STD + MEAN


@pytest.mark.parametrize("seed", range(3))
def test_the_device_does_what_opencv_does_within_one_grey_level(seed):
  batch = make_batch(seed)
  prepared = jax.jit(prepare_images)(batch)
  for name, images in zip(SIZES, prepared, strict=True):
    assert images.dtype == np.float32 and images.shape == batch[name].shape
    difference = np.abs(denormalise(images) - on_the_host(batch, name))
    # Brightness scales a grey level by up to 1.2.
    assert difference.max() <= 1.2 / 255 + 1e-6
    # Grey is rounded alike nearly everywhere; the rest is the same arithmetic.
    assert (difference > 1e-5).mean() < 1e-3
    assert difference[~batch["grey"]].max() < 1e-6


def test_a_whole_batch_is_rounded_to_grey_as_opencv_rounds():
  # Every tenth colour there is.
  levels = np.arange(0, 256, 10, dtype=np.uint8)
  colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 26, 3)
  batch = {"template": colours, "search": colours, "grey": np.array([True])}
  found = np.rint(denormalise(jax.jit(prepare_images)(batch)[0]) * 255).astype(int)
  expected = cv2.cvtColor(colours[0], cv2.COLOR_RGB2GRAY).astype(int)
  assert (found == found[..., :1]).all()
  assert np.abs(found[0, ..., 0] - expected).max() <= 1


def test_flips_are_each_samples_and_each_crops_own():
  batch = make_batch()
  del batch["grey"], batch["template_brightness"], batch["search_brightness"]
  batch["template_flip"] = np.arange(16) < 5
  batch["search_flip"] = np.arange(16) == 15
  for name, images in zip(SIZES, jax.jit(prepare_images)(batch), strict=True):
    plain = np.asarray(normalise_images(batch[name]))
    flip = batch[f"{name}_flip"]
    np.testing.assert_allclose(images[flip], plain[flip][:, :, ::-1], atol=1e-6)
    np.testing.assert_allclose(images[~flip], plain[~flip], atol=1e-6)


def test_what_is_missing_is_not_done():
  batch = make_batch()
  plain = {name: batch[name] for name in SIZES}
  for name, images in zip(SIZES, jax.jit(prepare_images)(plain), strict=True):
    np.testing.assert_allclose(images, normalise_images(batch[name]), atol=1e-6)


def test_labels_and_batch_are_left_alone():
  batch = make_batch()
  before = {name: value.copy() for name, value in batch.items()}
  jax.jit(prepare_images)(batch)
  for name, value in before.items():
    np.testing.assert_array_equal(batch[name], value)


def test_black_padding_stays_black_whatever_the_brightness():
  batch = make_batch()
  batch["search"][...] = 0
  _, search = jax.jit(prepare_images)(batch)
  np.testing.assert_allclose(search, np.broadcast_to(-MEAN / STD, search.shape), rtol=1e-5)
