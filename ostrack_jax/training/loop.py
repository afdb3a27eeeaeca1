"""The training loop, top to bottom: resume, step, log, validate, save."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Protocol

import jax
import numpy as np
import tqdm

from ostrack_jax import sharding
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.training import finiteness, stopping, validation
from ostrack_jax.training import step as step_lib
from ostrack_jax.training.checkpoint_store import CheckpointStore
from ostrack_jax.training.compiled_steps import CompiledSteps
from ostrack_jax.training.losses import LossWeights
from ostrack_jax.training.metric_writer import MetricWriter
from ostrack_jax.training.optimizer import OptimizerSettings, learning_rate_schedule, make_optimizer
from ostrack_jax.training.profiling import ProfilerWindow
from ostrack_jax.training.speed import Speed
from ostrack_jax.training.state import TrainState, create_state
from ostrack_jax.training.stopwatch import Stopwatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings:
  """How long to train and what to do on the way; the official values are the defaults.

  Attributes:
    epochs: of `pairs_per_epoch` pairs each; an epoch has floor(pairs / batch_size) steps.
    batch_size: global, over all devices and processes.
    elimination_start, elimination_warmup: epochs before candidates start to leave, and of the cosine
      down to the model's keep ratio; see targets.keep_ratio_at_epoch.
    elimination_buckets: parts of that warm-up, each compiled once; see CompiledSteps.
    accumulate_steps, rematerialise: for less memory; see make_train_step and OSTrack.
    batch_norm: "global" normalises over the whole batch, "device" over each device's part of it, as
      the official code does.
    max_minutes: stop after so many minutes of stepping, 0 for never; summed over the parts of a run
      that was resumed. Steps that compile, validating and saving do not count.
    log_every_steps: scalars are read from the device only that often.
    validate_every_epochs, save_every_epochs: the last epoch always does both.
    track_validation_sequences: so many sequences are tracked at each validation, 0 for none.
    track_validation_starts: from so many evenly spaced frames of each of them, to its end: more tracks
      of few sequences make their AO less a matter of luck.
    best_by: "ao" makes the checkpoint of the highest AO the best one, where sequences are tracked, else
      that of the highest IoU; "iou" the latter anyway.
    keep_checkpoints: how many of the newest checkpoints stay; the best one always does.
    ema_decay: weight of the past in the average of the weights that is validated, saved beside the
      trained ones and loaded from the workdir; 0 for no average. See make_train_step.
    seed: of initial parameters, drop path and data.
    profile_steps: (first, last) step under jax's profiler, () for none; see profiling.ProfilerWindow.
  """

  epochs: int = 300
  pairs_per_epoch: int = 60_000
  batch_size: int = 128
  elimination_start: int = 20
  elimination_warmup: int = 80
  elimination_buckets: int = 3
  accumulate_steps: int = 1
  rematerialise: bool = False
  batch_norm: str = "global"
  max_minutes: float = 0.0
  log_every_steps: int = 50
  validate_every_epochs: int = 20
  track_validation_sequences: int = 0
  track_validation_starts: int = 1
  best_by: str = "ao"
  save_every_epochs: int = 10
  keep_checkpoints: int = 2
  ema_decay: float = 0.0
  seed: int = 42
  profile_steps: tuple[int, ...] = ()

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
    if self.keep_checkpoints < 1:
      raise ValueError(
        f"train.keep_checkpoints {self.keep_checkpoints} must be at least 1: a run goes on from the newest"
      )
    if self.elimination_buckets < 1 or self.accumulate_steps < 1:
      raise ValueError(
        f"train.elimination_buckets {self.elimination_buckets} and train.accumulate_steps {self.accumulate_steps} "
        "must be at least 1"
      )
    if self.batch_norm not in ("global", "device"):
      raise ValueError(f"train.batch_norm {self.batch_norm!r} must be 'global' or 'device'")
    if self.best_by not in ("ao", "iou"):
      raise ValueError(f"train.best_by {self.best_by!r} must be 'ao' or 'iou'")
    if self.track_validation_starts < 1:
      raise ValueError(
        f"train.track_validation_starts {self.track_validation_starts} must be at least 1"
      )
    if self.track_validation_sequences < 0 or not 0 <= self.ema_decay < 1:
      raise ValueError(
        f"train.track_validation_sequences {self.track_validation_sequences} must be at least 0 and "
        f"train.ema_decay {self.ema_decay} at least 0 and less than 1"
      )

  @property
  def steps_per_epoch(self) -> int:
    """Whole batches in an epoch."""
    return self.pairs_per_epoch // self.batch_size


class Batches(Protocol):
  """An endless iterator of this process's batches that knows its position.

  A batch may hold `records`, int64 [b, 3], which stays on the host; describe names the records of a row.
  counts: of what this iterator gave so far, pairs, and how many draws they cost beyond themselves:
  redraws, rejected by the validity rule, and skipped, with a damaged record.
  """

  @property
  def counts(self) -> dict[str, int]: ...

  def __next__(self) -> dict[str, np.ndarray]: ...

  def describe(self, records: np.ndarray) -> str: ...

  def get_state(self) -> dict: ...

  def set_state(self, state: dict) -> None: ...


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
  track_validation: Callable[[dict], float] | None = None,
) -> tuple[TrainState, float]:
  """Train to the end of the schedule, resuming from the store's newest checkpoint if it has one.

  Args:
    variables: {"params", "batch_stats"} to start from when nothing is resumed.
    train_batches: where batches come from.
    validation_batches: called before each validation; a finite iterator of batches.
    store: where checkpoints go; they hold the state and the position in the data.
    writer_dir: folder for scalars.
    mesh: one axis `data`.
    track_validation: tracks with given variables and returns the mean AO, on the first process; called
      at each validation.

  Returns:
    The state after the last step, and the seconds of stepping it took, all parts of the run together.

  Raises:
    NonFiniteLossError: names the step and the batch; nothing is saved over the last good checkpoint.
    StoppedBySignalError: SIGTERM or Ctrl-C came; the state is saved.
    CheckpointError: a checkpoint could not be written.
    ValueError: no checkpoint there is whole.
  """
  steps_per_epoch = settings.steps_per_epoch
  optimizer = make_optimizer(optimizer_settings, steps_per_epoch)
  learning_rate = learning_rate_schedule(optimizer_settings, steps_per_epoch)
  sharding.check_batch_size(mesh, settings.batch_size, settings.accumulate_steps)
  if settings.max_minutes and jax.process_count() > 1:
    raise ValueError(
      f"train.max_minutes {settings.max_minutes:g} is for one process, whose clock decides; with "
      f"{jax.process_count()} set it to 0"
    )
  state = sharding.copy_everywhere(
    mesh, create_state(variables, optimizer, settings.seed, averaged=settings.ema_decay > 0)
  )
  first_step, clock = 0, Stopwatch()
  if store.latest_step() is not None:
    state, notes = store.restore(state)
    train_batches.set_state(notes["data"])
    first_step, clock = int(state.step), Stopwatch(notes["seconds_trained"])
    if jax.process_index() == 0:
      minutes = f"{clock.seconds / 60:.1f} minutes of training"
      print(f"resumed from step {first_step}, after {minutes}", flush=True)

  train_steps = CompiledSteps(
    model.clone(rematerialise=settings.rematerialise),
    lambda m: step_lib.make_train_step(
      m,
      optimizer,
      loss_weights,
      settings.ema_decay,
      accumulate=settings.accumulate_steps,
      batch_norm_groups=mesh.size if settings.batch_norm == "device" else 1,
      batch_norm_shards=mesh.size,
    ),
    settings,
    buckets=settings.elimination_buckets,
    **sharding.train_step_options(mesh),
  )
  validation_steps = CompiledSteps(
    model,
    lambda m: step_lib.make_validation_step(m, loss_weights),
    settings,
    out_shardings=sharding.replicated(mesh),
  )
  is_first_process = jax.process_index() == 0
  last_step = settings.epochs * steps_per_epoch
  limit = settings.max_minutes * 60
  if 0 < limit <= clock.seconds:
    last_step = first_step
  unread = finiteness.UnreadMetrics(train_batches.describe)
  counted, pairs_timed = train_batches.counts, 0

  def fetch():
    batch = dict(next(train_batches))
    records = batch.pop("records", None)
    return sharding.put_batch(mesh, batch), records

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
    profiler = stack.enter_context(
      contextlib.closing(ProfilerWindow(settings.profile_steps, writer_dir / "profile"))
    )
    speed = stack.enter_context(contextlib.closing(Speed(model, mesh.devices.flat)))
    speeds_read = 0
    signals = stack.enter_context(stopping.StopSignals())
    batch, records = fetch() if first_step < last_step else (None, None)
    for step in range(first_step + 1, last_step + 1):
      epoch = (step - 1) // steps_per_epoch + 1
      clock.start()
      started, compiled = clock.seconds, train_steps.compiled()
      with profiler.step(step):
        state, metrics = train_steps.at_epoch(epoch)(state, batch)
      speed.dispatched(metrics)
      unread.add(step, metrics, records)
      compiles = train_steps.compiled() > compiled
      end_of_epoch = step % steps_per_epoch == 0
      out_of_time = not compiles and 0 < limit <= clock.seconds
      stop = step == last_step or out_of_time
      validate = stop or (end_of_epoch and epoch % settings.validate_every_epochs == 0)
      data_state = train_batches.get_state()
      # The next batch travels while this step runs.
      with speed.fetching():
        batch, records = (None, None) if stop else fetch()
      profiler.after(step, metrics)

      if compiles:
        # Compilation is not training.
        jax.block_until_ready(metrics)
        clock.set_back(started)
        speed.restart()
      else:
        pairs_timed += settings.batch_size
      signalled = signals.reached(step)
      save = validate or signalled or (end_of_epoch and epoch % settings.save_every_epochs == 0)
      if step % settings.log_every_steps == 0 or save or end_of_epoch:
        scalars = unread.read()
        elapsed = clock.lap()
        scalars |= speed.read(pairs_timed, elapsed, train_steps.keep_counts(epoch))
        rate = float(np.asarray(learning_rate(step - 1)))
        scalars["learning_rate"] = rate
        scalars["learning_rate_backbone"] = rate * optimizer_settings.backbone_multiplier
        scalars["compiled_steps"] = train_steps.compiled()
        scalars |= _draws(counted, train_batches.counts, step)
        counted = train_batches.counts
        writer.write(step, {f"train/{name}": value for name, value in scalars.items()})
        pairs_per_second = scalars.get("pairs_per_second", 0.0)
        bar.set_postfix_str(
          f"loss {scalars['loss']:.3f}  IoU {scalars['iou']:.3f}  {pairs_per_second:.0f} pairs/s"
        )
        bar.update(step - bar.n)
        speeds_read += bool(pairs_per_second)
        # The first speed includes what runs for the first time.
        if pairs_per_second and speeds_read == 2 and not stop and is_first_process:
          left = (last_step - step) * settings.batch_size
          bar.write(speed.estimate(pairs_per_second, left))
        pairs_timed = 0
      if save:
        clock.pause()
        finiteness.check_state(state, step)
      validated = {}
      if validate:
        validated = validation.run_validation(
          validation_steps.at_epoch(epoch), state.variables, validation_batches(), mesh
        )
        if track_validation is not None:
          validated["ao"] = validation.track(track_validation, state.variables)
        writer.write(step, {f"validation/{name}": value for name, value in validated.items()})
        if is_first_process:
          ao = f", AO {validated['ao']:.3f}" if "ao" in validated else ""
          bar.write(
            f"step {step}: validation loss {validated['loss']:.3f}, IoU {validated['iou']:.3f}{ao}"
          )
      if save:
        notes = {"data": data_state, "seconds_trained": clock.seconds}
        judged = validated
        if validated and settings.best_by == "iou":
          judged = {"iou": validated["iou"]}
        store.save(step, state, notes, judged)
      if stop or signalled:
        if out_of_time and step < last_step and is_first_process:
          bar.write(
            f"stopped at step {step} of {last_step} after train.max_minutes = {settings.max_minutes:g}"
          )
        break
    store.wait()
    if signals.is_over:
      raise stopping.StoppedBySignalError(int(state.step), signals.signal_name)
  return state, clock.seconds


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
