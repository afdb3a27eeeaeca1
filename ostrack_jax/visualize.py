"""Show what a network does along a video: attention, eliminated cells, activations, score maps.

  python -m ostrack_jax.visualize --checkpoint=PATH --source=VIDEO_OR_FOLDER --init_box=x,y,w,h \\
    --output=DIR

Writes for some frames attention_<frame>.png (how much the centre template token attends to the search
region, block by block), elimination_<frame>.png (which cells are gone after each stage),
activations_<frame>.png (how far the backbone's features stand out; with --compare=PATH2 those of two
networks that see the same squares) and score_maps_<frame>.png (with and without the Hann window); and
of all frames elimination.mp4. Frames and blocks count from 0; frame 0 gives the template, so the
pictures begin with frame 1. The track is the tracker's own. --keep_ratios and --elimination_layers
change the first network alone.
"""

import itertools
import pathlib
import re
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from absl import flags
from tqdm import tqdm

from ostrack_jax import command_line, network_flags, output_folder
from ostrack_jax.tracking.frames import open_frames, quiet_opencv

if TYPE_CHECKING:
  from ostrack_jax.models.ostrack import OSTrack

_PICTURE = re.compile(r"(attention|elimination|activations|score_maps)_\d+\.png|elimination\.mp4")

FLAGS = command_line.new_flags()
flags.DEFINE_string("checkpoint", None, network_flags.CHECKPOINT_HELP, flag_values=FLAGS)
flags.DEFINE_string(
  "source", None, "video file, folder of images, or pattern of images ('clip/*.png')", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_string("init_box", None, "x,y,w,h in pixels of the first frame", flag_values=FLAGS)
flags.DEFINE_string("output", None, "folder to write", flag_values=FLAGS)
flags.DEFINE_string(
  "frames", None, "frames to draw, such as 1,25,50; default: 1 and three more, evenly spaced", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_string(
  "layers", None, "blocks whose attention to draw, such as 0,3,6; default: first, last, and those that eliminate", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_integer("limit", None, "at most so many frames of the source", flag_values=FLAGS)
flags.DEFINE_string(
  "compare", None, "second checkpoint, whose activations stand beside the first one's", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_bool("overwrite", False, "replace pictures of an earlier run", flag_values=FLAGS)
flags.DEFINE_float(
  "search_factor", None, "search region side over root of box area; default: the checkpoint's", flag_values=FLAGS
)  # fmt: skip
network_flags.define(FLAGS)


def parse_numbers(
  flag: str, text: str, expected: str, kind: type = int, count: int | None = None
) -> list:
  """Return numbers written with commas between them, `count` of them where given.

  Raises ValueError, which names the flag, for anything else.
  """
  try:
    numbers = [kind(part) for part in text.split(",")]
  except ValueError:
    numbers = []
  if not numbers or count not in (None, len(numbers)):
    raise ValueError(f"--{flag}={text} must be {expected}")
  return numbers


def choose_frames(asked: str | None, count: int | None, limit: int | None) -> list[int]:
  """Return the frames to draw.

  Args:
    asked: the flag's value; None for 1 and three more, evenly spaced.
    count: frames of the source, None where unknown.
    limit: at most so many of them.

  Raises:
    ValueError: frames that are not there, or none asked for where the count is unknown.
  """
  if limit is not None and limit < 2:
    raise ValueError(f"--limit={limit} leaves no frame behind the first; expected at least 2")
  known = [number for number in (count, limit) if number is not None]
  if count is not None and count < 2:
    raise ValueError(
      f"the source has {count} frame; expected at least 2: the first is the template"
    )
  if asked is None:
    if not known:
      raise ValueError("the source does not say how many frames it has; give --frames or --limit")
    # The end is left out, since some videos declare a few frames more than they have.
    return sorted({max(1, share * min(known) // 4) for share in range(4)})
  frames = sorted(set(parse_numbers("frames", asked, "frame numbers such as 1,25,50")))
  if frames[0] < 1:
    raise ValueError(f"--frames={asked}: frame {frames[0]} cannot be drawn; the first is 1")
  if known and frames[-1] >= min(known):
    raise ValueError(f"--frames={asked}: frame {frames[-1]} is behind the last, {min(known) - 1}")
  return frames


def left_out(model: "OSTrack", kinds: Collection[str]) -> str:
  """Return a line on the pictures that are not among those drawn, and why; empty where none lacks."""
  reasons = {
    "attention": "",
    "elimination": "this model keeps all candidates",
    "activations": "",
    "score_maps": "its head has no score map",
  }
  if model.is_two_stream:
    reasons["attention"] = (
      f"with relation {model.relation!r} the template meets the search region behind the backbone alone, "
      "so none of its tokens attends there"
    )
    reasons["elimination"] = "a two-stream model eliminates nothing"
  lines = [f"{kind} ({why})" for kind, why in reasons.items() if kind not in kinds]
  return f"left out: {', '.join(lines)}" if lines else ""


def _visualize() -> int:
  needed = ("checkpoint", "source", "init_box", "output")
  absent = [f"--{name}" for name in needed if not FLAGS[name].value]
  if absent:
    raise ValueError(f"{' and '.join(absent)} missing (see --help)")
  output = pathlib.Path(FLAGS.output)
  output_folder.check_parent(output)
  output_folder.check(
    output, FLAGS.overwrite, lambda name: _PICTURE.fullmatch(name) is not None, "such pictures"
  )
  init_box = parse_numbers(
    "init_box", FLAGS.init_box, "four numbers x,y,w,h: left, top, width, height in pixels", float, 4
  )
  layers = None
  if FLAGS.layers is not None:
    layers = parse_numbers("layers", FLAGS.layers, "block numbers such as 0,3,6")
  how = network_flags.load_arguments(FLAGS)

  frames = open_frames(FLAGS.source)
  try:
    count = len(frames)
  except TypeError:
    count = None
  stills = choose_frames(FLAGS.frames, count, FLAGS.limit)
  # Late, so that a wrong argument is named at once.
  from ostrack_jax import load, loading, network_figures
  from ostrack_jax.tracking import inspection

  checkpoint = load(FLAGS.checkpoint, **how)
  names, compared = [loading.label(FLAGS.checkpoint)], None
  if FLAGS.compare is not None:
    # Folders say how many heads they have; the flag is for files.
    heads = None if loading.is_folder(FLAGS.compare) else FLAGS.num_heads
    compared = load(FLAGS.compare, num_heads=heads, dtype=FLAGS.dtype)
    names.append(loading.label(FLAGS.compare))
    if names[0] == names[1]:
      names = [FLAGS.checkpoint, FLAGS.compare]
  if layers is None or checkpoint.model.is_two_stream:
    layers = inspection.default_layers(checkpoint.model)
  total = None if count is None else min(count, FLAGS.limit or count)
  with (
    output_folder.written_whole(output) as folder,
    tqdm(total=total, unit="frame", disable=None, desc=frames.name, initial=1) as progress,
  ):
    kinds = network_figures.write_pictures(
      inspection.inspect(
        checkpoint,
        itertools.islice(frames, FLAGS.limit),
        init_box,
        layers=layers,
        search_factor=FLAGS.search_factor,
        compared=compared,
        compare_at=stills,
      ),
      stills,
      folder,
      fps=frames.fps,
      source=frames.name,
      names=names,
      progress=progress.update,
    )
  print(f"{', '.join(kinds)} of frames {', '.join(map(str, stills))}; written to {output}")
  omitted = left_out(checkpoint.model, kinds)
  if omitted:
    print(omitted)
  return 0


def main(argv: Sequence[str]) -> int:
  """Run the command with the parsed FLAGS and return its exit code."""
  del argv
  try:
    return _visualize()
  except (ValueError, OSError) as error:
    sys.exit(f"ostrack-visualize: {error}")
  except KeyboardInterrupt:
    print("ostrack-visualize: interrupted; nothing was written", file=sys.stderr)
    return 130


def run() -> None:
  """Parse the command line and run; the console script."""
  quiet_opencv()
  command_line.run(main, "ostrack-visualize", FLAGS, __doc__)


if __name__ == "__main__":
  run()
