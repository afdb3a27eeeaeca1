"""The command fits, stores and measures a calibrator; a stale one is not used; samples are what they say."""

import dataclasses
import json
import shutil

import cv2
import jax
import numpy as np
import pytest
from absl import flags

from data_pipelines.procedural_video import ProceduralVideoSettings, render_sequence
from ostrack_jax import Tracker, calibrate, load, loading
from ostrack_jax.evaluation import calibration_report
from ostrack_jax.tracking import confidence, confidence_samples, target_removal


@dataclasses.dataclass
class _Video:
  name: str
  frames: list
  boxes_xywh: np.ndarray
  visible: np.ndarray


def _bright(count=6, step=12):
  """A bright square that wanders over dark noise, which differs from frame to frame by nothing."""
  rng = np.random.default_rng(0)
  dark = rng.integers(0, 90, (160, 200, 3), dtype=np.uint8)
  frames, boxes = [], []
  for number in range(count):
    x, y = 20 + step * number, 30
    frame = dark.copy()
    frame[y : y + 16, x : x + 16] = 255
    frames.append(frame)
    boxes.append([x, y, 16, 16])
  return _Video("bright", frames, np.array(boxes, np.float64), np.ones(count, bool)), dark


def _run(*arguments):
  saved = calibrate.FLAGS.flag_values_dict()
  try:
    calibrate.FLAGS(["calibrate", *arguments])
    return calibrate.main([])
  finally:
    for name, value in saved.items():
      calibrate.FLAGS[name].value = value
    flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Two short procedural videos in the layout `folder`."""
  root = tmp_path_factory.mktemp("videos")
  settings = ProceduralVideoSettings(length=9)
  for seed in (3, 4):
    frames, boxes, _ = render_sequence(seed, settings)
    (root / f"v{seed}").mkdir()
    for number, frame in enumerate(frames):
      cv2.imwrite(str(root / f"v{seed}" / f"{number:04}.png"), frame[..., ::-1])
    np.savetxt(root / f"v{seed}" / "groundtruth.txt", boxes, fmt="%.2f", delimiter=",")
  return root


@pytest.fixture(scope="module")
def calibrated(root, tmp_path_factory):
  """What the command wrote: the checkpoint's folder and the folder of --output."""
  folder = tmp_path_factory.mktemp("calibrated")
  code = _run(
    "--checkpoint=ostrack_tiny", f"--save_as={folder / 'tiny'}", "--dataset=folder", f"--root={root}",
    "--test_dataset=folder[v3]", f"--test_root={root}", f"--output={folder / 'out'}", "--crops=3",
    "--false_alarms=0.1", "--starts=2",
  )  # fmt: skip
  assert code == 0
  return folder / "tiny", folder / "out"


def test_the_command_stores_a_calibrator_that_trackers_use(calibrated, root):
  folder, _ = calibrated
  checkpoint = load(folder)
  calibrator = checkpoint.calibrator
  assert calibrator == confidence.read(folder / "calibrator.json")
  signs = confidence.evidence_signs(checkpoint.model)
  assert calibrator.features == tuple(signs) and calibrator.false_alarm_rate == 0.1
  assert calibrator.provenance["videos"] == ["v3", "v4"]
  for weight, sign in zip(calibrator.weights, signs.values(), strict=True):
    assert weight * sign >= 0
  assert Tracker(checkpoint).calibrator == calibrator
  assert load("ostrack_tiny").calibrator is None
  # The copy is the network that was calibrated.
  jax.tree.map(np.testing.assert_array_equal, checkpoint.variables, load("ostrack_tiny").variables)


def test_the_report_tells_all_measures_and_the_raw_peaks_beside_them(calibrated):
  _, output = calibrated
  report = json.loads((output / "calibration.json").read_text())
  for part in ("fit", "left_out", "test"):
    sure, presence = report[part]["confidence"], report[part]["presence"]
    assert 0 <= sure["expected_calibration_error"] <= 1
    # One video tells no spread.
    spread = sure["expected_calibration_error_spread"]
    assert spread is None if part == "test" else 0 < spread < 1
    assert 0 <= sure["auroc"] <= 1 and 0 <= sure["raw_peak_auroc"] <= 1
    assert 0 <= presence["auroc"] <= 1 and 0 <= presence["raw_peak_auroc"] <= 1
  assert report["fit"]["presence"]["counts"]["present"] == 6
  # Of nine frames, from the first one and from the fifth.
  assert report["fit"]["confidence"]["counts"]["free"] == 2 * (8 + 4)
  assert report["test"]["confidence"]["counts"]["free"] == 8
  assert {path.name for path in output.iterdir()} == {
    "calibration.json", "reliability.png", "roc.png"
  }  # fmt: skip


def test_a_stale_calibrator_is_refused_aloud(calibrated, tmp_path, caplog):
  folder, _ = calibrated
  with caplog.at_level("WARNING"):
    assert load(folder, keep_ratios=0.5).calibrator is None
  assert "elimination [[1, 2], [0.7, 0.7]] became [[1, 2], [0.5, 0.5]]" in caplog.text
  caplog.clear()
  checkpoint = load(folder)
  leaves, tree = jax.tree.flatten(checkpoint.variables["params"])
  changed = tree.unflatten([leaves[0] + 1e-3, *leaves[1:]])
  other = dataclasses.replace(checkpoint, variables=checkpoint.variables | {"params": changed})
  loading.write_folder(other, tmp_path / "other")
  with caplog.at_level("WARNING"):
    assert load(tmp_path / "other").calibrator is None
  assert "fitted for something else (digest" in caplog.text and "calibrate again" in caplog.text
  shutil.copy(folder / "description.json", tmp_path / "other" / "calibrator.json")
  with pytest.raises(ValueError, match=r"calibrator\.json is no calibrator"):
    load(tmp_path / "other")


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ([], "--checkpoint and --dataset missing"),
    (["--checkpoint=ostrack_tiny", "--dataset=folder"], "cannot hold a calibrator.*--save_as=DIR"),
    (["--checkpoint=ostrack_tiny", "--dataset=nothing"], "--dataset=nothing is no benchmark"),
    (["--checkpoint=nothing", "--dataset=folder"], "there is no checkpoint nothing"),
    (["--checkpoint=ostrack_tiny", "--dataset=folder[v9]"], "unknown sequence v9"),
    (["--checkpoint=x", "--dataset=folder", "--test_root=y"], "needs --test_dataset"),
  ],
)
def test_wrong_arguments_are_answered_in_a_sentence(root, arguments, words):
  with pytest.raises(SystemExit, match=f"ostrack-calibrate: .*{words}"):
    _run(*arguments, *([f"--root={root}"] if arguments else []))


def test_a_head_without_a_score_map_cannot_be_calibrated():
  checkpoint = load("ostrack_tiny")
  model = checkpoint.model.clone(head="mlp", score_bias=None)
  with pytest.raises(ValueError, match="'mlp' has no score map"):
    confidence_samples.Observer(dataclasses.replace(checkpoint, model=model), lambda rng, box: box)


def test_a_removed_target_leaves_the_background_of_its_place():
  video, dark = _bright()
  for seed in range(5):
    hidden = target_removal.without_target(video, 2, np.random.default_rng(seed))
    np.testing.assert_array_equal(hidden, dark)
  assert video.frames[2].max() == 255


def test_a_target_that_stays_in_its_place_is_covered_by_what_lies_beside_it():
  video, _ = _bright(step=0)
  for seed in range(4):
    hidden = target_removal.without_target(video, 2, np.random.default_rng(seed))
    assert hidden.max() < 90


def test_a_target_without_a_place_or_as_large_as_its_frame_is_not_removed():
  video, _ = _bright(step=0)
  video.boxes_xywh[:] = [10, 10, 180, 140]
  assert target_removal.without_target(video, 2, np.random.default_rng(0)) is None
  video, _ = _bright()
  video.visible[2] = False
  assert target_removal.without_target(video, 2, np.random.default_rng(0)) is None


def test_only_crops_that_count_as_present_show_the_target(calibrated, monkeypatch):
  shown = []
  cut = confidence_samples.crop.crop_square

  def spy(image, box_xywh, factor, output_size):
    found = cut(image, box_xywh, factor, output_size)
    # 255 is the target's alone; resized it is still above the dark.
    shown.append(bool((found[0] > 150).any()))
    return found

  observer = confidence_samples.Observer(load("ostrack_tiny"), lambda rng, box: box)
  video, dark = _bright()
  other = _Video("other", [dark] * 3, np.tile([60.0, 60, 16, 16], (3, 1)), np.ones(3, bool))
  monkeypatch.setattr(confidence_samples.crop, "crop_square", spy)
  for seed in range(4):
    shown.clear()
    drawn = list(observer.presence(video, [other], np.random.default_rng(seed), 5))
    assert [sample.kind for sample in drawn] == ["present", "missed", "foreign"] * 5
    # The first shows the template.
    assert shown == [True, *[True, False, False] * 5]
    assert not any(sample.is_right for sample in drawn if sample.kind != "present")


def test_the_second_track_sees_no_target(calibrated, monkeypatch):
  shown = []
  look = confidence_samples.Observer._look

  def spy(observer, remembered, image, around_xywh):
    shown.append(image.max() == 255)
    return look(observer, remembered, image, around_xywh)

  monkeypatch.setattr(confidence_samples.Observer, "_look", spy)
  observer = confidence_samples.Observer(load("ostrack_tiny"), lambda rng, box: box)
  video, _ = _bright()
  video.visible[5] = False
  drawn = list(observer.tracks(video, np.random.default_rng(0), 1))
  assert [sample.kind for sample in drawn] == ["free"] * 4 + ["removed"] * 3
  assert shown == [True] * 4 + [False] * 3
  # The last frame shows it, but is annotated otherwise.
  assert not any(sample.is_right for sample in drawn[3:])


def test_a_fit_takes_its_odds_and_threshold_from_tracks():
  rng = np.random.default_rng(0)

  def sample(kind, right):
    evidence = rng.normal(1.0 if right else -1.0, 1.5, 1).astype(np.float32)
    return confidence_samples.Sample(
      kind=kind, video=f"v{rng.integers(3)}", evidence=evidence, score=0.5, is_right=right
    )

  # One of ten tracked frames is right, but half of the crops are.
  samples = [sample("free", n % 10 == 0) for n in range(4000)]
  samples += [sample(("present", "missed")[n % 2], n % 2 == 0) for n in range(4000)]
  fitting = calibration_report.Fitting(
    signs={"peak": 1},
    l2=0.0,
    false_alarm_rate=0.02,
    fitted_for={"search_factor": 4.0},
    provenance={},
  )
  report = calibration_report.measure(calibration_report.rate(fitting.fit(samples), samples))
  assert report["confidence"]["expected_calibration_error"] < 0.02
  assert report["visible"]["false_alarm_rate"] == pytest.approx(0.02, abs=1e-3)
  assert report["confidence"]["raw_peak_auroc"] == 0.5
  shown = calibration_report.left_out(fitting, samples)
  assert len(shown.samples) == len(samples)
  assert calibration_report.measure(shown)["confidence"]["expected_calibration_error"] < 0.03
  one = [sample for sample in samples if sample.video == "v0"]
  assert calibration_report.left_out(fitting, one) is None


def test_targets_of_one_clip_are_left_out_together_and_tell_no_spread():
  rng = np.random.default_rng(0)

  def samples(video):
    kinds = ("present", "missed", "free", "removed") * 20
    return [
      confidence_samples.Sample(
        kind=kind, video=video, evidence=rng.normal(right, 1.0, 1), score=0.5, is_right=right
      )
      for kind in kinds
      for right in (kind in ("present", "free"),)
    ]

  fitting = calibration_report.Fitting(
    signs={"a": 1}, l2=1e-2, false_alarm_rate=0.05, fitted_for={}, provenance={}
  )
  one = samples("a/1") + samples("a/2")
  rated = calibration_report.rate(fitting.fit(one), one)
  assert (
    calibration_report.measure(rated)["confidence"]["expected_calibration_error_spread"] is None
  )
  assert calibration_report.left_out(fitting, one) is None
  other = samples("b/1")
  rated = calibration_report.left_out(fitting, one + other)
  assert calibration_report.measure(rated)["confidence"]["expected_calibration_error_spread"] > 0
  np.testing.assert_array_equal(
    rated.confidences[: len(one)], calibration_report.rate(fitting.fit(other), one).confidences
  )


def test_weights_come_from_crops():
  rng = np.random.default_rng(0)

  def sample(kind, axis, right):
    evidence = rng.normal(0, 1, 2)
    evidence[axis] += 2.0 if right else -2.0
    return confidence_samples.Sample(
      kind=kind, video=f"v{rng.integers(3)}", evidence=evidence, score=0.5, is_right=right
    )

  # In crops the first number tells what is right, in tracks the second one, and there are more of those.
  samples = [sample("free", 1, n % 2 == 0) for n in range(2000)]
  samples += [sample(("present", "missed")[n % 2], 0, n % 2 == 0) for n in range(500)]
  fitting = calibration_report.Fitting(
    signs={"a": 0, "b": 0}, l2=1e-2, false_alarm_rate=0.05, fitted_for={}, provenance={}
  )
  first, second = fitting.fit(samples).weights
  assert first > 20 * abs(second)


def test_a_fit_remembers_as_trackers_do():
  rng = np.random.default_rng(0)

  def sample(kind, right, video="v0", track=""):
    evidence = rng.normal(1.0 if right else -1.0, 2.0, 1)
    return confidence_samples.Sample(
      kind=kind, video=video, evidence=evidence, score=0.5, is_right=right, track=track
    )

  crops = [sample(kind, kind == "present") for kind in ("present", "missed") * 500]
  tracks = [
    sample(kind, kind == "free", video, track)
    for video in ("v0", "v1")
    for kind in ("free", "removed")
    for track in ("0", "40")
    for _ in range(200)
  ]
  told = {}
  for memory in (0.0, 0.8):
    fitting = calibration_report.Fitting(
      signs={"a": 1}, l2=0.0, false_alarm_rate=0.05, fitted_for={}, provenance={}, memory=memory
    )
    calibrator = fitting.fit(crops + tracks)
    assert calibrator.memory == memory
    told[memory] = rated = calibration_report.rate(calibrator, crops + tracks)
    # Crops are each by itself, a track's first frame too, and what follows as a tracker tells it.
    alone = calibrator.confidence(np.array([one.evidence for one in rated.samples]))
    np.testing.assert_allclose(rated.confidences[:1000], alone[:1000])
    before = None
    for row in range(1000, 1200):
      before = calibrator.remembered(before, alone[row])
      assert rated.confidences[row] == pytest.approx(before, abs=1e-6)
    assert rated.confidences[1200] == pytest.approx(alone[1200])
  found = {memory: calibration_report.measure(one)["confidence"] for memory, one in told.items()}
  assert found[0.8]["auroc"] > 0.97 > 0.9 > found[0.0]["auroc"]
  assert found[0.8]["expected_calibration_error"] < 0.03


def test_every_video_counts_alike_in_odds_and_threshold():
  rng = np.random.default_rng(0)

  def sample(kind, video, right, mean=None):
    mean = (1.0 if right else -1.0) if mean is None else mean
    return confidence_samples.Sample(
      kind=kind, video=video, evidence=rng.normal(mean, 1.0, 1), score=0.5, is_right=right
    )

  # Crops are told apart more easily, with log odds 4 x.
  crops = [
    sample(kind, "v0", kind == "present", mean=2.0 if kind == "present" else -2.0)
    for kind in ("present", "missed") * 200
  ]
  # The long one is right once in ten frames, the short one nine times.
  long = [sample("free", "v0", n % 10 == 0) for n in range(4000)]
  short = [sample("free", "v1", n % 10 != 0) for n in range(400)]
  fitting = calibration_report.Fitting(
    signs={"a": 1}, l2=1e-3, false_alarm_rate=0.3, fitted_for={}, provenance={}
  )
  calibrator = fitting.fit(crops + long + short)
  # By hand: of two videos alike, as many frames are right as not, and N(1, 1) and N(-1, 1) have log odds 2 x.
  weighing = calibrator.weighing()
  assert weighing.weights[0] == pytest.approx(2, abs=0.15)
  assert weighing.bias == pytest.approx(0, abs=0.15)
  # Of the negatives nine in fourteen are the long video's; those of the short one, N(5, 1), are all surer.
  short = [sample("free", "v1", n % 2 == 0, mean=5.0) for n in range(400)]
  calibrator = fitting.fit(crops + long + short)
  negatives = [one for one in short if not one.is_right]
  alarms = calibration_report.rate(calibrator, negatives).visible.mean()
  assert alarms == pytest.approx(0.3 * 14 / 5, abs=0.02)
