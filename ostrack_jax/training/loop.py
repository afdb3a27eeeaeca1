"""The training loop, top to bottom: resume, step, log, validate, save."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import jax
import numpy as np
import tqdm

from ostrack_jax import sharding
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.training import step as step_lib
from ostrack_jax.training import targets
from ostrack_jax.training.checkpoint_store import CheckpointStore
from ostrack_jax.training.losses import LossWeights
from ostrack_jax.training.metric_writer import MetricWriter
from ostrack_jax.training.optimizer import OptimizerSettings, learning_rate_schedule, make_optimizer
from ostrack_jax.training.state import TrainState, create_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings:
  """How long to train and what to do on the way; the official values are the defaults.

  Attributes:
    epochs: of `pairs_per_epoch` pairs each; an epoch has floor(pairs / batch_size) steps.
    batch_size: global, over all devices and processes.
    elimination_start, elimination_warmup: epochs before candidates start to leave, and of the cosine
      down to the model's keep ratio; see targets.keep_ratio_at_epoch.
    max_minutes: stop after so many minutes of stepping, 0 for never (the clock starts when the first
      step has compiled).
    log_every_steps: scalars are read from the device only that often.
    validate_every_epochs, save_every_epochs: the last epoch always does both.
    keep_checkpoints: how many of the newest checkpoints stay; the best one always does.
    seed: of initial parameters, drop path and data.
  """

  epochs: int = 300
  pairs_per_epoch: int = 60_000
  batch_size: int = 128
  elimination_start: int = 20
  elimination_warmup: int = 80
  max_minutes: float = 0.0
  log_every_steps: int = 50
  validate_every_epochs: int = 20
  save_every_epochs: int = 10
  keep_checkpoints: int = 2
  seed: int = 42

  def __post_init__(self):
    if self.batch_size < 1 or self.pairs_per_epoch < self.batch_size:
      raise ValueError(
        f"train.pairs_per_epoch {self.pairs_per_epoch} must be at least train.batch_size {self.batch_size}, itself at least 1"
      )
    if (
      self.epochs < 1
      or self.log_every_steps < 1
      or self.save_every_epochs < 1
      or self.validate_every_epochs < 1
    ):
      raise ValueError(
        "train.epochs, log_every_steps, save_every_epochs and validate_every_epochs must be at least 1"
      )

  @property
  def steps_per_epoch(self) -> int:
    """Whole batches in an epoch."""
    return self.pairs_per_epoch // self.batch_size


class Batches(Protocol):
  """An endless iterator of this process's batches that knows its position.

  counts: of what this iterator gave so far, pairs, and how many draws they cost beyond themselves:
  redraws, rejected by the validity rule, and skipped, with a damaged record.
  """

  @property
  def counts(self) -> dict[str, int]: ...

  def __next__(self) -> dict[str, np.ndarray]: ...

  def get_state(self) -> dict: ...

  def set_state(self, state: dict) -> None: ...


class NonFiniteLossError(RuntimeError):
  """The loss or the gradient stopped being a number."""


class CompiledSteps:
  """The jitted steps of a run: one where candidates are masked, one at the final keep ratio.

  While the schedule moves, every stage keeps the whole grid and the traced keep counts mask what the
  schedule drops; from the final ratio on, dropped candidates cost nothing. Two compilations in all.
  """

  def __init__(
    self,
    model: OSTrack,
    make_step: Callable[[OSTrack], Callable],
    settings: LoopSettings,
    **jit_options,
  ):
    self._model, self._settings = model, settings
    full_grid = model.clone(keep_ratios=(1.0,) * len(model.keep_ratios))
    self._masked = jax.jit(make_step(full_grid), **jit_options)
    self._static = jax.jit(make_step(model), **jit_options)

  def at_epoch(self, epoch: int) -> Callable:
    """Return the step of an epoch, counted from 1; it takes what the uncompiled step takes."""
    ratios = self._model.keep_ratios
    start, warmup = self._settings.elimination_start, self._settings.elimination_warmup
    if not ratios or epoch >= start + warmup:
      return self._static
    ratio = targets.keep_ratio_at_epoch(epoch, final=ratios[0], start=start, warmup=warmup)
    counts = np.asarray(self._model.stage_counts(ratio), np.int32)
    return lambda *arguments: self._masked(*arguments, counts)


def train(
  model: OSTrack,
  variables: dict,
  train_batches: Batches,
  validation_batches: Callable[[], Iterator],
  *,
  optimizer_settings: OptimizerSettings,
  loss_weights: LossWeights,
  settings: LoopSettings,
  store: CheckpointStore,
  writer_dir,
  mesh,
) -> TrainState:
  """Train to the end of the schedule, resuming from the store's newest checkpoint if it has one.

  Args:
    variables: {"params", "batch_stats"} to start from when nothing is resumed.
    train_batches: where batches come from.
    validation_batches: called before each validation; a finite iterator of batches.
    store: where checkpoints go; they hold the state and the position in the data.
    writer_dir: folder for scalars.
    mesh: one axis `data`.

  Returns:
    The state after the last step.

  Raises:
    NonFiniteLossError: names the step; nothing is saved over the last good checkpoint.
  """
  steps_per_epoch = settings.steps_per_epoch
  optimizer = make_optimizer(optimizer_settings, steps_per_epoch)
  learning_rate = learning_rate_schedule(optimizer_settings, steps_per_epoch)
  sharding.check_batch_size(mesh, settings.batch_size)
  if settings.max_minutes and jax.process_count() > 1:
    raise ValueError(
      f"train.max_minutes {settings.max_minutes:g} is for one process, whose clock decides; with "
      f"{jax.process_count()} set it to 0"
    )
  everywhere = sharding.replicated(mesh)
  state = sharding.copy_everywhere(mesh, create_state(variables, optimizer, settings.seed))
  first_step = 0
  if store.latest_step() is not None:
    state, data_state = store.restore(state)
    train_batches.set_state(data_state)
    first_step = int(state.step)
    if jax.process_index() == 0:
      print(f"resumed from step {first_step}", flush=True)

  train_steps = CompiledSteps(
    model,
    lambda m: step_lib.make_train_step(m, optimizer, loss_weights),
    settings,
    donate_argnums=0,
    out_shardings=everywhere,
  )
  validation_steps = CompiledSteps(
    model,
    lambda m: step_lib.make_validation_step(m, loss_weights),
    settings,
    out_shardings=everywhere,
  )
  is_first_process = jax.process_index() == 0
  last_step = settings.epochs * steps_per_epoch
  waiting, counted = [], train_batches.counts
  seconds_trained, clock = 0.0, time.perf_counter()
  pairs_timed = 0
  with contextlib.ExitStack() as stack:
    writer = stack.enter_context(
      contextlib.closing(MetricWriter(writer_dir, resume_step=first_step))
    )
    bar = stack.enter_context(
      tqdm.tqdm(
        total=last_step,
        initial=first_step,
        unit="step",
        desc="training",
        disable=not is_first_process,
      )
    )
    batch = sharding.put_batch(mesh, next(train_batches)) if first_step < last_step else None
    for step in range(first_step + 1, last_step + 1):
      epoch = (step - 1) // steps_per_epoch + 1
      state, metrics = train_steps.at_epoch(epoch)(state, batch)
      waiting.append(metrics)
      end_of_epoch = step % steps_per_epoch == 0
      seconds = seconds_trained + time.perf_counter() - clock
      out_of_time = step > first_step + 1 and 0 < settings.max_minutes * 60 <= seconds
      stop = step == last_step or out_of_time
      validate = stop or (end_of_epoch and epoch % settings.validate_every_epochs == 0)
      save = validate or (end_of_epoch and epoch % settings.save_every_epochs == 0)
      data_state = train_batches.get_state()
      # The next batch travels while this step runs.
      batch = None if stop else sharding.put_batch(mesh, next(train_batches))

      if step == first_step + 1:
        # Compilation is not training: the clock starts behind it.
        jax.block_until_ready(metrics)
        clock = time.perf_counter()
      else:
        pairs_timed += settings.batch_size
      if step % settings.log_every_steps == 0 or save or end_of_epoch:
        scalars = _mean_scalars(waiting, step)
        waiting = []
        elapsed = time.perf_counter() - clock
        seconds_trained += elapsed
        scalars["pairs_per_second"] = pairs_timed / max(elapsed, 1e-9)
        scalars["learning_rate"] = float(np.asarray(learning_rate(step - 1)))
        scalars |= _draws(counted, train_batches.counts, step)
        counted = train_batches.counts
        writer.write(step, {f"train/{name}": value for name, value in scalars.items()})
        bar.set_postfix_str(
          f"loss {scalars['loss']:.3f}  IoU {scalars['iou']:.3f}  {scalars['pairs_per_second']:.0f} pairs/s"
        )
        bar.update(step - bar.n)
        clock, pairs_timed = time.perf_counter(), 0
      validated = {}
      if validate:
        validated = run_validation(
          validation_steps.at_epoch(epoch), state.variables, validation_batches(), mesh
        )
        writer.write(step, {f"validation/{name}": value for name, value in validated.items()})
        if is_first_process:
          bar.write(
            f"step {step}: validation loss {validated['loss']:.3f}, IoU {validated['iou']:.3f}"
          )
      if save:
        store.save(step, state, data_state, validated.get("iou"))
        clock = time.perf_counter()
      if stop:
        if out_of_time and step < last_step and is_first_process:
          bar.write(
            f"stopped at step {step} of {last_step} after train.max_minutes = {settings.max_minutes:g}"
          )
        break
  store.wait()
  return state


def _mean_scalars(waiting: list, step: int) -> dict[str, float]:
  """Read metrics from the device and average them over the steps since the last time."""
  rows = jax.device_get(waiting)
  for position, row in enumerate(rows):
    bad = [name for name, value in row.items() if not np.isfinite(value)]
    if bad:
      raise NonFiniteLossError(
        f"{', '.join(bad)} stopped being finite at step {step - len(rows) + 1 + position}; "
        "the last checkpoint is untouched. Lower config.optim.learning_rate or look at that batch"
      )
  return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _draws(before: dict[str, int], now: dict[str, int], step: int) -> dict[str, float]:
  """Return what this process drew in vain per thousand pairs; say so where records are damaged."""
  new = {name: now[name] - before[name] for name in ("pairs", "redraws", "skipped")}
  if new["skipped"]:
    tqdm.tqdm.write(
      f"step {step}, process {jax.process_index()}: {new['skipped']} draws for {new['pairs']} pairs met a damaged "
      f"record, {now['skipped']} so far; the log names the records"
    )
  return {
    f"{name}_per_thousand_pairs": 1000 * new[name] / max(new["pairs"], 1)
    for name in ("redraws", "skipped")
  }


def run_validation(step: Callable, variables: dict, batches: Iterator, mesh) -> dict[str, float]:
  """Return the mean of each metric of a compiled validation step over equal batches.

  Raises:
    ValueError: there are no batches.
  """
  rows = jax.device_get([step(variables, sharding.put_batch(mesh, batch)) for batch in batches])
  if not rows:
    raise ValueError(
      "there is nothing to validate on; set config.data.validation_pairs to at least one batch"
    )
  return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
