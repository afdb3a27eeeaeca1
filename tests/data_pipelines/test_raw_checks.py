"""Each defect is found, alone, with its file and frame; clean data has no findings."""

import pathlib

import cv2
import numpy as np
import pytest

from data_pipelines import jpeg, raw_checks, raw_scan
from data_pipelines.builders.detection_folder import DetectionFolder
from data_pipelines.builders.frame_records import RawDataConfig
from data_pipelines.builders.masks import MaskSequences
from data_pipelines.builders.sequence_folder import SequenceFolder
from data_pipelines.raw_findings import KINDS

WIDTH, HEIGHT, FRAMES = 96, 64, 24


def make_jpeg(seed: int, width: int = WIDTH, height: int = HEIGHT) -> bytes:
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
  return cv2.imencode(".jpg", cv2.resize(coarse, (width, height)))[1].tobytes()


class RawFolder:
  """A raw folder with one clean sequence, to be spoilt."""

  def __init__(self, root: pathlib.Path):
    self.root = root
    self.boxes = [[20 + i, 15 + i / 2, 24, 20] for i in range(FRAMES)]

  def frame(self, number: int, sequence: str = "walk") -> pathlib.Path:
    return self.root / sequence / "img" / f"{number + 1:04d}.jpg"

  def write(self, sequence: str = "walk", frames: int = FRAMES, seed: int = 0) -> None:
    (self.root / sequence / "img").mkdir(parents=True, exist_ok=True)
    for number in range(frames):
      self.frame(number, sequence).write_bytes(make_jpeg(1000 * seed + number))
    self.write_boxes(sequence)

  def write_boxes(self, sequence: str = "walk") -> None:
    text = "\n".join(",".join(map(str, box)) for box in self.boxes)
    (self.root / sequence / "groundtruth.txt").write_text(text + "\n")

  def scan(self, builder_class=SequenceFolder, num_workers: int = 0) -> raw_scan.Scan:
    config = RawDataConfig(root=str(self.root))
    return raw_scan.scan(builder_class, config, ("train",), num_workers)

  def only_finding(self):
    (finding,) = self.scan().findings
    return finding


@pytest.fixture
def raw(tmp_path) -> RawFolder:
  folder = RawFolder(tmp_path / "raw")
  folder.write()
  return folder


def test_clean_data_has_no_findings_and_is_counted(raw):
  raw.write("run", seed=1)
  scan = raw.scan()
  assert scan.findings == ()
  summary = scan.summary["splits"]["train"]
  assert (summary["sequences"], summary["frames"], summary["targets_that_train"]) == (2, 48, 2)
  assert summary["visible_share"] == 1
  assert summary["box_size_quantiles"]["0.5"] == round(480**0.5, 1)
  assert scan.count("error") == 0


def _spoil_middle(data: bytes) -> bytes:
  half = len(data) // 2
  return data[:half] + bytes(60) + data[half + 60 :]


@pytest.mark.parametrize(
  ("spoil", "words"),
  [
    (lambda data: data[: len(data) // 2], "cut off"),
    (lambda data: data[: len(data) // 2] + b"\xff\xd9", "damaged"),
    (_spoil_middle, "damaged"),
    (lambda data: b"", "empty"),
    (lambda data: b"not found", "no image"),
    (lambda data: data[:40], "header is damaged"),
  ],
)
def test_a_frame_that_is_not_whole_is_an_error(raw, spoil, words):
  path = raw.frame(7)
  path.write_bytes(spoil(path.read_bytes()))
  finding = raw.only_finding()
  assert (finding.kind, finding.severity) == ("unreadable_frame", "error")
  assert (finding.sequence, finding.frames) == ("walk", (7,))
  assert finding.file == "walk/img/0008.jpg"
  assert "frame 7" in finding.text and words in finding.text


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp"])
def test_frames_of_other_formats_are_decoded_whole(raw, suffix):
  for number in range(FRAMES):
    path = raw.frame(number)
    image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    cv2.imwrite(str(path.with_suffix(suffix)), image)
    path.unlink()
  assert raw.scan().findings == ()
  path = raw.frame(3).with_suffix(suffix)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  assert (raw.only_finding().kind, raw.only_finding().frames) == ("unreadable_frame", (3,))


def test_damage_is_what_training_could_not_decode():
  data = make_jpeg(0, 320, 240)
  rng = np.random.default_rng(0)
  outcomes = set()
  for _ in range(60):
    spoilt = bytearray(data)
    for at in rng.integers(0, len(data), 3):
      spoilt[at] = int(rng.integers(256))
    problem, _ = raw_checks.frame_problem(bytes(spoilt))
    decodes = jpeg.decode(bytes(spoilt)) is not None and b"\xff\xd9" in spoilt[-4096:]
    assert (problem is None) == decodes
    outcomes.add(decodes)
  assert outcomes == {True, False}


def test_a_frame_of_another_size_is_named(raw):
  raw.frame(9).write_bytes(make_jpeg(9, 112, 80))
  finding = raw.only_finding()
  assert (finding.kind, finding.severity, finding.frames) == ("frame_size", "warning", (9,))
  assert "112 x 80" in finding.text and "96 x 64" in finding.text


def test_more_boxes_than_frames_is_an_error(raw):
  raw.frame(FRAMES - 1).unlink()
  finding = raw.scan().findings[0]
  assert (finding.kind, finding.sequence) == ("unreadable_sequence", "walk")
  assert "24 boxes" in finding.text and "23 frames" in finding.text


def test_frames_beyond_the_last_box_are_a_warning(raw):
  for number in (FRAMES, FRAMES + 1):
    raw.frame(number).write_bytes(make_jpeg(number))
  finding = raw.only_finding()
  assert (finding.kind, finding.severity) == ("left_over_frames", "warning")
  assert finding.file == "0025.jpg" and "26 images" in finding.text


def test_absent_targets_are_a_note_that_says_why(raw):
  raw.boxes[3] = raw.boxes[4] = [0, 0, 0, 0]
  raw.boxes[6] = ["NaN"] * 4
  raw.write_boxes()
  marks = [0] * FRAMES
  marks[8] = 1
  (raw.root / "walk" / "out_of_view.txt").write_text(",".join(map(str, marks)))
  finding = raw.only_finding()
  assert (finding.kind, finding.severity) == ("absent", "note")
  assert "not visible in 4 of 24 frames" in finding.text
  assert "1 NaN or flagged as lost, 2 without size, 1 marked as hidden" in finding.text
  assert "first in frame 3" in finding.text


def test_a_negative_size_is_a_warning_beside_the_note(raw):
  raw.boxes[10] = [60, 40, -24, -20]
  raw.write_boxes()
  found = {finding.kind: finding for finding in raw.scan().findings}
  assert set(found) == {"negative_size", "absent"}
  assert found["negative_size"].frames == (10,)


def test_boxes_are_checked_against_the_sizes_of_the_frames(raw):
  raw.boxes[12] = [200, 10, 24, 20]
  raw.write_boxes()
  finding = raw.only_finding()
  assert (finding.kind, finding.severity, finding.frames) == ("outside", "error", (12,))
  assert finding.file == "walk/img/0013.jpg"
  assert "frame 12" in finding.text and "96 x 64" in finding.text


def test_identical_frames_are_found_by_content(raw):
  raw.frame(14).write_bytes(raw.frame(13).read_bytes())
  raw.frame(20).write_bytes(raw.frame(2).read_bytes())
  finding = raw.only_finding()
  assert (finding.kind, finding.frames) == ("same_frame", (14,))
  assert [picture.frame for picture in finding.pictures] == [13, 14]


def test_an_unreadable_frame_that_repeats_is_unreadable_each_time(raw):
  for number in (13, 14):
    raw.frame(number).write_bytes(b"nothing")
  found = {finding.kind: finding.frames for finding in raw.scan().findings}
  assert found == {"unreadable_frame": (13, 14), "same_frame": (14,)}


@pytest.mark.parametrize("visible", [4, 19])
def test_sequences_that_the_sampler_leaves_out_are_named(raw, visible):
  raw.boxes = raw.boxes[:visible]
  if visible < 5:
    raw.boxes += [[0, 0, 0, 0]] * (FRAMES - visible)
  raw.write("short", frames=len(raw.boxes), seed=1)
  found = {finding.kind: finding for finding in raw.scan().findings}
  assert found["too_short"].severity == "warning" and found["too_short"].sequence == "short"
  assert "20 frames and 5 visible" in found["too_short"].text
  assert set(found) <= {"too_short", "absent"}


def test_five_visible_of_twenty_frames_are_enough(raw):
  raw.boxes = raw.boxes[:5] + [[0, 0, 0, 0]] * 15
  raw.write("enough", frames=20, seed=1)
  assert [finding.kind for finding in raw.scan().findings] == ["absent"]


def test_a_split_that_cannot_train_is_an_error(tmp_path):
  raw = RawFolder(tmp_path / "raw")
  raw.boxes = raw.boxes[:8]
  raw.write(frames=8)
  kinds = [finding.kind for finding in raw.scan().findings]
  assert kinds == ["nothing_trains", "too_short"]


def test_a_sequence_that_cannot_be_read_does_not_stop_the_others(raw):
  raw.write("second", seed=1)
  (raw.root / "walk" / "groundtruth.txt").write_text("1,2,3,4\nfive\n")
  raw.frame(2, "second").write_bytes(b"")
  found = [(finding.kind, finding.sequence) for finding in raw.scan().findings]
  assert found == [("unreadable_sequence", "walk"), ("unreadable_frame", "second")]
  assert "line 2" in raw.scan().findings[0].text


def test_the_same_video_under_two_names_is_found(raw):
  raw.write("copy")
  finding = raw.only_finding()
  assert (finding.kind, finding.sequence) == ("same_image", "walk")
  assert "as copy of split train" in finding.text
  assert len(finding.pictures) == 2


def test_a_name_that_occurs_twice_is_an_error():
  reports = [
    raw_checks.SequenceReport(split="train", sequence="a", findings=(), trains=1) for _ in range(2)
  ]
  (finding,) = raw_checks.check_together(reports)
  assert (finding.kind, finding.severity) == ("same_name", "error")


def test_still_images_are_checked_by_target_and_joined_by_image(tmp_path):
  raw = RawFolder(tmp_path / "raw")
  (raw.root / "images").mkdir(parents=True)
  (raw.root / "labels").mkdir()
  contents = {
    "fine": "0 0.5 0.5 0.4 0.4\n",
    "tiny": "0 0.5 0.5 0.01 0.4\n1 0.3 0.3 0.5 0.5\n2 0.2 0.2 0.005 0.1\n",
    "empty": "0 0.5 0.5 0.4 0.4\n0 0.5 0.5 0 0\n",
  }
  for seed, (name, rows) in enumerate(contents.items()):
    (raw.root / "images" / f"{name}.jpg").write_bytes(make_jpeg(seed))
    (raw.root / "labels" / f"{name}.txt").write_text(rows)
  scan = raw.scan(DetectionFolder)
  found = [(f.kind, f.sequence, f.count) for f in scan.findings]
  assert found == [("tiny_box", "tiny", 2), ("absent", "empty", 1)]
  assert scan.findings[1].file == "images/empty.jpg"
  assert scan.summary["splits"]["train"]["targets"] == 6
  assert scan.summary["splits"]["train"]["targets_that_train"] == 5


def test_findings_come_worst_first_and_do_not_depend_on_the_workers(raw):
  raw.write("b", seed=1)
  raw.frame(3, "b").write_bytes(b"")
  raw.boxes[4] = [0, 0, 0, 0]
  raw.write("a", seed=2)
  raw.frame(4, "walk").write_bytes(raw.frame(3, "walk").read_bytes())

  def all_of(scan):
    return [(f.kind, f.sequence, f.frames, f.file, f.text) for f in scan.findings]

  alone, together = raw.scan(), raw.scan(num_workers=2)
  assert [f.severity for f in alone.findings] == ["error", "warning", "note"]
  assert all_of(alone) == all_of(together)
  assert alone.summary == together.summary


def test_every_kind_is_in_the_order_of_its_severity():
  severities = [severity for severity, _ in KINDS.values()]
  assert severities == sorted(severities, key=("error", "warning", "note").index)


@pytest.mark.parametrize(
  ("builder_class", "folder"),
  [
    (SequenceFolder, "sequences/OTB"),
    (SequenceFolder, "sequences/TinyTLP"),
    (SequenceFolder, "sequences/VOT"),
    (SequenceFolder, "sequences/LaSOT"),
    (MaskSequences, "sequences/DAVIS2016"),
    (DetectionFolder, "detection/coco128_yolo"),
  ],
)
def test_real_data_has_no_errors(reference_dir, builder_class, folder):
  raw = RawFolder(reference_dir / "data" / folder)
  assert raw.scan(builder_class).count("error") == 0
