"""A network small enough to compile in a second, and frames to run it on."""

import dataclasses
import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lane_runs import LENGTHS, SMALL

from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.tracking.lane import LaneSequence

_TINY = {
  "variant": "custom", "width": 32, "depth": 2, "num_heads": 2, "template_size": 32,
  "search_size": 64, "head_channels": 16, "elimination_layers": (1,), "keep_ratios": (0.7,),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
  model: OSTrack
  variables: dict
  description: dict


@functools.cache
def _variables(**changes):
  model = OSTrack(**{**_TINY, **changes})
  images = [jnp.zeros((1, size, size, 3)) for size in (model.template_size, model.search_size)]
  mask = None
  if model.template_tokens == "ground_truth_box":
    mask = jnp.ones((1, (model.template_size // 16) ** 2), bool)
  shapes = jax.eval_shape(model.init, jax.random.key(0), *images, template_mask=mask)
  # Drawn by numpy, because compiling the initialisers would take longer than all these tests.
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key in ("scale", "var"):
      return np.ones(leaf.shape, np.float32)
    fan_in = np.prod(leaf.shape[:-1], initial=1.0) if path[-1].key == "kernel" else 25.0
    return (rng.normal(size=leaf.shape) / fan_in**0.5).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def _checkpoint(template_factor=2.0, search_factor=4.0, **changes):
  factors = {"template_factor": template_factor, "search_factor": search_factor}
  model = OSTrack(**{**_TINY, **changes})
  return _Checkpoint(model, _variables(**changes), {"tracker": factors})


def _frame(number=0, height=90, width=120):
  rng = np.random.default_rng(number)
  coarse = rng.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
  return cv2.resize(coarse, (width, height))


@pytest.fixture
def make_checkpoint():
  """A function from factors and changed model fields to a checkpoint with random weights."""
  return _checkpoint


@pytest.fixture
def make_frame():
  """A function from a number, and perhaps height and width, to a frame of blurred noise."""
  return _frame


@pytest.fixture
def checkpoint(make_checkpoint):
  return make_checkpoint(**SMALL)


@pytest.fixture
def write_sequence(tmp_path, make_frame):
  """A function from a number and a length to a sequence of frames on disk, of a size of its own."""

  def write(number, length, **changes):
    folder = tmp_path / f"s{number}"
    folder.mkdir()
    height, width = 90 + 10 * (number % 3), 120 + 10 * (number % 2)
    suffix = ("png", "jpg")[number % 2]
    paths = [folder / f"{index}.{suffix}" for index in range(length)]
    for index, path in enumerate(paths):
      cv2.imwrite(str(path), make_frame(100 * number + index, height, width)[..., ::-1])
    rng = np.random.default_rng(number)
    boxes = np.c_[rng.uniform(20, 60, (length, 2)), rng.uniform(12, 30, (length, 2))]
    values = {"init_box_xywh": boxes[0], "start_boxes_xywh": boxes, **changes}
    return LaneSequence(name=f"s{number}", frames=paths, **values)

  return write


@pytest.fixture
def sequences(write_sequence):
  return [write_sequence(number, length) for number, length in enumerate(LENGTHS)]
