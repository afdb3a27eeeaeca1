"""What the page shows of a session: the frame with its boxes, the list of objects, the curves, sentences."""

import base64
import html
from typing import Any

import pandas as pd

from ostrack_jax import track_drawing
from ostrack_jax.web.clips import Clip
from ostrack_jax.web.session import Session
from ostrack_jax.web.tracks import Start, Tracks

_COLOURS = list(track_drawing.PALETTE.values())
# Bright boxes stand out on footage, but not as lines on white paper.
_LINE_BRIGHTNESS = 0.82


def frame_view(session: Session, frame: int) -> dict[str, Any] | None:
  """Return what frame_view.js draws: a frame and the boxes that start in it; None without a clip."""
  clip = session.clip
  if clip is None:
    return None
  frame = min(max(frame, 0), clip.count - 1)
  width, height = clip.size
  picture = base64.b64encode(clip.preview(frame)).decode()
  return {
    "clip": clip.previews.name,
    "frame": frame,
    "width": width,
    "height": height,
    "source": f"data:image/jpeg;base64,{picture}",
    "boxes": [
      {
        "box_xywh": start.box_xywh,
        "label": str(number),
        "colour": _hex(number),
        "ink": _ink(number),
      }
      for number, start in enumerate(session.starts)
      if start.frame == frame
    ],
  }


def clip_line(clip: Clip) -> str:
  """Return HTML that says what was opened."""
  width, height = clip.size
  line = f"<b>{html.escape(clip.name)}</b>: {clip.count} frames of {width} x {height} pixels, {clip.fps:.4g} a second"
  if clip.is_cut:
    line += f". It is longer; only its first {clip.count} frames are used here (--max_frames)."
  return line


def object_list(session: Session) -> str:
  """Return HTML with a row for every object."""
  if session.clip is None:
    return ""
  if not session.starts:
    return (
      "<p>No object yet. Drag a box around a target in the frame above, or click two opposite "
      "corners. Draw more boxes, in this frame or in later ones, for more objects.</p>"
    )
  rows = "".join(_row(number, start) for number, start in enumerate(session.starts))
  return f"<table><tbody>{rows}</tbody></table>"


def _row(number: int, start: Start) -> str:
  x, y, w, h = start.box_xywh
  return (
    f'<tr><td><span class="swatch" style="background:{_hex(number)}"></span>object {number}</td>'
    f"<td>from frame {start.frame}</td><td>{w:g} x {h:g} pixels at {x:g}, {y:g}</td>"
    f'<td style="text-align:right"><button data-does="show" data-number="{number}">Show</button> '
    f'<button data-does="remove" data-number="{number}" aria-label="Remove object {number}">Remove</button>'
    "</td></tr>"
  )


def tracks_line(tracks: Tracks, clip: Clip) -> str:
  """Return HTML that says how far a track went."""
  if tracks.was_stopped:
    return (
      f"Stopped: {tracks.frames} of {clip.count} frames of {html.escape(clip.name)} were tracked."
    )
  return f"Tracked all {tracks.frames} frames of {html.escape(clip.name)}."


def curves(tracks: Tracks) -> tuple[pd.DataFrame, dict[str, str]]:
  """Return a table of frame, value and series, and the colour of every series.

  The score of each object, and its confidence where the network is calibrated.
  """
  rows, colours = [], {}
  several = len({one.object for one in tracks.scores}) > 1
  for one in tracks.scores:
    of = f"object {one.object} " if several else ""
    colour = _line_colour(one.object)
    rows.append((one.frame, one.score, f"{of}score"))
    if one.confidence is None:
      colours[f"{of}score"] = colour
    else:
      rows.append((one.frame, one.confidence, f"{of}confidence"))
      colours[f"{of}confidence"] = colour
      colours[f"{of}score"] = _line_colour(one.object, 0.45)
  return pd.DataFrame(rows, columns=["frame", "value", "series"]), colours


def _rgb(number: int) -> tuple[int, int, int]:
  return _COLOURS[number % len(_COLOURS)]


def _hex(number: int) -> str:
  return "#{:02x}{:02x}{:02x}".format(*_rgb(number))


def _line_colour(number: int, brightness: float = _LINE_BRIGHTNESS) -> str:
  return "#{:02x}{:02x}{:02x}".format(*(round(brightness * value) for value in _rgb(number)))


def _ink(number: int) -> str:
  return "#000" if sum(_rgb(number)) > 330 else "#fff"
