"""Videos to try the page with: procedural ones, rendered at the start, or those of a folder."""

import dataclasses
import pathlib

from data_pipelines import procedural_video
from ostrack_jax import visualization
from ostrack_jax.tracking.frames import IMAGE_SUFFIXES, natural_order, open_frames
from ostrack_jax.web.clips import preview_jpeg

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ogv")
_THUMBNAIL_PX = 320
# Seeds of sequences that show look-alikes, and little light; neither is of a training.
_PROCEDURAL = {"look-alikes": (7, 10), "dim light": (7, 5)}
_SETTINGS = procedural_video.ProceduralVideoSettings(
  width=480, height=360, length=60, min_target_size=44, max_target_size=110, usual_speed=(0.03, 0.14)
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
  """A video at hand.

  Attributes:
    name: to show.
    source: video file or folder of images.
    thumbnail: JPEG picture of the first frame, a file.
    box_xywh: of a target in the first frame, in pixels; None where unknown.
  """

  name: str
  source: pathlib.Path
  thumbnail: pathlib.Path
  box_xywh: tuple[float, float, float, float] | None = None


def render(folder: pathlib.Path) -> list[Example]:
  """Render short procedural videos into a folder that exists."""
  examples = []
  for name, seed in _PROCEDURAL.items():
    frames, boxes_xywh, _ = procedural_video.render_sequence(seed, _SETTINGS)
    source = folder / f"{name.replace(' ', '_')}.mp4"
    with visualization.VideoWriter(source, fps=20) as writer:
      for frame in frames:
        writer.write(frame)
    x, y, w, h = boxes_xywh[0].tolist()
    thumbnail = _write_thumbnail(folder, name, frames[0])
    examples.append(Example(name=name, source=source, thumbnail=thumbnail, box_xywh=(x, y, w, h)))
  return examples


def find(examples: pathlib.Path, folder: pathlib.Path) -> list[Example]:
  """Find the videos of a folder, and the folders of images in it, in natural order of their names.

  Args:
    examples: looked through, not its subfolders' subfolders, but for NAME/img.
    folder: one that exists, for thumbnails.

  Raises:
    FileNotFoundError: there is no such folder, or nothing in it.
    ValueError: a video or an image, which is named, cannot be read.
  """
  if not examples.is_dir():
    raise FileNotFoundError(f"--examples={examples} is not a folder")
  found = []
  for path in sorted(examples.iterdir(), key=natural_order):
    if path.name.startswith("."):
      continue
    source = path
    if path.is_dir():
      source = next((one for one in (path, path / "img") if _holds_images(one)), None)
    elif path.suffix.lower() not in VIDEO_SUFFIXES:
      source = None
    if source is not None:
      first = next(iter(open_frames(source)))
      thumbnail = _write_thumbnail(folder, str(len(found)), first)
      found.append(Example(name=path.stem, source=source, thumbnail=thumbnail))
  if not found:
    raise FileNotFoundError(
      f"--examples={examples} holds neither a video ({', '.join(s[1:] for s in VIDEO_SUFFIXES)}) nor a folder of "
      "images"
    )
  return found


def _holds_images(folder: pathlib.Path) -> bool:
  return folder.is_dir() and any(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.iterdir())


def _write_thumbnail(folder: pathlib.Path, name: str, frame) -> pathlib.Path:
  path = folder / f"{name.replace(' ', '_')}.jpg"
  path.write_bytes(preview_jpeg(frame, _THUMBNAIL_PX))
  return path
