"""Train OSTrack: `python -m training --config=configs/X.py --workdir=DIR`, or `ostrack-train`.

Runs on every device jax sees; with --multi_host, on those of all processes of the cluster (Slurm, Open MPI and
Kubernetes are recognised by jax). Starting again with the same workdir continues.
"""

import dataclasses
import itertools
import json
import os
import pathlib
import sys

import jax
import numpy as np
from absl import flags
from ml_collections import config_dict, config_flags

from data_pipelines import datasets, pipeline, sources
from data_pipelines.augmentation import AugmentationSettings
from data_pipelines.sampling import SamplingSettings
from ostrack_jax import command_line, configuration, loading, sharding, training_report
from ostrack_jax import description as description_lib
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.tracking.engine import FrameTracker
from ostrack_jax.tracking.tracker import Tracker
from ostrack_jax.training import loop
from ostrack_jax.training.checkpoint import STEPS_FOLDER
from ostrack_jax.training.checkpoint_store import CheckpointStore
from ostrack_jax.training.losses import LossWeights
from ostrack_jax.training.optimizer import OptimizerSettings
from ostrack_jax.training.state import init_variables
from ostrack_jax.training.step import make_validation_step

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
    loop.NonFiniteLossError: training diverged.
  """
  configuration.check_keys(config)
  try:
    model = OSTrack(**config.model)
    optimizer_settings = OptimizerSettings(**config.optim)
    loss_weights = LossWeights(**config.loss)
    settings = loop.LoopSettings(**config.train)
    data = _data_settings(config)
    pairs = _pipeline_settings(config)
  except TypeError as error:
    raise ValueError(
      f"a key of the configuration is not what this version knows: {error}"
    ) from error
  mesh = sharding.make_mesh()
  local_batch = sharding.check_batch_size(mesh, settings.batch_size)
  random_start = init_variables(model, settings.seed)
  start = _start_from(config.init_from, model) if config.init_from else random_start
  configuration.check_workdir(config, workdir)
  sequences = _report_sequences(config, data) if jax.process_index() == 0 else []

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

  if jax.process_index() == 0:
    _describe_run(config, model, workdir)
  _announce(model, start, mesh, settings, optimizer_settings)
  store = CheckpointStore(workdir, keep=settings.keep_checkpoints)
  try:
    state = loop.train(
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
    )
  finally:
    batches.close()
  store.close()

  runs = {"random weights": random_start}
  if config.init_from:
    runs[f"start ({pathlib.Path(config.init_from).name})"] = start
  runs["result"] = jax.device_get(state.variables)
  compiled = jax.jit(
    make_validation_step(model, loss_weights), out_shardings=sharding.replicated(mesh)
  )
  everywhere = sharding.replicated(mesh)
  held_out = {
    label: loop.run_validation(
      compiled, jax.device_put(variables, everywhere), validation_batches(), mesh
    )
    for label, variables in runs.items()
  }
  report = {
    "steps": int(state.step),
    "pairs": int(state.step) * settings.batch_size,
    "parameters": _count(state.params),
    "held_out_pairs": {"search_centre": config.data.validation_search_centre, "results": held_out},
  }
  if jax.process_index() == 0:
    # Before tracking too, so that nothing that goes wrong there takes the figures along.
    training_report.write_report(report, workdir)
    if sequences:
      report["tracking"] = _track(model, runs, sequences, workdir)
      training_report.write_report(report, workdir)
  return report


def _data_settings(config) -> datasets.DatasetSettings:
  return datasets.DatasetSettings(
    data_dir=datasets.data_dir(config.data.data_dir),
    folder_roots=tuple(config.data.folder_roots),
    procedural=datasets.procedural_settings(**config.procedural),
    num_workers=min(_workers(config), os.cpu_count() or 1),
  )


def _workers(config) -> int:
  given = config.data.num_workers
  if given < -1:
    raise ValueError(f"config.data.num_workers {given}: it must be -1, 0 or a number of processes")
  return (os.cpu_count() or 1) if given == -1 else given


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


def _start_from(path: str, model: OSTrack) -> dict:
  """Load weights to start from and check that they are the configured model's."""
  checkpoint = loading.load(path)
  want = jax.eval_shape(lambda: init_variables(model, 0))
  have = {
    "params": checkpoint.variables["params"],
    "batch_stats": checkpoint.variables["batch_stats"],
  }
  wanted = {jax.tree_util.keystr(k): x.shape for k, x in jax.tree_util.tree_leaves_with_path(want)}
  found = {jax.tree_util.keystr(k): x.shape for k, x in jax.tree_util.tree_leaves_with_path(have)}
  for name in sorted(wanted.keys() | found.keys()):
    if wanted.get(name) != found.get(name):
      raise ValueError(
        f"config.init_from {path!r} does not fit config.model: {name} is {found.get(name, 'missing')} there and "
        f"{wanted.get(name, 'unknown')} here; change config.model, or convert the weights for these sizes"
      )
  heads, theirs = model.dimensions()["num_heads"], checkpoint.model.dimensions()["num_heads"]
  if heads != theirs:
    raise ValueError(
      f"config.init_from {path!r} has {theirs} attention heads, config.model.num_heads is {heads}"
    )
  return have


def _describe_run(config, model: OSTrack, workdir: pathlib.Path) -> None:
  """Write the configuration, and the description that `load` reads, into the workdir."""
  workdir.mkdir(parents=True, exist_ok=True)
  source = {"file": workdir.name, "sha256": None, "kind": "training"}
  description = description_lib.describe(model, dict(config.tracker), source, complete=True)
  configuration = json.loads(config.to_json_best_effort())
  for name, content in (("config.json", configuration), ("description.json", description)):
    temporary = workdir / f".{name}.tmp"
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(workdir / name)


def _count(params) -> int:
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))


def _announce(
  model, variables, mesh, settings: loop.LoopSettings, optimizer_settings: OptimizerSettings
) -> None:
  if jax.process_index() != 0:
    return
  rate = optimizer_settings.learning_rate
  stages = " -> ".join(map(str, (model.search_grid**2, *model.stage_counts())))
  print(
    f"{mesh.size} x {jax.devices()[0].device_kind}, {jax.process_count()} process(es)\n"
    f"{_count(variables['params']):,} parameters; search tokens {stages}\n"
    f"{settings.epochs} epochs of {settings.steps_per_epoch} steps of {settings.batch_size} pairs; learning rate "
    f"{rate:g}, backbone {rate * optimizer_settings.backbone_multiplier:g}",
    flush=True,
  )


def _report_sequences(config, data: datasets.DatasetSettings) -> list[sources.FrameSequence]:
  """Return the sequences to track after training; those whose target is absent at first are left out."""
  if not config.report.sequences:
    return []
  parts = datasets.locate(config.report.dataset, data)
  found = itertools.chain.from_iterable(
    sources.iter_sequences(part.directory, part.split, part.sequences) for part in parts
  )
  sequences = list(itertools.islice((s for s in found if s.visible[0]), config.report.sequences))
  if not sequences:
    raise ValueError(
      f"config.report.dataset {config.report.dataset!r} has no sequence whose target is visible in its first "
      "frame; set config.report.sequences to 0"
    )
  return sequences


def _track(model: OSTrack, runs: dict, sequences: list, workdir: pathlib.Path) -> dict:
  description = json.loads((workdir / "description.json").read_text())
  trackers: dict[str, FrameTracker] = {"first box kept still": training_report.StillBox()}
  for label, variables in runs.items():
    trackers[label] = Tracker(loading.Checkpoint(model, variables, description))
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
  try:
    report = train_and_report(FLAGS.config, workdir)
  except (ValueError, OSError, loop.NonFiniteLossError) as error:
    sys.exit(f"ostrack-train: {error}")
  except KeyboardInterrupt:
    sys.exit(
      f"ostrack-train: interrupted; the same command continues from the checkpoints in {workdir}"
    )
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
