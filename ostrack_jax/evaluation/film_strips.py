"""Film strips of the sequences that went worst: a few small frames with boxes drawn."""

import base64
import dataclasses
import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from ostrack_jax.evaluation import box_errors, report, videos
from ostrack_jax.tracking import frames as frame_files

_HEIGHT_PX = 150
_QUALITY = 72
_ANNOTATED = (255, 255, 255)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
  """One frame of a strip, as a JPEG data URL. overlaps: tracker to IoU, NaN where absent."""

  frame: int
  url: str
  size: tuple[int, int]
  overlaps: dict[str, float]


def worst(trackers: Mapping[str, report.Summary], count: int) -> list[str]:
  """Return the names of the `count` sequences with the lowest AO, averaged over the trackers."""
  first = next(iter(trackers.values()))
  means = {
    name: float(np.mean([one.sequences[name].measures["ao"] for one in trackers.values()]))
    for name in first.sequences
  }
  known = [name for name, value in means.items() if not math.isnan(value)]
  return sorted(known, key=lambda name: (means[name], name))[:count]


def strip(
  video: videos.Video,
  predictions: Mapping[str, np.ndarray],
  colours: Sequence[tuple[int, int, int]],
  pictures: int,
) -> list[Picture]:
  """Draw frames spread evenly over those where the target is present.

  Args:
    predictions: tracker to [n, 4] xywh pixels, in the order of `colours` (RGB). The annotated box
      is white.

  Raises ValueError or OSError, naming the file, for a frame that cannot be read.
  """
  annotated = np.asarray(video.boxes_xywh, dtype=np.float64)
  present = box_errors.usable_boxes(annotated)
  if video.visible is not None:
    present &= np.asarray(video.visible, dtype=bool)
  (chosen,) = np.nonzero(present)
  chosen = chosen[np.unique(np.linspace(0, len(chosen) - 1, pictures).round().astype(int))]
  return [_picture(video, int(frame), annotated, predictions, colours) for frame in chosen]


def _picture(video, frame: int, annotated, predictions, colours) -> Picture:
  image = frame_files.read_image(video.frames[frame])
  scale = _HEIGHT_PX / image.shape[0]
  size = (max(1, round(image.shape[1] * scale)), _HEIGHT_PX)
  image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
  _draw(image, annotated[frame] * scale, (0, 0, 0), 4)
  _draw(image, annotated[frame] * scale, _ANNOTATED, 2)
  overlaps = {}
  for (label, boxes), colour in zip(predictions.items(), colours):
    overlaps[label] = 0.0
    if frame < len(boxes) and np.isfinite(boxes[frame]).all():
      _draw(image, np.asarray(boxes[frame]) * scale, colour, 2)
      iou = box_errors.overlap(np.asarray(boxes[frame])[None], annotated[frame][None])
      overlaps[label] = float(iou[0])
  done, data = cv2.imencode(
    ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
  )
  if not done:
    raise ValueError(f"{video.frames[frame]} cannot be written as JPEG")
  url = "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
  return Picture(frame=frame, url=url, size=size, overlaps=overlaps)


def _draw(image: np.ndarray, box_xywh, colour: tuple[int, int, int], thickness: int) -> None:
  # cv2 takes 32-bit integers; far outside the frame the exact place does not matter.
  corners = np.clip(np.array([*box_xywh[:2], *(box_xywh[:2] + box_xywh[2:])]), -1e6, 1e6)
  left, top, right, bottom = (round(value) for value in corners.tolist())
  cv2.rectangle(image, (left, top), (right, bottom), colour, thickness)
