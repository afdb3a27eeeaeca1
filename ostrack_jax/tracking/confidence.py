"""How sure a tracker may be: evidence read off the network's maps, and a calibrator that weighs it.

The maximum of the score map alone says little: it is high on look-alikes, and its scale is the
network's own. The evidence is computed on the device beside the box; the calibrator, a logistic
regression fitted on annotated video (ostrack_jax/calibrate.py), makes a probability of it. Nothing
of this is in the paper or in the official tracker.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from ostrack_jax.models.ostrack import OSTrack, OSTrackOutput

FORMAT = "ostrack_jax/calibrator/1"
FILE_NAME = "calibrator.json"
_TINY = 1e-12
# Of probabilities, where odds are taken.
_LEAST = 1e-6


def evidence_signs(model: OSTrack) -> dict[str, int]:
  """Return what is read off, by name, and the sign of its weight: none can speak for a target by being worse."""
  likeness = ("similarity",) if model.is_two_stream else ("similarity_early", "similarity_late")
  return {"peak": 1, "spread": -1, **dict.fromkeys(likeness, 1)}


def evidence_layers(model: OSTrack) -> tuple[int, ...]:
  """Return the blocks whose tokens evidence looks at: at a quarter and at three quarters of a one-stream backbone."""
  depth = model.dimensions()["depth"]
  return () if model.is_two_stream else (depth // 4, 3 * depth // 4)


def evidence(output: OSTrackOutput, window) -> jax.Array:
  """Return [b, k] float32, what the maps say of the box near the window; for use under jit.

  In the order of evidence_signs:
  - peak: log odds of the raw score map's maximum.
  - spread: log of how many cells share the raw score map's mass, (sum of s)^2 / sum of s^2.
  - similarity_early, similarity_late: cosine between the mean of the template's middle tokens, where the target
    is, and the mean of the search tokens in the box, at the first and the last of evidence_layers; eliminated ones
    count as far as none is left. Of two streams similarity: the same, as their backbone ends.

  Args:
    output: of a model with a score map, computed with evidence_layers.
    window: [F, F] as for OSTrackOutput.boxes_near.
  """
  maps = output.score_map
  if maps is None:
    raise ValueError("this head has no score map, so there is no evidence to calibrate")
  batch, grid = maps.shape[:2]
  scores = maps[..., 0].astype(jnp.float32)
  flat = scores.reshape(batch, grid * grid)
  chosen = jnp.argmax((scores * window[None]).reshape(batch, grid * grid), axis=1)
  shared = jnp.square(flat.sum(axis=1)) / (jnp.square(flat).sum(axis=1) + _TINY)
  boxes_cxcywh = output.boxes_near(window).astype(jnp.float32)
  inner = output.inner_features
  looked_at = (inner[0], inner[-1]) if inner else (output.features,)
  values = (
    _log_odds(flat.max(axis=1)),
    jnp.log(shared + _TINY),
    *(_similarity(x.astype(jnp.float32), boxes_cxcywh, chosen, grid) for x in looked_at),
  )
  return jnp.stack(values, axis=1)


def _similarity(features, boxes_cxcywh, chosen, grid: int):
  batch = features.shape[0]
  template, search = features[:, : -grid * grid], features[:, -grid * grid :]
  side = math.isqrt(template.shape[1])
  middle = slice(side // 4, side - side // 4)
  template = template.reshape(batch, side, side, -1)[:, middle, middle].mean(axis=(1, 2))
  centres = ((jnp.arange(grid) + 0.5) / grid)[None, :]
  inside = [
    jnp.abs(centres - boxes_cxcywh[:, axis, None]) < 0.5 * boxes_cxcywh[:, 2 + axis, None]
    for axis in (0, 1)
  ]
  inside = (inside[1][:, :, None] & inside[0][:, None, :]).reshape(batch, grid * grid)
  # A box smaller than a cell may hold no cell's centre.
  inside = inside | (jnp.arange(grid * grid)[None, :] == chosen[:, None])
  found = (search * inside[..., None]).sum(axis=1)
  lengths = jnp.sqrt(jnp.square(template).sum(axis=1) * jnp.square(found).sum(axis=1))
  return (template * found).sum(axis=1) / (lengths + _TINY)


def _log_odds(scores):
  # A model's scores are clamped to this range, of which bfloat16 rounds the upper end to 1.
  scores = jnp.clip(scores, 1e-4, 1 - 1e-4)
  return jnp.log(scores) - jnp.log1p(-scores)


class Weighing(flax.struct.PyTreeNode):
  """A calibrator on the device.

  Attributes:
    weights: [k] float32 of the raw evidence. bias: [] float32.
  """

  weights: jax.Array | np.ndarray
  bias: jax.Array | np.floating

  def confidence(self, output: OSTrackOutput, window) -> jax.Array:
    """Return [b] float32 probabilities; for use under jit."""
    values = evidence(output, window)
    # No matrix product, which a GPU would round more.
    return jax.nn.sigmoid((values * self.weights[None]).sum(axis=1) + self.bias)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibrator:
  """From evidence to a probability, for one checkpoint.

  Attributes:
    features: names of the evidence, in the order of evidence_signs.
    mean, scale: of each in the samples it was fitted on.
    weights, bias: of the standardised evidence: log odds of the box being on the target.
    threshold: the target counts as visible where the confidence is above it.
    false_alarm_rate: share that lies above it of the fit's track samples without the target in the box, where the
      frames of every video together count alike.
    fitted_for: what it is good for: the checkpoint's `digest`, and of the tracker `elimination`,
      `search_factor` and `template_factor`.
    provenance: what it was fitted on, for people.
    memory: share of a track's log odds that is of the frame before, and so of all before it; 0 for every frame by
      itself.
  """

  features: tuple[str, ...]
  mean: tuple[float, ...]
  scale: tuple[float, ...]
  weights: tuple[float, ...]
  bias: float
  threshold: float
  false_alarm_rate: float
  fitted_for: Mapping[str, Any]
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  memory: float = 0.0

  def __post_init__(self):
    for name in ("features", "mean", "scale", "weights"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    numbers = [*self.mean, *self.scale, *self.weights, self.bias, self.threshold]
    if len(numbers) != 3 * len(self.features) + 2 or not all(
      isinstance(number, int | float) and math.isfinite(number) for number in numbers
    ):
      raise ValueError(
        f"the calibrator needs {len(self.features)} finite numbers each of mean, scale and weights, a bias and a "
        "threshold: calibrate again"
      )
    if min(self.scale) <= 0 or not 0 <= self.threshold <= 1:
      raise ValueError(
        f"the calibrator's scale {min(self.scale)} must be positive and its threshold {self.threshold} lie "
        "between 0 and 1: calibrate again"
      )
    if not isinstance(self.memory, int | float) or not 0 <= self.memory < 1:
      raise ValueError(
        f"the calibrator's memory {self.memory!r} must be at least 0 and less than 1: calibrate again"
      )

  def weighing(self) -> Weighing:
    """Return what the device needs, as numpy."""
    weights = np.array(self.weights) / np.array(self.scale)
    return Weighing(
      weights=weights.astype(np.float32),
      bias=np.float32(self.bias - np.dot(weights, self.mean)),
    )

  def confidence(self, values: np.ndarray) -> np.ndarray:
    """Return [n] float64 probabilities of evidence [n, k] that is on the host, each by itself."""
    weights = np.array(self.weights) / np.array(self.scale)
    odds = (np.asarray(values, np.float64) - np.array(self.mean)) @ weights + self.bias
    return 1 / (1 + np.exp(-np.clip(odds, -500, 500)))

  def remembered(self, before: float | None, now: float) -> float:
    """Return the confidence to tell of a frame.

    Args:
      before: what was told of the frame before; None for a track's first.
      now: what this frame says by itself.
    """
    if before is None or not self.memory:
      return now
    odds = self.memory * log_odds(before) + (1 - self.memory) * log_odds(now)
    return 1 / (1 + math.exp(-odds))

  def is_visible(self, confidence: float) -> bool:
    """Return whether a confidence is enough."""
    return confidence > self.threshold

  def difference(self, subject: Mapping[str, Any]) -> str:
    """Say in words how what it is to be used with differs from what it was fitted for; "" for not."""
    ours = {**self.fitted_for, "features": list(self.features)}
    words = [
      f"{name} {_short(ours.get(name))} became {_short(value)}"
      for name, value in subject.items()
      if ours.get(name) != value
    ]
    return ", ".join(words)

  def to_json(self) -> str:
    """Return the content of calibrator.json."""
    return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"


def log_odds(probability: float) -> float:
  """Return finite log odds: no single frame must be able to hold a mean up or down."""
  probability = min(max(probability, _LEAST), 1 - _LEAST)
  return math.log(probability / (1 - probability))


def read(path: pathlib.Path) -> Calibrator:
  """Read a calibrator.json; ValueError naming it where it is none of this version."""
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
      raise ValueError(f"its format is not {FORMAT!r}: calibrate again")
    return Calibrator(**content)
  except (ValueError, TypeError) as error:
    raise ValueError(f"{path} is no calibrator: {error}") from error


def on_device(
  checkpoint: Any, search_factor: float, template_factor: float, device: jax.Device
) -> tuple[Calibrator | None, Weighing | None]:
  """Return a checkpoint's calibrator, and what the device needs of it, where it fits a tracker's factors.

  (None, None) where there is none (a checkpoint without the attribute has none), or, with a warning,
  where it was fitted for other factors.
  """
  calibrator: Calibrator | None = getattr(checkpoint, "calibrator", None)
  if calibrator is not None:
    subject = {
      "search_factor": search_factor,
      "template_factor": template_factor,
      "features": list(evidence_signs(checkpoint.model)),
    }
    calibrator = kept(calibrator, subject)
  if calibrator is None:
    return None, None
  return calibrator, jax.device_put(calibrator.weighing(), device)


def kept(calibrator: Calibrator, subject: Mapping[str, Any]) -> Calibrator | None:
  """Return the calibrator where it was fitted for the subject; else None, with a warning that says why."""
  difference = calibrator.difference(subject)
  if not difference:
    return calibrator
  logging.warning(
    "the calibrator was fitted for something else (%s) and is left aside: there is no confidence; run "
    "python -m ostrack_jax.calibrate again",
    difference,
  )
  return None


def _short(value) -> str:
  return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
