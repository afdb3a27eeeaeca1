import dataclasses
import itertools
import re

import cv2
import numpy as np
import pytest
from matplotlib import patches

from ostrack_jax import network_figures
from ostrack_jax.tracking.frames import open_frames
from ostrack_jax.tracking.inspection import InspectedFrame, Inspection

_RAW = np.zeros((4, 4), np.float32)
_RAW[0, 3], _RAW[1, 2] = 0.9, 0.5


def _inspection(**fields) -> Inspection:
  """What a network with a grid of 4 could have done: cells 0 to 3 gone in block 1, 12 and 15 in block 2."""
  early, late = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
  early[0] = late[0] = late[3, 0] = late[3, 3] = True
  weights = np.full((4, 4), 0.02, np.float32)
  weights[2, 1] = 0.12
  window = np.full((4, 4), 0.1, np.float32)
  window[1:3, 1:3] = 0.8
  given = dict(
    template=np.full((32, 32, 3), 200, np.uint8),
    search=np.full((64, 64, 3), 90, np.uint8),
    template_cells=np.eye(2, dtype=bool) & np.array([[True, False], [False, False]]),
    attention={0: weights, 3: np.where(late, 0, weights)},
    left_before={0: np.zeros((4, 4), bool), 3: late},
    removed={1: np.arange(4), 2: np.array([12, 15])},
    activation=np.where(late, 0, 1 + weights),
    score_map=_RAW,
    window=window,
    windowed=_RAW * window,
    box_xywh=np.array([0.25, 0.5, 0.5, 0.25]),
  )
  return Inspection(**{**given, **fields})


def _frame(index: int, **fields) -> InspectedFrame:
  return InspectedFrame(
    index=index,
    image=np.full((48, 64, 3), 10 * index, np.uint8),
    box_xywh=np.array([10.0, 10, 20, 20]),
    inspection=_inspection(**fields),
    compared=None,
  )


def _panels(figure):
  return [axes for axes in figure.axes if axes.get_title()]


def _cells(panel) -> np.ma.MaskedArray:
  (values,) = [image for image in panel.images if np.ndim(image.get_array()) == 2]
  return values.get_array()


def _pixels(figure, panel) -> np.ndarray:
  """Return the panel as rendered, without its frame."""
  figure.canvas.draw()
  image = np.asarray(figure.canvas.buffer_rgba())[:, :, :3]
  box = panel.get_window_extent()
  rows = slice(round(image.shape[0] - box.y1) + 3, round(image.shape[0] - box.y0) - 3)
  return image[rows, round(box.x0) + 3 : round(box.x1) - 3]


def test_attention_stands_over_the_region_with_eliminated_cells_striped():
  figure = network_figures.attention_figure(_inspection(), "clip, frame 7")
  assert figure.get_suptitle() == "clip, frame 7: attention of the centre template token"
  first, before, after = _panels(figure)
  assert before.get_title() == "block 0 (layer 1)\npeak 12 %, sum 42 %"
  assert after.get_title().startswith("block 3 (layer 4)\npeak 12 %, sum 30 %")
  assert not np.ma.getmaskarray(_cells(before)).any()
  np.testing.assert_array_equal(
    np.argwhere(np.ma.getmaskarray(_cells(after))), [[0, 0], [0, 1], [0, 2], [0, 3], [3, 0], [3, 3]]
  )
  pixels = _pixels(figure, after)
  size = len(pixels) // 4

  def cell(row, column):
    return pixels[row * size : (row + 1) * size, column * size : (column + 1) * size][8:-8, 8:-8]

  # White and dark in turn, never a colour of the scale.
  for row, column in ((0, 2), (3, 3)):
    grey = cell(row, column).astype(int)
    assert np.ptp(grey, axis=2).max() <= 2 and np.ptp(grey) > 60
  for row, column in ((2, 0), (2, 3), (3, 1)):
    assert np.ptp(cell(row, column), axis=(0, 1)).max() <= 2
  # The template in the corner marks whose attention it is.
  (corner,) = first.child_axes
  (token,) = [patch for patch in corner.patches if isinstance(patch, patches.Rectangle)]
  assert token.get_bbox().bounds == (0, 0, 0.5, 0.5)
  several = _inspection(template_cells=np.ones((2, 2), bool))
  assert "4 template tokens (mean)" in network_figures.attention_figure(several, "").get_suptitle()


def test_elimination_goes_stage_by_stage():
  figure = network_figures.elimination_figure(_inspection(), "clip, frame 7")
  _, first, second = _panels(figure)
  assert first.get_title() == "after block 1\n12 of 16 left"
  assert second.get_title() == "after block 2\n10 of 16 left"
  images = [panel.images[0].get_array() for panel in (first, second)]
  middles = [image[64::128, 64::128].astype(int) for image in images]
  for middle, gone in zip(middles, ([0, 1, 2, 3], [0, 1, 2, 3, 12, 15])):
    tinted = (np.ptp(middle, axis=2) > 20).ravel()
    assert np.flatnonzero(tinted).tolist() == gone
  # Each stage in a colour of its own, which stays.
  np.testing.assert_array_equal(middles[0][0], middles[1][0])
  assert np.abs(middles[1][3, 0] - middles[1][0, 0]).max() > 50


def test_the_video_shows_frame_region_and_stages():
  strip = network_figures.elimination_strip(_frame(5))
  side, header, gap = 256, 30, 4
  scene = round(side * 64 / 48)
  assert strip.shape == (header + side, scene + 3 * (side + gap), 3)
  assert (strip[-2, 2] == 50).all()
  centres = np.array([32, 96, 160, 224])
  for number, gone in ((0, []), (1, [0, 1, 2, 3]), (2, [0, 1, 2, 3, 12, 15])):
    left = scene + gap + number * (side + gap)
    panel = strip[header:, left : left + side].astype(int)
    assert (strip[:header, left : left + side].max(axis=2) > 200).sum() > 100  # its title
    tinted = np.ptp(panel[centres][:, centres], axis=2) > 20
    assert np.flatnonzero(tinted).tolist() == gone
    green = (panel == (70, 255, 70)).all(axis=2)
    rows, columns = np.nonzero(green)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (64, 192, 128, 192)
  corner = strip[header + 20, scene + gap + 20]
  assert (corner == 200).all()


def test_networks_stand_side_by_side_on_one_scale():
  other = _inspection(
    activation=np.full((2, 2), 3.0), removed={}, search=np.full((32, 32, 3), 90, np.uint8),
    box_xywh=np.array([0.0, 0, 1, 1]),
  )  # fmt: skip
  figure = network_figures.activation_figure([("one", _inspection()), ("two_" * 12, other)], "clip")
  _, first, second = _panels(figure)
  assert first.get_title() == "one"
  assert second.get_title().replace("\n", "") == "two_" * 12 and "\n" in second.get_title()
  scales = [panel.images[1].get_clim() for panel in (first, second)]
  assert scales == [(0, 3), (0, 3)]
  assert np.ma.getmaskarray(_cells(first)).sum() == 6
  assert not np.ma.getmaskarray(_cells(second)).any() and _cells(second).shape == (2, 2)
  # The track's box in both.
  for panel in (first, second):
    assert [patch.get_bbox().bounds for patch in panel.patches] == [(0.25, 0.5, 0.5, 0.25)]


def test_score_maps_mark_the_raw_maximum_and_the_chosen_cell():
  figure = network_figures.score_map_figure(_inspection(), "clip")
  _, raw, window, windowed = _panels(figure)
  assert raw.get_title() == "score map\npeak 0.9 at row 0, column 3"
  assert window.get_title() == "Hann window\npeak 0.8"
  assert windowed.get_title() == "score map x window\npeak 0.4 at row 1, column 2"
  np.testing.assert_allclose(_cells(windowed), _RAW * _cells(window))
  assert raw.images[1].get_clim() == windowed.images[1].get_clim() == (0, np.float32(0.9))
  for panel in (raw, window, windowed):
    (cross,) = panel.lines
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (3.5 / 4, 0.5 / 4)
    box, chosen = panel.patches
    assert box.get_bbox().bounds == (0.25, 0.5, 0.5, 0.25)
    assert chosen.get_bbox().bounds == (0.5, 0.25, 0.25, 0.25)
  with pytest.raises(ValueError, match="no score map"):
    network_figures.score_map_figure(_inspection(score_map=None, windowed=None), "")


@pytest.mark.parametrize("kind", ["attention", "elimination", "activation", "single", "score_map"])
def test_no_text_covers_another(kind):
  seen = _inspection()
  heading = "a_sequence_with_a_long_name-12, frame 1234"
  if kind == "activation":
    long = "runs/an_experiment_with_a_long_name/of_many_steps/checkpoints/300"
    figure = network_figures.activation_figure([(long, seen), ("ostrack_384-300", seen)], heading)
  elif kind == "single":
    figure = network_figures.activation_figure([("ostrack_384-300", seen)], heading)
  else:
    # A peak that is a number on its scale, at the very end.
    weights, gone = np.where(seen.attention[3] > 0.1, 2e-4, 1e-4), seen.left_before[3]
    layers = (0, 3, 6, 9, 11)
    seen = dataclasses.replace(
      seen, attention=dict.fromkeys(layers, weights), left_before=dict.fromkeys(layers, gone)
    )
    figure = getattr(network_figures, f"{kind}_figure")(seen, heading)
  figure.canvas.draw()
  texts = [figure._suptitle]
  for axes in figure.axes:
    if axes.get_visible():
      low, high = axes.get_xlim()
      numbers = [text for text in axes.get_xticklabels() if low <= text.get_position()[0] <= high]
      texts += [axes.title, axes.xaxis.label, *numbers]
  boxes = [text.get_window_extent() for text in texts if text.get_text()]
  assert len(boxes) > 3
  for one, other in itertools.combinations(boxes, 2):
    assert not one.overlaps(other)
  width, height = figure.canvas.get_width_height()
  assert all(box.x0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)


def test_pictures_of_the_chosen_frames_and_a_video_of_all(tmp_path):
  ticks = []
  kinds = network_figures.write_pictures(
    (_frame(index) for index in range(1, 7)), [5], tmp_path, fps=10, source="clip", names=["net"],
    progress=lambda: ticks.append(1),
  )  # fmt: skip
  assert kinds == ["activations", "attention", "elimination", "score_maps"]
  expected = {f"{kind}_5.png" for kind in kinds} | {"elimination.mp4"}
  assert {path.name for path in tmp_path.iterdir()} == expected
  assert all(cv2.imread(str(path)).shape[1] > 500 for path in tmp_path.glob("*.png"))
  video = list(open_frames(tmp_path / "elimination.mp4"))
  assert len(video) == len(ticks) == 6
  assert [round(frame[-4, 4].mean() / 10) for frame in video] == [1, 2, 3, 4, 5, 6]


def test_what_a_network_does_not_have_is_left_out(tmp_path):
  plain = dict(attention={}, left_before={}, removed={}, score_map=None, window=None, windowed=None)
  kinds = network_figures.write_pictures(
    [_frame(index, **plain) for index in (1, 2, 3)], [1, 3], tmp_path, fps=10, source="clip",
    names=["net"],
  )  # fmt: skip
  assert kinds == ["activations"]
  assert {path.name for path in tmp_path.iterdir()} == {"activations_1.png", "activations_3.png"}


def test_networks_of_the_same_name_are_both_drawn(tmp_path):
  plain = dict(attention={}, left_before={}, removed={}, score_map=None, window=None, windowed=None)
  frame = dataclasses.replace(_frame(1, **plain), compared=_inspection(**plain))
  network_figures.write_pictures(
    [frame], [1], tmp_path, fps=10, source="clip", names=["net", "net"]
  )
  # The region, and a panel for each, of 2.7 inches.
  assert cv2.imread(str(tmp_path / "activations_1.png")).shape[1] == 3 * 351


def test_a_frame_that_never_came_is_named(tmp_path):
  message = re.escape("frame 4 is to be drawn, but clip ends with frame 2")
  with pytest.raises(ValueError, match=message):
    network_figures.write_pictures(
      [_frame(1), _frame(2)], [4], tmp_path, fps=10, source="clip", names=["net"]
    )
  assert not list(tmp_path.glob("*.mp4"))
