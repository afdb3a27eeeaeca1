import csv
import os
import pathlib
import sys
import types
from typing import ClassVar

import cv2
import numpy as np
import pytest

import ostrack_jax
from ostrack_jax import command_line, track, track_outputs, visualization
from ostrack_jax.tracking import cutting
from ostrack_jax.tracking.frames import open_frames
from ostrack_jax.tracking.long_term import LongTermSettings
from ostrack_jax.tracking.multi_tracker import TrackedObjects
from ostrack_jax.tracking.tracker import TrackResult


class _Shifting:
  """A MultiTracker without a network: moves every box by 1.25 pixels a frame."""

  # Whether the source was called live, by the tracks in turn.
  live: ClassVar[list[bool]] = []

  def __init__(self, checkpoint=None, max_objects=1, search_factor=None, long_term=None):
    self.max_objects, self.search_factor = max_objects, search_factor or 4.0
    self.calibrated = {}

  def track(self, frames, boxes_by_frame, is_live=False):
    self.live.append(is_live)
    boxes = {}
    for index, image in enumerate(frames):
      boxes = {number: box + np.array([1.25, 0, 0, 0]) for number, box in boxes.items()}
      results = {n: TrackResult(box, 0.875, **self.calibrated) for n, box in boxes.items()}
      for box in boxes_by_frame.get(index, ()):
        try:
          boxes[len(boxes)] = cutting.checked_box(box, image.shape[:2])
        except ValueError as error:
          raise ValueError(f"frame {index}: {error}") from error
        results[len(results)] = TrackResult(boxes[len(results)], float("nan"))
      assert len(boxes) <= self.max_objects
      yield TrackedObjects(index=index, image=image, results=results, seconds=0.01)


@pytest.fixture
def clip(tmp_path):
  """A folder of six numbered images."""
  folder = tmp_path / "clip"
  folder.mkdir()
  for number in range(6):
    cv2.imwrite(str(folder / f"{number}.png"), np.full((48, 64, 3), 20 * number, np.uint8))
  return folder


@pytest.fixture
def command(monkeypatch, capsys):
  """Runs the command in this process without a network; gives (exit code, stdout, stderr)."""
  monkeypatch.setattr(_Shifting, "live", [])
  complete = types.SimpleNamespace(description={"complete": True})
  monkeypatch.setattr(ostrack_jax, "load", lambda path, **options: complete, raising=False)
  monkeypatch.setattr(ostrack_jax, "MultiTracker", _Shifting, raising=False)

  def run(*arguments):
    track.FLAGS.unparse_flags()
    for name in track.FLAGS:
      track.FLAGS[name].unparse()
    try:
      code = track.main(
        command_line.parse(["track", *arguments], "ostrack-track", track.FLAGS, track.__doc__)
      )
    except SystemExit as stop:
      code = stop.code
      if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    return code, *capsys.readouterr()

  return run


def _files(folder):
  return sorted(p.name for p in folder.iterdir() if p.is_file())


def test_boxes_and_video_are_written(clip, tmp_path, command):
  code, out, _ = command(
    "--checkpoint=x", f"--source={clip}", "--init_box=10.5,8,20,12",
    f"--output={tmp_path / 'o.mp4'}", f"--boxes={tmp_path / 'o.csv'}",
  )  # fmt: skip
  assert code == 0
  assert "6 frames" in out and "o.mp4" in out and "o.csv" in out
  with (tmp_path / "o.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert ",".join(rows[0]) == "frame,object,x,y,w,h,score,confidence,visible"
  values = np.array([[float(v or "nan") for v in row.values()] for row in rows])
  np.testing.assert_array_equal(values[:, 0], np.arange(6))
  np.testing.assert_array_equal(values[:, 1], 0)
  np.testing.assert_array_equal(values[:, 2], 10.5 + 1.25 * np.arange(6))
  np.testing.assert_array_equal(values[:, 3:6], np.tile([8, 20, 12], (6, 1)))
  np.testing.assert_array_equal(values[:, 6], [np.nan] + [0.875] * 5)
  assert np.isnan(values[:, 7:]).all()
  video = list(open_frames(tmp_path / "o.mp4"))
  assert len(video) == 6
  for number, frame in enumerate(video):
    assert abs(int(frame[-1, -1, 0]) - 20 * number) < 12
    # The left edge of the box, in the track's colour.
    edge = frame[8:21, round(10.5 + 1.25 * number)].mean(axis=0)
    assert edge[0] > 180 and edge[0] - edge[2] > 50  # yellow on grey


def test_each_output_can_be_had_alone(clip, tmp_path, command):
  common = ("--checkpoint=x", f"--source={clip}", "--init_box=10,8,20,12")
  assert command(*common, f"--boxes={tmp_path / 'o.csv'}")[0] == 0
  assert _files(tmp_path) == ["o.csv"]
  (tmp_path / "o.csv").unlink()
  assert command(*common, f"--output={tmp_path / 'o.mp4'}")[0] == 0
  assert _files(tmp_path) == ["o.mp4"]


def test_objects_of_both_flags_are_followed_from_where_they_start(
  clip, tmp_path, command, monkeypatch
):
  made = []

  class Noted(_Shifting):
    def __init__(self, *args, **kwargs):
      super().__init__(*args, **kwargs)
      made.append(self.max_objects)

  monkeypatch.setattr(ostrack_jax, "MultiTracker", Noted, raising=False)
  starts = tmp_path / "starts.txt"
  starts.write_text(
    "frame,x,y,w,h\n4, 1.5,2,9,9  # late\n\n0 5 6 7 8\n4\t3\t3\t9\t9\n", "utf-8-sig"
  )
  code, _, err = command(
    "--checkpoint=x", f"--source={clip}", "--init_box=1,2,9,9", "--init_box=3,4,9,9",
    f"--init_boxes={starts}", f"--boxes={tmp_path / 'o.csv'}", f"--json={tmp_path / 'o.jsonl'}",
    f"--mot={tmp_path / 'o.mot'}", f"--output={tmp_path / 'o.mp4'}", "--trail=3", "--inset",
    "--colour=blue", "--colour=#ff0000", "--line_width=1", "--fps=12",
  )  # fmt: skip
  assert code == 0, err
  assert made == [5]
  with (tmp_path / "o.csv").open() as file:
    rows = list(csv.DictReader(file))
  first = {row["object"]: row for row in reversed(rows)}
  found = {number: (row["frame"], float(row["x"]), row["score"]) for number, row in first.items()}
  assert found == {
    "0": ("0", 1, ""), "1": ("0", 3, ""), "2": ("0", 5, ""), "3": ("4", 1.5, ""), "4": ("4", 3, ""),
  }  # fmt: skip
  assert len(rows) == 6 * 3 + 2 * 2
  for name in ("o.jsonl", "o.mot"):
    assert len((tmp_path / name).read_text().splitlines()) == len(rows)
  video = open_frames(tmp_path / "o.mp4")
  assert (len(video), video.fps) == (6, 12)


def test_a_line_says_how_to_get_videos_that_browsers_play(clip, tmp_path, command, monkeypatch):
  common = ("--checkpoint=x", f"--source={clip}", "--init_box=10,8,20,12", "--overwrite")
  for codec, said in (("mp4v", True), ("h264", False)):
    if codec == "h264":
      pytest.importorskip("av")
    monkeypatch.setattr(visualization, "default_codec", lambda codec=codec: codec)
    code, out, _ = command(*common, f"--output={tmp_path / 'o.mp4'}")
    assert code == 0 and ("for H.264: pip install av" in out) is said


def test_raw_frames_on_standard_input_are_followed_and_an_object_that_never_came_is_told(
  clip, tmp_path, command, monkeypatch
):
  (tmp_path / "raw").write_bytes(np.stack(list(open_frames(clip))).tobytes())
  (tmp_path / "starts.txt").write_text("9,1,2,9,9")
  common = (
    "--checkpoint=x",
    "--source=-",
    "--frame_size=64x48",
    "--init_box=1,2,9,9",
    "--overwrite",
  )
  boxes = f"--boxes={tmp_path / 'o.csv'}"
  for more, expected in (((), 0), ((f"--init_boxes={tmp_path / 'starts.txt'}",), 1)):
    with (tmp_path / "raw").open("rb", buffering=0) as stdin:
      monkeypatch.setattr(track.io, "FileIO", lambda *_, stdin=stdin, **__: stdin)
      code, _, err = command(*common, boxes, *more)
    assert code == expected
    assert _Shifting.live.pop() is True
    # The files are there either way.
    assert len((tmp_path / "o.csv").read_text().splitlines()) == 7
  assert "an object starts in frame 9, but stdin has 6 frames, 0 to 5" in err


def test_files_are_replaced_only_when_asked(clip, tmp_path, command):
  (tmp_path / "o.csv").write_text("precious")
  arguments = (
    "--checkpoint=x", f"--source={clip}", "--init_box=10,8,20,12", f"--boxes={tmp_path / 'o.csv'}",
  )  # fmt: skip
  code, _, err = command(*arguments)
  assert code == 1 and "o.csv exists; pass --overwrite" in err
  assert (tmp_path / "o.csv").read_text() == "precious"
  assert command(*arguments, "--overwrite")[0] == 0
  assert (tmp_path / "o.csv").read_text().startswith("frame,object,x")


def test_a_broken_frame_leaves_no_output(clip, tmp_path, command):
  (clip / "4.png").write_bytes(b"broken")
  code, _, err = command(
    "--checkpoint=x", f"--source={clip}", "--init_box=10,8,20,12",
    f"--output={tmp_path / 'o.mp4'}", f"--boxes={tmp_path / 'o.csv'}",
  )  # fmt: skip
  assert code == 1
  assert err.splitlines()[-1] == f"ostrack-track: {clip / '4.png'} is not a readable image"
  assert _files(tmp_path) == []


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"--source": None}, "--source missing"),
    ({"--source": None, "--init_box": None}, "--source and --init_box missing"),
    ({"--boxes": None}, "give --output=OUT.mp4, --boxes=OUT.csv, --json=OUT.jsonl"),
    ({"--init_box": "1,2,3"}, "--init_box=1,2,3 must be four numbers"),
    ({"--init_box": "1,2,3,wide"}, "must be four numbers"),
    ({"--init_box": "nan,2,3,4"}, "frame 0: box_xywh (nan, 2.0, 3.0, 4.0) must be four finite"),
    ({"--init_box": "999,2,3,4"}, "frame 0: box_xywh [999.0, 2.0, 3.0, 4.0] lies outside"),
    ({"--init_boxes": "none.txt"}, "--init_boxes=none.txt does not exist"),
    ({"--init_boxes": "bad.txt"}, "bad.txt line 3 is '2,1,2,3'; expected frame,x,y,w,h"),
    ({"--init_boxes": "early.txt"}, "early.txt line 1 is '-1 1 2 9 9'; expected frame,x,y,w,h"),
    ({"--init_boxes": "empty.txt"}, "empty.txt holds no box; expected lines of frame,x,y,w,h"),
    ({"--init_boxes": "late.txt"}, "starts in frame 6, but clip has 6 frames, 0 to 5"),
    ({"--source": "nowhere.mp4"}, "nowhere.mp4 does not exist"),
    ({"--output": "o.avi"}, "--output=o.avi must end in .mp4"),
    ({"--boxes": "nowhere/o.csv"}, "there is no folder nowhere"),
    ({"--boxes": "."}, "cannot write .: it is a folder"),
    ({"--output": "o.mp4", "--boxes": "./o.mp4"}, "both name o.mp4"),
    ({"--output": "in.mp4", "--source": "in.mp4"}, "in.mp4 is read, as --source; write to another"),
    (
      {"--init_boxes": "late.txt", "--boxes": "./late.txt", "--overwrite": "true"},
      "late.txt is read, as --init_boxes",
    ),
    ({"--checkpoint": "empty.txt", "--mot": "empty.txt", "--overwrite": "true"}, "as --checkpoint"),
    ({"--init_boxes": "latin.txt"}, "latin.txt is not UTF-8 text"),
    ({"--boxes": "o.txt", "--mot": "o.txt"}, "--boxes and --mot both name o.txt"),
    ({"--search_factor": "wide"}, "search_factor"),
    ({"--color": "red"}, "Unknown command line flag 'color'"),
    ({"--colour": "red"}, "--colour=red is unknown; give #rrggbb or one of yellow, sky_blue"),
    ({"--line_width": "0"}, "--line_width=0 must lie between 1 and 100"),
    ({"--trail": "-1"}, "--trail=-1 must be a number of frames"),
    ({"--fps": "0"}, "fps"),
    ({"--frame_size": "64x48"}, "--frame_size=64x48 is of raw frames, --source=-"),
    ({"--source": "-"}, "--source=- needs --frame_size=WIDTHxHEIGHT"),
    ({"--source": "-", "--frame_size": "64"}, "--frame_size=64 must be WIDTHxHEIGHT"),
    ({"--source": "-", "--frame_size": "0x9"}, "--frame_size=0x9 must be WIDTHxHEIGHT"),
    ({"--pixel_format": "yuv"}, "pixel_format"),
    ({"--source": "97"}, "camera 97 cannot be opened"),
    (
      {"--show": "true"},
      "--show needs an OpenCV with windows: pip uninstall opencv-python-headless",
    ),
    ({"surplus": None}, "unexpected argument 'surplus'"),
  ],
)
def test_mistakes_are_named_in_one_sentence(clip, tmp_path, command, monkeypatch, changes, message):
  monkeypatch.chdir(tmp_path)
  texts = {
    "bad": "frame x y w h\n0,1,2,9,9\n2,1,2,3\n", "early": "-1 1 2 9 9\n", "empty": "# none\n\n",
    "late": "6,1,2,9,9\n", "latin": "0,1,2,9,9  # caf\u00e9\n",
  }  # fmt: skip
  for name, text in texts.items():
    pathlib.Path(f"{name}.txt").write_text(text, "latin-1")
  monkeypatch.setattr(
    track_outputs.cv2, "getBuildInformation", lambda: "    GUI:                           NONE\n"
  )
  given = {"--checkpoint": "x", "--source": "clip", "--init_box": "1,2,9,9", "--boxes": "o.csv"}
  surplus = [name for name in changes if not name.startswith("--")]
  given |= {name: value for name, value in changes.items() if name.startswith("--")}
  arguments = [f"{name}={value}" for name, value in given.items() if value is not None]
  code, _, err = command(*arguments, *surplus)
  assert code == 1
  last = err.strip().splitlines()[-1]
  assert last.startswith("ostrack-track: ") and message in last
  assert "Traceback" not in err
  assert _files(tmp_path) == sorted(f"{name}.txt" for name in texts)
  assert all(pathlib.Path(f"{name}.txt").stat().st_size == len(texts[name]) for name in texts)


def test_a_read_only_folder_is_named_before_the_work(clip, tmp_path, command, monkeypatch):
  # Told, not made, since root may write everywhere.
  monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
  code, _, err = command(
    "--checkpoint=x", f"--source={clip}", "--init_box=1,2,9,9", f"--boxes={tmp_path / 'o.csv'}"
  )
  assert code == 1 and f"o.csv: folder {tmp_path} is not writable" in err


def test_what_is_asked_for_reaches_the_network_the_tracker_and_the_drawing(
  clip, tmp_path, command, monkeypatch
):
  loaded, made, drawn = [], [], []
  painter, load = track.track_drawing.TrackPainter, ostrack_jax.load
  monkeypatch.setattr(
    ostrack_jax, "load", lambda path, **options: loaded.append(options) or load(path), raising=False
  )
  monkeypatch.setattr(
    ostrack_jax,
    "MultiTracker",
    lambda *args, **kwargs: made.append(kwargs) or _Shifting(*args, **kwargs),
    raising=False,
  )
  monkeypatch.setattr(
    track.track_drawing, "TrackPainter", lambda options: drawn.append(options) or painter(options)
  )
  common = (f"--source={clip}", "--init_box=1,2,9,9", "--checkpoint=x", "--overwrite")
  common += (f"--boxes={tmp_path / 'o.csv'}",)
  assert command(*common)[0] == 0
  asked = ("--search_factor=3.5", "--keep_ratios=0.9,0.5", "--elimination_layers=3,6")
  assert command(*common, *asked, "--dtype=bfloat16", "--num_heads=2", "--long_term")[0] == 0
  names = ("keep_ratios", "elimination_layers", "dtype", "num_heads")
  assert loaded == [
    dict.fromkeys(names),
    dict(zip(names, [(0.9, 0.5), (3, 6), "bfloat16", 2])),
  ]
  assert [one["search_factor"] for one in made] == [None, 3.5]
  assert [one["long_term"] for one in made] == [None, LongTermSettings()]
  # Of the first, what the tracker has by itself.
  assert [one.search_factor for one in drawn] == [4.0, 3.5]
  assert _Shifting.live == [False, False]


def test_standard_input_is_left_alone_unless_it_is_the_source(clip, tmp_path, command, monkeypatch):
  def closed(*_, **__):
    raise OSError(9, "Bad file descriptor")

  monkeypatch.setattr(track.io, "FileIO", closed)
  common = ("--checkpoint=x", "--init_box=1,2,9,9", f"--boxes={tmp_path / 'o.csv'}")
  assert command(*common, f"--source={clip}")[0] == 0
  monkeypatch.setattr(track.sys, "stdin", None)
  code, _, err = command(*common, "--source=-", "--frame_size=64x48", "--overwrite")
  assert code == 1 and "standard input is closed" in err


def test_help_explains_itself(command):
  code, out, _ = command("--help")
  assert code == 0
  assert "--init_box=x,y,w,h" in out and "--search_factor" in out
