"""Aligned tables of measures for a screen."""

import math
from collections.abc import Mapping, Sequence

from ostrack_jax.evaluation import measures

Row = tuple[str, int, Mapping[str, float]]


def aligned(
  first: str, second: str, rule: str, rows: Sequence[Row], totals: Sequence[Row] = ()
) -> list[str]:
  """Return the lines of a table: a name, a count and the measures of a rule.

  first, second: headings of the name and the count. A dash stands for what is not known; totals
  stand below a line of their own.
  """
  shown = measures.measures_of(rule)
  width = max(len(name) for name in [first, *(row[0] for row in (*rows, *totals))])
  head = f"{first:<{width}}  {second:>6}" + "".join(
    f"{measure.heading:>{_width(measure)}}" for measure in shown
  )
  line = "-" * len(head)

  def cells(name: str, count: int, values: Mapping[str, float]) -> str:
    texts = (_text(measure, values.get(measure.key, math.nan)) for measure in shown)
    return f"{name:<{width}}  {count:>6}" + "".join(texts)

  lines = [head, line, *(cells(*row) for row in rows)]
  return [*lines, line, *(cells(*row) for row in totals)] if totals else lines


def _text(measure: measures.Measure, value: float) -> str:
  text = "-" if math.isnan(value) else format(value, f".{measure.decimals}f")
  return f"{text:>{_width(measure)}}"


def _width(measure: measures.Measure) -> int:
  return max(9, len(measure.heading) + 2)
