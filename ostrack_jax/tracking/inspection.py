"""What the network does with a search region: attention, eliminated cells, activations, score maps."""

import dataclasses
import functools
from collections.abc import Generator, Iterable
from typing import Any, cast

import jax
import numpy as np

from ostrack_jax import crop
from ostrack_jax.models import candidates, head
from ostrack_jax.models.ostrack import OSTrack, OSTrackOutput, normalise_images
from ostrack_jax.tracking import motion
from ostrack_jax.tracking.cutting import cut_search, cut_template
from ostrack_jax.tracking.factors import tracking_factors
from ostrack_jax.tracking.tracker import template_mask
from ostrack_jax.tracking.weights import TrackableCheckpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspection:
  """What a network made of one template and one search region. F cells a side of the search grid.

  Attributes:
    template, search: [Z, Z, 3] and [S, S, 3] uint8 RGB, as the network was given them.
    template_cells: [f, f] bool, the template tokens whose attention ranks the candidates: the centre
      token, unless the model says otherwise.
    attention: block (from 0) to [F, F] float32, by how much those tokens attend to each cell: softmax
      weights, averaged over heads and tokens. They sum to less than 1, since the template attends to
      itself as well. Zero where a cell had left.
    left_before: the same blocks to [F, F] bool, the cells eliminated before.
    removed: block to [k] int32, the cells (row-major) that its elimination drops, in the order of blocks.
    activation: [F, F] float32, how far the backbone's search features stand out; see `activations`.
    score_map, window, windowed: [F, F] float32: the head's score map, the Hann window, and their product,
      at whose maximum the box is. None where the head has no score map.
    box_xywh: [4] float64 the box found, in the unit square of the search region, not clipped.
  """

  template: np.ndarray
  search: np.ndarray
  template_cells: np.ndarray
  attention: dict[int, np.ndarray]
  left_before: dict[int, np.ndarray]
  removed: dict[int, np.ndarray]
  activation: np.ndarray
  score_map: np.ndarray | None
  window: np.ndarray | None
  windowed: np.ndarray | None
  box_xywh: np.ndarray

  @property
  def eliminated(self) -> np.ndarray:
    """[F, F] bool, cells that did not reach the head."""
    return _marked(self.removed.values(), self.activation.shape[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectedFrame:
  """A frame of a sequence with what the network made of it.

  Attributes:
    index: of the frame, from 1; frame 0 gives the template alone.
    image: [H, W, 3] uint8 RGB.
    box_xywh: [4] float64 the track's box, pixels of the frame.
    inspection: of the checkpoint whose track it is.
    compared: of the second checkpoint, in the frames asked for.
  """

  index: int
  image: np.ndarray
  box_xywh: np.ndarray
  inspection: Inspection
  compared: Inspection | None


def activations(features, eliminated):
  """Return how far each cell's feature stands out from the others: [F, F] float32, 1 for an average cell.

  The L2 norm over channels of a feature less the mean feature of the cells that stayed, over the mean of
  that norm; the paper (Fig. 6) does not say what it draws. The norm of the feature itself would be half
  an answer: the backbone ends in a LayerNorm, which takes every token's norm away, and gives back only
  what a trained scale makes of it. The ratio lets networks of any width and scale stand side by side.

  Args:
    features: [F, F, d] backbone's search features, zero where eliminated.
    eliminated: [F, F] bool. Such cells get 0 and count in neither mean; where they were background, those
      that stayed stand out less from each other than they would from it.
  """
  stayed = ~eliminated[..., None]
  count = max(stayed.sum(), 1)
  features = features.astype(np.float32)
  mean = np.sum(features * stayed, axis=(0, 1)) / count
  norm = np.linalg.norm((features - mean) * stayed, axis=-1)
  return norm / max(norm.sum() / count, np.finfo(np.float32).tiny)


def default_layers(model: OSTrack) -> tuple[int, ...]:
  """Return the blocks worth a look: the first, those that eliminate, and the last; none of a two-stream model."""
  if model.is_two_stream:
    return ()
  last = model.dimensions()["depth"] - 1
  between = model.elimination_layers or (last // 3, 2 * last // 3)
  return tuple(sorted({0, *between, last}))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(model: OSTrack, layers: tuple[int, ...], variables, template, search, mask, window):
  output = cast(
    OSTrackOutput,
    model.apply(
      variables,
      normalise_images(template),
      normalise_images(search),
      template_mask=mask,
      attention_layers=layers,
    ),
  )
  grid = model.search_grid
  score_map = None if output.score_map is None else output.score_map.reshape(grid, grid)
  num_z = (model.template_size // candidates.PATCH_SIZE) ** 2
  return {
    "attention": [
      candidates.candidate_scores(looks[..., num_z:], mask).reshape(grid, grid)
      for looks in output.attention
    ],
    "removed": [cells[0] for cells in output.removed],
    "features": output.features[0, -grid * grid :].reshape(grid, grid, -1),
    "score_map": score_map,
    "windowed": None if score_map is None else score_map * window,
    "box_cxcywh": output.boxes_near(window)[0],
  }


class Inspector:
  """Show a network one search region after another, for one template.

  Args:
    checkpoint: what `ostrack_jax.load` returns; its weights are used as they are.
    layers: blocks (from 0) whose attention is wanted; default_layers gives a choice.

  Raises:
    ValueError: a layer that the model does not have, or any of a two-stream model.
  """

  def __init__(self, checkpoint: TrackableCheckpoint, layers: Iterable[int] = ()):
    self.model = checkpoint.model
    self.layers = tuple(sorted(set(layers)))
    if self.model.is_two_stream and self.layers:
      raise ValueError(
        f"a model with relation {self.model.relation!r} has no attention of the template over the "
        "search region; ask for no layers"
      )
    depth = self.model.dimensions()["depth"]
    wrong = [layer for layer in self.layers if not 0 <= layer < depth]
    if wrong:
      raise ValueError(f"layer {wrong[0]} is not in the model, whose blocks are 0 to {depth - 1}")
    # Named, because variables from a training mesh lie on all its devices and would stay there.
    device = jax.devices()[0]
    variables = {name: checkpoint.variables[name] for name in ("params", "batch_stats")}
    self._variables = jax.device_put(variables, device)
    self._window = head.hann_window(self.model.search_grid)
    self._template: np.ndarray | None = None
    self._mask: np.ndarray | None = None

  def start(self, template, box_xywh, resize_factor: float) -> None:
    """Take a template, as cut_template gives it, for all further search regions."""
    self._template = template
    mask = template_mask(self.model, box_xywh, resize_factor)
    self._mask = None if mask is None else mask[None]

  def look(self, search) -> Inspection:
    """Return what the network makes of a search region [S, S, 3] uint8; RuntimeError before start."""
    if self._template is None:
      raise RuntimeError("look needs a template; call start first")
    found: dict[str, Any] = jax.device_get(
      _run(
        self.model, self.layers, self._variables, self._template[None], search[None], self._mask,
        self._window,
      )
    )  # fmt: skip
    grid = self.model.search_grid
    removed = dict(zip(self.model.elimination_layers, found["removed"]))
    removed = {block: cells for block, cells in removed.items() if cells.size}
    left_before = {
      layer: _marked([cells for block, cells in removed.items() if block < layer], grid)
      for layer in self.layers
    }
    box = found["box_cxcywh"].astype(np.float64)
    return Inspection(
      template=self._template,
      search=search,
      template_cells=self._template_cells(),
      attention=dict(zip(self.layers, found["attention"])),
      left_before=left_before,
      removed=removed,
      activation=activations(found["features"], _marked(removed.values(), grid)),
      score_map=found["score_map"],
      window=None if found["score_map"] is None else self._window,
      windowed=found["windowed"],
      box_xywh=np.concatenate([box[:2] - 0.5 * box[2:], box[2:]]),
    )

  def _template_cells(self) -> np.ndarray:
    grid = self.model.template_size // candidates.PATCH_SIZE
    if self._mask is not None:
      return self._mask.reshape(grid, grid)
    chosen = candidates.template_token_indices(self.model.template_tokens, grid)
    return _marked([np.array(chosen)], grid)


def inspect(
  checkpoint: TrackableCheckpoint,
  frames: Iterable[np.ndarray],
  init_box_xywh,
  *,
  layers: Iterable[int] = (),
  search_factor: float | None = None,
  compared: TrackableCheckpoint | None = None,
  compare_at: Iterable[int] = (),
) -> Generator[InspectedFrame]:
  """Track a sequence as Tracker does, and yield from frame 1 on what the network did.

  Args:
    frames, init_box_xywh, search_factor: as for Tracker.
    layers: as for Inspector.
    compared: a second checkpoint that is shown the same squares of the frames, cut at its own
      resolution; only its activations matter, so its head may be untrained.
    compare_at: frames in which it is.

  Raises:
    ValueError: no frames, or a frame or the box cannot be used; the frame's number is named. As
      Inspector and tracking_factors, too.
  """
  factors = tracking_factors(checkpoint, search_factor)
  first = Inspector(checkpoint, layers)
  second = None if compared is None else Inspector(compared)
  compare_at = frozenset(compare_at)
  box, frame_size = np.zeros(4), (0, 0)
  index = -1
  for index, frame in enumerate(frames):
    try:
      if index == 0:
        for inspector in (first, second):
          if inspector is not None:
            template, resize_factor, box, frame_size = cut_template(
              frame, init_box_xywh, inspector.model.template_size, factors[1]
            )
            inspector.start(template, box, resize_factor)
        continue
      size = first.model.search_size
      search, resize_factor = cut_search(frame, box, size, factors[0], frame_size)
      other = None
      if second is not None and index in compare_at:
        other = second.look(crop.crop_square(frame, box, factors[0], second.model.search_size)[0])
    except ValueError as error:
      raise ValueError(f"frame {index}: {error}") from error
    inspection = first.look(search)
    x, y, w, h = inspection.box_xywh
    box = motion.next_box(
      np.array([x + 0.5 * w, y + 0.5 * h, w, h]), box, resize_factor, size, *frame_size
    )
    yield InspectedFrame(
      index=index, image=frame, box_xywh=box, inspection=inspection, compared=other
    )
  if index < 0:
    raise ValueError("the sequence has no frames; at least the one with init_box_xywh is needed")


def _marked(cells: Iterable[np.ndarray], grid: int) -> np.ndarray:
  """Return [grid, grid] bool, true at the row-major cells listed."""
  marked = np.zeros(grid * grid, bool)
  for one in cells:
    marked[one] = True
  return marked.reshape(grid, grid)
