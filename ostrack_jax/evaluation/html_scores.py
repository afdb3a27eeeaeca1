"""Parts of the HTML report: overall scores, curves and attributes, with the paper's beside ours."""

import html
import math
from collections.abc import Mapping, Sequence

from ostrack_jax.evaluation import measures, metrics, published, report, svg_curves
from ostrack_jax.evaluation.videos import Video


def escaped(value: str) -> str:
  """Return text for HTML, quotes included."""
  return html.escape(value, quote=True)


def swatch(position: int) -> str:
  """Return a patch in the colour of tracker number `position`."""
  return f'<span class="swatch c{position % 8}"></span>'


def shown_measures(trackers: Mapping[str, report.Summary]) -> tuple[measures.Measure, ...]:
  """Return the measures of the columns: FPS only where a tracker's is known."""
  rule = next(iter(trackers.values())).rule
  timed = any(not math.isnan(one.pooled[measures.FPS.key]) for one in trackers.values())
  return tuple(one for one in measures.measures_of(rule) if timed or one is not measures.FPS)


def overall(trackers: Mapping[str, report.Summary], dataset: str) -> str:
  """Return the table of all trackers and the published ones, in percent, best first."""
  first = next(iter(trackers.values()))
  shown = shown_measures(trackers)
  rows: list[tuple[float, str]] = []
  for position, (label, summary) in enumerate(trackers.items()):
    values = {
      key: value if key == measures.FPS.key else 100 * value
      for key, value in {**summary.mean, **summary.headline}.items()
    }
    row = cells([values.get(one.key, math.nan) for one in shown], shown, percent=True)
    head = f'<th scope="row">{swatch(position)}{escaped(label)}</th><td>{summary.coverage}</td>'
    rows.append((_order(values, shown), f'<tr class="ours">{head}{row}</tr>'))
  printed = published.scores(dataset)
  for label, values in printed.items():
    row = cells([values.get(one.key, math.nan) for one in shown], shown, percent=True)
    head = f'<th scope="row">{escaped(label)}</th><td>{escaped(published.table_of(dataset))}</td>'
    rows.append((_order(values, shown), f"<tr>{head}{row}</tr>"))
  body = "".join(row for _, row in sorted(rows, key=lambda row: -row[0]))
  heads = "".join(f'<th scope="col">{escaped(one.heading)}</th>' for one in shown)
  kind = "over all frames" if metrics.RULES[first.rule].pooled else "means of sequences"
  partial = [label for label, one in trackers.items() if len(one.sequences) < one.declared]
  warning = ""
  if partial:
    warning = (
      f'<p class="warn">{escaped(", ".join(partial))}: {first.coverage} sequences are scored, so '
      "the numbers are not those of the whole benchmark.</p>"
    )
  return (
    f"<h2>Overall</h2>{warning}<p class='faint'>Percent, {kind}; bold rows are this report's"
    f"{', the others are as printed' if printed else ''}.</p>"
    f'<div class="scroll" tabindex="0" role="region" aria-label="overall scores"><table><thead><tr>'
    f'<th scope="col">tracker</th><th scope="col">sequences or source</th>{heads}</tr></thead>'
    f"<tbody>{body}</tbody></table></div>"
  )


def _order(values: Mapping[str, float], shown: Sequence[measures.Measure]) -> float:
  value = values.get(shown[0].key, math.nan)
  return -math.inf if math.isnan(value) else value


def cells(
  values: Sequence[float],
  shown: Sequence[measures.Measure],
  *,
  percent: bool = False,
  group: bool = False,
) -> str:
  """Return <td> elements; `data-value` holds what to sort by, empty where not known.

  percent: show one decimal. group: mark the first cell as the beginning of a group.
  """
  parts = []
  for position, (value, measure) in enumerate(zip(values, shown, strict=True)):
    kind = ' class="first"' if group and position == 0 else ""
    decimals = 1 if percent else min(measure.decimals, 3)
    unknown = math.isnan(value)
    stored = "" if unknown else f"{value:.6g}"
    text = "-" if unknown else f"{value:.{decimals}f}"
    parts.append(f'<td{kind} data-value="{stored}">{text}</td>')
  return "".join(parts)


def plots(trackers: Mapping[str, report.Summary], dataset: str) -> str:
  """Return the three plots, each with its end numbers and the published ones."""
  rule = metrics.RULES[next(iter(trackers.values())).rule]
  drawn = [
    ("success", "Success", rule.success_thresholds, "overlap threshold"),
    (
      "precision",
      "Precision" if rule.areas else "Precision at 20 pixels",
      rule.precision_thresholds,
      "centre error threshold, pixels",
    ),
    (
      "normalised_precision",
      "Normalised precision" if rule.areas else "Normalised precision at 0.2 of the target",
      rule.normalised_thresholds,
      "threshold of the centre error over the annotated size",
    ),
  ]
  figures = []
  for curve, title, thresholds, x_label in drawn:
    (measure,) = (one for one in measures.measures_of(rule.name) if one.curve == curve)
    by_label = {label: getattr(one, f"{curve}_curve") for label, one in trackers.items()}
    figures.append(
      f"<figure><h3>{escaped(title)}</h3>"
      + svg_curves.curve_plot(by_label, thresholds, title=title, x_label=x_label)
      + _legend(trackers, dataset, measure)
      + "</figure>"
    )
  return f'<h2>Curves</h2><div class="plots">{"".join(figures)}</div>'


def _legend(trackers, dataset: str, measure: measures.Measure) -> str:
  # GOT-10k quotes its success plot by AO, which is the mean of it.
  printed_key = "ao" if dataset.startswith("got10k") and measure.curve == "success" else measure.key
  rows = [
    (100 * one.headline[measure.key], swatch(position) + escaped(label), "ours")
    for position, (label, one) in enumerate(trackers.items())
  ]
  rows += [
    (values[printed_key], escaped(label), "")
    for label, values in published.scores(dataset).items()
    if printed_key in values
  ]
  body = "".join(
    f'<tr class="{kind}"><th scope="row">{label}</th><td>{value:.1f}</td></tr>'
    for value, label, kind in sorted(rows, key=lambda row: -row[0])
  )
  return (
    f'<table><thead><tr><th scope="col">tracker</th><th scope="col">{escaped(measure.heading)}, %</th>'
    f"</tr></thead><tbody>{body}</tbody></table>"
  )


def attributes(trackers: Mapping[str, report.Summary], videos: Mapping[str, Video]) -> str:
  """Return a table of attributes a tracker; nothing where no sequence has one."""
  named = {name: video.attributes for name, video in videos.items()}
  if not any(named.values()):
    return ""
  parts = []
  for label, summary in trackers.items():
    shown = shown_measures(trackers)
    rows = "".join(
      f'<tr><th scope="row">{escaped(attribute)}</th><td>{one.coverage}</td>'
      + cells([one.headline.get(m.key, one.mean[m.key]) for m in shown], shown)
      + "</tr>"
      for attribute, one in report.by_attribute(summary, named).items()
    )
    heads = "".join(f'<th scope="col">{escaped(one.heading)}</th>' for one in shown)
    parts.append(
      f'<h3>{escaped(label)}</h3><div class="scroll" tabindex="0" role="region" '
      f'aria-label="attributes of {escaped(label)}"><table><thead><tr><th scope="col">attribute</th>'
      f'<th scope="col">sequences</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
  return f"<h2>Attributes</h2>{''.join(parts)}"
