"""The HTML report as text; test_report_in_browser.py opens it."""

import base64
import html.parser
import json
import re

import cv2
import numpy as np
import pytest

from ostrack_jax.evaluation import film_strips, html_report, report
from ostrack_jax.evaluation.videos import Video

STILL = np.tile([10.0, 10, 20, 20], (4, 1))
MOVING = STILL + np.array([[0, 0, 0, 0], [5, 0, 0, 0], [10, 0, 0, 0], [30, 0, 0, 0]])


class Elements(html.parser.HTMLParser):
  """Elements of a page: (tag, attributes), and that all of them are closed in order."""

  def __init__(self, text):
    super().__init__()
    self.found, self._open = [], []
    self.feed(text)
    assert self._open == []

  def handle_starttag(self, tag, attrs):
    self.found.append((tag, dict(attrs)))
    if tag not in ("meta", "link", "img", "input"):
      self._open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.found.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self._open.pop() == tag


def written(tmp_path, trackers, **options):
  path = tmp_path / "report.html"
  html_report.write_report(path, trackers, **{"dataset": "folder", **options})
  return path.read_text()


def data_of(page):
  return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def summary_of(predicted=STILL, annotated=MOVING, **options):
  return report.score({"a": predicted}, {"a": annotated}, **options)


def test_overlaps_over_time_are_bytes_of_percent(tmp_path):
  annotated = MOVING.copy()
  annotated[2] = np.nan
  data = data_of(
    written(tmp_path, {"x": summary_of(annotated=annotated), "y": summary_of(annotated, annotated)})
  )
  assert data["trackers"] == ["x", "y"]
  # 5 of 20 pixels off: 15 / 25; absent is 255.
  assert [list(base64.b64decode(one)) for one in data["overlaps"]["a"]] == [
    [100, 60, 255, 0],
    [100, 100, 255, 100],
  ]


def test_the_page_is_well_formed_and_refers_to_nothing_outside(tmp_path):
  page = written(tmp_path, {"x": summary_of()})
  for tag, attributes in Elements(page).found:
    for key in ("src", "href", "action", "data", "poster", "srcset"):
      assert attributes.get(key, "data:").startswith("data:"), tag
  assert "default-src 'none'" in page
  assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", page)


@pytest.mark.parametrize(
  ("dataset", "rule", "printed", "beside_curves"),
  [
    ("lasot", "visible", {"69.1", "78.7", "75.2", "71.1"}, (69.1, 75.2, 78.7)),
    ("trackingnet", "trackingnet", {"83.1", "87.8", "82.0"}, (83.1, 82.0, 87.8)),
    ("got10k_test", "got10k", {"71.0", "80.4", "68.2"}, (71.0,)),
    ("uav123", "pytracking_uav", {"68.3", "70.7"}, (68.3,)),
  ],
)
def test_published_end_numbers_stand_beside_ours(tmp_path, dataset, rule, printed, beside_curves):
  page = written(tmp_path, {"mine": summary_of(rule=rule)}, dataset=dataset)
  assert printed <= set(re.findall(r">([\d.]+)</td>", page))
  figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
  assert len(figures) == 3
  assert all("mine" in figure for figure in figures)
  for figure, number in zip(figures, beside_curves):
    assert f"OSTrack-256</th><td>{number}</td>" in figure
  assert "OSTrack-256" not in written(tmp_path, {"mine": summary_of()}, dataset="otb")


def test_ours_are_in_percent_and_in_order_of_the_first_measure(tmp_path):
  page = written(tmp_path, {"still": summary_of(), "exact": summary_of(MOVING)})
  overall = page[page.index("<h2>Overall") : page.index("<h2>Curves")]
  assert overall.index("exact") < overall.index("still")
  assert ">95.2<" in overall
  assert "not those of the whole benchmark" not in overall
  assert "1 of 9 sequences" in written(tmp_path, {"x": summary_of(declared=9)})


def test_trackers_that_cannot_be_compared_are_refused(tmp_path):
  ours = summary_of()
  other = report.score({"b": STILL}, {"b": STILL})
  short = summary_of(STILL[:2], STILL[:2])
  for trackers, said in (
    ({}, "no trackers"),
    ({"x": ours, "y": summary_of(rule="otb")}, "x is scored by rule visible and y by otb"),
    ({"x": ours, "y": other}, "x and y differ in the sequences a, b"),
    ({"x": ours, "y": short}, "sequence a has 4 frames for x and 2 for y"),
  ):
    with pytest.raises(ValueError, match=said):
      written(tmp_path, trackers)
  assert not list(tmp_path.iterdir())


def test_attributes_are_tabled_where_there_are_some(tmp_path):
  video = Video(name="a", frames=(), boxes_xywh=MOVING, attributes=("dim <light>",))
  page = written(tmp_path, {"x": summary_of()}, videos={"a": video})
  assert "dim &lt;light&gt;" in page
  assert "<h2>Attributes</h2>" in page
  assert "<h2>Attributes</h2>" not in written(tmp_path, {"x": summary_of()})


def test_every_number_says_its_rule_and_definition(tmp_path):
  page = written(tmp_path, {"x": summary_of(rule="otb")}, notes={"checkpoint": "s_256"})
  rules = page[page.index("What made each number") :]
  assert re.search(r"<td>success_auc</td><td>otb</td><td>mean of the success curve", rules)
  assert re.search(r"<td>ao</td><td>got10k, unclipped</td>", rules)
  assert "<dd>s_256</dd>" in page


def test_speed_has_a_column_where_it_is_known(tmp_path):
  timed = summary_of(seconds={"a": np.array([1.0, 0.1, 0.1, 0.1])})
  assert written(tmp_path, {"x": timed, "y": summary_of()}).count(">10.0<") == 3
  assert ">FPS<" not in written(tmp_path, {"x": summary_of()})


@pytest.fixture
def video(tmp_path):
  """Four dark frames of 120x60."""
  frames = []
  for i in range(4):
    frames.append(tmp_path / f"{i}.png")
    cv2.imwrite(str(frames[-1]), np.zeros((60, 120, 3), np.uint8))
  return Video(name="a", frames=tuple(frames), boxes_xywh=MOVING)


def decoded(picture):
  data = base64.b64decode(picture.url.removeprefix("data:image/jpeg;base64,"))
  return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1].astype(int)


def test_film_strips_draw_both_boxes_where_they_are(video):
  (first, last) = film_strips.strip(video, {"x": STILL}, [(255, 0, 0)], 2)
  assert (first.frame, last.frame) == (0, 3)
  assert (first.overlaps, last.overlaps) == ({"x": 1.0}, {"x": 0.0})
  image = decoded(last)
  # Frames of 60 rows become 150: predicted from x 25 to 75, annotated from 100 to 150, rows 25 to 75.
  assert image.shape == (150, 300, 3)
  red, white = image[50, 25], image[50, 100]
  assert red[0] > 150
  assert red[1:].max() < 110
  assert white.min() > 150
  assert image[50, 200].max() < 40


def test_film_strips_leave_out_absent_frames(video):
  boxes = MOVING.copy()
  boxes[1] = np.nan
  hidden = Video(
    name="a", frames=video.frames, boxes_xywh=boxes, visible=np.array([True, True, False, True])
  )
  shown = film_strips.strip(hidden, {"x": STILL[:1]}, [(255, 0, 0)], 6)
  assert [one.frame for one in shown] == [0, 3]
  # The result ends before frame 3.
  assert shown[1].overlaps == {"x": 0.0}


def test_the_worst_sequences_are_those_of_lowest_mean_ao():
  truth = {"a": STILL, "b": MOVING, "c": STILL, "d": STILL[:1]}
  one = report.score({name: STILL[: len(boxes)] for name, boxes in truth.items()}, truth)
  two = report.score({**truth, "c": MOVING}, truth)
  assert film_strips.worst({"one": one, "two": two}, 9) == ["b", "c", "a"]
  assert film_strips.worst({"one": one, "two": two}, 1) == ["b"]


def test_a_worst_sequence_needs_frames_and_predictions(tmp_path, video):
  tracker = {"x": summary_of()}
  with pytest.raises(ValueError, match="sequence a has no predictions of x"):
    written(tmp_path, tracker, videos={"a": video}, predictions={"x": {"b": STILL}})
  page = written(tmp_path, tracker, videos={"a": video}, predictions={"x": {"a": STILL}})
  assert page.count('src="data:image/jpeg;base64,') == 4
