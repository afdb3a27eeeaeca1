"""Prepare a data set once, for training from: `python -m data_pipelines.prepare --dataset=lasot ...`.

  python -m data_pipelines.prepare --dataset=lasot --raw_dir=LaSOT --data_dir=prepared
  python -m data_pipelines.prepare --dataset=folder --name=mine --raw_dir=videos --data_dir=prepared

Started again after an interruption it goes on; finished shards are kept. What is stored is what crops of
the official configurations can show (--context=256 or 384), or whole frames (--full_frames).
"""

import pathlib
import re
import sys

from absl import flags

from data_pipelines import context, datasets, preparation, prepared_summary, raw_data_flags, sources
from ostrack_jax import command_line

FLAGS = command_line.new_flags()
raw_data_flags.define(FLAGS)
flags.DEFINE_string(
  "name",
  None,
  f"What to call data of your own ({', '.join(datasets.OWN)}); the raw folder's name if not given.",
  flag_values=FLAGS,
)
flags.DEFINE_enum(
  "context",
  None,
  [str(size) for size in context.PRESETS],
  "Keep what crops of this search size can show; 256 if nothing is said.",
  flag_values=FLAGS,
)
flags.DEFINE_bool(
  "full_frames", False, "Keep whole frames, JPEG files byte for byte.", flag_values=FLAGS
)
flags.mark_flags_as_required(["dataset", "raw_dir"], flag_values=FLAGS)


def main(argv) -> None:
  """Run the command."""
  del argv
  command = "data_pipelines.prepare"
  own = FLAGS.dataset in datasets.OWN
  if FLAGS.full_frames and FLAGS.context:
    sys.exit(
      f"{command}: --full_frames and --context={FLAGS.context} exclude each other; choose one"
    )
  if FLAGS.name and not own:
    sys.exit(
      f"{command}: --name is for data of your own; {FLAGS.dataset} is stored as {FLAGS.dataset}"
    )
  raw = pathlib.Path(FLAGS.raw_dir)
  if not raw.is_dir():
    sys.exit(
      f"{command}: there is no folder {raw}; --raw_dir is the folder that holds the raw data"
    )
  storage = None if FLAGS.full_frames else context.PRESETS[int(FLAGS.context or 256)]
  name = (FLAGS.name or re.sub(r"\W", "_", raw.resolve().name)) if own else ""
  if datasets.is_reserved(name):
    sys.exit(f"{command}: {name!r} means something else in configurations; choose another --name")
  if FLAGS.splits is not None and not FLAGS.splits:
    sys.exit(f"{command}: --splits is empty; leave it out for the default")
  try:
    directory = preparation.prepare_folder(
      datasets.DATASETS[FLAGS.dataset],
      raw,
      datasets.data_dir(FLAGS.data_dir),
      name,
      storage=storage,
      splits=FLAGS.splits,
      allow_missing=FLAGS.allow_missing,
      num_workers=FLAGS.num_workers,
    )
  except (ValueError, OSError) as error:
    sys.exit(f"{command}: {error}")
  except KeyboardInterrupt:
    sys.exit(f"{command}: interrupted; the same command goes on from the finished shards")
  for summary in prepared_summary.summaries(directory, FLAGS.splits):
    print(summary)
  stored = sources.read_manifest(directory)["splits"]
  listed = [k for k, v in datasets.NAMES.items() if v[0] == FLAGS.dataset and v[1] in stored]
  if own:
    listed = [name if split == "train" else f"{name}:{split}" for split in stored]
  print(f"in {directory}\nconfigurations list it as {', '.join(listed)}")


def run() -> None:
  """Run as a command."""
  command_line.run(main, "data_pipelines.prepare", FLAGS, __doc__)


if __name__ == "__main__":
  run()
