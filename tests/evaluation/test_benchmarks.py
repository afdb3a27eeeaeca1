import csv
import importlib.resources

import numpy as np
import pytest

from ostrack_jax.evaluation import benchmarks, metrics

OTB, FOLDER = benchmarks.BENCHMARKS["otb"], benchmarks.BENCHMARKS["folder"]


def make(root, frames, boxes, *, name="a", inside="img", annotation="groundtruth.txt"):
  """Write a sequence of empty frame files, named by `frames`, and `boxes` rows of annotation."""
  folder = root / name / inside
  folder.mkdir(parents=True)
  for frame in frames:
    (folder / frame).touch()
  rows = (f"{i + 1},2,30,40\n" for i in range(boxes))
  (root / name / annotation).write_text("".join(rows))


def numbered(first, last, digits=4):
  return [f"{number:0{digits}d}.jpg" for number in range(first, last + 1)]


def select_otb(root, *names, **options):
  return benchmarks.select(OTB, root, sequences=names, **options).videos


def test_every_declaration_is_complete():
  assert set(benchmarks.BENCHMARKS) == {
    *("lasot", "lasot_ext", "trackingnet", "got10k_test", "got10k_val", "nfs", "uav123", "uav20l"),
    *("tnl2k", "otb", "davis", "vot", "folder"),
  }
  for name, benchmark in benchmarks.BENCHMARKS.items():
    assert benchmark.name == name
    assert benchmark.rule in metrics.RULES, name
    assert benchmark.layout.startswith("<root>/")
    assert benchmark.absent
  open_ended = {name for name, b in benchmarks.BENCHMARKS.items() if b.expected is None}
  assert open_ended == {"davis", "vot", "folder"}


def test_otb_has_its_100_sequences_and_59_035_frames(tmp_path):
  assert len({candidate.name for candidate in OTB.find(tmp_path)}) == 100
  table = importlib.resources.files("ostrack_jax.evaluation") / "splits" / "otb100_sequences.csv"
  keys = ("first_frame", "last_frame", "skip_first_frames")
  ranges = [
    [int(row[key]) for key in keys] for row in csv.DictReader(table.read_text().splitlines())
  ]
  assert sum(last - first + 1 - skipped for first, last, skipped in ranges) == 59_035


def test_otb_ranges_follow_the_declaration(tmp_path):
  rect = "groundtruth_rect.txt"
  make(tmp_path, numbered(1, 800), 471, name="David", annotation=rect)
  make(tmp_path, numbered(1, 81), 81, name="Football1", annotation=rect)
  make(tmp_path, numbered(1, 354), 354, name="Tiger1", annotation=rect)
  make(tmp_path, numbered(1, 698, 5), 698, name="Board", annotation=rect)
  videos = {
    video.name: video for video in select_otb(tmp_path, "David", "Football1", "Tiger1", "Board")
  }
  ranges = {name: (video.frames[0].name, video.frames[-1].name) for name, video in videos.items()}
  assert ranges == {
    "Board": ("00001.jpg", "00698.jpg"),
    "David": ("0300.jpg", "0770.jpg"),
    "Football1": ("0001.jpg", "0074.jpg"),
    "Tiger1": ("0006.jpg", "0354.jpg"),
  }
  for video in videos.values():
    assert len(video.frames) == len(video.boxes_xywh)
  assert videos["David"].boxes_xywh[0].tolist() == [1, 2, 30, 40]
  # The boxes that belong to Tiger1's first five frames are skipped with them.
  assert videos["Tiger1"].boxes_xywh[0].tolist() == [6, 2, 30, 40]


def test_otb_sequences_of_one_folder_have_their_own_annotations(tmp_path):
  make(tmp_path, numbered(1, 307), 307, name="Jogging", annotation="groundtruth_rect.1.txt")
  (tmp_path / "Jogging" / "groundtruth_rect.2.txt").write_text("7 7 7 7\n" * 307)
  one, two = select_otb(tmp_path, "Jogging_1", "Jogging_2")
  assert one.frames == two.frames
  assert one.boxes_xywh[0].tolist() == [1, 2, 30, 40]
  assert two.boxes_xywh[0].tolist() == [7, 7, 7, 7]


def test_incomplete_sequences_are_all_named_before_anything_runs(tmp_path):
  rect = "groundtruth_rect.txt"
  make(tmp_path, numbered(1, 80), 81, name="Skiing", annotation=rect)
  make(tmp_path, numbered(1, 99), 90, name="Bird2", annotation=rect)
  make(tmp_path, numbered(1, 120), 120, name="Crossing", annotation="other.txt")
  make(tmp_path, numbered(1, 140), 140, name="Couple", annotation=rect)
  with pytest.raises(FileNotFoundError, match="99 of 100 sequences are incomplete") as error:
    benchmarks.select(OTB, tmp_path)
  text = str(error.value)
  assert "--allow_missing" in text
  assert "\n  Skiing: 1 of 81 frames are missing, the first 0081.jpg" in text
  assert "\n  Bird2: Bird2/groundtruth_rect.txt has 90 boxes for 99 frames" in text
  assert "\n  Crossing: no file Crossing/groundtruth_rect.txt" in text
  assert "\n  Basketball: no folder Basketball/img" in text
  assert "Couple:" not in text
  allowed = benchmarks.select(OTB, tmp_path, allow_missing=True)
  assert [video.name for video in allowed.videos] == ["Couple"]
  assert allowed.declared == 100
  assert len(allowed.missing) == 99


def test_a_missing_root_and_an_empty_one_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"none is not a folder; expected <root>/<name>/img"):
    benchmarks.select(OTB, tmp_path / "none")
  with pytest.raises(FileNotFoundError, match="holds no sequence"):
    benchmarks.select(FOLDER, tmp_path)
  with pytest.raises(FileNotFoundError, match="none of 100 sequences"):
    benchmarks.select(OTB, tmp_path, allow_missing=True)


@pytest.mark.parametrize("inside", [".", "img", "imgs", "color"])
@pytest.mark.parametrize("annotation", ["groundtruth.txt", "groundtruth_rect.txt"])
def test_folder_takes_the_usual_layouts_in_natural_order(tmp_path, inside, annotation):
  make(tmp_path, ["1.jpg", "10.jpg", "2.PNG"], 3, inside=inside, annotation=annotation)
  (video,) = benchmarks.select(FOLDER, tmp_path).videos
  assert video.name == "a"
  assert [frame.name for frame in video.frames] == ["1.jpg", "2.PNG", "10.jpg"]


def test_folder_takes_nested_classes_and_a_single_sequence(tmp_path):
  for name in ("cat/cat-10", "cat/cat-2", "dog/dog-1"):
    make(tmp_path, numbered(1, 2), 2, name=name)
  (tmp_path / ".cache").mkdir()
  videos = benchmarks.select(FOLDER, tmp_path).videos
  assert [video.name for video in videos] == ["cat-2", "cat-10", "dog-1"]
  (single,) = benchmarks.select(FOLDER, tmp_path / "dog" / "dog-1").videos
  assert single.name == "dog-1"


def test_folder_names_what_is_incomplete(tmp_path):
  make(tmp_path, numbered(1, 2), 2, name="good")
  make(tmp_path, numbered(1, 2), 3, name="short")
  make(tmp_path, [], 3, name="bare")
  (tmp_path / "empty").mkdir()
  make(tmp_path, numbered(1, 1), 1, name="late")
  (tmp_path / "late" / "groundtruth.txt").write_text("NaN,NaN,NaN,NaN\n")
  selection = benchmarks.select(FOLDER, tmp_path, allow_missing=True)
  assert [video.name for video in selection.videos] == ["good"]
  assert selection.missing == {
    "bare": "no frames in it or in img, imgs, color",
    "empty": "no groundtruth.txt or groundtruth_rect.txt",
    "late": "the first frame has no box to start from",
    "short": "2 frames for 3 boxes",
  }
  with pytest.raises(FileNotFoundError, match="4 of 5 sequences are incomplete"):
    benchmarks.select(FOLDER, tmp_path)


def test_folder_ignores_frames_beyond_the_annotation_and_marks_lost_ones(tmp_path):
  make(tmp_path, numbered(1, 5), 0)
  (tmp_path / "a" / "groundtruth.txt").write_text("1,5,6,7,8,0\n2,5,6,7,8,1\n")
  (video,) = benchmarks.select(FOLDER, tmp_path).videos
  assert len(video.frames) == 2
  np.testing.assert_array_equal(video.boxes_xywh, [[5, 6, 7, 8], [np.nan] * 4])


def test_folder_refuses_two_sequences_of_one_name(tmp_path):
  for name in ("x/a", "y/a"):
    make(tmp_path, numbered(1, 1), 1, name=name)
  with pytest.raises(ValueError, match="several sequences named a"):
    benchmarks.select(FOLDER, tmp_path)


def test_sequences_and_limit_narrow_a_run(tmp_path):
  for name in "abc":
    make(tmp_path, numbered(1, 1), 1, name=name)
  (tmp_path / "b" / "groundtruth.txt").unlink()

  def names(**options):
    return [video.name for video in benchmarks.select(FOLDER, tmp_path, **options).videos]

  assert names(sequences=["c", "a"]) == ["a", "c"]
  assert names(limit=1) == ["a"]
  assert names(limit=2, allow_missing=True) == ["a", "c"]
  assert benchmarks.select(FOLDER, tmp_path, limit=1).declared == 3
  with pytest.raises(FileNotFoundError, match=r"1 of 2 .*\n  b"):
    names(sequences=["a", "b"])
  with pytest.raises(ValueError, match="unknown sequence z; expected some of a, b, c"):
    names(sequences=["z"])
  with pytest.raises(ValueError, match="limit 0"):
    names(limit=0)
