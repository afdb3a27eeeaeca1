import numpy as np
import pytest

from ostrack_jax.evaluation import benchmarks


def write(tree, folder, *, frames=4, boxes=4, occluded="0,1,0,0", out_of_view="0,0,0,1"):
  tree.frames(f"{folder}/img", 1, frames, 8)
  tree.boxes(f"{folder}/groundtruth.txt", boxes)
  tree.text(f"{folder}/full_occlusion.txt", occluded)
  tree.text(f"{folder}/out_of_view.txt", out_of_view + "\n")


@pytest.mark.parametrize(
  ("benchmark", "classes", "each"), [("lasot", 70, 4), ("lasot_ext", 15, 10)]
)
def test_names_are_the_official_classes_times_sequences(tmp_path, benchmark, classes, each):
  declared = benchmarks.BENCHMARKS[benchmark]
  names = [candidate.name for candidate in declared.find(tmp_path)]
  assert len(set(names)) == declared.expected == classes * each
  counts = {}
  for name in names:
    kind = name.rpartition("-")[0]
    counts[kind] = counts.get(kind, 0) + 1
  assert set(counts.values()) == {each}


@pytest.mark.parametrize("folder", ["airplane/airplane-1", "airplane-1"])
def test_both_flags_decide_what_is_visible(tree, folder):
  write(tree, folder)
  video = tree.video("lasot", "airplane-1")
  assert [frame.name for frame in video.frames] == [f"{i:08d}.jpg" for i in (1, 2, 3, 4)]
  np.testing.assert_array_equal(video.visible, [True, False, True, False])
  # Boxes of invisible frames stay as written.
  assert video.boxes_xywh[:, 0].tolist() == [1, 2, 3, 4]
  assert video.is_annotated


def test_flags_may_stand_one_a_line(tree):
  write(tree, "atv/atv-1", occluded="0\n1\n0\n0\n")
  np.testing.assert_array_equal(
    tree.video("lasot_ext", "atv-1").visible, [True, False, True, False]
  )


@pytest.mark.parametrize(
  ("options", "said"),
  [
    ({"frames": 3}, "1 of 4 frames are missing, the first 00000004.jpg"),
    (
      {"frames": 6},
      "airplane/airplane-1/img has 6 frames for 4 boxes, 00000005.jpg is one too many",
    ),
    (
      {"occluded": "0,0,0"},
      "airplane/airplane-1/full_occlusion.txt has 3 values for 4 frames",
    ),
  ],
)
def test_lengths_that_disagree_are_named(tree, options, said):
  write(tree, "airplane/airplane-1", **options)
  assert tree.reason("lasot", "airplane-1") == said


def test_missing_files_are_named(tree):
  assert tree.reason("lasot", "airplane-1") == "no folder airplane/airplane-1 or airplane-1"
  write(tree, "airplane/airplane-1")
  for name in ("out_of_view.txt", "groundtruth.txt"):
    (tree.root / "airplane/airplane-1" / name).unlink()
    assert tree.reason("lasot", "airplane-1") == f"no file airplane/airplane-1/{name}"


def test_a_whole_benchmark_loads(tree):
  for candidate in benchmarks.BENCHMARKS["lasot_ext"].find(tree.root):
    folder = f"{candidate.name.rpartition('-')[0]}/{candidate.name}"
    write(tree, folder, frames=1, boxes=1, occluded="0", out_of_view="0")
  selection = tree.select("lasot_ext")
  assert len(selection.videos) == selection.declared == 150
  assert selection.missing == {}


def test_an_official_sequence_is_read(reference_dir):
  root = reference_dir / "data" / "sequences" / "LaSOT"
  (video,) = benchmarks.select(
    benchmarks.BENCHMARKS["lasot"], root, sequences=["airplane-1"]
  ).videos
  assert len(video.frames) == 200
  assert video.visible is not None and video.visible.all()
