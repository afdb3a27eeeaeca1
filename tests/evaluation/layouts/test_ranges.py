import shutil

import numpy as np
import pytest

from ostrack_jax.evaluation import benchmarks
from ostrack_jax.evaluation.layouts import reading


@pytest.mark.parametrize(
  ("benchmark", "table", "sequences", "frames"),
  [
    ("nfs", "nfs_sequences.csv", 100, 47_953),
    ("uav123", "uav123_sequences.csv", 123, 112_578),
  ],
)
def test_tables_have_the_published_sequences_and_frames(
  tmp_path, benchmark, table, sequences, frames
):
  declared = benchmarks.BENCHMARKS[benchmark]
  names = {candidate.name for candidate in declared.find(tmp_path)}
  assert len(names) == declared.expected == sequences
  rows = reading.split_table(table)
  assert sum(int(row["last_frame"]) - int(row["first_frame"]) + 1 for row in rows) == frames


def test_nfs_has_five_digits_and_a_prefix_on_annotations_alone(tree):
  tree.frames("sequences/yoyo", 1, 70, 5)
  tree.boxes("anno/nfs_yoyo.txt", 67, separator="\t")
  video = tree.video("nfs", "yoyo")
  assert (video.frames[0].name, video.frames[-1].name) == ("00001.jpg", "00067.jpg")
  assert video.boxes_xywh[-1].tolist() == [67, 2, 30, 40]
  assert video.visible is None
  (tree.root / "anno/nfs_yoyo.txt").unlink()
  assert tree.reason("nfs", "yoyo") == "no file anno/nfs_yoyo.txt"


def test_uav123_takes_ranges_of_a_shared_folder(tree):
  tree.frames("data_seq/UAV123/bird1", 1, 1477, 6)
  tree.boxes("anno/UAV123/bird1_1.txt", 253)
  tree.boxes("anno/UAV123/bird1_2.txt", 703)
  first, second = tree.video("uav123", "bird1_1"), tree.video("uav123", "bird1_2")
  assert (first.frames[0].name, first.frames[-1].name) == ("000001.jpg", "000253.jpg")
  assert (second.frames[0].name, second.frames[-1].name) == ("000775.jpg", "001477.jpg")
  # The annotation of a range begins with its first frame.
  assert second.boxes_xywh[0].tolist() == [1, 2, 30, 40]
  tree.boxes("anno/UAV123/bird1_2.txt", 702)
  assert tree.reason("uav123", "bird1_2") == (
    "anno/UAV123/bird1_2.txt has 702 boxes for 703 frames"
  )


def test_uav123_marks_absent_frames_by_nan_and_reads_attributes(tree):
  tree.frames("data_seq/UAV123/uav6", 1, 109, 6)
  tree.text("anno/UAV123/uav6.txt", "1,2,3,4\n" * 100 + "NaN,NaN,NaN,NaN\n" * 9)
  assert tree.video("uav123", "uav6").attributes == ()
  # bike1's published flags: SV, ARC, FM, IV, VC, CM and SOB.
  tree.text("anno/UAV123/att/uav6.txt", "1,1,0,1,0,0,0,0,1,1,1,1\n")
  video = tree.video("uav123", "uav6")
  assert np.isnan(video.boxes_xywh[100:]).all()
  assert not np.isnan(video.boxes_xywh[:100]).any()
  assert video.attributes == (
    "scale variation",
    "aspect ratio change",
    "fast motion",
    "illumination variation",
    "viewpoint change",
    "camera motion",
    "similar object",
  )
  tree.text("anno/UAV123/att/uav6.txt", "1,1\n")
  assert tree.reason("uav123", "uav6") == "anno/UAV123/att/uav6.txt has 2 values for 12 frames"


def write_uav20l(tree, count):
  for number in range(count):
    tree.frames(f"data_seq/UAV123/car{number}", 1, 5, 6)
    tree.boxes(f"anno/UAV20L/car{number}.txt", 3)


def test_uav20l_takes_names_and_lengths_from_its_annotations(tree):
  write_uav20l(tree, 20)
  tree.text("anno/UAV20L/att/car7.txt", "0,0,1,0,0,0,0,0,0,0,0,0\n")
  with pytest.raises(FileNotFoundError, match="19 of 20") as error:
    tree.select("uav20l")
  assert "\n  car0: no file anno/UAV20L/att/car0.txt" in str(error.value)
  video = tree.video("uav20l", "car7")
  assert [frame.name for frame in video.frames] == ["000001.jpg", "000002.jpg", "000003.jpg"]
  assert video.frames[0].parent == tree.root / "data_seq/UAV123/car7"
  assert video.attributes == ("low resolution",)


def test_uav20l_counts_its_annotations(tree):
  write_uav20l(tree, 20)
  assert len(tree.select("uav20l").videos) == 20
  (tree.root / "anno/UAV20L/car19.txt").unlink()
  with pytest.raises(FileNotFoundError, match="names 19 of 20 sequences"):
    tree.select("uav20l")


def test_uav20l_reads_the_published_annotations(tree, reference_dir):
  annotations = reference_dir / "data" / "results" / "UAV20L" / "annotations"
  shutil.copytree(annotations, tree.root / "anno" / "UAV20L")
  assert len(benchmarks.BENCHMARKS["uav20l"].find(tree.root)) == 20
  tree.frames("data_seq/UAV123/car3", 1, 1717, 6)
  video = tree.video("uav20l", "car3")
  assert len(video.frames) == 1717
  assert (tree.root / "anno/UAV20L/car3.txt").read_text().count("NaN,NaN,NaN,NaN") == int(
    np.isnan(video.boxes_xywh[:, 0]).sum()
  )
