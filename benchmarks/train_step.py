"""Measure the training step: pairs a second with the batch already on the devices, and fed by real data.

  python -m benchmarks.train_step --search_size=256 --batch_size=128
  python -m benchmarks.train_step --keep_ratio=1.0 --profile=runs/trace
  python -m benchmarks.train_step --prepared=prepared/sequence_folder/mine-context256/2.0.0
  python -m benchmarks.train_step --dtype=float32 --batch_size=16 --compare_losses=20 --checkpoint=ostrack_tiny \\
    --prepared=prepared/mask_sequences/davis-context256/2.0.0

Prints medians over runs of several steps queued at once, as training queues them, the share of the
device's peak, and the floor: the step's arithmetic at that peak. With --prepared, the same step is then fed
by the input pipeline with the official augmentation, and their ratio is printed. With --compare_losses
nothing is timed: the losses of training on all devices stand against those on one, products in full precision.
Compare from trained weights on real pairs: from random ones on noise all scores are alike, rounding chooses which
candidates stay and which box is learnt from, and a difference of 1e-7 grows to a hundredth in 20 steps.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from data_pipelines import context, pipeline
from data_pipelines.augmentation import AugmentationSettings
from data_pipelines.sources import FrameSource
from ostrack_jax import command_line, load, sharding
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.training import cost
from ostrack_jax.training import step as step_lib
from ostrack_jax.training.losses import LossWeights
from ostrack_jax.training.optimizer import OptimizerSettings, make_optimizer
from ostrack_jax.training.state import create_state, init_variables

FLAGS = command_line.new_flags()
flags.DEFINE_enum("variant", "b", ["ti", "s", "b", "l"], "Model size.", flag_values=FLAGS)
flags.DEFINE_enum("search_size", "256", ["256", "384"], "Official model.", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 128, "Global batch.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_float("keep_ratio", 0.7, "Of each stage; 1 for no elimination.", flag_values=FLAGS)
flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Compute.", flag_values=FLAGS)
flags.DEFINE_list(
  "keep_counts", [], "Mask beyond these counts, as warm-up does.", flag_values=FLAGS
)
flags.DEFINE_integer("devices", 0, "How many to use, 0 for all.", flag_values=FLAGS)
flags.DEFINE_integer("steps", 20, "Steps a run.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("runs", 7, "Runs.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_list("prepared", [], "Prepared directories to feed the step from.", flag_values=FLAGS)
flags.DEFINE_integer("num_workers", -1, "Of the pipeline; -1 for one a core.", flag_values=FLAGS)
flags.DEFINE_integer("pairs", 30_000, "Pairs of the fed run.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("compare_losses", 0, "Steps to compare with one device.", flag_values=FLAGS)
flags.DEFINE_string(
  "checkpoint", None, "Network, of its own size; by default random weights.", flag_values=FLAGS
)
flags.DEFINE_string("profile", "", "Folder for a profiler trace of three steps.", flag_values=FLAGS)


def synthetic_batch(
  size: int, template_size: int, search_size: int, seed: int = 0
) -> dict[str, np.ndarray]:
  """Return a batch as the pipeline gives it, of noise."""
  rng = np.random.default_rng(seed)
  batch: dict[str, np.ndarray] = {"grey": rng.random(size) < 0.05}
  for name, side in (("template", template_size), ("search", search_size)):
    batch[name] = rng.integers(0, 256, (size, side, side, 3), np.uint8)
    batch[f"{name}_flip"] = rng.random(size) < 0.5
    batch[f"{name}_brightness"] = rng.uniform(0.8, 1.2, size).astype(np.float32)
    batch[f"{name}_box_xywh"] = rng.uniform(0.2, 0.5, (size, 4)).astype(np.float32)
  return batch


def measure_fed(step: Callable, state, batches: pipeline.TrainIterator, mesh, steps: int):
  """Return seconds a step of so many, the next batch fetched while a step runs, as training does."""

  def fetch():
    batch = dict(next(batches))
    del batch["records"]
    return sharding.put_batch(mesh, batch)

  warm_up = 40
  batch, began, metrics = fetch(), 0.0, []
  for number in range(warm_up + steps):
    if number == warm_up:
      jax.block_until_ready(state)
      began = time.perf_counter()
    state, scalars = step(state, batch)
    metrics.append(scalars)
    batch = fetch()
    if number >= 2:
      # No more than two steps wait, so that the queue hides no slow batch.
      jax.block_until_ready(metrics[-3])
  jax.block_until_ready(state)
  return (time.perf_counter() - began) / steps


def start_training(model: OSTrack, mesh, variables: Any = None) -> tuple[Any, Any]:
  """Return the first state, and the step, jitted over a mesh. variables: None for random ones."""
  optimizer = make_optimizer(OptimizerSettings(), 468)
  if variables is None:
    variables = init_variables(model, 0)
  start = create_state(variables, optimizer, 0)
  step = jax.jit(
    step_lib.make_train_step(model, optimizer, LossWeights(), batch_norm_shards=mesh.size),
    **sharding.train_step_options(mesh),
  )
  return sharding.copy_everywhere(mesh, start), step


def prepared_batches(model: OSTrack, num_workers: int) -> pipeline.TrainIterator:
  """Return batches of what --prepared names, with the official augmentation."""
  preset = context.PRESETS.get(model.search_size)
  sizes = {"template_size": model.template_size, "search_size": model.search_size}
  augmentation = preset.augmentation() if preset else AugmentationSettings(**sizes)
  return pipeline.train_pipeline(
    [(FrameSource(directory), 1.0) for directory in FLAGS.prepared],
    pipeline.PipelineSettings(augmentation=augmentation),
    batch_size=FLAGS.batch_size,
    seed=0,
    num_workers=num_workers,
  )


def compared_batches(model: OSTrack, steps: int) -> list[dict[str, np.ndarray]]:
  """Return batches to compare on: of what --prepared names, else noise."""
  if not FLAGS.prepared:
    sizes = model.template_size, model.search_size
    return [synthetic_batch(FLAGS.batch_size, *sizes, number) for number in range(steps)]
  batches = prepared_batches(model, 0)
  try:
    found = [dict(next(batches)) for _ in range(steps)]
  finally:
    batches.close()
  for batch in found:
    del batch["records"]
  return found


def compare_losses(
  model: OSTrack, variables: Any, devices: Sequence[jax.Device], steps: int
) -> None:
  """Train from the same state on the same batches, on all devices and on one; print the losses."""
  batches = compared_batches(model, steps)
  losses = []
  for chosen in (devices[:1], devices):
    mesh = sharding.make_mesh(chosen)
    began = time.perf_counter()
    state, step = start_training(model, mesh, variables)
    found = []
    with jax.default_matmul_precision("float32"):
      for number, batch in enumerate(batches):
        state, metrics = step(state, sharding.put_batch(mesh, batch), None)
        found.append(float(metrics["loss"]))
        if not number:
          seconds = time.perf_counter() - began
          print(f"{len(chosen)} x {chosen[0].device_kind}: first step after {seconds:.0f} s")
    losses.append(np.array(found))
  difference = (np.abs(losses[1] - losses[0]) / losses[0]).max()
  print(
    f"loss of step 1, {steps}: {losses[0][0]:.6f}, {losses[0][-1]:.6f} on one device, "
    f"{losses[1][0]:.6f}, {losses[1][-1]:.6f} on {len(devices)}; "
    f"largest relative difference of {steps} steps {difference:.1e}"
  )


def make_model() -> tuple[OSTrack, Any]:
  """Return the model that the flags say, and its variables, None for random ones."""
  if FLAGS.checkpoint:
    checkpoint = load(FLAGS.checkpoint, dtype=FLAGS.dtype)
    return checkpoint.model, checkpoint.variables
  search_size = int(FLAGS.search_size)
  model = OSTrack(
    variant=FLAGS.variant,
    search_size=search_size,
    template_size=search_size // 2,
    keep_ratios=(FLAGS.keep_ratio,) * 3,
    dtype=FLAGS.dtype,
  )
  return model, None


def main(argv: list[str]) -> None:
  """Measure and print."""
  del argv
  model, variables = make_model()
  devices = jax.devices()[: FLAGS.devices or None]
  if FLAGS.compare_losses:
    if len(devices) == 1:
      raise SystemExit("benchmarks.train_step: --compare_losses needs two devices; there is one")
    compare_losses(model, variables, devices, FLAGS.compare_losses)
    return
  mesh = sharding.make_mesh(devices)
  state, step = start_training(model, mesh, variables)
  batch = synthetic_batch(FLAGS.batch_size, model.template_size, model.search_size)
  batch = sharding.put_batch(mesh, batch)
  counts = np.array([int(n) for n in FLAGS.keep_counts], np.int32) if FLAGS.keep_counts else None
  began = time.perf_counter()
  compiled = step.lower(state, batch, counts).compile()
  print(
    f"{len(devices)} x {devices[0].device_kind}; compiled in {time.perf_counter() - began:.0f} s"
  )
  memory = compiled.memory_analysis()
  if memory is not None:
    print(f"{memory.temp_size_in_bytes / 2**30:.1f} GiB beside state and batch")

  def run(steps: int, state):
    """Queue steps and wait for the last; return seconds a step, the state, and the last loss."""
    began = time.perf_counter()
    metrics = {}
    for _ in range(steps):
      state, metrics = compiled(state, batch, counts)
    jax.block_until_ready((state, metrics))
    return (time.perf_counter() - began) / steps, state, metrics

  _, state, metrics = run(FLAGS.steps, state)
  seconds = []
  for _ in range(FLAGS.runs):
    elapsed, state, metrics = run(FLAGS.steps, state)
    seconds.append(elapsed)
  median = statistics.median(seconds)
  print(
    f"{model.search_size} keep {max(model.keep_ratios, default=1.0):g} batch {FLAGS.batch_size} {FLAGS.dtype}: {1e3 * median:.2f} ms a step "
    f"({1e3 * min(seconds):.2f}-{1e3 * max(seconds):.2f}), {FLAGS.batch_size / median:.0f} pairs/s; "
    f"loss {float(metrics['loss']):.4f}"
  )
  peak = cost.peak_flops(devices[0].device_kind, FLAGS.dtype)
  if peak:
    floor = len(devices) * peak / cost.training_flops(model)
    print(
      f"floor, all arithmetic at {peak / 1e12:.0f} TFLOP/s a device: {floor:.0f} pairs/s; "
      f"reached {FLAGS.batch_size / median / floor:.0%} of it"
    )
  if FLAGS.prepared:
    workers = len(os.sched_getaffinity(0)) if FLAGS.num_workers < 0 else FLAGS.num_workers
    batches = prepared_batches(model, workers)
    try:
      fed = measure_fed(
        lambda state, batch: compiled(state, batch, counts),
        state,
        batches,
        mesh,
        -(-FLAGS.pairs // FLAGS.batch_size),
      )
    finally:
      batches.close()
    print(
      f"fed by {workers} workers: {1e3 * fed:.2f} ms a step, {FLAGS.batch_size / fed:.0f} pairs/s, "
      f"{median / fed:.0%} of the above"
    )
    return
  if FLAGS.profile:
    with jax.profiler.trace(FLAGS.profile):
      run(3, state)


if __name__ == "__main__":
  command_line.run(main, "benchmarks.train_step", FLAGS, __doc__)
