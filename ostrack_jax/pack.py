"""Check result files and pack them for an evaluation server that keeps its annotations to itself.

  python -m ostrack_jax.pack --dataset=got10k_test --results=DIR --root=DIR --output=FILE.zip
  python -m ostrack_jax.pack --dataset=trackingnet --results=DIR --root=DIR --output=FILE.zip

DIR of --results holds <sequence>.txt, as ostrack_jax.evaluate writes them, and for GOT-10k their
seconds in <sequence>_time.txt or the evaluator's timing.json.
Every sequence of the benchmark must be there; whatever is wrong is listed before anything is
written. Boxes are truncated to whole pixels as in the official code, unless --nointeger_boxes.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from ostrack_jax import command_line
from ostrack_jax.evaluation import packing

FLAGS = command_line.new_flags()
flags.DEFINE_enum("dataset", None, sorted(packing.SERVERS), "benchmark", flag_values=FLAGS)
flags.DEFINE_string("results", None, "folder of result files", flag_values=FLAGS)
flags.DEFINE_string("root", None, "folder that holds the benchmark's sequences", flag_values=FLAGS)
flags.DEFINE_string("output", None, "the .zip to write", flag_values=FLAGS)
flags.DEFINE_bool(
  "integer_boxes", True, "truncate to whole pixels; else three decimals", flag_values=FLAGS
)
flags.DEFINE_bool("overwrite", False, "replace the file at --output", flag_values=FLAGS)


def main(argv: Sequence[str]) -> None:
  """Run the command with the parsed FLAGS."""
  del argv
  try:
    needed = ("dataset", "results", "root", "output")
    absent = [f"--{name}" for name in needed if not FLAGS[name].value]
    if absent:
      raise ValueError(f"{' and '.join(absent)} missing (see --help)")
    count = packing.pack(
      FLAGS.dataset,
      pathlib.Path(FLAGS.results),
      pathlib.Path(FLAGS.root),
      pathlib.Path(FLAGS.output),
      integer_boxes=FLAGS.integer_boxes,
      overwrite=FLAGS.overwrite,
    )
  except (ValueError, OSError) as error:
    sys.exit(f"ostrack-pack: {error}")
  print(f"packed {count} sequences into {FLAGS.output}")


def run() -> None:
  """Parse the command line and run; the console script."""
  command_line.run(main, "ostrack-pack", FLAGS, __doc__)


if __name__ == "__main__":
  run()
