"""The web page as a visitor uses it, in a real browser; skipped where there is no Chromium."""

import csv
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import cv2
import numpy as np
import pytest

from ostrack_jax import demo, visualization
from ostrack_jax.tracking.frames import open_frames

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(
  filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
WIDTH, HEIGHT, FRAMES = 160, 120, 10
TARGET = (40, 30, 40, 36)
MS = 60_000


def _wait(true, seconds=30):
  """Wait until a function gives something true, and return it."""
  end = time.monotonic() + seconds
  while not (found := true()):
    assert time.monotonic() < end, "it never came"
    time.sleep(0.1)
  return found


@pytest.fixture(scope="module")
def video(tmp_path_factory):
  """A patterned square that moves 2 pixels a frame before a pattern of another colour."""
  path = tmp_path_factory.mktemp("video") / "my clip.mp4"
  rng = np.random.default_rng(3)
  coarse = rng.integers(60, 160, (12, 16), dtype=np.uint8)
  background = np.stack([cv2.resize(coarse, (WIDTH, HEIGHT))] * 3, axis=2)
  x, y, w, h = TARGET
  target = cv2.resize(rng.integers(120, 256, (4, 4, 3), dtype=np.uint8), (w, h))
  target[..., 2] = 0
  with visualization.VideoWriter(path, fps=10) as writer:
    for number in range(FRAMES):
      frame = background.copy()
      frame[y : y + h, x + 2 * number : x + 2 * number + w] = target
      writer.write(frame)
  return path


@pytest.fixture(scope="module")
def server(tmp_path_factory):
  """The command as a process; gives its address and its temporary folder."""
  if CHROMIUM is None:
    pytest.skip("no Chromium on this machine")
  folder = tmp_path_factory.mktemp("server")
  environment = os.environ | {
    "TMPDIR": str(folder),
    # How the server notices that a page was closed.
    "GRADIO_HEARTBEAT_INTERVAL": "0.3",
    # Compiling takes longer here than running.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
  }
  process = subprocess.Popen(
    [sys.executable, "-m", "ostrack_jax.demo", "--max_upload_mb=1", "--max_frames=40"],
    cwd=pathlib.Path(demo.__file__).parents[1], env=environment, stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  try:
    line = process.stdout.readline()
    assert line.startswith("the page is at http://127.0.0.1:"), line
    (temporary,) = folder.glob("ostrack-demo-*")
    yield types.SimpleNamespace(address=line.split()[4], folder=temporary / "visitors")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert list(folder.glob("ostrack-demo-*")) == []
  finally:
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def browser(server):
  with playwright.sync_playwright() as driver:
    # --no-sandbox because tests may run as root.
    browser = driver.chromium.launch(
      executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
    )
    yield browser
    browser.close()


@pytest.fixture
def visitor(browser, server):
  """The page freshly opened; whatever a test does, no script may fail and no other server be asked."""
  page = browser.new_page(viewport={"width": 1280, "height": 900})
  page.set_default_timeout(MS)
  errors, requests = [], []
  page.on("pageerror", lambda error: errors.append(str(error)))
  page.on("request", lambda request: requests.append(request.url))
  page.goto(server.address)
  page.locator("#track").wait_for()
  yield page
  page.close()
  assert errors == []
  elsewhere = [u for u in requests if not u.startswith((server.address, "data:", "blob:"))]
  assert elsewhere == []
  # What the visitor had there goes with the page.
  _wait(lambda: not list(server.folder.glob("session-*")))


def _upload(page, path):
  page.set_input_files("#upload input[type=file]", path)
  page.locator("#clip", has_text="frames of").wait_for()
  page.locator("#frame .stage").wait_for()


def _point(page, x, y):
  """Return where a pixel of the frame is on the screen."""
  area = page.locator("#frame .stage").bounding_box()
  return area["x"] + x * area["width"] / WIDTH, area["y"] + y * area["height"] / HEIGHT


def _drag(page, x, y, w, h):
  page.mouse.move(*_point(page, x, y))
  page.mouse.down()
  page.mouse.move(*_point(page, x + w / 2, y + h / 2))
  page.mouse.move(*_point(page, x + w, y + h))
  page.mouse.up()


def _step(page, frame):
  page.fill("#step input[type=number]", str(frame))
  page.keyboard.press("Tab")
  page.locator(f"#frame .stage[aria-label^='Frame {frame};']").wait_for()


def _rows(page, count):
  """Wait for so many objects in the list and return their texts."""
  rows = page.locator("#objects tr")
  _wait(lambda: rows.count() == count)
  return [row.inner_text().split("\t")[:3] for row in rows.all()]


def _track(page):
  page.click("#track")
  page.locator("#status", has_text="tracked").or_(
    page.locator("#status", has_text="Tracked")
  ).wait_for()
  return page.locator("#status").inner_text().strip()


def _download(page, button, folder):
  with page.expect_download() as started:
    page.click(button)
  path = folder / started.value.suggested_filename
  started.value.save_as(path)
  return path


def _says(page, message):
  """Wait for a message, and close it."""
  toast = page.locator(".toast-body", has_text=message)
  toast.wait_for()
  page.locator(".toast-close").first.click()
  toast.wait_for(state="detached")


def test_a_visitor_uploads_draws_tracks_watches_and_downloads(visitor, video, tmp_path):
  page = visitor
  _upload(page, video)
  assert (
    "my clip.mp4: 10 frames of 160 x 120 pixels, 10 a second" in page.locator("#clip").inner_text()
  )
  # By dragging in frame 0, and by two clicks in frame 2.
  _drag(page, *TARGET)
  _rows(page, 1)
  _step(page, 2)
  assert page.locator("#frame rect").count() == 0
  page.mouse.click(*_point(page, 130, 90))
  page.mouse.click(*_point(page, 100, 70))
  assert [row[:2] for row in _rows(page, 2)] == [
    ["object 0", "from frame 0"],
    ["object 1", "from frame 2"],
  ]
  assert page.locator("#frame rect:not(.plate)").count() == 1
  page.click("#elimination input")
  page.get_by_role("option", name="of object 0").click()
  assert _track(page) == "Tracked all 10 frames of my clip.mp4."

  with _download(page, "#csv", tmp_path).open() as file:
    rows = list(csv.DictReader(file))
  assert [(int(row["frame"]), int(row["object"])) for row in rows] == [
    (0, 0), (1, 0), *((frame, number) for frame in range(2, FRAMES) for number in (0, 1)),
  ]  # fmt: skip
  boxes = {(int(r["frame"]), int(r["object"])): [float(r[k]) for k in "xywh"] for r in rows}
  # A pixel of the screen is less than half of one of the frame.
  np.testing.assert_allclose(boxes[0, 0], TARGET, atol=0.6)
  np.testing.assert_allclose(boxes[2, 1], (100, 70, 30, 20), atol=0.6)
  scores = [row["score"] for row in rows]
  assert scores[0] == "" and all(0 < float(one) < 1 for one in scores[1:3])
  # It moved by 18 pixels, and was followed.
  assert abs(boxes[9, 0][0] + boxes[9, 0][2] / 2 - (40 + 18 + 20)) < 12

  mp4 = _download(page, "#mp4", tmp_path)
  assert mp4.name == "my_clip_tracks.mp4"
  written = list(open_frames(mp4))
  assert len(written) == FRAMES and written[0].shape == (HEIGHT, WIDTH, 3)
  # The given box's left edge, in the first object's yellow.
  edge = written[0][34:60, 40].mean(axis=0)
  assert edge[0] > 150 and edge[0] - edge[2] > 60

  for name, size in (("#video", (WIDTH, HEIGHT)), ("#eliminated", None)):
    shown = page.locator(f"{name} video")
    _wait(lambda shown=shown: shown.evaluate("v => v.readyState") >= 2)
    assert shown.evaluate("v => v.error") is None
    assert shown.evaluate("v => v.duration") == pytest.approx(1.0 if size else 0.9, abs=0.05)
    if size:
      assert tuple(shown.evaluate("v => [v.videoWidth, v.videoHeight]")) == size
  plot = page.locator("#plot svg")
  plot.wait_for()
  # A line for each object, and the legend says which.
  _wait(lambda: plot.locator(".mark-line path").count() == 2)
  assert {"object 0 score", "object 1 score"} <= set(plot.locator("text").all_text_contents())


def test_boxes_by_numbers_and_the_list_of_objects(visitor, video):
  page = visitor
  _upload(page, video)
  _step(page, 4)
  page.get_by_text("Give a box by its numbers instead").click()
  for name, value in zip("xywh", (12.5, 20, 30, 41)):
    page.fill(f"#box_{name} input", str(value))
  page.click("#add")
  (row,) = _rows(page, 1)
  assert row == ["object 0", "from frame 4", "30 x 41 pixels at 12.5, 20"]
  page.click("#elimination input")
  page.get_by_role("option", name="of object 0").click()
  _step(page, 0)
  page.locator("#frame .stage").scroll_into_view_if_needed()
  _drag(page, *TARGET)
  # Counted in the order in which they start.
  assert [row[1] for row in _rows(page, 2)] == ["from frame 0", "from frame 4"]
  chosen = page.locator("#elimination input")
  _wait(lambda: chosen.input_value() == "of object 1")
  page.locator("#objects button[data-does=show]").nth(1).click()
  page.locator("#frame .stage[aria-label^='Frame 4;']").wait_for()
  assert page.locator("#frame text").text_content() == "1"
  page.locator("#objects button[data-does=remove]").nth(0).click()
  assert [row[1] for row in _rows(page, 1)] == ["from frame 4"]
  assert page.locator("#frame text").text_content() == "0"
  _wait(lambda: chosen.input_value() == "of object 0")


def test_what_cannot_be_done_is_said_in_a_sentence(visitor, video, tmp_path):
  page = visitor
  page.click("#track")
  _says(page, "choose a video first: upload one, or take an example")
  (tmp_path / "notes.mp4").write_text("no video")
  page.set_input_files("#upload input[type=file]", tmp_path / "notes.mp4")
  _says(page, "notes.mp4 is not a readable video")
  (tmp_path / "large.mp4").write_bytes(bytes(1_100_000))
  page.locator("#upload input[type=file]").set_input_files(tmp_path / "large.mp4")
  _says(page, "exceed the maximum allowed size")
  # After each of them the page can be used as before.
  _upload(page, video)
  page.click("#track:not([disabled])")
  _says(page, "draw a box around a target first")
  page.mouse.click(*_point(page, 30, 30))
  page.mouse.click(*_point(page, 33, 31))
  _says(page, "is too small to follow; draw one of 4 pixels or more on each side")
  assert page.locator("#objects tr").count() == 0
  page.locator("#track:not([disabled])").wait_for()


def test_an_example_comes_with_a_box_and_a_longer_one_is_cut_with_a_word(visitor):
  page = visitor
  page.locator("#examples button.thumbnail-item").first.click()
  page.locator("#clip", has_text="frames of 480 x 360").wait_for()
  assert (
    "It is longer; only its first 40 frames are used here" in page.locator("#clip").inner_text()
  )
  assert page.locator("#step input[type=range]").get_attribute("max") == "39"
  assert [row[1] for row in _rows(page, 1)] == ["from frame 0"]


def test_two_visitors_tracks_do_not_mix(visitor, browser, server, video, tmp_path):
  first, second = visitor, browser.new_page()
  second.set_default_timeout(MS)
  second.goto(server.address)
  for page, width in ((first, 40), (second, 30)):
    _upload(page, video)
    _drag(page, 40, 30, width, 36)
    _rows(page, 1)
    # As many as in the first test, so that nothing compiles again.
    _drag(page, 100, 70, width, 36)
    _rows(page, 2)
  assert len(list(server.folder.glob("session-*"))) == 2
  for page in (first, second):
    page.click("#track")
  for page, width in ((first, 40), (second, 30)):
    page.locator("#status", has_text="Tracked all 10 frames").wait_for()
    folder = tmp_path / str(width)
    folder.mkdir()
    lines = _download(page, "#csv", folder).read_text().splitlines()
    assert len(lines) == 1 + 2 * FRAMES
    given = [float(line.split(",")[4]) for line in lines[1:3]]
    assert given == pytest.approx([width, width], abs=0.6)
  second.close()
