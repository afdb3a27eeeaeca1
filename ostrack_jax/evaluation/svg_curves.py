"""Curves as inline SVG, coloured by the page's style sheet so that they suit light and dark."""

import html
from collections.abc import Mapping

import numpy as np

_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 12, 42


def curve_plot(
  curves: Mapping[str, np.ndarray], thresholds: np.ndarray, *, title: str, x_label: str
) -> str:
  """Return an <svg> of curves, label to one share a threshold; curve i has the class `c<i>`."""
  last = float(thresholds[-1])

  def place(x, y) -> tuple[float, float]:
    across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / last
    return across, _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - y)

  parts = []
  for step in range(6):
    share = step / 5
    left, y = place(0, share)
    right, _ = place(last, share)
    x, bottom = place(share * last, 0)
    _, top = place(0, 1)
    parts.append(f'<line class="grid" x1="{left:.1f}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}"/>')
    parts.append(f'<line class="grid" x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{bottom:.1f}"/>')
    parts.append(f'<text x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{share:g}</text>')
    parts.append(
      f'<text x="{x:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{share * last:g}</text>'
    )
  middle, _ = place(last / 2, 0)
  parts.append(
    f'<text x="{middle:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{html.escape(x_label)}</text>'
  )
  for position, (label, curve) in enumerate(curves.items()):
    points = " ".join(
      "{:.1f},{:.1f}".format(*place(x, y))
      for x, y in zip(thresholds.tolist(), curve.tolist(), strict=True)
    )
    parts.append(
      f'<polyline class="curve c{position % 8} d{position // 8 % 4}" points="{points}">'
      f"<title>{html.escape(label)}</title></polyline>"
    )
  described = html.escape(f"{title}: {', '.join(curves)}", quote=True)
  return (
    f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{described}">'
    + "".join(parts)
    + "</svg>"
  )
