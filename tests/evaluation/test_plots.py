import json

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from ostrack_jax.evaluation import plots


@pytest.fixture
def figures(monkeypatch):
  """The figures that are saved during a test."""
  saved = []
  original = Figure.savefig

  def savefig(self, *args, **kwargs):
    saved.append(self)
    original(self, *args, **kwargs)

  monkeypatch.setattr(Figure, "savefig", savefig)
  return saved


def legend_of(axes):
  return [text.get_text() for text in axes.get_legend().get_texts()]


def test_success_plot_has_each_curve_with_its_auc_best_first(tmp_path, figures):
  curves = {"poor": np.linspace(0.5, 0, 21), "good": np.linspace(1, 0, 21)}
  plots.plot_success(curves, tmp_path / "new" / "s.png")
  axes = figures[0].axes[0]
  assert legend_of(axes) == ["good [0.500]", "poor [0.250]"]
  np.testing.assert_allclose(axes.lines[1].get_xydata()[[0, 20]], [[0, 0.5], [1, 0]])
  assert [path.name for path in (tmp_path / "new").iterdir()] == ["s.png"]
  image = cv2.imread(str(tmp_path / "new" / "s.png"))
  assert image.shape[0] > 300
  assert image.std() > 5


def test_precision_plot_gives_the_value_at_20_pixels(tmp_path, figures):
  plots.plot_precision({"a": np.arange(51) / 50}, tmp_path / "p.png")
  assert legend_of(figures[0].axes[0]) == ["a [0.400]"]


def test_plots_follow_the_rule(tmp_path, figures):
  """TrackingNet's curves have 21 thresholds and are told by their area."""
  plots.plot_precision({"a": np.linspace(0, 1, 21)}, tmp_path / "p.png", rule="trackingnet")
  plots.plot_success({"a": np.linspace(1, 0, 101)}, tmp_path / "s.png", rule="got10k")
  precision, success = figures[0].axes[0], figures[1].axes[0]
  assert legend_of(precision) == ["a [0.500]"]
  assert precision.get_title() == "Precision (area under the curve)"
  np.testing.assert_allclose(precision.lines[0].get_xdata()[[1, 20]], [2.5, 50])
  np.testing.assert_allclose(success.lines[0].get_xdata()[[1, 100]], [0.01, 1])


def test_wrong_curves_are_refused(tmp_path):
  with pytest.raises(ValueError, match="no curves"):
    plots.plot_success({}, tmp_path / "s.png")
  with pytest.raises(ValueError, match="'a' has shape"):
    plots.plot_precision({"a": np.zeros(21)}, tmp_path / "p.png")
  assert not list(tmp_path.iterdir())


def test_training_curves_share_a_panel_by_name(tmp_path, figures):
  rows = [
    {"step": 1, "train/loss": 3.0, "train/iou": 0.1},
    {"step": 2, "train/loss": 2.0, "validation/iou": 0.2},
    {"step": 3, "note": "text is no scalar"},
  ]
  path = tmp_path / "scalars.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 4, "tra')
  plots.plot_training_curves(path, tmp_path / "c.png")
  loss, iou = figures[0].axes
  assert (loss.get_title(), iou.get_title()) == ("loss", "iou")
  assert legend_of(iou) == ["train", "validation"]
  np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 3], [2, 2]])


def test_unreadable_scalars_are_named(tmp_path):
  path = tmp_path / "scalars.jsonl"
  path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
  with pytest.raises(ValueError, match="line 2"):
    plots.plot_training_curves(path, tmp_path / "c.png")
  path.write_text('{"step": 1}\n')
  with pytest.raises(ValueError, match="no scalars"):
    plots.plot_training_curves(path, tmp_path / "c.png")
