"""Train OSTrack: `python -m training --config=configs/X.py --workdir=DIR`, or `ostrack-train`.

Runs on every device jax sees; with --multi_host, on those of all processes of the cluster (Slurm, Open MPI and
Kubernetes are recognised by jax). Starting again with the same workdir continues.

SIGTERM and Ctrl-C end training after the running step, which is saved, with exit code 75 (EX_TEMPFAIL): the same
command continues. A second Ctrl-C ends it at once. Any error is exit code 1; a loss or gradient that is no number is
one, and leaves the last checkpoint as it was.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import sys

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from ml_collections import config_dict, config_flags

from data_pipelines import datasets, pipeline
from data_pipelines import sequences as frame_sequences
from data_pipelines.augmentation import AugmentationSettings
from data_pipelines.sampling import SamplingSettings
from ostrack_jax import command_line, configuration, loading, sharding, training_report
from ostrack_jax import description as description_lib
from ostrack_jax.initial_weights import read_initial_weights
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.tracking.engine import FrameTracker
from ostrack_jax.tracking.tracker import Tracker
from ostrack_jax.training import compilation_cache, loop, run_summary, stopping
from ostrack_jax.training.checkpoint import STEPS_FOLDER, restore_step_variables
from ostrack_jax.training.checkpoint_store import CheckpointStore, full_disk_in_words
from ostrack_jax.training.finiteness import NonFiniteLossError
from ostrack_jax.training.losses import LossWeights
from ostrack_jax.training.optimizer import OptimizerSettings, scaled_to_batch
from ostrack_jax.training.state import init_variables
from ostrack_jax.training.step import make_validation_step
from ostrack_jax.training.validation import run_validation

FLAGS = command_line.new_flags()
config_flags.DEFINE_config_file(
  "config",
  None,
  "Configuration file, such as configs/tiny.py.",
  lock_config=True,
  flag_values=FLAGS,
)
flags.DEFINE_string(
  "workdir", None, "Where checkpoints, scalars and the report go.", flag_values=FLAGS
)
flags.DEFINE_bool(
  "multi_host",
  False,
  "Join the cluster that jax.distributed finds, before anything else.",
  flag_values=FLAGS,
)
flags.mark_flags_as_required(["config", "workdir"], flag_values=FLAGS)


def train_and_report(config: config_dict.ConfigDict, workdir: pathlib.Path) -> dict:
  """Train as configured, then track held-out sequences; return the report.

  Raises:
    FileNotFoundError, ValueError: the configuration, its data or its start do not fit, in one sentence.
    NonFiniteLossError: training diverged.
    StoppedBySignalError, CheckpointError: see loop.train.
  """
  configuration.check_keys(config)
  try:
    model = configuration.build_model(config)
    settings = loop.LoopSettings(**config.train)
    configured_optimizer = OptimizerSettings(**config.optim)
    optimizer_settings = scaled_to_batch(configured_optimizer, settings.batch_size)
    loss_weights = LossWeights(**config.loss)
    data = _data_settings(config)
    pairs = _pipeline_settings(config)
  except TypeError as error:
    raise ValueError(
      f"a key of the configuration is not what this version knows: {error}"
    ) from error
  if model.dtype == "float16":
    raise ValueError(
      "config.model.dtype float16 is for tracking: small gradients vanish in it; set bfloat16, or float32"
    )
  mesh = sharding.make_mesh()
  local_batch = sharding.check_batch_size(mesh, settings.batch_size, settings.accumulate_steps)
  random_start = init_variables(model, settings.seed)
  initial = read_initial_weights(config.model.pretrained, model, random_start)
  start = initial.variables
  configuration.check_workdir(config, workdir)
  tracked = settings.track_validation_sequences
  sequences, validation_sequences = [], []
  if jax.process_index() == 0:
    sequences = _sequences(config.report.dataset, config.report.sequences, data)
    whole = _sequences(config.data.validation_tracking or config.data.validation, tracked, data)
    validation_sequences = [
      part for sequence in whole for part in sequence.parts(settings.track_validation_starts)
    ]

  mixture = datasets.open_mixture(config.data.train, config.data.weights, data, pairs.augmentation)
  batches = pipeline.train_pipeline(
    mixture,
    pairs,
    batch_size=local_batch,
    seed=settings.seed,
    shard_index=jax.process_index(),
    shard_count=jax.process_count(),
    num_workers=_workers(config),
    num_threads=config.data.num_threads,
  )
  validation = datasets.open_mixture([config.data.validation], [1.0], data, pairs.augmentation)

  def validation_batches():
    return _validation_batches(validation, pairs, config, settings.batch_size, local_batch)

  def track_validation(variables):
    return training_report.mean_ao(_tracker(model, variables, workdir), validation_sequences)

  if jax.process_index() == 0:
    _describe_run(config, model, workdir)
    print(initial.summary)
    print(run_summary.summarise(model, start, settings, configured_optimizer, mesh), flush=True)
  with full_disk_in_words(workdir), contextlib.ExitStack() as stack:
    stack.enter_context(contextlib.closing(batches))
    store = CheckpointStore(
      workdir, keep=settings.keep_checkpoints, config=configuration.as_json(config)
    )
    stack.enter_context(contextlib.closing(store))
    state, seconds = loop.train(
      model,
      start,
      batches,
      validation_batches,
      optimizer_settings=optimizer_settings,
      loss_weights=loss_weights,
      settings=settings,
      store=store,
      writer_dir=workdir,
      mesh=mesh,
      track_validation=track_validation if tracked else None,
    )

  runs = {"random weights": random_start}
  if config.model.pretrained:
    runs[f"start ({pathlib.Path(config.model.pretrained).name})"] = start
  if store.best_step not in (None, int(state.step)):
    try:
      best = restore_step_variables(workdir, store.best_step)
    except ValueError as error:
      # The training is done and saved: its report must not fail over another checkpoint.
      print(f"WARNING: the best checkpoint is left out of the report: {error}", flush=True)
    else:
      runs[f"best checkpoint (step {store.best_step})"] = best
  runs["result"] = jax.device_get(state.variables)
  compiled = jax.jit(
    make_validation_step(model, loss_weights), out_shardings=sharding.replicated(mesh)
  )
  everywhere = sharding.replicated(mesh)
  held_out = {
    label: run_validation(
      compiled, jax.device_put(variables, everywhere), validation_batches(), mesh
    )
    for label, variables in runs.items()
  }
  report = {
    "steps": int(state.step),
    "pairs": int(state.step) * settings.batch_size,
    "minutes": seconds / 60,
    "devices": f"{mesh.size} x {jax.devices()[0].device_kind}",
    "parameters": _count(state.params),
    "held_out_pairs": {"search_centre": config.data.validation_search_centre, "results": held_out},
  }
  if jax.process_index() == 0:
    # Before tracking too, so that nothing that goes wrong there takes the figures along.
    training_report.write_report(report, workdir)
    if sequences:
      report["tracking"] = _track(model, runs, sequences, workdir)
      training_report.write_report(report, workdir)
  if jax.process_count() > 1:
    # Who leaves first waits a few minutes for the others, which may be tracking for longer.
    multihost_utils.sync_global_devices("report")
  return report


def _data_settings(config) -> datasets.DatasetSettings:
  return datasets.DatasetSettings(
    data_dir=datasets.data_dir(config.data.data_dir),
    folder_roots=tuple(config.data.folder_roots),
    procedural=datasets.procedural_settings(**config.procedural),
    num_workers=min(_workers(config), len(os.sched_getaffinity(0))),
  )


def _workers(config) -> int:
  given = config.data.num_workers
  if given < -1:
    raise ValueError(f"config.data.num_workers {given}: it must be -1, 0 or a number of processes")
  # Containers and Slurm give a process fewer cores than the machine has.
  return len(os.sched_getaffinity(0)) if given == -1 else given


def _pipeline_settings(config) -> pipeline.PipelineSettings:
  augmentation = AugmentationSettings(
    template_size=config.model.template_size,
    search_size=config.model.search_size,
    template_factor=config.tracker.template_factor,
    search_factor=config.tracker.search_factor,
    **config.augmentation,
  )
  return pipeline.PipelineSettings(
    sampling=SamplingSettings(**config.sampling),
    augmentation=augmentation,
    on_bad_record=config.data.on_bad_record,
  )


def _validation_batches(
  mixture, pairs: pipeline.PipelineSettings, config, global_batch: int, local_batch: int
):
  """Give each process its part of every validation batch."""
  augmentation = dataclasses.replace(
    pairs.augmentation, search_centre_from=config.data.validation_search_centre
  )
  count = config.data.validation_pairs // global_batch * global_batch
  return pipeline.validation_pairs(
    mixture,
    dataclasses.replace(pairs, augmentation=augmentation),
    count=count,
    batch_size=local_batch,
    seed=config.train.seed,
    shard_index=jax.process_index(),
    shard_count=jax.process_count(),
    num_threads=config.data.num_threads,
  )


def _describe_run(config, model: OSTrack, workdir: pathlib.Path) -> None:
  """Write the configuration, and the description that `load` reads, into the workdir."""
  workdir.mkdir(parents=True, exist_ok=True)
  source = {"file": workdir.name, "sha256": None, "kind": "training"}
  description = description_lib.describe(model, dict(config.tracker), source, complete=True)
  contents = {"config.json": configuration.as_json(config), "description.json": description}
  for name, content in contents.items():
    temporary = workdir / f".{name}.tmp"
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(workdir / name)


def _count(params) -> int:
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))


def _sequences(
  dataset: str, count: int, data: datasets.DatasetSettings
) -> list[frame_sequences.FrameSequence]:
  """Return a data set's first sequences to track; those whose target is absent at first are left out."""
  if not count:
    return []
  parts = datasets.locate(dataset, data)
  found = itertools.chain.from_iterable(
    frame_sequences.iter_sequences(part.directory, part.split, part.sequences) for part in parts
  )
  sequences = list(itertools.islice((s for s in found if s.visible[0]), count))
  if not sequences:
    raise ValueError(
      f"data set {dataset!r} has no sequence whose target is visible in its first frame, and {count} were to be "
      "tracked; set config.report.sequences or config.train.track_validation_sequences to 0"
    )
  return sequences


def _tracker(model: OSTrack, variables: dict, workdir: pathlib.Path) -> Tracker:
  description = json.loads((workdir / "description.json").read_text())
  return Tracker(loading.Checkpoint(model, variables, description))


def _track(model: OSTrack, runs: dict, sequences: list, workdir: pathlib.Path) -> dict:
  trackers: dict[str, FrameTracker] = {"first box kept still": training_report.StillBox()}
  for label, variables in runs.items():
    trackers[label] = _tracker(model, variables, workdir)
  return training_report.track_held_out(trackers, sequences, workdir)


def main(argv) -> None:
  """Run the command."""
  del argv
  # What stands behind a colon is the file's argument.
  config_file = (
    config_flags.get_config_filename(FLAGS["config"]).partition(".py:")[0].removesuffix(".py")
    + ".py"
  )
  if not pathlib.Path(config_file).exists():
    sys.exit(f"ostrack-train: there is no configuration file {config_file}")
  if FLAGS.multi_host:
    jax.distributed.initialize()
  workdir = pathlib.Path(FLAGS.workdir).absolute()
  stopping.raise_on_sigterm()
  try:
    configuration.check_keys(FLAGS.config)
    compilation_cache.enable(FLAGS.config.compilation_cache)
    report = train_and_report(FLAGS.config, workdir)
  except (ValueError, OSError, NonFiniteLossError) as error:
    sys.exit(f"ostrack-train: {error}")
  except KeyboardInterrupt as error:
    print(
      f"ostrack-train: interrupted; the same command continues from the checkpoints in {workdir}",
      file=sys.stderr,
    )
    sys.exit(stopping.EXIT_CODE if isinstance(error, stopping.StoppedBySignalError) else 1)
  if jax.process_index() == 0:
    print()
    for label, scores in report["held_out_pairs"]["results"].items():
      print(f"IoU on held-out pairs, {label}: {scores['iou']:.3f}")
    if "tracking" in report:
      print()
      print(training_report.format_measures(report["tracking"]))
    names = ("report.json", "curves.png", "success.png", "track.mp4", "track.png", STEPS_FOLDER)
    print(f"\nin {workdir}: {', '.join(name for name in names if (workdir / name).exists())}")


def run() -> None:
  """Entry point of the console script."""
  sys.argv = [configuration.installed_config(argument) for argument in sys.argv]
  command_line.run(main, "ostrack-train", FLAGS, __doc__)


if __name__ == "__main__":
  run()
