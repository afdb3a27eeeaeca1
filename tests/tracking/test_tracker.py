import dataclasses
import functools
import types

import cv2
import jax
import numpy as np
import pytest

from ostrack_jax import crop, load
from ostrack_jax.models import head
from ostrack_jax.models.ostrack import OSTrack, normalise_images
from ostrack_jax.tracking import tracker as tracker_module
from ostrack_jax.tracking.motion import box_in_frame, next_box, next_box_of_one
from ostrack_jax.tracking.tracker import Tracker

_BOX = (40.0, 30.0, 20.0, 16.0)


@functools.partial(jax.jit, static_argnums=0)
def _outputs(model, variables, template, search):
  return model.apply(variables, normalise_images(template), normalise_images(search))


def _official_update(checkpoint, first_frame, init_box, previous_box, frame):
  """One step as the official tracker takes it, from the raw maps, written out in numpy."""
  model = checkpoint.model
  factors = checkpoint.description["tracker"]
  template, _ = crop.crop_square(
    first_frame, init_box, factors["template_factor"], model.template_size
  )
  size = model.search_size
  search, resize_factor = crop.crop_square(frame, previous_box, factors["search_factor"], size)
  output = _outputs(checkpoint.model, checkpoint.variables, template[None], search[None])
  raw = np.asarray(output.score_map)[0, :, :, 0]
  grid = len(raw)
  ramp = 0.5 * (1 - np.cos(2 * np.pi / (grid + 1) * np.arange(1, grid + 1)))
  iy, ix = np.unravel_index(np.argmax(raw * np.outer(ramp, ramp)), raw.shape)
  offset, extent = np.asarray(output.offset_map)[0, iy, ix], np.asarray(output.size_map)[0, iy, ix]
  side = size / resize_factor
  w, h = extent * side
  x, y, pw, ph = previous_box
  cx = x + pw / 2 - side / 2 + (ix + offset[0]) / grid * side
  cy = y + ph / 2 - side / 2 + (iy + offset[1]) / grid * side
  height, width = frame.shape[:2]
  x1, x2 = min(max(0, cx - w / 2), width - 10), min(max(10, cx + w / 2), width)
  y1, y2 = min(max(0, cy - h / 2), height - 10), min(max(10, cy + h / 2), height)
  return np.array([x1, y1, max(10, x2 - x1), max(10, y2 - y1)]), raw


def test_updates_follow_the_official_tracker_step_by_step(make_checkpoint, make_frame):
  checkpoint = make_checkpoint()
  tracker = Tracker(checkpoint)
  tracker.init(make_frame(), _BOX)
  previous = np.array(_BOX)
  windowed_apart = 0
  for number in range(1, 7):
    result = tracker.update(make_frame(number))
    expected, raw = _official_update(checkpoint, make_frame(), _BOX, previous, make_frame(number))
    np.testing.assert_allclose(result.box_xywh, expected, atol=2e-3)
    np.testing.assert_allclose(result.score, raw.max(), atol=1e-6)
    windowed_apart += raw.argmax() != (raw * head.hann_window(len(raw))).argmax()
    np.testing.assert_array_equal(tracker.box_xywh, result.box_xywh)
    # Moved on, so that boxes at the border are met as well.
    previous = np.array([10.0 * number, 12.5 * number, 14, 20 + number])
    tracker.box_xywh = previous
  assert windowed_apart  # Else the test could not tell raw from windowed maps.


@pytest.mark.parametrize("name", ["tiny256_ce", "tiny384_ce"])
def test_steps_on_real_video_equal_the_official_trackers(name, golden, reference_dir, monkeypatch):
  responses, decode = [], head.decode_boxes

  def recording(windowed, *maps):
    jax.debug.callback(lambda peak: responses.append(float(peak)), windowed.max())
    return decode(windowed, *maps)

  monkeypatch.setattr(head, "decode_boxes", recording)
  tracker_module.locate.clear_cache()

  size, heads = (256, 6) if "256" in name else (384, 4)
  checkpoint = load(golden(f"ostrack_tiny{size}.pth.tar"), num_heads=heads)
  tracker = Tracker(checkpoint, search_factor=4.0, template_factor=2.0)
  folder = reference_dir / "data" / "sequences" / "OTB" / "Crossing" / "img"

  def frame(number):
    return cv2.imread(str(folder / f"{number + 1:04d}.jpg"))[..., ::-1]

  with np.load(golden(f"tracker_steps_{name}.npz")) as recorded:
    tracker.init(frame(0), recorded["init_box_xywh_px"])
    for i, number in enumerate(recorded["frame"]):
      tracker.box_xywh = recorded["previous_box_xywh_px"][i]
      result = tracker.update(frame(number))
      np.testing.assert_allclose(
        result.box_xywh, recorded["box_xywh_px"][i], atol=0.05, err_msg=f"frame {number}"
      )
      np.testing.assert_allclose(result.score, recorded["score_max"][i], atol=1e-4)
      jax.effects_barrier()
    # The network decodes its raw map, the tracker the windowed one.
    windowed = np.minimum(responses[::2], responses[1::2])
    np.testing.assert_allclose(windowed, recorded["response_max"], atol=1e-4)
  tracker_module.locate.clear_cache()


def test_equal_models_are_traced_once_whatever_the_track(
  monkeypatch, request, make_checkpoint, make_frame
):
  traced = []

  def counting(images):
    traced.append(images.shape)
    return normalise_images(images)

  monkeypatch.setattr(tracker_module, "normalise_images", counting)
  compiled = []

  def listener(event, duration, **kwargs):
    compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listener)
  request.addfinalizer(lambda: jax.monitoring.unregister_event_duration_listener(listener))
  # A model that no other test uses, since the compiled function is shared.
  for repeat in range(3):
    tracker = Tracker(make_checkpoint(head_channels=24), search_factor=3.0 + repeat)
    for restart in range(2):
      tracker.init(make_frame(restart, 90 + 10 * repeat, 120), _BOX)
      for number in range(3):
        tracker.update(make_frame(number, 90 + 10 * repeat, 120))
        if (repeat, restart, number) == (0, 0, 0):
          assert "/jax/core/compile/backend_compile_duration" in compiled
          compiled.clear()
  assert traced == [(1, 32, 32, 3), (1, 64, 64, 3)]
  assert "/jax/core/compile/backend_compile_duration" not in compiled


def test_init_forgets_the_track_before(make_checkpoint, make_frame):
  used, fresh = Tracker(make_checkpoint()), Tracker(make_checkpoint())
  used.init(make_frame(), _BOX)
  used.update(make_frame(1))
  for tracker in (used, fresh):
    tracker.init(make_frame(5, 100, 80), (10, 10, 30, 20))
  np.testing.assert_array_equal(used.box_xywh, [10, 10, 30, 20])
  for number in (6, 7):
    a, b = used.update(make_frame(number, 100, 80)), fresh.update(make_frame(number, 100, 80))
    np.testing.assert_array_equal(a.box_xywh, b.box_xywh)
    assert a.score == b.score


def test_factors_come_from_the_description_unless_given(make_checkpoint, make_frame):
  described = Tracker(make_checkpoint(template_factor=1.5, search_factor=3.0))
  assert (described.template_factor, described.search_factor) == (1.5, 3.0)
  given = Tracker(make_checkpoint(), search_factor=3.0, template_factor=1.5)
  default = Tracker(make_checkpoint())
  found = []
  for tracker in (described, given, default):
    tracker.init(make_frame(), _BOX)
    found.append(tracker.update(make_frame(1)).box_xywh)
  np.testing.assert_array_equal(found[0], found[1])
  assert np.abs(found[0] - found[2]).max() > 0.1


@pytest.mark.parametrize("name", ["search_factor", "template_factor"])
@pytest.mark.parametrize("value", [0.5, -1.0, 101, float("nan"), float("inf")])
def test_factors_out_of_reason_are_refused(name, value, make_checkpoint):
  with pytest.raises(ValueError, match=f"{name} .* must lie between 1 and 100"):
    Tracker(make_checkpoint(), **{name: value})


def test_box_choice_marks_the_templates_tokens_on_the_target(
  monkeypatch, make_checkpoint, make_frame
):
  seen = []
  apply = OSTrack.apply

  def recording(self, variables, *images, template_mask=None, **kwargs):
    jax.debug.callback(lambda mask: seen.append(np.asarray(mask)), template_mask)
    return apply(self, variables, *images, template_mask=template_mask, **kwargs)

  monkeypatch.setattr(OSTrack, "apply", recording)
  choice = {"template_tokens": "ground_truth_box", "template_size": 64}
  tracker = Tracker(make_checkpoint(**choice))
  tracker.init(make_frame(), (40, 38, 40, 16))
  result = tracker.update(make_frame(1))
  jax.effects_barrier()
  assert np.isfinite(result.box_xywh).all()
  # The crop shows 51 frame pixels on 64, so the box covers columns 6 to 54 and rows 21 to 39 of it;
  # of the four central pixels of a token, 7 and 8 are in, 23 and 24, 39, but neither 55 nor 56.
  expected = np.zeros((1, 4, 4), bool)
  expected[:, 1:3, 0:3] = True
  np.testing.assert_array_equal(seen[0].reshape(1, 4, 4), expected)


def test_a_box_at_the_crops_centre_is_the_previous_box(make_frame):
  rng = np.random.default_rng(0)
  for _ in range(20):
    previous = np.concatenate([rng.uniform(-20, 300, 2), rng.uniform(2, 90, 2)])
    resize_factor = rng.uniform(0.3, 5)
    extent = previous[2:] * resize_factor / 256
    np.testing.assert_allclose(
      box_in_frame([0.5, 0.5, *extent], previous, resize_factor, 256), previous, atol=1e-9
    )


def test_one_targets_box_without_arrays_is_the_same_to_the_last_bit():
  rng = np.random.default_rng(0)
  for _ in range(300):
    # Many of these leave the frame, or become too small.
    found = (1.3 * rng.random(4)).astype(np.float32)
    previous = np.concatenate([rng.uniform(-60, 600, 2), rng.uniform(5, 400, 2)])
    resize_factor, size = rng.uniform(0.3, 5), (480, 640)
    one = next_box_of_one(found, previous, resize_factor, 256, size)
    assert one.tolist() == next_box(found, previous, resize_factor, 256, *size).tolist()
  assert one.dtype == np.float64


def test_crop_then_map_back_finds_the_target(make_frame):
  # Within the half pixel by which the crop's corner was rounded.
  rng = np.random.default_rng(1)
  for _ in range(20):
    x, y, w, h = (int(v) for v in rng.integers((60, 60, 12, 12), (140, 120, 40, 40)))
    image = np.zeros((220, 260, 3), np.uint8)
    image[y : y + h, x : x + w] = 255
    previous = np.array([x, y, w, h]) + rng.uniform(-6, 6, 4)
    pixels, resize_factor = crop.crop_square(image, previous, 4, 256)
    weight = pixels[..., 0] / 255
    ramp = np.arange(256) + 0.5
    centre = np.array([weight.sum(0) @ ramp, weight.sum(1) @ ramp]) / weight.sum()
    extent = np.array([weight.max(0).sum(), weight.max(1).sum()])
    found = box_in_frame(np.concatenate([centre, extent]) / 256, previous, resize_factor, 256)
    np.testing.assert_allclose(found[:2] + found[2:] / 2, [x + w / 2, y + h / 2], atol=0.51)
    np.testing.assert_allclose(found[2:], [w, h], atol=0.6)


def test_the_callers_arrays_stay_apart_from_the_track(make_checkpoint, make_frame):
  box, tracker = np.array(_BOX), Tracker(make_checkpoint())
  tracker.init(make_frame(), box)
  box[:] = 0
  tracker.box_xywh[:] = 1
  np.testing.assert_array_equal(tracker.box_xywh, _BOX)
  result = tracker.update(make_frame(1))
  kept = result.box_xywh.copy()
  result.box_xywh[:] = 0
  np.testing.assert_array_equal(tracker.box_xywh, kept)


def test_variables_go_to_one_device_once_without_what_the_model_does_not_use(
  make_checkpoint, make_frame
):
  if len(jax.devices()) < 4:
    pytest.skip("needs 4 devices")
  mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  checkpoint = make_checkpoint()
  spread = jax.device_put(
    checkpoint.variables, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  )
  replicated = dataclasses.replace(
    checkpoint, variables={**spread, "unused": {"cls_token": np.zeros((1, 1, 32))}}
  )
  tracker, plain = Tracker(replicated), Tracker(checkpoint)
  for leaf in jax.tree.leaves(tracker._weights):
    assert len(leaf.devices()) == 1
  unpacked = tracker._weights.unpack()
  assert set(unpacked) == {"params", "head"}
  assert set(unpacked["params"]["backbone"]) == set(checkpoint.variables["params"]["backbone"])
  for each in (tracker, plain):
    each.init(make_frame(), _BOX)
  np.testing.assert_array_equal(
    tracker.update(make_frame(1)).box_xywh, plain.update(make_frame(1)).box_xywh
  )


def test_any_object_with_the_three_attributes_will_do(make_checkpoint, make_frame):
  checkpoint = make_checkpoint()
  stand_in = types.SimpleNamespace(
    model=checkpoint.model,
    variables=checkpoint.variables,
    description=checkpoint.description,
  )
  tracker = Tracker(stand_in)
  tracker.init(make_frame(), _BOX)
  assert 0 < tracker.update(make_frame(1)).score < 1


def test_an_untrained_head_is_refused(make_checkpoint):
  checkpoint = make_checkpoint()
  encoder = dataclasses.replace(
    checkpoint, description={**checkpoint.description, "complete": False}
  )
  with pytest.raises(ValueError, match="encoder with an untrained head; train it first"):
    Tracker(encoder)
