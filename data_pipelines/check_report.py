"""The report on raw data: a page with pictures of what is wrong, an overview sheet, and JSON."""

import base64
import dataclasses
import html
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import simplejpeg

from data_pipelines import contact_sheet, jpeg
from data_pipelines.raw_findings import KINDS, SEVERITIES, Finding, Picture
from data_pipelines.raw_scan import Scan
from ostrack_jax import visualization

MOST_PICTURES = 200
# A broken set can have a finding in every sequence; report.json has them all.
_MOST_ROWS_A_KIND = 300
_THUMBNAIL_PX = (256, 192)
_OVERVIEW_TILES, _OVERVIEW_COLUMNS = 24, 6
_QUALITY = 82
_GREY = (200, 200, 200)


def read_picture(picture: Picture) -> np.ndarray | None:
  """Decode a frame, uint8 RGB [H, W, 3]; of a damaged one what is left, None if nothing is."""
  try:
    data = pathlib.Path(picture.path).read_bytes()
  except OSError:
    return None
  if jpeg.is_jpeg(data):
    try:
      # Not strict: the part before the damage is worth seeing.
      return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=False)
    except ValueError:
      return None
  return jpeg.decode(data)


def draw_picture(picture: Picture) -> np.ndarray:
  """Return a frame shrunk to a thumbnail, uint8 RGB, with its box, also where that is outside."""
  width, height = _THUMBNAIL_PX
  image = read_picture(picture)
  if image is None:
    return contact_sheet.captioned(
      np.full((height - 18, width, 3), _GREY, np.uint8), ["this file shows nothing"]
    )
  if picture.box_xywh is None or not np.isfinite(picture.box_xywh).all():
    left = top = right = bottom = 0
  else:
    # Grey around the frame as far as the box reaches, by one frame at most.
    x, y, w, h = picture.box_xywh
    frame_height, frame_width = image.shape[:2]
    left, right = (_reach(over, frame_width) for over in (-x, x + w - frame_width))
    top, bottom = (_reach(over, frame_height) for over in (-y, y + h - frame_height))
  image = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=_GREY)
  scale = min(width / image.shape[1], height / image.shape[0], 1.0)
  size = [max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))]
  image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
  if picture.box_xywh is None:
    return image
  box = (np.array(picture.box_xywh) + np.array([left, top, 0, 0])) * scale
  return visualization.draw_box(image, box)


def _reach(over: float, side: int) -> int:
  return int(min(max(over + 0.04 * side, 0), side)) if over > 1 else 0


def choose_findings(findings: Sequence[Finding], most: int) -> list[int]:
  """Choose which findings to show with their pictures, `most` in all: each kind in turn, worst first.

  One kind with thousands of cases so leaves room for the others.
  """
  queues: dict[str, list[int]] = {kind: [] for kind in KINDS}
  for i, finding in enumerate(findings):
    if finding.pictures:
      queues[finding.kind].append(i)
  chosen: list[int] = []
  left = most
  for turn in range(max(map(len, queues.values()))):
    for queue in queues.values():
      if turn < len(queue) and len(findings[queue[turn]].pictures) <= left:
        chosen.append(queue[turn])
        left -= len(findings[queue[turn]].pictures)
  return sorted(chosen)


def write_report(
  scan: Scan,
  folder: pathlib.Path,
  *,
  dataset: str,
  raw_dir: str,
  most_pictures: int = MOST_PICTURES,
) -> None:
  """Write report.html, report.json and overview.png into a folder, each of them whole or not at all.

  Raises:
    OSError: the folder cannot be made or written to.
  """
  folder.mkdir(parents=True, exist_ok=True)
  drawn = {
    i: [draw_picture(picture) for picture in scan.findings[i].pictures]
    for i in choose_findings(scan.findings, most_pictures)
  }
  visualization.write_image(folder / "overview.png", _overview(scan, drawn))
  _write_text(folder / "report.json", _as_json(scan, dataset, raw_dir))
  # Last: who sees the page has the rest.
  _write_text(folder / "report.html", _as_html(scan, drawn, dataset, raw_dir))


def _write_text(path: pathlib.Path, text: str) -> None:
  with visualization.written_whole(path) as temporary:
    temporary.write_text(text, encoding="utf-8")


def _overview(scan: Scan, drawn: dict[int, list[np.ndarray]]) -> np.ndarray:
  """Put the worst frames on one sheet, or frames of the first sequences if nothing is wrong."""
  width, height = _THUMBNAIL_PX
  shown: list[tuple[np.ndarray, Sequence[str]]] = []
  for i, images in drawn.items():
    finding = scan.findings[i]
    if finding.severity != "note":
      heading = f"{finding.severity}: {KINDS[finding.kind][1]}"
      shown += [
        (image, (heading, f"{finding.sequence}, frame {picture.frame}"))
        for image, picture in zip(images, finding.pictures, strict=True)
      ]
  if not shown:
    shown = [
      (draw_picture(picture), (name, f"frame {picture.frame}"))
      for name, picture in scan.samples[:_OVERVIEW_TILES]
    ]
  if not shown:
    shown = [(np.full((height, width, 3), _GREY, np.uint8), ("nothing to show", ""))]
  tiles = [
    contact_sheet.captioned(contact_sheet.fitted(image, width, height), lines)
    for image, lines in shown[:_OVERVIEW_TILES]
  ]
  return contact_sheet.sheet(tiles, _OVERVIEW_COLUMNS)


def _as_json(scan: Scan, dataset: str, raw_dir: str) -> str:
  findings: list[dict[str, Any]] = []
  for finding in scan.findings:
    row = dataclasses.asdict(dataclasses.replace(finding, pictures=()))
    row.pop("pictures")
    findings.append({"severity": finding.severity, **row})
  content = {"dataset": dataset, "raw_dir": raw_dir, **scan.summary, "findings": findings}
  return json.dumps(content, indent=2, allow_nan=False) + "\n"


_STYLE = """
:root { color-scheme: light; --line: #d8dde3; --soft: #f5f7f9; --ink: #1c2733; --pale: #5b6875; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.5rem 4rem; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; background: #fff; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
p { margin: .25rem 0; } .pale { color: var(--pale); } code { font-size: .9em; overflow-wrap: anywhere; }
.verdict { display: inline-block; margin: 1rem 0; padding: .4rem .9rem; border-radius: .5rem; font-weight: 600; }
.tag { display: inline-block; min-width: 4.6rem; padding: 0 .55rem; border-radius: .7rem; font-size: .8rem;
  font-weight: 600; text-align: center; }
.error { background: #fde3e1; color: #9c1c12; } .warning { background: #fdf0d0; color: #7a5200; }
.note { background: #e4ecf7; color: #2b4a77; } .good { background: #dff3e4; color: #17602e; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; font-weight: 600; color: var(--pale); }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
a { color: inherit; } article { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem;
  margin: .6rem 0; background: var(--soft); overflow-wrap: anywhere; }
.pictures { display: flex; flex-wrap: wrap; gap: .6rem; margin-top: .6rem; }
figure { margin: 0; } figcaption { font-size: .8rem; color: var(--pale); } img { display: block; border-radius: .25rem; }
"""


def _as_html(scan: Scan, drawn: dict[int, list[np.ndarray]], dataset: str, raw_dir: str) -> str:
  cases = scan.summary["cases"]
  if cases["error"]:
    grade, verdict = "error", f"{_many(cases['error'], 'error')}: correct them before preparing"
  elif cases["warning"]:
    grade, verdict = "warning", f"No errors; {_many(cases['warning'], 'warning')} to look at"
  else:
    grade, verdict = "good", "Nothing is wrong"
  title = f"{html.escape(dataset)}: check of raw data"
  parts = [
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    f"<title>{title}</title><style>{_STYLE}</style></head><body>",
    f"<h1>{title}</h1>",
    f'<p class="pale"><code>{html.escape(raw_dir)}</code></p>',
    f'<p class="verdict {grade}">{verdict}</p>',
    _split_table(scan.summary["splits"]),
    _kind_table(scan.summary["kinds"]),
  ]
  for kind in scan.summary["kinds"]:
    numbered = [(i, f) for i, f in enumerate(scan.findings) if f.kind == kind]
    severity, heading = KINDS[kind]
    parts.append(f'<h2 id="{kind}">{_tag(severity)} {html.escape(_capital(heading))}</h2>')
    for i, finding in numbered[:_MOST_ROWS_A_KIND]:
      parts.append(_article(finding, drawn.get(i, [])))
    if len(numbered) > _MOST_ROWS_A_KIND:
      rest = len(numbered) - _MOST_ROWS_A_KIND
      parts.append(f'<p class="pale">{rest:,} more sequences are listed in report.json.</p>')
  parts.append(
    '<p class="pale" style="margin-top:3rem">Frames count from 0. All findings, with the numbers of all frames, '
    "are in report.json.</p></body></html>\n"
  )
  return "\n".join(parts)


def _many(count: int, noun: str) -> str:
  return f"{count:,} {noun}{'s' if count != 1 else ''}"


def _capital(text: str) -> str:
  return text[:1].upper() + text[1:]


def _tag(severity: str) -> str:
  assert severity in SEVERITIES
  return f'<span class="tag {severity}">{severity}</span>'


def _split_table(splits: dict[str, Any]) -> str:
  rows = []
  for split, row in splits.items():
    sizes = row["box_size_quantiles"]
    cells = [
      f"{row['sequences']:,}",
      f"{row['targets']:,}",
      f"{row['targets_that_train']:,}",
      f"{row['frames']:,}",
      f"{row['visible_share']:.1%}",
      " / ".join(f"{size:g}" for size in sizes.values()) or "none",
    ]
    numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
    rows.append(f"<tr><td>{html.escape(split)}</td>{numbers}</tr>")
  heads = ["sequences", "targets", "that can train", "frames", "visible"]
  heads.append("size of boxes in pixels: 1% / 25% / 50% / 75% / 99%")
  head = "".join(f'<th class="number">{name}</th>' for name in heads)
  return f"<table><tr><th>split</th>{head}</tr>{''.join(rows)}</table>"


def _kind_table(kinds: dict[str, Any]) -> str:
  if not kinds:
    return ""
  rows = "".join(
    f'<tr><td>{_tag(row["severity"])}</td><td><a href="#{kind}">{html.escape(row["heading"])}</a></td>'
    f'<td class="number">{row["cases"]:,}</td><td class="number">{row["sequences"]:,}</td></tr>'
    for kind, row in kinds.items()
  )
  head = '<tr><th></th><th>finding</th><th class="number">cases</th><th class="number">sequences</th></tr>'
  return f"<h2>Findings</h2><table>{head}{rows}</table>"


def _article(finding: Finding, images: Sequence[np.ndarray]) -> str:
  where = f"{finding.split}: {finding.sequence}" if finding.sequence else f"split {finding.split}"
  file = f" · <code>{html.escape(finding.file)}</code>" if finding.file else ""
  figures = "".join(
    f'<figure><img alt="frame {picture.frame}" src="{_data_uri(image)}">'
    f"<figcaption>{html.escape(pathlib.PurePath(picture.path).name)}, frame {picture.frame}</figcaption></figure>"
    for image, picture in zip(images, finding.pictures)
  )
  return (
    f"<article><b>{html.escape(where)}</b>{file}<p>{html.escape(_capital(finding.sentence))}.</p>"
    + (f'<div class="pictures">{figures}</div>' if figures else "")
    + "</article>"
  )


def _data_uri(image: np.ndarray) -> str:
  bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
  _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
  return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
