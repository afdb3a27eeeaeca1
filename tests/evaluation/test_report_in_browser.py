"""The HTML report in a real browser, driven over DevTools' pipe; skipped where there is no Chromium."""

import base64
import json
import os
import pathlib
import select
import shutil
import subprocess
import types

import cv2
import numpy as np
import pytest

from ostrack_jax.evaluation import html_report, report
from ostrack_jax.evaluation.videos import Video

CHROMIUM = next(
  filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
HOSTILE = "</script><img src=x onerror=alert(1)> & 'quoted\""


class Page:
  """A tab of a headless browser; keeps errors, and requests for anything but the page itself."""

  def __init__(self, profile: pathlib.Path):
    to_browser, self._write = os.pipe()
    self._read, from_browser = os.pipe()
    # DevTools reads from descriptor 3 and writes to 4; --no-sandbox because tests may run as root.
    options = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run"
    options += " --disable-extensions --disable-background-networking --remote-debugging-pipe"
    options += " --hide-scrollbars --window-size=1200,900"
    self._process = subprocess.Popen(
      ["bash", "-c", f'exec "$0" {options} --user-data-dir="$1" 3<&{to_browser} 4>&{from_browser}',
       CHROMIUM, str(profile)],
      pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(to_browser)
    os.close(from_browser)
    self._buffer, self._last, self._session = b"", 0, None
    self.errors: list[str] = []
    self.requests: list[str] = []
    self._events: set[str] = set()
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.call(f"{domain}.enable")

  def call(self, method: str, **params):
    """Send a command and return its result; events that come before it are kept."""
    self._last += 1
    message = {"id": self._last, "method": method, "params": params}
    if self._session:
      message["sessionId"] = self._session
    os.write(self._write, json.dumps(message).encode() + b"\0")
    while True:
      reply = self._receive()
      if reply.get("id") == self._last:
        assert "error" not in reply, reply["error"]
        return reply["result"]

  def _receive(self) -> dict:
    while b"\0" not in self._buffer:
      ready, _, _ = select.select([self._read], [], [], 60)
      assert ready, "the browser does not answer"
      data = os.read(self._read, 1 << 20)
      assert data, "the browser went away"
      self._buffer += data
    line, self._buffer = self._buffer.split(b"\0", 1)
    message = json.loads(line)
    method, params = message.get("method", ""), message.get("params", {})
    self._events.add(method)
    if method == "Runtime.exceptionThrown":
      self.errors.append(json.dumps(params["exceptionDetails"]))
    elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
      self.errors.append(params["entry"]["text"])
    elif method == "Runtime.consoleAPICalled":
      self.errors.append(json.dumps(params["args"]))
    elif method == "Page.javascriptDialogOpening":
      self.errors.append("dialog: " + params["message"])
    elif method == "Network.requestWillBeSent":
      self.requests.append(params["request"]["url"])
    return message

  def open(self, url: str) -> None:
    self._events.clear()
    self.call("Page.navigate", url=url)
    while "Page.loadEventFired" not in self._events:
      self._receive()

  def run(self, expression: str):
    """Evaluate JavaScript and return its value."""
    reply = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
    assert "exceptionDetails" not in reply, reply["exceptionDetails"]
    return reply["result"].get("value")

  def click(self, selector: str) -> None:
    """Click with the mouse in the middle of the element, where a person would."""
    x, y = self.run(
      f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
      "e.scrollIntoView({block: 'center', inline: 'center'}); "
      "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    for kind in ("mousePressed", "mouseReleased"):
      self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

  def press(self, key: str, code: int, text: str = "") -> None:
    held = {"key": key, "code": key, "windowsVirtualKeyCode": code}
    self.call("Input.dispatchKeyEvent", type="keyDown", **held, **({"text": text} if text else {}))
    self.call("Input.dispatchKeyEvent", type="keyUp", **held)

  def shown(self) -> list[str]:
    return self.run(
      "[...document.querySelectorAll('#sequences tbody tr')].filter(r => !r.hidden)"
      ".map(r => r.dataset.name)"
    )

  def picture(self, path: pathlib.Path) -> np.ndarray:
    data = base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])
    path.write_bytes(data)
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)

  def close(self) -> None:
    self._process.kill()
    self._process.wait()
    os.close(self._read)
    os.close(self._write)


def boxes(*offsets):
  return np.array([[20.0 + one, 15, 20, 20] for one in offsets])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """A report of two trackers on five sequences, one of them with a hostile name, with film strips."""
  folder = tmp_path_factory.mktemp("report")
  frames = []
  for i in range(5):
    frame = folder / f"{i}.png"
    cv2.imwrite(str(frame), np.full((60, 80, 3), 40 + 40 * i, np.uint8))
    frames.append(frame)
  truth = {name: boxes(0, 0, 0, 0, 0) for name in ("car-2", "car-10", "dog", HOSTILE)}
  truth["dog"][2] = np.nan
  # Without a second frame it has no AO.
  truth["short"] = boxes(0)
  offsets = {"car-2": 5, "car-10": 10, "dog": 2, HOSTILE: 15, "short": 0}
  predictions = {
    "left": {name: boxes(0, *(4 * [-step]))[: len(truth[name])] for name, step in offsets.items()},
    "<b>right": {
      name: boxes(0, *(4 * [step / 2]))[: len(truth[name])] for name, step in offsets.items()
    },
  }
  scored = {
    label: report.score(tracks, truth, rule="visible") for label, tracks in predictions.items()
  }
  found = {
    name: Video(
      name=name,
      frames=tuple(frames[: len(truth[name])]),
      boxes_xywh=truth[name],
      attributes=("fast motion",) if name == "dog" else (),
    )
    for name in truth
  }
  path = folder / "report.html"
  html_report.write_report(
    path, scored, dataset="folder", videos=found, predictions=predictions, notes={"note": HOSTILE}
  )
  return types.SimpleNamespace(path=path, scored=scored)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  if CHROMIUM is None:
    pytest.skip("no Chromium on this machine")
  page = Page(tmp_path_factory.mktemp("profile"))
  yield page
  page.close()


@pytest.fixture
def page(browser, written):
  """The report freshly opened; whatever a test does, nothing may fail or be fetched."""
  browser.errors.clear()
  browser.requests.clear()
  browser.open("about:blank")
  browser.open(written.path.as_uri())
  yield browser
  assert browser.errors == []
  fetched = [url for url in browser.requests if not url.startswith(("data:", "about:"))]
  assert {url.split("#")[0] for url in fetched} == {written.path.as_uri()}


def test_names_are_text_and_never_markup(page):
  assert HOSTILE in page.shown()
  assert page.run("document.querySelectorAll('img[src=x], b b').length") == 0
  assert HOSTILE in page.run("document.querySelector('dl').textContent")
  assert "<b>right" in page.run("document.querySelector('h1').textContent")


def test_clicking_a_heading_sorts_and_clicking_again_turns_round(page):
  page.click("th[data-key='0:ao'] button")
  assert page.shown() == ["dog", "car-2", "car-10", HOSTILE, "short"]
  assert page.run("document.querySelector(\"th[data-key='0:ao']\").ariaSort") == "descending"
  page.click("th[data-key='0:ao'] button")
  assert page.shown() == [HOSTILE, "car-10", "car-2", "dog", "short"]
  page.click("th[data-key='name'] button")
  # As people count: 2 before 10.
  assert [name for name in page.shown() if name != HOSTILE] == ["car-2", "car-10", "dog", "short"]


def test_what_is_not_known_sorts_last_both_ways(page):
  page.click("th[data-key='0:ao'] button")
  assert page.shown()[-1] == "short"
  page.click("th[data-key='0:ao'] button")
  assert page.shown()[-1] == "short"
  assert page.run("document.querySelectorAll('#sequences tbody td[data-value=\"\"]').length") > 0


def test_typing_filters_by_name_and_attribute(page):
  page.run("document.getElementById('filter').focus()")
  page.call("Input.insertText", text="CAR")
  assert page.shown() == ["car-2", "car-10"]
  assert page.run("document.getElementById('count').textContent") == "2 of 5 sequences"
  page.call("Input.insertText", text=" 10")
  assert page.shown() == ["car-10"]
  page.run("document.getElementById('filter').select()")
  page.call("Input.insertText", text="fast motion")
  assert page.shown() == ["dog"]


def test_a_row_shows_its_overlaps_by_keyboard_alone(page):
  assert page.run("document.getElementById('detail').hidden")
  page.run("document.querySelector(\"tr[data-name='dog'] button\").focus()")
  page.press("Enter", 13, "\r")
  assert page.run("document.getElementById('detail-name').textContent") == "dog"
  assert page.run("document.querySelectorAll('#chart path').length") == 2
  # Frame 2 is absent: a shaded patch, and each path starts anew behind it.
  assert page.run("document.querySelectorAll('#chart .absent').length") == 1
  assert page.run("document.querySelector('#chart path').getAttribute('d').split('M').length") == 3
  page.run("document.getElementById('frame').focus()")
  page.press("ArrowRight", 39)
  # 2 of 20 pixels off: 18 / 22; 1 pixel: 19 / 21.
  assert page.run("readout.textContent") == "frame 1: left 0.82, <b>right 0.90"
  page.press("ArrowRight", 39)
  assert "target absent" in page.run("readout.textContent")


def test_the_address_keeps_what_is_looked_at(page, written):
  page.click("th[data-key='1:ao'] button")
  page.click("tr[data-name='car-10'] button")
  kept = page.run("location.hash")
  page.open("about:blank")
  page.open(written.path.as_uri() + kept)
  assert page.shown() == ["dog", "car-2", "car-10", HOSTILE, "short"]
  assert page.run("document.getElementById('detail-name').textContent") == "car-10"


def test_film_strips_are_of_the_worst_first_and_decode(page):
  names = page.run("[...document.querySelectorAll('.strip h3')].map(h => h.firstChild.data.trim())")
  assert names == [HOSTILE, "car-10", "car-2", "dog"]
  heights = page.run("[...document.querySelectorAll('.strip img')].map(i => i.naturalHeight)")
  # dog has four frames with a target.
  assert heights == [150] * (5 * 3 + 4)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_legible_and_never_wider_than_the_window(page, tmp_path, scheme):
  page.call(
    "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
  )
  luminance = (
    "(name => { const [r, g, b] = getComputedStyle(document.body)[name].match(/[0-9]+/g)"
    ".map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);"
    "return 0.2126 * r + 0.7152 * g + 0.0722 * b; })"
  )
  ink, paper = (page.run(f"{luminance}('{name}')") for name in ("color", "backgroundColor"))
  assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 7
  image = page.picture(tmp_path / f"{scheme}.png")
  assert (image[:3].mean() > 200) == (scheme == "light")
  for width in (1200, 400):
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1,
              mobile=False)  # fmt: skip
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
  page.call("Emulation.clearDeviceMetricsOverride")
