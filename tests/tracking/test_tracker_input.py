import dataclasses

import numpy as np
import pytest

from ostrack_jax.tracking.tracker import Tracker

_BOX = (40.0, 30.0, 20.0, 16.0)


@pytest.mark.parametrize(
  ("box", "message"),
  [
    ((130, 30, 20, 20), "lies outside the frame of 120 x 90 pixels"),
    ((40, 90, 20, 20), "lies outside the frame"),
    ((-20, 30, 20, 20), "lies outside the frame"),
    ((40, 30, 0.5, 20), "smaller than a pixel"),
    ((40, 30, 20, -20), "smaller than a pixel"),
    ((40, 30, float("nan"), 20), "must be four finite numbers"),
    ((40, float("inf"), 20, 20), "must be four finite numbers"),
    ((40, 30, 20), "must be four finite numbers"),
    ((40, 30, 20, 20, 1), "must be four finite numbers"),
    ([[40, 30, 20, 20]], "must be four finite numbers"),
    ("40,30,20,20", "must be four finite numbers"),
    (None, "must be four finite numbers"),
    ((0, 0, 241, 20), "more than twice as large as the frame"),
    ((0, 0, 20, 1e9), "more than twice as large as the frame"),
  ],
)
def test_unusable_boxes_are_refused_at_the_start_and_when_set(
  box, message, make_checkpoint, make_frame
):
  tracker = Tracker(make_checkpoint())
  with pytest.raises(ValueError, match=message):
    tracker.init(make_frame(), box)
  with pytest.raises(RuntimeError):
    tracker.update(make_frame())
  tracker.init(make_frame(), _BOX)
  with pytest.raises(ValueError, match=message):
    tracker.box_xywh = box
  np.testing.assert_array_equal(tracker.box_xywh, _BOX)


@pytest.mark.parametrize("box", [(119, 89, 5, 5), (-19, -19, 20, 20), (-50, -50, 220, 180)])
def test_boxes_partly_in_the_frame_are_tracked(box, make_checkpoint, make_frame):
  tracker = Tracker(make_checkpoint())
  tracker.init(make_frame(), box)
  x, y, w, h = tracker.update(make_frame(1)).box_xywh
  assert 0 <= x <= x + w <= 120 + 1e-9 and 0 <= y <= y + h <= 90 + 1e-9
  assert min(w, h) >= 10


def test_nothing_works_before_init(make_checkpoint, make_frame):
  tracker = Tracker(make_checkpoint())
  with pytest.raises(RuntimeError, match=r"update needs a track; call init\(frame, box_xywh\)"):
    tracker.update(make_frame())
  with pytest.raises(RuntimeError, match="box_xywh needs a track"):
    _ = tracker.box_xywh
  with pytest.raises(RuntimeError, match="box_xywh needs a track"):
    tracker.box_xywh = _BOX


def test_frames_of_another_size_are_refused_with_both_sizes(make_checkpoint, make_frame):
  tracker = Tracker(make_checkpoint())
  tracker.init(make_frame(), _BOX)
  message = "frame of 90 x 120 pixels follows frames of 120 x 90; resize the frames or start anew"
  with pytest.raises(ValueError, match=message):
    tracker.update(make_frame(1, 120, 90))
  np.testing.assert_array_equal(tracker.box_xywh, _BOX)


def test_tiny_frames_are_refused(make_checkpoint):
  with pytest.raises(ValueError, match="frame of 20 x 9 pixels is too small"):
    Tracker(make_checkpoint()).init(np.zeros((9, 20, 3), np.uint8), (2, 2, 5, 5))


def test_grey_and_transparent_frames_track_like_their_rgb_form(make_checkpoint, make_frame):
  grey = make_frame(1)[..., 0]
  rgb = np.repeat(grey[..., None], 3, axis=2)
  alpha = np.concatenate([rgb, make_frame(2)[..., :1]], axis=2)
  found = []
  for frame in (rgb, grey, grey[..., None], alpha):
    tracker = Tracker(make_checkpoint())
    tracker.init(frame, _BOX)
    found.append(tracker.update(frame).box_xywh)
  for box in found[1:]:
    np.testing.assert_array_equal(box, found[0])


def test_float_frames_are_refused_with_the_cure(make_checkpoint, make_frame):
  tracker = Tracker(make_checkpoint())
  tracker.init(make_frame(), _BOX)
  with pytest.raises(ValueError, match="float64; expected uint8 from 0 to 255: multiply by 255"):
    tracker.update(make_frame(1) / 255)


def test_numbers_beyond_float16_are_told_with_the_cure_not_as_boxes(make_checkpoint, make_frame):
  checkpoint = make_checkpoint()
  backbone = checkpoint.variables["params"]["backbone"]
  # Two numbers that float16 holds, but not their sum.
  projection = {
    "proj": backbone["patch_embed"]["proj"]
    | {"bias": np.full_like(backbone["patch_embed"]["proj"]["bias"], 6e4)}
  }
  far = {"pos_embed_x": np.full_like(backbone["pos_embed_x"], 6e4), "patch_embed": projection}
  params = checkpoint.variables["params"] | {"backbone": backbone | far}
  wide, narrow = (
    Tracker(
      dataclasses.replace(
        checkpoint,
        model=checkpoint.model.clone(dtype=dtype),
        variables=checkpoint.variables | {"params": params},
      )
    )
    for dtype in ("float32", "float16")
  )
  wide.init(make_frame(), _BOX)
  assert np.isfinite(wide.update(make_frame()).box_xywh).all()
  narrow.init(make_frame(), _BOX)
  for search in (narrow.update, lambda frame: next(narrow.follow([frame]))):
    with pytest.raises(ValueError, match=r"found no box, but \[nan.*set dtype to bfloat16"):
      search(make_frame())
    np.testing.assert_array_equal(narrow.box_xywh, _BOX)
