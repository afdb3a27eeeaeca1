"""Pictures of what the network does with a search region: Figs. 4 to 6 of the paper, and score maps.

Everything is drawn over the search region, one panel a step; striped cells were eliminated before it.
The green box is what the tracked network found in this very region.
"""

import contextlib
import os
import pathlib
import textwrap
from collections.abc import Callable, Collection, Iterable, Sequence

import cv2
import numpy as np
from matplotlib import cm, patches, ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ostrack_jax import visualization
from ostrack_jax.tracking.inspection import InspectedFrame, Inspection

_PANEL_INCHES = 2.7
_DPI = 130
_BOX = (70, 255, 70)
_COLOURS = "inferno"
_INSET = 0.3
# Characters that fit, of a panel's title and of the heading over each panel.
_TITLE_WIDTH = 28
_HEADING_WIDTH = 25
_STRIPE_PX = 4
_VIDEO_PANEL_PX = 256
_VIDEO_HEADER_PX = 30


def save(figure: Figure, path: str | os.PathLike) -> None:
  """Write a figure as PNG."""
  with visualization.written_whole(pathlib.Path(path)) as temporary:
    figure.savefig(temporary, format="png", dpi=_DPI)


def write_pictures(
  inspected: Iterable[InspectedFrame],
  stills: Collection[int],
  folder: pathlib.Path,
  *,
  fps: float,
  source: str,
  names: Sequence[str],
  progress: Callable[[], object] | None = None,
) -> list[str]:
  """Draw whatever a network has to show into a folder, as <kind>_<frame>.png and elimination.mp4.

  Args:
    inspected: frames from 1 on.
    stills: frames that get pictures.
    source: name of the sequence.
    names: of the network, and of the one it is compared with.
    progress: called after each frame.

  Returns:
    The kinds of pictures that were drawn.

  Raises:
    ValueError: there is no frame, or one of `stills` never came; and what `inspected` raises.
  """
  kinds: list[str] = []
  last = 0
  with contextlib.ExitStack() as files:
    video = None
    for frame in inspected:
      last, inspection = frame.index, frame.inspection
      if inspection.removed:
        if video is None:
          path = folder / "elimination.mp4"
          video = files.enter_context(visualization.VideoWriter(path, fps))
        video.write(elimination_strip(frame))
      if frame.index in stills:
        heading = f"{source}, frame {frame.index}"
        seen = [one for one in (inspection, frame.compared) if one is not None]
        figures = {"activations": activation_figure(list(zip(names, seen)), heading)}
        if inspection.attention:
          figures["attention"] = attention_figure(inspection, heading)
        if inspection.removed:
          figures["elimination"] = elimination_figure(inspection, heading)
        if inspection.score_map is not None:
          figures["score_maps"] = score_map_figure(inspection, heading)
        for kind, figure in figures.items():
          save(figure, folder / f"{kind}_{frame.index}.png")
        kinds = sorted(figures)
      if progress is not None:
        progress()
    missing = [index for index in sorted(stills) if index > last]
    if missing:
      raise ValueError(f"frame {missing[0]} is to be drawn, but {source} ends with frame {last}")
  return kinds


def attention_figure(inspection: Inspection, heading: str) -> Figure:
  """Draw the template's attention over the search region, block by block (Fig. 4).

  Each panel has its own scale, since the weights of blocks differ by more than a colour scale shows; its
  title gives the highest weight, and how much of the attention goes to the search region at all.
  """
  count = int(inspection.template_cells.sum())
  whose = "the centre template token" if count == 1 else f"{count} template tokens (mean)"
  figure, panels, bars = _row(1 + len(inspection.attention), f"{heading}: attention of {whose}")
  _draw_input(panels[0], inspection, inspection.template_cells)
  for panel, bar, (block, weights) in zip(panels[1:], bars[1:], inspection.attention.items()):
    title = (
      f"block {block} (layer {block + 1})\n"
      f"peak {100 * weights.max():.2g} %, sum {100 * weights.sum():.0f} %"
    )
    image = _draw_cells(panel, inspection, weights, title, inspection.left_before[block])
    _draw_box(panel, inspection)
    _scale(
      figure, image, bar, "weight", ticker.FuncFormatter(lambda value, _: f"{100 * value:.3g} %")
    )
  return figure


def elimination_figure(inspection: Inspection, heading: str) -> Figure:
  """Draw which cells are gone after each stage, every stage in its colour (Fig. 5)."""
  stages = _elimination_panels(inspection, 512)
  figure, panels, _ = _row(1 + len(stages), f"{heading}: eliminated candidates", scales=False)
  _draw_input(panels[0], inspection)
  for panel, (title, image) in zip(panels[1:], stages):
    _draw_search(panel, image, title.replace(": ", "\n"))
    _draw_box(panel, inspection)
  return figure


def elimination_strip(frame: InspectedFrame) -> np.ndarray:
  """Return one image of a video: the frame with its box, the search region, and each stage; RGB uint8."""
  inspection, side = frame.inspection, _VIDEO_PANEL_PX
  height, width = frame.image.shape[:2]
  scene = visualization.draw_box(frame.image, frame.box_xywh, colour=_BOX)
  scene = _resized(scene, max(1, round(side * width / height)), side)
  search = _resized(inspection.search, side, side)
  inset = round(_INSET * side)
  search[:inset, :inset] = _resized(inspection.template, inset, inset)
  cv2.rectangle(search, (0, 0), (inset, inset), (255, 255, 255), 1)
  panels = [(f"frame {frame.index}", scene), ("template, search region", search)]
  panels += _elimination_panels(inspection, side)
  box = inspection.box_xywh * side
  drawn = [panels[0][1], *(visualization.draw_box(p, box, colour=_BOX) for _, p in panels[1:])]
  columns = [_with_header(title, image) for (title, _), image in zip(panels, drawn)]
  gap = np.full((columns[0].shape[0], 4, 3), 255, np.uint8)
  return np.concatenate([part for column in columns for part in (column, gap)][:-1], axis=1)


def activation_figure(inspections: Sequence[tuple[str, Inspection]], heading: str) -> Figure:
  """Draw how far the backbone's features stand out, one network beside the other (Fig. 6).

  All are on one scale, which inspection.activations explains.

  Args:
    inspections: what each network is called, and what it made of the same square of a frame.
  """
  titles = [textwrap.fill(name, _TITLE_WIDTH) for name, _ in inspections]
  seen = [one for _, one in inspections]
  figure, panels, bars = _row(
    1 + len(seen),
    f"{heading}: activation of the backbone's features",
    title_lines=2 + max(title.count("\n") for title in titles),
  )
  first = seen[0]
  _draw_input(panels[0], first)
  highest = max(float(one.activation.max()) for one in seen)
  for panel, bar, title, one in zip(panels[1:], bars[1:], titles, seen):
    image = _draw_cells(panel, one, one.activation, title, one.eliminated, highest)
    # The box of the track, for a comparison's own head need not even be trained.
    _draw_box(panel, first)
    _scale(figure, image, bar, "distance from mean (1: average cell)")
  return figure


def score_map_figure(inspection: Inspection, heading: str) -> Figure:
  """Draw the score map without and with the Hann window, the window, and what was chosen.

  The cross marks the raw maximum, the square the maximum that the window leaves: the chosen cell.

  Raises:
    ValueError: the head has no score map.
  """
  raw, window, windowed = inspection.score_map, inspection.window, inspection.windowed
  if raw is None or window is None or windowed is None:
    raise ValueError("the head has no score map to draw")
  figure, panels, bars = _row(4, f"{heading}: score maps")
  _draw_input(panels[0], inspection)
  nowhere = np.zeros(raw.shape, bool)
  highest = float(raw.max())
  maps = (
    ("score map", raw, highest),
    ("Hann window", window, 1.0),
    ("score map x window", windowed, highest),
  )
  for panel, bar, (name, values, scale) in zip(panels[1:], bars[1:], maps):
    peak = f"peak {values.max():.2g}"
    if values is not window:
      row, column = np.unravel_index(values.argmax(), values.shape)
      peak += f" at row {row}, column {column}"
    image = _draw_cells(panel, inspection, values, f"{name}\n{peak}", nowhere, scale)
    _draw_box(panel, inspection)
    _scale(figure, image, bar, "score" if values is not window else "factor")
  grid = raw.shape[0]
  row, column = np.unravel_index(raw.argmax(), raw.shape)
  chosen_row, chosen_column = np.unravel_index(windowed.argmax(), windowed.shape)
  for panel in panels[1:]:
    panel.plot((column + 0.5) / grid, (row + 0.5) / grid, "x", color="deepskyblue", ms=7, mew=1.8)
    panel.add_patch(
      patches.Rectangle(
        (chosen_column / grid, chosen_row / grid), 1 / grid, 1 / grid, fill=False, color="white", lw=1.8
      )
    )  # fmt: skip
  return figure


def _row(count: int, heading: str, scales: bool = True, title_lines: int = 2):
  """Return a figure, a row of panels, and below each a place for its scale, hidden until it is used."""
  # Without pyplot: no display, no global state.
  heading = textwrap.fill(heading, _HEADING_WIDTH * count)
  lines = title_lines + heading.count("\n")
  height = _PANEL_INCHES + (1.0 if scales else 0.5) + 0.2 * lines
  # Room for the first and last numbers of neighbouring scales.
  layout = ConstrainedLayoutEngine(w_pad=0.13)
  figure = Figure(figsize=(_PANEL_INCHES * count, height), layout=layout)
  FigureCanvasAgg(figure)
  figure.suptitle(heading, fontsize=12)
  if not scales:
    return figure, figure.subplots(1, count, squeeze=False)[0], []
  panels, bars = figure.subplots(2, count, squeeze=False, height_ratios=(1, 0.05))
  for bar in bars:
    bar.set_visible(False)
  return figure, panels, bars


def _draw_search(panel, image: np.ndarray, title: str) -> None:
  # In the unit square, as boxes are, whatever is drawn over it.
  panel.imshow(image, extent=(0, 1, 1, 0), interpolation="bilinear")
  panel.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])
  panel.set_title(title, fontsize=10)


def _draw_box(panel, inspection: Inspection) -> None:
  x, y, w, h = inspection.box_xywh
  colour = tuple(value / 255 for value in _BOX)
  panel.add_patch(patches.Rectangle((x, y), w, h, fill=False, color=colour, lw=1.8))


def _draw_input(panel, inspection: Inspection, cells: np.ndarray | None = None) -> None:
  """Draw the search region and, in its corner, the template with the cells outlined."""
  _draw_search(panel, inspection.search, "template (corner)\nand search region")
  _draw_box(panel, inspection)
  inset = panel.inset_axes([0, 1 - _INSET, _INSET, _INSET])
  _draw_search(inset, inspection.template, "")
  for side in inset.spines.values():
    side.set(color="white", linewidth=1.5)
  if cells is not None:
    grid = cells.shape[0]
    for row, column in np.argwhere(cells):
      inset.add_patch(
        patches.Rectangle((column / grid, row / grid), 1 / grid, 1 / grid, fill=False, color="red", lw=1.2)
      )  # fmt: skip


def _draw_cells(panel, inspection: Inspection, values, title, gone, highest: float | None = None):
  """Draw values over the search region in grey, and stripes where cells are gone."""
  grey = cv2.cvtColor(inspection.search, cv2.COLOR_RGB2GRAY)
  _draw_search(panel, np.repeat(grey[:, :, None], 3, axis=2), title)
  shown = np.ma.masked_array(values, gone)
  image = panel.imshow(
    shown, extent=(0, 1, 1, 0), interpolation="nearest", cmap=_COLOURS, alpha=0.75, vmin=0,
    vmax=float(values.max()) if highest is None else highest,
  )  # fmt: skip
  panel.imshow(_stripes(gone), extent=(0, 1, 1, 0), interpolation="nearest")
  return image


def _stripes(gone: np.ndarray) -> np.ndarray:
  """Return an RGBA image of white diagonals where cells are gone, clear elsewhere."""
  per_cell = 4 * _STRIPE_PX
  large = np.repeat(np.repeat(gone, per_cell, axis=0), per_cell, axis=1)
  rows, columns = np.indices(large.shape)
  white = large & ((rows + columns) // _STRIPE_PX % 2 == 0)
  image = np.zeros((*large.shape, 4), np.float32)
  image[large] = (0.45, 0.45, 0.45, 0.7)
  image[white] = (1, 1, 1, 0.7)
  return image


def _scale(figure: Figure, image, bar, label: str, form: ticker.Formatter | None = None) -> None:
  bar.set_visible(True)
  # Not of the image itself, whose transparency would wash the scale out.
  scale = figure.colorbar(
    cm.ScalarMappable(image.norm, image.cmap), cax=bar, orientation="horizontal", format=form,
    ticks=ticker.MaxNLocator(4, steps=[1, 2, 5, 10]),
  )  # fmt: skip
  scale.set_label(label, fontsize=8)
  bar.tick_params(labelsize=8)


def _elimination_panels(inspection: Inspection, side: int) -> list[tuple[str, np.ndarray]]:
  """Return (title, [side, side, 3] uint8) after each stage, its cells and those of earlier ones tinted."""
  grid = inspection.activation.shape[0]
  search = _resized(inspection.search, side, side)
  left, stages, panels = grid * grid, [], []
  for block, cells in inspection.removed.items():
    stages.append(cells)
    left -= len(cells)
    image = visualization.draw_candidates(search, stages, grid)
    panels.append((f"after block {block}: {left} of {grid * grid} left", image))
  return panels


def _resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
  shrinks = image.shape[0] > height
  method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
  return cv2.resize(image, (width, height), interpolation=method)


def _with_header(title: str, image: np.ndarray) -> np.ndarray:
  header = np.full((_VIDEO_HEADER_PX, image.shape[1], 3), 20, np.uint8)
  cv2.putText(
    header, title, (4, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.46, (255, 255, 255), 1, cv2.LINE_AA
  )  # fmt: skip
  return np.concatenate([header, image])
