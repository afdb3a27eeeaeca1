"""Overlaps and centre errors of paired boxes (numpy only)."""

import numpy as np


def overlap(a_xywh: np.ndarray, b_xywh: np.ndarray) -> np.ndarray:
  """Return the IoU of paired boxes, [n, 4] pixels each, as [n] in [0, 1].

  0 where the union has no area; NaN where a box is NaN. The -1 and +1 of inclusive pixel ranges,
  which pytracking writes, cancel.
  """
  top_left = np.maximum(a_xywh[:, :2], b_xywh[:, :2])
  bottom_right = np.minimum(a_xywh[:, :2] + a_xywh[:, 2:], b_xywh[:, :2] + b_xywh[:, 2:])
  intersection = np.maximum(bottom_right - top_left, 0.0).prod(axis=1)
  union = a_xywh[:, 2:].prod(axis=1) + b_xywh[:, 2:].prod(axis=1) - intersection
  safe = np.where(union <= 0, 1.0, union)
  return np.clip(np.where(union <= 0, 0.0, intersection / safe), 0.0, 1.0)


def centre_error(predicted_xywh: np.ndarray, annotated_xywh: np.ndarray) -> np.ndarray:
  """Return the distance in pixels between the centres of paired boxes, [n]."""
  return np.linalg.norm(_centre_offset(predicted_xywh, annotated_xywh), axis=1)


def normalised_error(predicted_xywh: np.ndarray, annotated_xywh: np.ndarray) -> np.ndarray:
  """Return the centre distance with x in annotated widths and y in annotated heights, [n].

  Infinite where the annotated box is NaN or has no area. TrackingNet's definition.
  """
  has_area = annotated_xywh[:, 2:].min(axis=1) > 0
  size = np.where(has_area[:, None], annotated_xywh[:, 2:], 1.0)
  error = np.linalg.norm(_centre_offset(predicted_xywh, annotated_xywh) / size, axis=1)
  return np.where(has_area, error, np.inf)


def divided_centre_error(predicted_xywh: np.ndarray, annotated_xywh: np.ndarray) -> np.ndarray:
  """Return what normalised_error does, with pytracking's rounding: centres are divided, then subtracted.

  Whole-pixel boxes often lie exactly on a threshold, where the order decides.
  """
  has_area = annotated_xywh[:, 2:].min(axis=1) > 0
  size = np.where(has_area[:, None], annotated_xywh[:, 2:], 1.0)
  error = np.linalg.norm(_centre(predicted_xywh) / size - _centre(annotated_xywh) / size, axis=1)
  return np.where(has_area, error, np.inf)


def _centre_offset(a_xywh: np.ndarray, b_xywh: np.ndarray) -> np.ndarray:
  return _centre(a_xywh) - _centre(b_xywh)


def _centre(boxes_xywh: np.ndarray) -> np.ndarray:
  # The -1 of inclusive pixel ranges cancels, but keeping it keeps the toolkits' rounding.
  return boxes_xywh[:, :2] + (boxes_xywh[:, 2:] - 1) / 2


def usable_boxes(annotated_xywh: np.ndarray) -> np.ndarray:
  """Return where an annotated box is a box: no NaN, positive width and height. [n] bool."""
  return ~np.isnan(annotated_xywh.sum(axis=1)) & (annotated_xywh[:, 2:].min(axis=1) > 0)


def clip_boxes(boxes_xywh: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
  """Return boxes [n, 4] clipped to an image of (width, height) pixels.

  Follows the GOT-10k toolkit: a corner that is outside moves into the image, and the box is not
  shortened by the part that was outside on that side.
  """
  bound = np.asarray(image_size, dtype=np.float64)
  corner = np.clip(boxes_xywh[:, :2], 0.0, bound)
  return np.concatenate([corner, np.clip(boxes_xywh[:, 2:], 0.0, bound - corner)], axis=1)
