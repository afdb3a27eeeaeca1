"""The sequence folder: layouts, visibility, and errors that name the file."""

import cv2
import numpy as np
import pytest

from data_pipelines import pipeline, sources
from data_pipelines.augmentation import AugmentationSettings
from data_pipelines.builders.sequence_folder import SequenceFolder, prepare_sequence_folder

BOXES = [[10, 12, 20, 16], [11, 12, 20, 16], [12.5, 13, 20, 15], [13, 14, 19, 15]]


@pytest.fixture
def write_sequence(write_frames):
  """A function that writes a sequence: (folder, frames, annotation, rows, count, and write_frames')."""

  def write(folder, frames="img", annotation="groundtruth_rect.txt", rows=None, count=4, **options):
    write_frames(folder / frames, count, **{"pattern": "{:04d}.jpg", **options})
    rows = rows if rows is not None else [",".join(map(str, box)) for box in BOXES]
    (folder / annotation).write_text("\n".join(rows) + "\n")
    return folder

  return write


def prepare(root, tmp_path, name="own"):
  return sources.FrameSource(prepare_sequence_folder(root, tmp_path / "data", name))


@pytest.mark.parametrize("frames", ["", "img", "imgs", "color"])
@pytest.mark.parametrize("annotation", ["groundtruth.txt", "groundtruth_rect.txt"])
def test_layouts(write_sequence, tmp_path, frames, annotation):
  write_sequence(tmp_path / "raw/one", frames, annotation)
  source = prepare(tmp_path / "raw", tmp_path)
  assert [*source.index.names] == ["one"]
  np.testing.assert_array_equal(source.index.boxes_xywh, np.float32(BOXES))
  assert source.index.visible.all() and source.frame(3).shape == (48, 64, 3)


@pytest.mark.parametrize("separator", [",", "\t", " ", ";", ", "])
def test_separators(write_sequence, tmp_path, separator):
  write_sequence(tmp_path / "raw/one", rows=[separator.join(map(str, box)) for box in BOXES])
  source = prepare(tmp_path / "raw", tmp_path)
  np.testing.assert_array_equal(source.index.boxes_xywh, np.float32(BOXES))


def test_six_columns_carry_frame_and_loss(write_sequence, tmp_path):
  rows = [f"{i + 1},{','.join(map(str, box))},{int(i == 2)}" for i, box in enumerate(BOXES)]
  write_sequence(tmp_path / "raw/one", rows=rows)
  index = prepare(tmp_path / "raw", tmp_path).index
  np.testing.assert_array_equal(index.visible, [True, True, False, True])
  np.testing.assert_array_equal(index.boxes_xywh[3], BOXES[3])


def test_lasot_classes_and_flags(write_sequence, tmp_path):
  folder = write_sequence(tmp_path / "raw/airplane/airplane-1", annotation="groundtruth.txt")
  (folder / "full_occlusion.txt").write_text("0,1,0,0,\n")
  (folder / "out_of_view.txt").write_text("0,0,0,1\n")
  index = prepare(tmp_path / "raw", tmp_path).index
  assert [*index.names] == ["airplane/airplane-1"]
  np.testing.assert_array_equal(index.visible, [True, False, True, False])


def test_labels_of_got10k_hide_the_target(tmp_path, write_sequence):
  folder = write_sequence(tmp_path / "raw/one")
  (folder / "absence.label").write_text("0\n1\n0\n0\n")
  (folder / "cover.label").write_text("8\n8\n0\n1\n")
  index = prepare(tmp_path / "raw", tmp_path).index
  np.testing.assert_array_equal(index.visible, [True, False, False, True])


def test_a_polygon_gives_its_upright_extent(tmp_path, write_sequence):
  rows = ["10,20,30,10,40,25,20,36"] + ["1,1,5,1,5,4,1,4"] * 3
  write_sequence(tmp_path / "raw/one", rows=rows)
  index = prepare(tmp_path / "raw", tmp_path).index
  np.testing.assert_array_equal(index.boxes_xywh[:2], [[10, 10, 30, 26], [1, 1, 4, 3]])


def test_frames_without_a_usable_box_are_not_visible(write_sequence, tmp_path):
  write_sequence(tmp_path / "raw/one", rows=["1,2,3,4", "NaN,NaN,NaN,NaN", "5,6,0,7", "0,0,0,0"])
  index = prepare(tmp_path / "raw", tmp_path).index
  np.testing.assert_array_equal(index.visible, [True, False, False, False])
  assert np.isfinite(index.boxes_xywh).all()


def test_frames_are_ordered_by_number(write_sequence, tmp_path):
  write_sequence(tmp_path / "raw/one", first=8, pattern="{:d}.jpg")
  source = prepare(tmp_path / "raw", tmp_path)
  for record, name in enumerate(("8.jpg", "9.jpg", "10.jpg", "11.jpg")):
    assert source.jpeg(record) == (tmp_path / "raw/one/img" / name).read_bytes()


def test_other_formats_become_jpeg(write_sequence, tmp_path):
  write_sequence(tmp_path / "raw/one", pattern="{:04d}.png")
  source = prepare(tmp_path / "raw", tmp_path)
  original = cv2.imread(str(tmp_path / "raw/one/img/0002.png"))[..., ::-1]
  assert source.jpeg(1)[:2] == b"\xff\xd8"
  assert np.abs(source.frame(1).astype(int) - original).mean() < 4


def test_frames_beyond_the_boxes_are_left_out(write_sequence, tmp_path):
  write_sequence(tmp_path / "raw/Football1", count=6)
  write_sequence(tmp_path / "raw/Other", count=4)
  source = prepare(tmp_path / "raw", tmp_path)
  np.testing.assert_array_equal(source.index.starts, [0, 4, 8])


def test_boxes_without_a_frame_are_named(write_sequence, tmp_path):
  write_sequence(tmp_path / "raw/short", count=3)
  with pytest.raises(ValueError, match=r"sequence short: 4 boxes .* 3 frames"):
    prepare(tmp_path / "raw", tmp_path)


@pytest.mark.parametrize("content", [b"", b"no image", "truncated"])
def test_an_unreadable_frame_is_named_and_the_data_is_not_taken_for_finished(
  write_sequence, tmp_path, content
):
  folder = write_sequence(tmp_path / "raw/one")
  path = folder / "img/0003.jpg"
  path.write_bytes(path.read_bytes()[:-200] if content == "truncated" else content)
  with pytest.raises(ValueError, match=r"img/0003\.jpg"):
    prepare(tmp_path / "raw", tmp_path)
  assert not list((tmp_path / "data").rglob(sources.MANIFEST))


def test_flags_of_another_length_are_named(write_sequence, tmp_path):
  folder = write_sequence(tmp_path / "raw/one")
  (folder / "out_of_view.txt").write_text("0,0,1")
  with pytest.raises(ValueError, match=r"sequence one: 3 marks .*out_of_view\.txt.* 4 boxes"):
    prepare(tmp_path / "raw", tmp_path)


def test_a_sequence_without_frames_is_named(tmp_path):
  (tmp_path / "raw/one").mkdir(parents=True)
  (tmp_path / "raw/one/groundtruth.txt").write_text("1,2,3,4\n")
  with pytest.raises(FileNotFoundError, match=r"no frames in .*one"):
    prepare(tmp_path / "raw", tmp_path)


def test_a_root_without_sequences_is_named(tmp_path):
  (tmp_path / "raw/empty").mkdir(parents=True)
  with pytest.raises(FileNotFoundError, match=r"no sequence in .*raw"):
    prepare(tmp_path / "raw", tmp_path)
  with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
    prepare(tmp_path / "nowhere", tmp_path)


def test_a_sequence_given_as_root_is_explained(write_sequence, tmp_path):
  folder = write_sequence(tmp_path / "raw/one")
  with pytest.raises(FileNotFoundError, match="pass the folder above it"):
    prepare(folder, tmp_path)


def test_it_is_prepared_once_and_outlives_the_raw_folder(write_sequence, tmp_path):
  write_sequence(tmp_path / "raw/one")
  first = prepare(tmp_path / "raw", tmp_path)
  for path in sorted((tmp_path / "raw").rglob("*"), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()
  (tmp_path / "raw").rmdir()
  again = prepare(tmp_path / "raw", tmp_path)
  assert again.directory == first.directory and again.frame(0).shape == (48, 64, 3)


def test_a_name_in_use_for_other_sequences_is_refused(write_sequence, tmp_path):
  write_sequence(tmp_path / "raw/one")
  prepare(tmp_path / "raw", tmp_path)
  write_sequence(tmp_path / "raw/two")
  with pytest.raises(ValueError, match=r"1 sequences, now .* 2 .*choose another name"):
    prepare(tmp_path / "raw", tmp_path)


def test_a_name_that_is_no_word_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"'\.\./x'"):
    prepare(tmp_path, tmp_path, name="../x")


@pytest.mark.parametrize(
  ("folder", "names", "frames"),
  [
    ("TinyTLP", ["CarChase2"], 400),
    ("LaSOT", ["airplane/airplane-1"], 200),
    ("VOT", ["book", "vot15_bag"], 371),
    (
      "OTB",
      ["Bird2", "Couple", "Crossing", "Football1", "MotorRolling", "Skiing", "Vase"],
      949,
    ),
  ],
)
def test_real_layouts(reference_dir, open_raw, read_all, folder, names, frames):
  sequences = read_all(open_raw(SequenceFolder, reference_dir / "data/sequences" / folder))
  assert [s.name for s in sequences] == names
  assert sum(len(s.frames) for s in sequences) == frames


def test_real_polygons_give_their_extent(reference_dir, open_raw):
  root = reference_dir / "data/sequences/VOT"
  sequence = open_raw(SequenceFolder, root).read_sequence("train", "book")
  corners = np.loadtxt(root / "book/groundtruth.txt", delimiter=",")
  x, y = corners[:, 0::2], corners[:, 1::2]
  expected = np.stack([x.min(1), y.min(1), np.ptp(x, axis=1), np.ptp(y, axis=1)], axis=1)
  np.testing.assert_allclose(sequence.targets[0].boxes_xywh, expected)
  assert len(expected) == len(sequence.frames)


def test_real_sequences_give_pairs(reference_dir, tmp_path):
  source = prepare(reference_dir / "data/sequences/TinyTLP", tmp_path)
  settings = pipeline.PipelineSettings(
    augmentation=AugmentationSettings(template_size=64, search_size=128)
  )
  iterator = pipeline.train_pipeline([(source, 1.0)], settings, batch_size=4, seed=0, num_threads=0)
  batch = next(iterator)
  assert batch["search"].shape == (4, 128, 128, 3)
  assert batch["search"].std() > 10
