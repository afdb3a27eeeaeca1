"""Convert weights: an official file or an encoder to a checkpoint folder, or back to an official file.

  python -m ostrack_jax.convert --input=FILE --output=DIR
  python -m ostrack_jax.convert --input=DIR --output=FILE.pth

FILE is looked at, not believed by its name: official OSTrack checkpoints (.pth, .pth.tar), MAE and
DeiT encoders, Google's AugReg .npz of ViTs with patch size 16, and DINOv2 (.pth or .npz; it becomes
a plain ViT of patch size 16). An encoder gets a new, untrained head: training starts from it, or from
FILE as it is. Nothing that a file's pickle names is run, and PyTorch is not needed.

Back, DIR is such a folder or a training work folder; the file holds {"net": state dict}, which the
official code loads with strict=True. No file says how many attention heads the network has, nor
whether it eliminates candidates: see --num_heads and --elimination.
"""

import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from ostrack_jax import command_line, loading
from ostrack_jax.loading import Checkpoint
from ostrack_jax.weight_files import FileOptions
from ostrack_jax.weights import names, torch_file

_TORCH_SUFFIXES = (".pth", ".pt", ".pth.tar")

FLAGS = command_line.new_flags()
flags.DEFINE_string("input", None, "file of weights, or checkpoint folder", flag_values=FLAGS)
flags.DEFINE_string(
  "output", None, "folder to write (absent or empty), or the .pth file to write", flag_values=FLAGS
)
flags.DEFINE_bool(
  "overwrite", False, "replace the converted folder or file at --output", flag_values=FLAGS
)
flags.DEFINE_integer(
  "num_heads", None, "attention heads; default: width / 64, or what an .npz says", flag_values=FLAGS
)
flags.DEFINE_integer("template_size", None, "pixels, for encoders; default: 128", flag_values=FLAGS)
flags.DEFINE_integer("search_size", None, "pixels, for encoders; default: 256", flag_values=FLAGS)
flags.DEFINE_integer(
  "head_channels", None, "of the new head behind an encoder; default: 256", flag_values=FLAGS
)
flags.DEFINE_integer("seed", 0, "of the new head behind an encoder", flag_values=FLAGS)
flags.DEFINE_enum(
  "elimination", "on", ["on", "off"], "whether the model eliminates candidates", flag_values=FLAGS
)
flags.DEFINE_float(
  "template_factor", None, "template crop's side over the target's; default: 2", flag_values=FLAGS
)
flags.DEFINE_float(
  "search_factor", None, "the same for the search region; default: 4, from 384 pixels on 5", flag_values=FLAGS
)  # fmt: skip


def import_file(
  source: str | os.PathLike,
  folder: str | os.PathLike,
  options: FileOptions | None = None,
  overwrite: bool = False,
) -> Checkpoint:
  """Convert a file of weights to a checkpoint folder, which appears only when it is complete.

  Raises FileNotFoundError, FileExistsError or ValueError, one sentence, and leaves nothing behind.
  """
  loading.check_output(folder, overwrite)
  checkpoint = loading.load_file(source, options)
  loading.write_folder(checkpoint, folder, overwrite)
  return checkpoint


def export_file(
  source: str | os.PathLike, file: str | os.PathLike, overwrite: bool = False
) -> Checkpoint:
  """Write a checkpoint as a PyTorch file that the official code loads with strict=True.

  Raises as import_file does.
  """
  file = pathlib.Path(file)
  if not file.name.endswith(_TORCH_SUFFIXES):
    raise ValueError(f"{file} must end with one of {', '.join(_TORCH_SUFFIXES)}")
  if file.is_dir() or (file.exists() and not overwrite):
    raise FileExistsError(f"{file} exists; give another output, or pass --overwrite")
  checkpoint = loading.load(source)
  state = names.torch_from_variables(checkpoint.variables, checkpoint.model, str(source))
  file.parent.mkdir(parents=True, exist_ok=True)
  # The official reader takes `net` alone; the rest is what tensors do not say, for our own.
  note = json.dumps(checkpoint.description)
  torch_file.write_torch_file(file, {"net": state, torch_file.NOTE_KEY: note})
  return checkpoint


def summarise(checkpoint: Checkpoint) -> str:
  """Return what a checkpoint is, in a few lines for the screen."""
  model, source = checkpoint.description["model"], checkpoint.description["source"]
  parameters = sum(leaf.size for leaf in jax.tree.leaves(checkpoint.variables["params"]))
  layers = ", ".join(map(str, model["elimination_layers"])) or "none"
  rows: dict[str, Any] = {
    "kind": source["kind"],
    "variant": f"{model['variant']} (width {model['width']}, depth {model['depth']}, "
    f"{model['num_heads']} heads)",
    "sizes": f"template {model['template_size']}, search {model['search_size']}, "
    f"head channels {model['head_channels']}",
    "elimination": f"after attention of blocks {layers}" if model["elimination_layers"] else "off",
    "crop factors": ", ".join(f"{k} {v:g}" for k, v in checkpoint.description["tracker"].items()),
    "parameters": f"{parameters:,}",
    "source": f"{source['file']}, sha256 {source['sha256']}",
  }
  if checkpoint.model.is_two_stream:
    rows["relation"] = f"{checkpoint.model.relation}, {checkpoint.model.fusion_layers} layers"
  left_out = source.get("left_out") or []
  if left_out:
    more = f" and {len(left_out) - 4} more" if len(left_out) > 4 else ""
    rows["left out"] = ", ".join(left_out[:4]) + more
  if not checkpoint.description["complete"]:
    rows["note"] = "the head is new and untrained; train before tracking"
  return "\n".join(f"{name + ':':<14}{text}" for name, text in rows.items())


def main(argv: Sequence[str]) -> None:
  """Run the command with the parsed FLAGS."""
  del argv
  try:
    _convert()
  except (ValueError, OSError) as error:
    sys.exit(f"ostrack-convert: {error}")


def _convert() -> None:
  absent = [f"--{name}" for name in ("input", "output") if not FLAGS[name].value]
  if absent:
    raise ValueError(f"{' and '.join(absent)} missing; give --input=... --output=... (see --help)")
  if loading.is_folder(FLAGS.input):
    ignored = [
      name
      for name in FLAGS
      if name not in ("input", "output", "overwrite", "help") and FLAGS[name].present
    ]
    if ignored:
      raise ValueError(f"--{ignored[0]} has no use where --input is a folder; leave it away")
    checkpoint = export_file(FLAGS.input, FLAGS.output, FLAGS.overwrite)
  else:
    if FLAGS.output.endswith(_TORCH_SUFFIXES):
      raise ValueError(
        f"--input={FLAGS.input} is a file or absent, and --output={FLAGS.output} is a file; one of "
        "the two must be a checkpoint folder"
      )
    options = FileOptions(
      num_heads=FLAGS.num_heads,
      template_size=FLAGS.template_size,
      search_size=FLAGS.search_size,
      head_channels=FLAGS.head_channels,
      seed=FLAGS.seed,
      elimination=FLAGS.elimination == "on",
      template_factor=FLAGS.template_factor,
      search_factor=FLAGS.search_factor,
    )
    checkpoint = import_file(FLAGS.input, FLAGS.output, options, FLAGS.overwrite)
  print(summarise(checkpoint))
  print(f"written to {FLAGS.output}")


def run() -> None:
  """Parse the command line and run; the console script."""
  command_line.run(main, "ostrack-convert", FLAGS, __doc__)


if __name__ == "__main__":
  run()
