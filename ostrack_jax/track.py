"""Track targets through a video: into a video, tables, or a window.

  python -m ostrack_jax.track --checkpoint=PATH --source=VIDEO_OR_FRAME_FOLDER \\
    --init_box=x,y,w,h --output=OUT.mp4 --boxes=OUT.csv
  ffmpeg -i VIDEO -f rawvideo -pix_fmt rgb24 - | python -m ostrack_jax.track --checkpoint=PATH \\
    --source=- --frame_size=1280x720 --init_boxes=STARTS.txt --json=OUT.jsonl

A box is given in pixels: left, top, width, height. Several objects, from --init_box given again or
from --init_boxes, are found by one call of the network a frame. Objects and frames count from 0.
OUT.mp4 shows the tracks. OUT.csv has a row for every object in every frame: frame, object, x, y, w, h
in pixels; score, the network's from 0 to 1, empty where the box is the given one; confidence and visible, empty
without a calibrator. Ctrl-C ends the track and leaves complete files.
"""

import contextlib
import dataclasses
import functools
import io
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags
from tqdm import tqdm

from ostrack_jax import command_line, network_flags, track_drawing, track_outputs
from ostrack_jax.tracking import streams
from ostrack_jax.tracking.frames import FrameSource, ImageFrames, quiet_opencv

_Box = tuple[float, float, float, float]

FLAGS = command_line.new_flags()
flags.DEFINE_string(
  "checkpoint", None, f"{network_flags.CHECKPOINT_HELP} and is the default", flag_values=FLAGS
)
flags.DEFINE_string(
  "source", None, "video file, folder of images, pattern of images ('clip/*.png'), a camera's number, or - for raw frames on standard input", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_multi_string(
  "init_box", [], "x,y,w,h in pixels of the first frame; again for every further object", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_string(
  "init_boxes", None, "text file of objects, a line each: frame,x,y,w,h, where frame (from 0) is the one they start in", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_string("output", None, "annotated video to write, .mp4", flag_values=FLAGS)
flags.DEFINE_string("boxes", None, "boxes and scores to write, .csv", flag_values=FLAGS)
flags.DEFINE_string("json", None, "the same as a JSON object a line", flag_values=FLAGS)
flags.DEFINE_string("mot", None, "the same as MOTChallenge text", flag_values=FLAGS)
flags.DEFINE_bool("show", False, "show the tracks in a window; q or Escape ends", flag_values=FLAGS)
flags.DEFINE_bool("overwrite", False, "replace files that exist", flag_values=FLAGS)
flags.DEFINE_string("frame_size", None, "WIDTHxHEIGHT of raw frames", flag_values=FLAGS)
flags.DEFINE_enum(
  "pixel_format", "rgb24", list(streams.PIXEL_FORMATS), "of raw frames", flag_values=FLAGS
)
flags.DEFINE_float(
  "fps", None, "frames per second of --output; by default the source's, 30 where it says none", 0.01, 999, flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_multi_string(
  "colour", [], f"of an object, #rrggbb or one of {', '.join(track_drawing.PALETTE)}; again for further ones", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_integer(
  "line_width", None, "of boxes, in pixels; by default to suit the frame", flag_values=FLAGS
)
flags.DEFINE_integer("trail", 0, "frames back that an object's way is drawn", flag_values=FLAGS)
flags.DEFINE_bool("inset", False, "show the search regions along the lower edge", flag_values=FLAGS)
flags.DEFINE_float(
  "search_factor", None, "search region side over root of box area; default: the checkpoint's", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_bool(
  "long_term", False, "seek lost targets in the whole frame, their boxes frozen meanwhile; needs a calibrator", flag_values=FLAGS
)  # fmt: skip
network_flags.define(FLAGS)


def parse_box(text: str) -> _Box:
  """Return four numbers written as x,y,w,h; raises ValueError for anything else."""
  try:
    x, y, w, h = (float(part) for part in text.split(","))
  except ValueError:
    raise ValueError(
      f"--init_box={text} must be four numbers x,y,w,h: left, top, width, height in pixels"
    ) from None
  return x, y, w, h


def read_starts(path: pathlib.Path) -> dict[int, list[_Box]]:
  """Read --init_boxes: frame number to the boxes that start there, in the file's order.

  Numbers are parted by commas or blanks; empty lines, a heading and what follows # are passed over.

  Raises:
    ValueError: a line is something else, which is named, or there is none.
    OSError: the file cannot be read.
  """
  if not path.is_file():
    raise FileNotFoundError(f"--init_boxes={path} does not exist")
  starts: dict[int, list[_Box]] = {}
  try:
    # Spreadsheets write a mark in front of the first line.
    text = path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
  for number, line in enumerate(text.splitlines(), 1):
    words = line.partition("#")[0].replace(",", " ").split()
    if not words or (words[0] == "frame" and not starts):
      continue
    frame, box = -1, []
    with contextlib.suppress(ValueError):
      frame, box = int(words[0]), [float(word) for word in words[1:]]
    if frame < 0 or len(box) != 4:
      raise ValueError(
        f"{path} line {number} is {line.strip()!r}; expected frame,x,y,w,h: a frame's number from 0, then "
        "left, top, width, height in pixels"
      )
    starts.setdefault(frame, []).append((box[0], box[1], box[2], box[3]))
  if not starts:
    raise ValueError(f"{path} holds no box; expected lines of frame,x,y,w,h")
  return starts


def check_outputs(paths: Mapping[str, pathlib.Path], overwrite: bool) -> None:
  """Refuse outputs that could not be written in the end, or would replace a file.

  Args:
    paths: by the flag that names it.

  Raises ValueError or an OSError that names the path and the cure.
  """
  flag_of: dict[pathlib.Path, str] = {}
  for flag, path in paths.items():
    other = flag_of.setdefault(path.resolve(), flag)
    if other != flag:
      raise ValueError(f"--{other} and --{flag} both name {path}; give two files")
  for path in paths.values():
    if not path.parent.is_dir():
      raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
      raise IsADirectoryError(f"cannot write {path}: it is a folder; give a file name in it")
    if not os.access(path.parent, os.W_OK):
      raise PermissionError(f"cannot write {path}: folder {path.parent} is not writable")
    if path.exists() and not overwrite:
      raise FileExistsError(f"{path} exists; pass --overwrite to replace it")


def _paths() -> dict[str, pathlib.Path]:
  """Return the files to write by their flags; raises where they cannot be."""
  given = {name: FLAGS[name].value for name in ("output", "boxes", "json", "mot")}
  paths = {name: pathlib.Path(value) for name, value in given.items() if value}
  if not paths and not FLAGS.show:
    raise ValueError(
      "give --output=OUT.mp4, --boxes=OUT.csv, --json=OUT.jsonl, --mot=OUT.txt, or several; or --show"
    )
  if "output" in paths and paths["output"].suffix.lower() != ".mp4":
    raise ValueError(f"--output={paths['output']} must end in .mp4")
  for flag in ("source", "checkpoint", "init_boxes"):
    read = FLAGS[flag].value
    if read and pathlib.Path(read).resolve() in (path.resolve() for path in paths.values()):
      raise ValueError(f"{read} is read, as --{flag}; write to another file")
  check_outputs(paths, FLAGS.overwrite)
  if FLAGS.show:
    track_outputs.check_display()
  return paths


def _starts() -> dict[int, list[_Box]]:
  """Return frame number to the boxes that start there; those of --init_box come first."""
  starts = {0: [parse_box(text) for text in FLAGS.init_box]} if FLAGS.init_box else {}
  if FLAGS.init_boxes:
    for frame, boxes in read_starts(pathlib.Path(FLAGS.init_boxes)).items():
      starts.setdefault(frame, []).extend(boxes)
  return starts


def _drawing(numbered: bool) -> track_drawing.DrawingOptions:
  colours = [track_drawing.parse_colour(text) for text in FLAGS.colour]
  options = track_drawing.DrawingOptions(
    line_width=FLAGS.line_width, trail=FLAGS.trail, inset=FLAGS.inset, numbered=numbered
  )
  return dataclasses.replace(options, colours=colours) if colours else options


def _outputs(
  paths: Mapping[str, pathlib.Path], drawing: track_drawing.DrawingOptions, frames: FrameSource
) -> list[track_outputs.Output]:
  painter = track_drawing.TrackPainter(drawing)
  fps = frames.fps if FLAGS.fps is None else FLAGS.fps
  kinds = {
    "output": functools.partial(track_outputs.AnnotatedVideo, fps=fps, painter=painter),
    "boxes": track_outputs.CsvTable,
    "json": track_outputs.JsonLines,
    "mot": track_outputs.MotText,
  }
  outputs: list[track_outputs.Output] = [kinds[name](path) for name, path in paths.items()]
  if FLAGS.show:
    outputs.append(track_outputs.LiveWindow(frames.name, painter))
  return outputs


def _stdin() -> io.RawIOBase | None:
  """Return standard input where --source asks for it and it is open."""
  # Where it is closed, its number may by now be that of some other file; Python has noted it in time.
  if FLAGS.source != "-" or sys.stdin is None:
    return None
  # Unbuffered, since nobody else can leave a buffer while a thread waits in it.
  return io.FileIO(0, closefd=False)


def _check_starts(starts: Mapping[int, object], count: int, name: str) -> None:
  if max(starts) >= count:
    raise ValueError(
      f"an object starts in frame {max(starts)}, but {name} has {count} frames, 0 to {count - 1}"
    )


def _track() -> int:
  absent = [] if FLAGS.source else ["--source"]
  if not (FLAGS.init_box or FLAGS.init_boxes):
    absent.append("--init_box")
  if absent:
    raise ValueError(f"{' and '.join(absent)} missing (see --help)")
  paths, starts = _paths(), _starts()
  count = sum(map(len, starts.values()))
  drawing = _drawing(numbered=count > 1)
  how = network_flags.load_arguments(FLAGS)
  frames = streams.open_source(FLAGS.source, _stdin(), FLAGS.frame_size, FLAGS.pixel_format)
  if isinstance(frames, ImageFrames):
    _check_starts(starts, len(frames), frames.name)
  # Late, so that a wrong argument is named at once.
  from ostrack_jax import LongTermSettings, MultiTracker, load

  # One that is empty is a mistake, as of a variable in a script.
  is_given = FLAGS.checkpoint is not None
  if not is_given:
    print(
      f"ostrack-track: no --checkpoint, so {network_flags.SHIPPED} tracks: {network_flags.SHIPPED_NOTE}",
      file=sys.stderr,
    )
  tracker = MultiTracker(
    load(FLAGS.checkpoint if is_given else network_flags.SHIPPED, **how),
    max_objects=count,
    search_factor=FLAGS.search_factor,
    long_term=LongTermSettings() if FLAGS.long_term else None,
  )
  drawing = dataclasses.replace(drawing, search_factor=tracker.search_factor)
  outputs = _outputs(paths, drawing, frames)
  with tqdm(frames, unit="frame", disable=None, desc=frames.name) as progress:
    ending = track_outputs.write_tracks(
      tracker.track(frames, starts, is_live=frames.is_live),
      outputs,
      frames.is_live,
      progress.update,
    )
  _report(ending, outputs, paths)
  if isinstance(ending.stopped_by, KeyboardInterrupt):
    print(f"ostrack-track: interrupted after {ending.frames} frames", file=sys.stderr)
    return 130
  if ending.stopped_by is not None:
    raise ending.stopped_by
  if not any(output.is_closed for output in outputs):
    _check_starts(starts, ending.frames, frames.name)
  return 0


def _report(ending: track_outputs.Ending, outputs, paths: Mapping[str, pathlib.Path]) -> None:
  speed = ""
  if ending.frames > 2:
    # As in per_second: the first update compiles.
    alone = 1 / float(np.median(ending.seconds[2:]))
    speed = f", {ending.per_second:.1f} frames/s ({alone:.1f} in the tracker)"
  written = f"; written: {', '.join(map(str, paths.values()))}" if paths else ""
  print(f"{ending.frames} frames{speed}{written}")
  for output in outputs:
    if isinstance(output, track_outputs.AnnotatedVideo) and output.codec != "h264":
      print("the video is MPEG-4 Part 2, which browsers do not play; for H.264: pip install av")


def main(argv: Sequence[str]) -> int:
  """Run the command with the parsed FLAGS and return its exit code."""
  del argv
  try:
    return _track()
  except (ValueError, OSError) as error:
    sys.exit(f"ostrack-track: {error}")
  except KeyboardInterrupt:
    print("ostrack-track: interrupted; nothing was written", file=sys.stderr)
    return 130


def run() -> None:
  """Parse the command line and run; the console script."""
  quiet_opencv()
  command_line.run(main, "ostrack-track", FLAGS, __doc__)


if __name__ == "__main__":
  run()
