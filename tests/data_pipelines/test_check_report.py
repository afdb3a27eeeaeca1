"""The report names every finding, stands alone, and shows what is wrong."""

import base64
import dataclasses
import html.parser
import json
import pathlib
import re

import cv2
import numpy as np
import pytest

from data_pipelines import check_report, raw_scan
from data_pipelines.raw_findings import Finding, Picture

VOID = {"meta", "img", "br"}


class Page(html.parser.HTMLParser):
  """Checks that tags pair up; collects text, images and links."""

  def __init__(self, text: str):
    super().__init__()
    self.open, self.images, self.links, self.text = [], [], [], ""
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    if tag not in VOID:
      self.open.append(tag)
    self.images += [dict(attrs)["src"]] if tag == "img" else []
    self.links += [v for k, v in attrs if k in ("href", "src", "action")]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data if "style" not in self.open else ""


@pytest.fixture
def frame(tmp_path) -> pathlib.Path:
  """A dark frame, 200 x 120, with a bright square at 50, 30 of side 40."""
  image = np.full((120, 200, 3), 30, np.uint8)
  image[30:70, 50:90] = 220
  path = tmp_path / "0001.png"
  cv2.imwrite(str(path), image)
  return path


def make_scan(findings, samples=()) -> raw_scan.Scan:
  reports = [
    raw_scan.SequenceReport(split="train", sequence=f.sequence, findings=(f,), trains=1)
    for f in findings
  ]
  scan = raw_scan.gather(reports)
  return dataclasses.replace(scan, samples=tuple(samples))


def write(scan, folder, **settings) -> Page:
  check_report.write_report(scan, folder, dataset="mine", raw_dir="/raw <dir>", **settings)
  return Page((folder / "report.html").read_text())


def make_finding(frame, kind="jump", sequence="walk", **changes):
  fields = {
    "text": "it jumps",
    "frames": (4, 9),
    "count": 2,
    "file": "walk/0005.jpg",
    "pictures": (Picture(str(frame), 4, (50, 30, 40, 40)),),
  }
  return Finding(kind=kind, split="train", sequence=sequence, **(fields | changes))


def decode(uri: str) -> np.ndarray:
  data = base64.b64decode(re.fullmatch(r"data:image/jpeg;base64,(.+)", uri)[1])
  return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def test_the_page_names_sequence_file_frame_and_sentence(tmp_path, frame):
  page = write(make_scan([make_finding(frame)]), tmp_path / "report")
  for words in ("walk", "walk/0005.jpg", "frame 4", "It jumps (and 1 more).", "Sudden jumps"):
    assert words in page.text
  assert "2 warnings" in page.text
  assert len(page.images) == 1


def test_the_page_loads_nothing_from_elsewhere(tmp_path, frame):
  page = write(make_scan([make_finding(frame)]), tmp_path / "report")
  assert all(link.startswith(("data:", "#")) for link in page.links)
  assert not re.search(r"https?://|@import|<script", (tmp_path / "report/report.html").read_text())


def test_what_files_say_is_escaped(tmp_path, frame):
  evil = make_finding(frame, sequence="<script>x</script>", text="a <b> & c", file="<i>.jpg")
  page = write(make_scan([evil]), tmp_path / "report")
  assert "<script>x</script>" in page.text and "A <b> & c" in page.text and "<i>.jpg" in page.text
  assert "/raw <dir>" in page.text


def test_errors_come_before_warnings_and_notes(tmp_path, frame):
  kinds = ("partly_outside", "jump", "outside")
  page = write(make_scan([make_finding(frame, k, k) for k in kinds]), tmp_path / "report")
  places = [page.text.rindex(f"train: {kind}") for kind in reversed(kinds)]
  assert places == sorted(places)
  assert "2 errors" in page.text


def test_thumbnails_show_the_frame_with_its_box(tmp_path, frame):
  page = write(make_scan([make_finding(frame)]), tmp_path / "report")
  image = decode(page.images[0]).astype(int)
  assert image.shape == (120, 200, 3)
  assert image[50, 70].min() > 190 and image[100, 20].max() < 60
  # The outline is yellow: blue is missing.
  for x, y in ((50, 45), (70, 30)):
    assert image[y, x, 2] < image[y, x, :2].min() - 50


@pytest.mark.parametrize(
  ("box", "place", "shown_width"),
  [
    ((260, 30, 40, 40), (260, 30), 308),
    # The frame then begins behind a border: as far as the box reaches, and 4 % of the frame.
    ((-70, 30, 40, 40), (8, 30), 278),
    ((50, -60, 40, 40), (50, 4), 200),
  ],
)
def test_a_box_outside_its_frame_is_shown_beside_it(frame, box, place, shown_width):
  image = check_report.draw_picture(Picture(str(frame), 0, box))
  outline = (image[..., 2].astype(int) < image[..., :2].min(axis=-1).astype(int) - 50).nonzero()
  corner = np.array([outline[1].min(), outline[0].min()])
  np.testing.assert_allclose(corner * shown_width / image.shape[1], place, atol=2)


@pytest.mark.parametrize("content", [None, b"", b"no image"])
def test_a_file_that_shows_nothing_gets_a_grey_thumbnail(tmp_path, content):
  path = tmp_path / "gone.jpg"
  if content is not None:
    path.write_bytes(content)
  image = check_report.draw_picture(Picture(str(path), 0))
  assert image.shape == (192, 256, 3)


def test_a_file_that_was_cut_off_shows_what_is_left(tmp_path, frame):
  data = cv2.imencode(".jpg", cv2.imread(str(frame)))[1].tobytes()
  path = tmp_path / "cut.jpg"
  path.write_bytes(data[: len(data) * 9 // 10])
  assert check_report.read_picture(Picture(str(path), 0)).shape == (120, 200, 3)


def test_pictures_are_shared_between_kinds_and_the_rest_is_listed(tmp_path, frame):
  findings = [make_finding(frame, "outside", f"o{i}") for i in range(8)]
  findings += [make_finding(frame, "jump", f"j{i}") for i in range(8)]
  page = write(make_scan(findings), tmp_path / "report", most_pictures=6)
  assert len(page.images) == 6
  assert check_report.choose_findings(findings, 6) == [0, 1, 2, 8, 9, 10]
  assert all(f"train: {finding.sequence}" in page.text for finding in findings)


def test_the_json_has_every_finding_with_all_its_frames(tmp_path, frame):
  write(make_scan([make_finding(frame), make_finding(frame, "outside", "other")]), tmp_path)
  content = json.loads((tmp_path / "report.json").read_text())
  assert content["dataset"] == "mine"
  assert content["cases"] == {"error": 2, "warning": 2, "note": 0}
  assert content["findings"][1] == {
    "severity": "warning",
    "kind": "jump",
    "split": "train",
    "sequence": "walk",
    "text": "it jumps",
    "count": 2,
    "frames": [4, 9],
    "file": "walk/0005.jpg",
  }


def test_the_overview_shows_the_worst_or_else_samples(tmp_path, frame):
  note = make_finding(frame, "partly_outside")
  sample = ("walk", Picture(str(frame), 0, (50, 30, 40, 40)))
  write(make_scan([note], [sample] * 3), tmp_path / "clean")
  clean = cv2.imread(str(tmp_path / "clean" / "overview.png"))
  write(make_scan([note, make_finding(frame)], [sample] * 3), tmp_path / "bad")
  bad = cv2.imread(str(tmp_path / "bad" / "overview.png"))
  assert clean.shape[1] > 3 * 256 and bad.shape[1] == 256


def test_an_empty_scan_still_makes_a_report(tmp_path):
  page = write(make_scan([]), tmp_path / "report")
  assert "Nothing is wrong" in page.text
  assert {p.name for p in (tmp_path / "report").iterdir()} == {
    "report.html",
    "report.json",
    "overview.png",
  }


def test_an_interrupted_report_leaves_the_old_one(tmp_path, frame, monkeypatch):
  write(make_scan([make_finding(frame)]), tmp_path)
  before = (tmp_path / "report.html").read_bytes()
  files = sorted(tmp_path.iterdir())

  def full(self, *args, **kwargs):
    raise OSError("disk full")

  monkeypatch.setattr(pathlib.Path, "write_text", full)
  with pytest.raises(OSError, match="disk full"):
    check_report.write_report(make_scan([]), tmp_path, dataset="mine", raw_dir="")
  assert (tmp_path / "report.html").read_bytes() == before
  assert sorted(tmp_path.iterdir()) == files
