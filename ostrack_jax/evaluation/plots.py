"""Plots as PNG files: success, precision, training curves (numpy and matplotlib)."""

import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ostrack_jax.evaluation import curves as curve_scores
from ostrack_jax.evaluation import metrics


def _save(figure: Figure, path: pathlib.Path) -> None:
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    figure.savefig(temporary, format="png", dpi=150)
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def _figure(width: float, height: float) -> Figure:
  # Without pyplot: no display, no global state, safe in threads.
  figure = Figure(figsize=(width, height), layout="constrained")
  FigureCanvasAgg(figure)
  return figure


def _style(axes, title: str, x_label: str, y_label: str) -> None:
  axes.set_title(title, fontsize=11)
  axes.set_xlabel(x_label)
  axes.set_ylabel(y_label)
  axes.grid(True, color="#dddddd", linewidth=0.8)
  axes.set_axisbelow(True)
  for side in ("top", "right"):
    axes.spines[side].set_visible(False)


def _plot_curves(curves, score, thresholds, title, x_label, path) -> None:
  if not curves:
    raise ValueError("there are no curves to plot; expected at least one label and curve")
  for label, curve in curves.items():
    if np.shape(curve) != thresholds.shape:
      raise ValueError(
        f"curve {label!r} has shape {np.shape(curve)}; expected {thresholds.shape}, "
        "one value a threshold"
      )
  figure = _figure(6.0, 4.5)
  axes = figure.add_subplot()
  for label, curve in sorted(curves.items(), key=lambda item: -score(item[1])):
    axes.plot(thresholds, curve, linewidth=2, label=f"{label} [{score(curve):.3f}]")
  axes.set_xlim(thresholds[0], thresholds[-1])
  axes.set_ylim(0, 1.02)
  _style(axes, title, x_label, "share of frames")
  # Good curves leave one corner free and bad ones another.
  axes.legend(loc="best", frameon=True, framealpha=0.9, fontsize=9)
  _save(figure, path)


def plot_success(curves: Mapping[str, np.ndarray], path: pathlib.Path, rule: str = "otb") -> None:
  """Plot success curves, label to one value a threshold of a rule, and write a PNG.

  The legend gives each AUC, or the area where the rule gives areas.
  """
  declared = metrics.RULES[rule]
  _plot_curves(
    curves,
    score=curve_scores.area if declared.areas else np.mean,
    thresholds=declared.success_thresholds,
    title="Success (area under the curve)",
    x_label="overlap threshold",
    path=path,
  )


def plot_precision(curves: Mapping[str, np.ndarray], path: pathlib.Path, rule: str = "otb") -> None:
  """Plot precision curves, label to one value a threshold of a rule, and write a PNG.

  The legend gives the value at 20 px, or the area where the rule gives areas.
  """
  declared = metrics.RULES[rule]
  _plot_curves(
    curves,
    score=curve_scores.area if declared.areas else lambda curve: curve[curve_scores.SCORE_POSITION],
    thresholds=declared.precision_thresholds,
    title=f"Precision ({'area under the curve' if declared.areas else 'at 20 pixels'})",
    x_label="centre error threshold, pixels",
    path=path,
  )


def plot_roc(
  curves: Mapping[str, tuple[np.ndarray, np.ndarray, float]], title: str, path: pathlib.Path
) -> None:
  """Plot label to (false positive shares, true positive shares, area under the curve); write a PNG."""
  figure = _figure(5.0, 4.5)
  axes = figure.add_subplot()
  for label, (false, true, area) in curves.items():
    axes.plot(false, true, linewidth=2, label=f"{label} [{area:.3f}]")
  axes.plot([0, 1], [0, 1], color="#888888", linewidth=0.8, linestyle="--")
  axes.set_xlim(0, 1)
  axes.set_ylim(0, 1.02)
  _style(axes, title, "share of negatives above", "share of positives above")
  axes.legend(loc="lower right", frameon=True, framealpha=0.9, fontsize=9)
  _save(figure, path)


def plot_reliability(
  bins: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray, float]],
  title: str,
  path: pathlib.Path,
) -> None:
  """Plot label to (mean confidence, accuracy, samples) of bins and the expected calibration error; write a PNG.

  The area of a dot is its bin's share of the samples.
  """
  figure = _figure(5.0, 4.5)
  axes = figure.add_subplot()
  axes.plot([0, 1], [0, 1], color="#888888", linewidth=0.8, linestyle="--")
  for label, (confidence, accuracy, counts, error) in bins.items():
    (line,) = axes.plot(confidence, accuracy, linewidth=1.2, label=f"{label} [{error:.3f}]")
    share = counts / counts.sum()
    axes.scatter(confidence, accuracy, s=12 + 400 * share, color=line.get_color(), alpha=0.6)
  axes.set_xlim(-0.02, 1.02)
  axes.set_ylim(-0.02, 1.02)
  _style(axes, title, "confidence", "share of boxes on the target")
  axes.legend(loc="upper left", frameon=True, framealpha=0.9, fontsize=9)
  _save(figure, path)


def _read_scalars(path: pathlib.Path) -> dict[str, list[tuple[float, float]]]:
  series: dict[str, list[tuple[float, float]]] = {}
  lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
      step = float(row["step"])
    except (ValueError, TypeError, KeyError) as error:
      if number == len(lines):  # A run that was killed can leave half a line.
        break
      raise ValueError(
        f"{path}, line {number}: expected a JSON object with 'step', got {line[:80]!r}"
      ) from error
    for key, value in row.items():
      if key != "step" and isinstance(value, int | float) and not isinstance(value, bool):
        series.setdefault(key, []).append((step, float(value)))
  if not series:
    raise ValueError(f"{path} holds no scalars; expected lines such as {{'step': 1, 'a/b': 0.5}}")
  return series


def plot_training_curves(scalars_jsonl_path: pathlib.Path, path: pathlib.Path) -> None:
  """Plot the scalars of a JSON-lines file over the steps and write a PNG.

  Rows are `{"step": n, "train/loss": ..., "validation/iou": ...}`. Scalars of one name behind the
  last slash share a panel. Raises ValueError for an unreadable line (the last one excepted) and
  for a file without scalars.
  """
  series = _read_scalars(scalars_jsonl_path)
  panels: dict[str, list[str]] = {}
  for key in series:
    panels.setdefault(key.rsplit("/", 1)[-1], []).append(key)
  columns = min(3, len(panels))
  rows = -(-len(panels) // columns)
  figure = _figure(4.2 * columns, 3.1 * rows)
  for position, (panel, keys) in enumerate(panels.items(), start=1):
    axes = figure.add_subplot(rows, columns, position)
    for key in sorted(keys):
      steps, values = np.array(sorted(series[key], key=lambda point: point[0])).T
      axes.plot(
        steps, values, linewidth=1.6, label=key.rsplit("/", 1)[0],
        marker="o" if len(steps) <= 20 else None, markersize=3,
      )  # fmt: skip
    _style(axes, panel.replace("_", " "), "step", "")
    if keys != [panel]:
      axes.legend(frameon=False, fontsize=9)
  _save(figure, path)
