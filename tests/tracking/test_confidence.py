"""Evidence is what its names say, a calibrator weighs it alike everywhere, and without one there is no number."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from lane_runs import SMALL

from ostrack_jax.models.ostrack import OSTrack, OSTrackOutput, normalise_images
from ostrack_jax.tracking import confidence, long_term
from ostrack_jax.tracking.confidence import Calibrator
from ostrack_jax.tracking.multi_tracker import MultiTracker
from ostrack_jax.tracking.tracker import Tracker, locate

_BOX = (60, 40, 30, 24)
_FEATURES = tuple(confidence.evidence_signs(OSTrack()))
# Compiled once for all tests here.
_evidence = jax.jit(confidence.evidence)


def _odds(p):
  return math.log(p / (1 - p))


def _calibrator(**changes):
  count = len(changes.get("features", _FEATURES))
  values = {
    "features": _FEATURES,
    "mean": np.linspace(-1, 1, count).tolist(),
    "scale": np.linspace(0.5, 2, count).tolist(),
    # Small, so that confidences are neither 0 nor 1.
    "weights": np.linspace(0.3, -0.2, count).tolist(),
    "bias": -2.25,
    "threshold": 0.5,
    "false_alarm_rate": 0.05,
    "fitted_for": {"digest": "d", "search_factor": 4.0, "template_factor": 2.0},
    "provenance": {"dataset": "mine"},
  }
  return Calibrator(**{**values, **changes})


@pytest.fixture
def calibrated(make_checkpoint):
  return _with(make_checkpoint(**SMALL), _calibrator())


def _with(checkpoint, calibrator):
  kind = dataclasses.make_dataclass(
    "Calibrated", ["model", "variables", "description", "calibrator"]
  )
  return kind(checkpoint.model, checkpoint.variables, checkpoint.description, calibrator)


@pytest.fixture
def images(make_frame):
  return [make_frame(number) for number in range(6)]


def _output():
  """A grid of 8 x 8 with its peak in row 4, column 2, a second one in row 1, column 7, of two images."""
  scores = np.full((2, 8, 8, 1), 0.001, np.float32)
  scores[0, 4, 2], scores[0, 4, 3], scores[0, 6, 4], scores[0, 1, 7] = 0.8, 0.7, 0.6, 0.4
  scores[1, 3, 3] = 0.9
  size = np.full((2, 8, 8, 2), 0.25, np.float32)
  size[0, 4, 3] = 0.5, 0.125
  offset = np.full((2, 8, 8, 2), 0.5, np.float32)
  early, late, last = np.random.default_rng(0).normal(size=(3, 2, 16 + 64, 5)).astype(np.float32)
  return OSTrackOutput(
    score_map=scores,
    size_map=size,
    offset_map=offset,
    boxes_cxcywh=np.zeros((2, 4), np.float32),
    scores=scores.max(axis=(1, 2, 3)),
    features=last,
    removed=(),
    attention=(),
    inner_features=(early, late),
  )


@pytest.fixture(scope="module")
def seen():
  output = _output()
  # Prefers the second column of the broad peak.
  window = np.ones((8, 8), np.float32)
  window[:, 2] = 0.5
  values = _evidence(output, window)
  assert values.shape == (2, len(_FEATURES))
  return output, dict(zip(_FEATURES, np.asarray(values).T, strict=True))


def test_peak_is_the_log_odds_of_the_raw_maximum(seen):
  _, values = seen
  np.testing.assert_allclose(values["peak"], [_odds(0.8), _odds(0.9)], rtol=1e-4)


def test_spread_counts_the_cells_that_share_the_mass(seen):
  output, values = seen
  maps = output.score_map.reshape(2, -1).astype(np.float64)
  want = np.log(maps.sum(axis=1) ** 2 / (maps**2).sum(axis=1))
  np.testing.assert_allclose(values["spread"], want, rtol=1e-4)


def _cosine(tokens):
  template = tokens[0, :16].reshape(4, 4, 5)[1:3, 1:3].mean(axis=(0, 1))
  # The box is 4 cells wide and 1 high about (3.5, 4.5): row 4, columns 2 to 4 (1.5 and 5.5 are its edges).
  found = tokens[0, 16:].reshape(8, 8, 5)[4, 2:5].mean(axis=0)
  return template @ found / np.linalg.norm(template) / np.linalg.norm(found)


def test_similarity_is_the_cosine_of_the_templates_middle_and_the_boxs_tokens(seen):
  output, values = seen
  for name, tokens in zip(("similarity_early", "similarity_late"), output.inner_features):
    assert values[name][0] == pytest.approx(_cosine(tokens), abs=1e-5)


def test_of_two_streams_what_their_backbone_ends_with_is_compared():
  model = OSTrack(relation="stark", elimination_layers=(), keep_ratios=())
  assert confidence.evidence_layers(model) == ()
  assert tuple(confidence.evidence_signs(model)) == ("peak", "spread", "similarity")
  window = np.ones((8, 8), np.float32)
  window[:, 2] = 0.5
  output = _output().replace(inner_features=())
  values = np.asarray(_evidence(output, window))
  assert values.shape == (2, 3)
  assert values[0, 2] == pytest.approx(_cosine(output.features), abs=1e-5)


def test_inner_features_are_looked_at_where_the_model_has_them(make_checkpoint, images):
  checkpoint = make_checkpoint(**{**SMALL, "depth": 4, "elimination_layers": (1,)})
  assert confidence.evidence_layers(checkpoint.model) == (1, 3)
  model = checkpoint.model
  crops = [
    normalise_images(image[None, :size, :size])
    for image, size in zip(images, (model.template_size, model.search_size))
  ]
  told = model.apply(checkpoint.variables, *crops, feature_layers=(1, 3))
  plain = model.apply(checkpoint.variables, *crops)
  np.testing.assert_allclose(told.features, plain.features, atol=1e-6)
  early, late = told.inner_features
  assert plain.inner_features == () and early.shape == late.shape == told.features.shape
  # What block 1 eliminates it still had; block 3 had it no more.
  early, late = (np.asarray(x[0, -(model.search_grid**2) :]) for x in (early, late))
  removed = np.asarray(told.removed[0][0])
  assert len(removed) and early[removed].any(axis=1).all() and not late[removed].any()


def test_the_device_weighs_as_the_host_does():
  calibrator, window = _calibrator(), np.ones((8, 8), np.float32)
  values = np.asarray(_evidence(_output(), window))
  standard = (values - calibrator.mean) / calibrator.scale
  want = 1 / (1 + np.exp(-(standard @ np.array(calibrator.weights) - 2.25)))
  np.testing.assert_allclose(calibrator.confidence(values), want, rtol=1e-5)
  got = jax.jit(lambda w, o: w.confidence(o, window))(calibrator.weighing(), _output())
  np.testing.assert_allclose(got, want, rtol=1e-4)
  assert 0.01 < want.min() < want.max() < 0.99


def test_a_calibrator_comes_back_from_json(tmp_path):
  path = tmp_path / "calibrator.json"
  path.write_text(_calibrator().to_json())
  assert confidence.read(path) == _calibrator()


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"format": "other"}, "format is not"),
    ({"scale": [0.0] * len(_FEATURES)}, "scale 0.0 must be positive"),
    ({"weights": [1.0]}, "finite numbers"),
    ({"bias": None}, "finite numbers"),
    ({"threshold": 1.5}, "threshold 1.5"),
    ({"colour": 1}, "colour"),
  ],
)
def test_a_damaged_file_is_named(tmp_path, change, words):
  path = tmp_path / "calibrator.json"
  path.write_text(json.dumps({**json.loads(_calibrator().to_json()), **change}))
  with pytest.raises(ValueError, match=f"calibrator.json is no calibrator: .*{words}"):
    confidence.read(path)


@pytest.mark.parametrize("memory", [0.0, 0.6])
def test_trackers_say_the_same_and_their_boxes_do_not_change(memory, make_checkpoint, images):
  calibrated = _with(make_checkpoint(**SMALL), _calibrator(memory=memory))
  plain = Tracker(dataclasses.replace(calibrated, calibrator=None))
  tracker = Tracker(calibrated)
  tracker.init(images[0], _BOX)
  plain.init(images[0], _BOX)
  want = [tracker.update(image) for image in images[1:]]
  for ours, theirs in zip(want, (plain.update(image) for image in images[1:]), strict=True):
    assert theirs.confidence is None and theirs.visible is None
    np.testing.assert_allclose(ours.box_xywh, theirs.box_xywh, atol=1e-3)
    assert ours.score == pytest.approx(theirs.score, abs=1e-5)
  assert len({result.confidence for result in want}) > 1
  threshold = float(np.median([result.confidence for result in want]))
  calibrated = _with(calibrated, _calibrator(threshold=threshold, memory=memory))
  follower = Tracker(calibrated)
  follower.init(images[0], _BOX)
  found = {"follow": list(follower.follow(images[1:]))}
  for cut_on_device in (False, True):
    several = MultiTracker(calibrated, max_objects=1, cut_on_device=cut_on_device)
    several.add(images[0], _BOX)
    found[cut_on_device] = [several.update(image)[0] for image in images[1:]]
  for results in found.values():
    for ours, theirs in zip(results, want, strict=True):
      assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-4)
      assert ours.visible is (ours.confidence > threshold)
  assert {result.visible for result in found["follow"]} == {True, False}
  # Another calibrator is other numbers, and no other program.
  compiled = locate._cache_size()
  tracker = Tracker(_with(calibrated, _calibrator(bias=0.5)))
  tracker.init(images[0], _BOX)
  assert tracker.update(images[1]).confidence > want[0].confidence
  assert locate._cache_size() == compiled


def test_what_is_told_remembers_the_frames_before(make_checkpoint, images):
  checkpoint = make_checkpoint(**SMALL)
  told = {}
  for memory in (0.0, 0.6):
    tracker = Tracker(_with(checkpoint, _calibrator(memory=memory)))
    for track in range(2):
      tracker.init(images[track], _BOX)
      told[memory, track] = [tracker.update(image).confidence for image in images[2:]]
  for track in range(2):
    mixed = None
    for alone, ours in zip(told[0.0, track], told[0.6, track], strict=True):
      # By hand; a new track remembers nothing.
      mixed = _odds(alone) if mixed is None else 0.6 * mixed + 0.4 * _odds(alone)
      assert _odds(ours) == pytest.approx(mixed, abs=1e-4)
    assert told[0.0, track][1] != pytest.approx(told[0.6, track][1], abs=1e-3)


def test_an_object_that_comes_anew_remembers_nothing(make_checkpoint, images):
  tracker = MultiTracker(
    _with(make_checkpoint(**SMALL), _calibrator(memory=0.9)), max_objects=1, cut_on_device=False
  )
  first = tracker.add(images[0], _BOX)
  alone = tracker.update(images[1])[first].confidence
  tracker.update(images[2])
  tracker.remove(first)
  second = tracker.add(images[0], _BOX)
  assert tracker.update(images[1])[second].confidence == alone


def test_the_long_term_mode_judges_frames_by_themselves(make_checkpoint, images, monkeypatch):
  checkpoint = make_checkpoint(**SMALL)
  told, judged = {}, []
  real = long_term.Recovery.judged

  def recording(self, number, result, *rest):
    judged.append(result.confidence)
    return real(self, number, result, *rest)

  monkeypatch.setattr(long_term.Recovery, "judged", recording)
  for memory, mode in ((0.0, None), (0.9, None), (0.9, long_term.LongTermSettings())):
    tracker = MultiTracker(
      _with(checkpoint, _calibrator(memory=memory)),
      max_objects=1,
      cut_on_device=False,
      long_term=mode,
    )
    number = tracker.add(images[0], _BOX)
    told[memory, mode] = [tracker.update(image)[number].confidence for image in images[1:]]
  by_itself, remembered, with_mode = told.values()
  assert judged == by_itself
  assert with_mode == remembered != by_itself


def test_certainty_can_be_forgotten():
  calibrator = _calibrator(memory=0.5)
  assert calibrator.remembered(None, 1.0) == 1.0
  for before in (0.0, 1.0):
    assert calibrator.remembered(before, 0.5) == pytest.approx(
      1 / (1 + 1e-6 ** (before - 0.5)), rel=0.01
    )
  assert _calibrator().remembered(1.0, 0.3) == 0.3


@pytest.mark.parametrize("memory", [-0.1, 1.0, float("nan"), "half", None])
def test_a_memory_out_of_range_is_refused(memory):
  with pytest.raises(ValueError, match=r"memory .* must be at least 0 and less than 1"):
    _calibrator(memory=memory)


@pytest.mark.parametrize(
  ("changes", "factors"),
  [
    ({}, {"search_factor": 5.0}),
    ({}, {"template_factor": 3.0}),
    ({"features": ("peak", "margin")}, {}),
  ],
)
def test_a_calibrator_of_another_tracker_is_left_aside_with_a_warning(
  make_checkpoint, images, caplog, changes, factors
):
  checkpoint = _with(make_checkpoint(**SMALL), _calibrator(**changes))
  with caplog.at_level("WARNING"):
    tracker = Tracker(checkpoint, **factors)
  (name,) = factors or ["features"]
  assert f"fitted for something else ({name} " in caplog.text
  assert tracker.calibrator is None
