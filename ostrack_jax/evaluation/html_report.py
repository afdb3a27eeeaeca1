"""The report as one HTML file that needs nothing else: plots, tables, overlaps, film strips."""

import base64
import importlib.resources
import json
import pathlib
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from ostrack_jax.evaluation import film_strips, html_scores, measures, metrics, report, results
from ostrack_jax.evaluation.videos import Video

WORST_SEQUENCES = 8
_PICTURES = 6
_ABSENT = 255
# --c0 ... --c7 of page/report.css.
_COLOURS = (
  (0x2F, 0x7F, 0xC8), (0xD9, 0x70, 0x0A), (0x17, 0x94, 0x63), (0xB0, 0x5F, 0xC0),
  (0xD6, 0x42, 0x3B), (0x8A, 0x84, 0x20), (0x13, 0x8F, 0xA3), (0x7D, 0x7D, 0x7D),
)  # fmt: skip
# Nothing may be fetched, whatever a name in the report holds.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_report(
  path: pathlib.Path,
  trackers: Mapping[str, report.Summary],
  *,
  dataset: str,
  videos: Mapping[str, Video] | None = None,
  predictions: Mapping[str, Mapping[str, np.ndarray]] | None = None,
  notes: Mapping[str, str] = MappingProxyType({}),
) -> None:
  """Write a self-contained report on one or several trackers.

  Args:
    trackers: label to scores, all under one rule and of the same sequences.
    dataset: a benchmark's name; the paper's scores stand beside ours where it has them.
    videos: sequence name to its frames and annotated boxes; with `predictions` they give film
      strips of the worst sequences, and alone the attribute tables.
    predictions: label to sequence name to [n, 4] xywh pixels.
    notes: heading to text, shown under the title.

  Raises ValueError for no tracker, for trackers that differ in rule or sequences, and for a worst
  sequence without predictions; OSError or ValueError for its frames that cannot be read.
  """
  _check(trackers)
  videos, rule = videos or {}, next(iter(trackers.values())).rule
  sections = [
    html_scores.overall(trackers, dataset),
    html_scores.plots(trackers, dataset),
    html_scores.attributes(trackers, videos),
    _sequences(trackers, videos),
    _strips(trackers, videos, predictions or {}),
    _rules(trackers),
  ]
  data = {
    "trackers": list(trackers),
    "overlaps": {
      name: [_quantised(one.sequences[name].frame_overlaps) for one in trackers.values()]
      for name in next(iter(trackers.values())).sequences
    },
  }
  # A closing tag inside a name would end the script element.
  embedded = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
  title = html_scores.escaped(f"{dataset}: {', '.join(trackers)}")
  told = {"rule of the curves": f"{rule} ({metrics.RULES[rule].source})", **notes}
  terms = "".join(
    f"<dt><b>{html_scores.escaped(key)}</b></dt><dd>{html_scores.escaped(one)}</dd>"
    for key, one in told.items()
  )
  results.write_text(
    path,
    f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<link rel="icon" href="data:,"><title>{title}</title><style>{_page("report.css")}</style>'
    f"</head><body><h1>{title}</h1><dl>{terms}</dl>{''.join(sections)}"
    f'<script type="application/json" id="data">{embedded}</script>'
    f"<script>{_page('report.js')}</script></body></html>\n",
  )


def _check(trackers: Mapping[str, report.Summary]) -> None:
  if not trackers:
    raise ValueError("there are no trackers to report; expected at least one")
  (first_label, first), *others = trackers.items()
  for label, summary in others:
    if summary.rule != first.rule:
      raise ValueError(
        f"{first_label} is scored by rule {first.rule} and {label} by {summary.rule}; "
        "score all of them by one rule"
      )
    differing = sorted(set(summary.sequences) ^ set(first.sequences))
    if differing:
      raise ValueError(
        f"{first_label} and {label} differ in the sequences {', '.join(differing[:5])}; "
        "score all trackers on the same sequences"
      )
    for name, one in summary.sequences.items():
      if one.frames != first.sequences[name].frames:
        raise ValueError(
          f"sequence {name} has {first.sequences[name].frames} frames for {first_label} and "
          f"{one.frames} for {label}; score all trackers against the same annotations"
        )


def _page(name: str) -> str:
  folder = importlib.resources.files("ostrack_jax.evaluation") / "page"
  return (folder / name).read_text(encoding="utf-8")


def _quantised(frame_overlaps: np.ndarray) -> str:
  percent = np.where(np.isnan(frame_overlaps), 0, np.round(100 * np.nan_to_num(frame_overlaps)))
  stored = np.where(np.isnan(frame_overlaps), _ABSENT, percent).astype(np.uint8)
  return base64.b64encode(stored.tobytes()).decode()


def _sequences(trackers: Mapping[str, report.Summary], videos) -> str:
  first = next(iter(trackers.values()))
  shown = html_scores.shown_measures(trackers)

  def head(key: str, text: str, kind: str = "") -> str:
    return (
      f'<th scope="col" data-key="{key}" aria-sort="none"{kind}><button type="button">'
      f"{html_scores.escaped(text)}</button></th>"
    )

  groups = "".join(
    f'<th scope="colgroup" class="group" colspan="{len(shown)}">{html_scores.swatch(i)}{html_scores.escaped(label)}</th>'
    for i, label in enumerate(trackers)
  )
  columns = head("name", "sequence") + head("frames", "frames")
  for i in range(len(trackers)):
    for j, one in enumerate(shown):
      columns += head(f"{i}:{one.key}", one.heading, ' class="first"' if j == 0 else "")
  rows = []
  for name, score in first.sequences.items():
    attributes = videos[name].attributes if name in videos else ()
    searched = html_scores.escaped(" ".join([name, *attributes]).lower())
    cells = "".join(
      html_scores.cells([one.sequences[name].measures[m.key] for m in shown], shown, group=True)
      for one in trackers.values()
    )
    rows.append(
      f'<tr data-name="{html_scores.escaped(name)}" data-text="{searched}" aria-current="false">'
      f'<th scope="row"><button type="button">{html_scores.escaped(name)}</button></th>'
      f'<td data-value="{score.frames}">{score.frames}</td>{cells}</tr>'
    )
  means = "".join(
    html_scores.cells([one.mean[m.key] for m in shown], shown, group=True)
    for one in trackers.values()
  )
  frames = sum(one.frames for one in first.sequences.values())
  legend = " ".join(
    f"{html_scores.swatch(i)}{html_scores.escaped(label)}" for i, label in enumerate(trackers)
  )
  return (
    "<h2>Sequences</h2><p class='faint'>A heading sorts, a name shows the overlap over time.</p>"
    '<div class="controls"><label for="filter">Show names'
    f"{' or attributes' if videos else ''} with</label>"
    '<input type="search" id="filter" autocomplete="off"><span id="count" aria-live="polite"></span>'
    '</div><div class="scroll tall" tabindex="0" role="region" aria-label="scores of sequences">'
    f'<table id="sequences"><thead><tr><th colspan="2"></th>{groups}</tr><tr>{columns}</tr></thead>'
    f'<tbody>{"".join(rows)}</tbody><tfoot><tr><th scope="row">mean</th><td>{frames}</td>{means}'
    '</tr></tfoot></table></div><section id="detail" hidden aria-labelledby="detail-name">'
    '<h2 id="detail-name"></h2><p class="faint">Overlap with the annotated box over the frames; '
    f"shaded where the target is absent. {legend}</p>"
    '<svg id="chart" viewBox="0 0 1000 220" role="img" aria-label="overlap over time"></svg>'
    '<label for="frame" class="faint">frame</label><input type="range" id="frame" min="0" value="0">'
    '<p id="readout" aria-live="polite"></p></section>'
  )


def _strips(trackers: Mapping[str, report.Summary], videos, predictions) -> str:
  if not (videos and predictions):
    return ""
  parts = []
  for name in film_strips.worst(trackers, WORST_SEQUENCES):
    absent = [label for label in trackers if name not in predictions.get(label, {})]
    if name not in videos or absent:
      raise ValueError(
        f"sequence {name} has no {'predictions of ' + absent[0] if absent else 'frames'}; "
        "give videos and predictions for every scored sequence"
      )
    boxes = {label: predictions[label][name] for label in trackers}
    colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(trackers))]
    pictures = "".join(
      f'<figure><img src="{one.url}" width="{one.size[0]}" height="{one.size[1]}" '
      f'alt="frame {one.frame} of {html_scores.escaped(name)}"><figcaption>frame {one.frame}: '
      + ", ".join(f"{value:.2f}" for value in one.overlaps.values())
      + "</figcaption></figure>"
      for one in film_strips.strip(videos[name], boxes, colours, _PICTURES)
    )
    ao = ", ".join(f"{one.sequences[name].measures['ao']:.3f}" for one in trackers.values())
    parts.append(
      f'<div class="strip"><h3>{html_scores.escaped(name)} <span class="faint">AO {ao}</span></h3>'
      f'<div class="frames" tabindex="0" role="region" aria-label="frames of {html_scores.escaped(name)}">'
      f"{pictures}</div></div>"
    )
  legend = " ".join(
    f"{html_scores.swatch(i)}{html_scores.escaped(label)}" for i, label in enumerate(trackers)
  )
  return (
    "<h2>Worst sequences</h2><p class='faint'>Lowest AO first; the numbers under a frame are its "
    f'overlaps. <span class="swatch annotated"></span>annotated {legend}</p>{"".join(parts)}'
  )


def _rules(trackers: Mapping[str, report.Summary]) -> str:
  first = next(iter(trackers.values()))
  definitions = {one.key: one for one in measures.measures_of(first.rule)}
  rows = "".join(
    f'<tr><th scope="row">{html_scores.escaped(definitions[key].heading)}</th><td>{html_scores.escaped(key)}</td>'
    f"<td>{html_scores.escaped(rule)}</td><td>{html_scores.escaped(definitions[key].definition)}</td></tr>"
    for key, rule in first.made_by.items()
  )
  return (
    "<h2>What made each number</h2><p class='faint'>docs/evaluation.md says what each rule does with "
    "absent frames, the first frame, lengths and boxes without area.</p>"
    '<div class="scroll" tabindex="0" role="region" aria-label="rules"><table class="words"><thead>'
    '<tr><th scope="col">heading</th><th scope="col">key in files</th><th scope="col">rule</th>'
    f'<th scope="col">definition</th></tr></thead><tbody>{rows}</tbody></table></div>'
  )
