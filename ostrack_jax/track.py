"""Track one target through a video, without a display.

  python -m ostrack_jax.track --checkpoint=PATH --source=VIDEO_OR_FRAME_FOLDER \\
    --init_box=x,y,w,h --output=OUT.mp4 --boxes=OUT.csv

The box is given in pixels of the first frame: left, top, width, height. OUT.mp4 shows the track;
OUT.csv has a row a frame: frame (from 0), x, y, w, h in pixels, and score, the network's confidence
from 0 to 1 (nan in the first frame, whose box is the given one).
"""

import contextlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence

import cv2
import numpy as np
from absl import flags
from tqdm import tqdm

from ostrack_jax import command_line, visualization

FLAGS = command_line.new_flags()
flags.DEFINE_string(
  "checkpoint", None, "converted folder, training work folder or its checkpoints/STEP, or official .pth/.pth.tar file", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_string(
  "source", None, "video file, folder of images, or pattern of images ('clip/*.png')", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_string("init_box", None, "x,y,w,h in pixels of the first frame", flag_values=FLAGS)
flags.DEFINE_string("output", None, "annotated video to write, .mp4", flag_values=FLAGS)
flags.DEFINE_string("boxes", None, "boxes and scores to write, .csv", flag_values=FLAGS)
flags.DEFINE_bool("overwrite", False, "replace files that exist", flag_values=FLAGS)
flags.DEFINE_float(
  "search_factor", None, "search region side over root of box area; default: the checkpoint's", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_enum(
  "dtype", None, ["float32", "bfloat16"], "to compute in; by default what the checkpoint says", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_integer(
  "num_heads", None, "attention heads of an official file, where width/64 is wrong", flag_values=FLAGS
)  # fmt: skip


def parse_box(text: str) -> tuple[float, float, float, float]:
  """Return four numbers written as x,y,w,h; raises ValueError for anything else."""
  try:
    x, y, w, h = (float(part) for part in text.split(","))
  except ValueError:
    raise ValueError(
      f"--init_box={text} must be four numbers x,y,w,h: left, top, width, height in pixels"
    ) from None
  return x, y, w, h


def check_outputs(paths: Sequence[pathlib.Path], overwrite: bool) -> None:
  """Refuse outputs that could not be written in the end, or would replace a file.

  Raises ValueError or an OSError that names the path and the cure.
  """
  if len({path.resolve() for path in paths}) < len(paths):
    raise ValueError(f"--output and --boxes both name {paths[0]}; give two files")
  for path in paths:
    if not path.parent.is_dir():
      raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
      raise IsADirectoryError(f"cannot write {path}: it is a folder; give a file name in it")
    if not os.access(path.parent, os.W_OK):
      raise PermissionError(f"cannot write {path}: folder {path.parent} is not writable")
    if path.exists() and not overwrite:
      raise FileExistsError(f"{path} exists; pass --overwrite to replace it")


def track_to_files(
  tracker,
  frames: Iterable[np.ndarray],
  init_box_xywh: Sequence[float],
  *,
  fps: float,
  output: pathlib.Path | None,
  boxes: pathlib.Path | None,
  progress: Callable[[], object] | None = None,
) -> list[float]:
  """Track a sequence and write the annotated video, the boxes, or both.

  Nothing is left behind when something raises, as engine.track_frames and VideoWriter do. Returns
  the seconds that each frame spent in the tracker.
  """
  from ostrack_jax.tracking import engine  # Starts jax.

  seconds = []
  with contextlib.ExitStack() as files:
    video = files.enter_context(visualization.VideoWriter(output, fps)) if output else None
    table = None
    if boxes:
      temporary = files.enter_context(visualization.written_whole(boxes))
      table = files.enter_context(temporary.open("w", encoding="utf-8"))
      table.write("frame,x,y,w,h,score\n")
    for index, tracked in enumerate(engine.track_frames(tracker, frames, init_box_xywh)):
      if video is not None:
        label = f"{tracked.score:.2f}" if index else ""
        video.write(visualization.draw_box(tracked.image, tracked.box_xywh, label))
      if table is not None:
        numbers = ",".join(f"{value:.4f}" for value in tracked.box_xywh.tolist())
        table.write(f"{index},{numbers},{tracked.score:.6f}\n")
      seconds.append(tracked.seconds)
      if progress is not None:
        progress()
  return seconds


def _track() -> int:
  absent = [f"--{name}" for name in ("checkpoint", "source", "init_box") if not FLAGS[name].value]
  if absent:
    raise ValueError(f"{' and '.join(absent)} missing (see --help)")
  output = pathlib.Path(FLAGS.output) if FLAGS.output else None
  boxes = pathlib.Path(FLAGS.boxes) if FLAGS.boxes else None
  if output is None and boxes is None:
    raise ValueError("give --output=OUT.mp4, --boxes=OUT.csv, or both")
  if output is not None and output.suffix.lower() != ".mp4":
    raise ValueError(f"--output={output} must end in .mp4")
  paths = [path for path in (output, boxes) if path is not None]
  source = pathlib.Path(FLAGS.source)
  if any(path.resolve() == source.resolve() for path in paths):
    raise ValueError(f"{source} is the source; write to another file")
  check_outputs(paths, FLAGS.overwrite)
  init_box = parse_box(FLAGS.init_box)
  from ostrack_jax.tracking.frames import open_frames

  frames = open_frames(FLAGS.source)
  # Late, so that a wrong argument is named at once.
  from ostrack_jax import Tracker, load

  tracker = Tracker(
    load(FLAGS.checkpoint, num_heads=FLAGS.num_heads, dtype=FLAGS.dtype),
    search_factor=FLAGS.search_factor,
  )
  with tqdm(frames, unit="frame", disable=None, desc=frames.name) as progress:
    seconds = track_to_files(
      tracker,
      frames,
      init_box,
      fps=frames.fps,
      output=output,
      boxes=boxes,
      progress=progress.update,
    )
  speed = ""
  if len(seconds) > 1:
    # The median, since the first update compiles.
    speed = f", {1 / float(np.median(seconds[1:])):.1f} frames/s in the tracker"
  print(f"{len(seconds)} frames{speed}; written: {', '.join(map(str, paths))}")
  return 0


def main(argv: Sequence[str]) -> int:
  """Run the command with the parsed FLAGS and return its exit code."""
  del argv
  try:
    return _track()
  except (ValueError, OSError) as error:
    sys.exit(f"ostrack-track: {error}")
  except KeyboardInterrupt:
    sys.exit("ostrack-track: interrupted; nothing was written")


def run() -> None:
  """Parse the command line and run; the console script."""
  # The user gets one sentence of ours, not OpenCV's lines around it.
  cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
  os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
  command_line.run(main, "ostrack-track", FLAGS, __doc__)


if __name__ == "__main__":
  run()
