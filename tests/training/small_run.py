"""The smallest run of the loop: a model of few parameters, and batches by number."""

import dataclasses
import signal

import jax
import numpy as np

from ostrack_jax import sharding
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.training import loop
from ostrack_jax.training.checkpoint_store import CheckpointStore
from ostrack_jax.training.losses import LossWeights
from ostrack_jax.training.optimizer import OptimizerSettings

MODEL = OSTrack(
  variant="custom",
  width=16,
  depth=2,
  num_heads=1,
  template_size=16,
  search_size=64,
  head_channels=8,
  elimination_layers=(1,),
  keep_ratios=(0.5,),
  drop_path_rate=0.1,
)
# Two steps an epoch; masked candidates in epochs 1 and 2, the final ratio from epoch 3 on.
SETTINGS = loop.LoopSettings(
  epochs=3,
  pairs_per_epoch=8,
  batch_size=4,
  elimination_start=1,
  elimination_warmup=2,
  log_every_steps=1,
  validate_every_epochs=2,
  save_every_epochs=1,
  keep_checkpoints=1,
)
# The same with one compiled step.
QUICK = dataclasses.replace(SETTINGS, elimination_start=0, elimination_warmup=0)


def make_batch(seed):
  """Return a batch of noise."""
  rng = np.random.default_rng(seed)
  return {
    "template": rng.integers(0, 256, (4, 16, 16, 3), np.uint8),
    "search": rng.integers(0, 256, (4, 64, 64, 3), np.uint8),
    "search_box_xywh": rng.uniform(0.2, 0.5, (4, 4)).astype(np.float32),
  }


class Batches:
  """Batches by number; can be told to fail, to hand out a broken batch, and what draws to report.

  signal_at: after so many batches these signals reach the process.
  """

  def __init__(self, *, fail_at=None, broken_at=None, skipped_at=(), signal_at=None, signals=()):
    self._step, self._fail_at, self._broken_at = 0, fail_at, broken_at
    self._skipped_at = skipped_at
    self._signal_at, self._signals = signal_at, signals
    self.counts = {"pairs": 0, "redraws": 0, "skipped": 0}

  def __next__(self):
    if self._step == self._fail_at:
      raise KeyboardInterrupt
    for number in self._signals if self._step == self._signal_at else ():
      signal.raise_signal(number)
    batch = make_batch(self._step)
    if self._step == self._broken_at:
      batch["search_box_xywh"][0, 0] = np.nan
    batch["records"] = np.array([[0, self._step, row] for row in range(4)])
    self._step += 1
    self.counts = {
      "pairs": self.counts["pairs"] + 4,
      "redraws": self.counts["redraws"] + 1,
      "skipped": self.counts["skipped"] + int(self._step in self._skipped_at),
    }
    return batch

  def describe(self, records):
    return f"pair {records[2]} of batch {records[1]}"

  def get_state(self):
    return {"step": self._step}

  def set_state(self, state):
    self._step = state["step"]


def train(workdir, start, batches, settings=SETTINGS, devices=1, track_validation=None):
  """Train in a folder and return the state."""
  workdir.mkdir(exist_ok=True, parents=True)
  store = CheckpointStore(workdir, keep=settings.keep_checkpoints)
  try:
    return loop.train(
      MODEL,
      start,
      batches,
      lambda: iter([make_batch(100)]),
      optimizer_settings=OptimizerSettings(learning_rate=1e-3, drop_epoch=2),
      loss_weights=LossWeights(),
      settings=settings,
      store=store,
      writer_dir=workdir,
      mesh=sharding.make_mesh(jax.devices()[:devices]),
      track_validation=track_validation,
    )[0]
  finally:
    store.close()
