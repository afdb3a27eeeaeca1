"""Box formats and overlaps; one definition for numpy and jax arrays.

A name says the format: xywh is top-left corner and size, cxcywh is centre and size, xyxy is two
opposite corners. The last axis holds the four numbers; all other axes are free.
"""


def xywh_to_xyxy(boxes_xywh):
  """Convert top-left and size to two corners. [..., 4], any unit."""
  xp = boxes_xywh.__array_namespace__()
  x, y, w, h = (boxes_xywh[..., i] for i in range(4))
  return xp.stack([x, y, x + w, y + h], axis=-1)


def xyxy_to_xywh(boxes_xyxy):
  """Convert two corners to top-left and size. [..., 4], any unit."""
  xp = boxes_xyxy.__array_namespace__()
  x1, y1, x2, y2 = (boxes_xyxy[..., i] for i in range(4))
  return xp.stack([x1, y1, x2 - x1, y2 - y1], axis=-1)


def cxcywh_to_xyxy(boxes_cxcywh):
  """Convert centre and size to two corners. [..., 4], any unit."""
  xp = boxes_cxcywh.__array_namespace__()
  cx, cy, w, h = (boxes_cxcywh[..., i] for i in range(4))
  return xp.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], axis=-1)


def cxcywh_to_xywh(boxes_cxcywh):
  """Convert centre and size to top-left and size. [..., 4], any unit."""
  xp = boxes_cxcywh.__array_namespace__()
  cx, cy, w, h = (boxes_cxcywh[..., i] for i in range(4))
  return xp.stack([cx - 0.5 * w, cy - 0.5 * h, w, h], axis=-1)


def xywh_to_cxcywh(boxes_xywh):
  """Convert top-left and size to centre and size. [..., 4], any unit."""
  xp = boxes_xywh.__array_namespace__()
  x, y, w, h = (boxes_xywh[..., i] for i in range(4))
  return xp.stack([x + 0.5 * w, y + 0.5 * h, w, h], axis=-1)


def _area_xyxy(boxes_xyxy):
  return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def _intersection_and_union(a_xyxy, b_xyxy):
  xp = a_xyxy.__array_namespace__()
  top_left = xp.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
  bottom_right = xp.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
  extent = xp.maximum(bottom_right - top_left, xp.zeros_like(top_left))
  intersection = extent[..., 0] * extent[..., 1]
  return intersection, _area_xyxy(a_xyxy) + _area_xyxy(b_xyxy) - intersection


def iou(a_xyxy, b_xyxy):
  """Return intersection over union of paired boxes.

  Args:
    a_xyxy, b_xyxy: [..., 4] boxes in one frame and unit.

  Returns:
    [...] in [0, 1]; 0 where both boxes are empty.
  """
  xp = a_xyxy.__array_namespace__()
  intersection, union = _intersection_and_union(a_xyxy, b_xyxy)
  positive = union > 0
  return xp.where(positive, intersection / xp.where(positive, union, xp.ones_like(union)), 0.0)


def giou(a_xyxy, b_xyxy):
  """Return (generalised IoU, IoU) of paired boxes, each [...].

  Generalised IoU is IoU minus the share of the smallest enclosing box that neither covers
  (Rezatofighi et al. 2019). An enclosing box without area counts as fully covered.
  """
  xp = a_xyxy.__array_namespace__()
  _, union = _intersection_and_union(a_xyxy, b_xyxy)
  overlap = iou(a_xyxy, b_xyxy)
  enclosing = xp.prod(
    xp.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:]) - xp.minimum(a_xyxy[..., :2], b_xyxy[..., :2]),
    axis=-1,
  )
  positive = enclosing > 0
  safe = xp.where(positive, enclosing, xp.ones_like(enclosing))
  return overlap - xp.where(positive, (enclosing - union) / safe, 0.0), overlap


def clip_box_xywh(box_xywh, height, width, margin=10):
  """Keep a box in the frame and at least `margin` pixels on each side.

  Args:
    box_xywh: [..., 4] pixels of the frame.
    height, width: size of the frame in pixels.
    margin: smallest side, and the least that stays inside the frame.

  Returns:
    [..., 4] pixels. Follows the official tracker: a box that has left the frame is moved back in. Numbers
    that are not finite do not become such as are: they give NaN.
  """
  xp = box_xywh.__array_namespace__()
  finite = xp.where(xp.isfinite(box_xywh), box_xywh, xp.nan)
  x, y, w, h = (finite[..., i] for i in range(4))
  sides = clip_sides(x, y, w, h, height, width, margin, xp.minimum, xp.maximum)
  return xp.stack(sides, axis=-1)


def clip_sides(x, y, w, h, height, width, margin, minimum=min, maximum=max):
  """Do what clip_box_xywh does with finite plain numbers, or with arrays and their minimum and maximum.

  Returns x, y, w, h.
  """
  x2, y2 = x + w, y + h
  x1, x2 = minimum(maximum(x, 0.0), width - margin), minimum(maximum(x2, margin), width)
  y1, y2 = minimum(maximum(y, 0.0), height - margin), minimum(maximum(y2, margin), height)
  return x1, y1, maximum(x2 - x1, margin), maximum(y2 - y1, margin)
