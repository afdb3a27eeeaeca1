"""Random access to prepared frames, and errors that name the record."""

import dataclasses
import pickle
import shutil

import numpy as np
import pytest

from data_pipelines import sequences as frame_sequences
from data_pipelines import sources
from data_pipelines.builders.procedural import ProceduralSettings, prepare_procedural
from data_pipelines.procedural_video import ProceduralVideoSettings, render_sequence

VIDEO = ProceduralVideoSettings(width=96, height=72, length=10, max_target_size=30)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  settings = ProceduralSettings(train_sequences=3, test_sequences=2, video=VIDEO)
  return prepare_procedural(tmp_path_factory.mktemp("data"), settings)


def test_a_record_is_the_frame_that_the_index_says(prepared):
  source = sources.FrameSource(prepared, "train")
  frames, boxes_xywh, visible = render_sequence((0, 1, 2), VIDEO)
  records = source.positions(2)
  assert (len(source), records) == (30, slice(20, 30))
  assert np.abs(source.frame(27).astype(int) - frames[7]).mean() < 8
  np.testing.assert_array_equal(source.index.boxes_xywh[records], boxes_xywh)
  np.testing.assert_array_equal(source.index.visible[records], visible)


def test_splits_are_different_videos(prepared):
  train, test = (sources.FrameSource(prepared, split) for split in ("train", "test"))
  assert len(test) == 20
  assert np.abs(train.frame(0).astype(int) - test.frame(0)).mean() > 10


def test_a_source_survives_pickling_and_reopens(prepared):
  source = sources.FrameSource(prepared, "train")
  frame = source.frame(3)
  sent = pickle.dumps(source)
  assert len(sent) < 1500  # neither index nor open files travel
  np.testing.assert_array_equal(pickle.loads(sent).frame(3), frame)


def test_whole_sequences_can_be_walked(prepared):
  found = list(frame_sequences.iter_sequences(prepared, "test"))
  assert [s.name for s in found] == ["test-000000", "test-000001"]
  assert [len(s.frames) for s in found] == [10, 10]
  assert found[1].boxes_xywh.shape == (10, 4) and found[1].visible.shape == (10,)
  source = sources.FrameSource(prepared, "test")
  np.testing.assert_array_equal(found[1].frames[4], source.frame(14))
  assert len(list(found[0].frames)) == 10


def test_sequences_can_be_walked_from_several_frames(prepared):
  (sequence,) = list(frame_sequences.iter_sequences(prepared, "test"))[:1]
  hidden = dataclasses.replace(sequence, visible=np.array([1, 1, 1, 0, 0, 1, 1, 1, 1, 0], bool))
  parts = hidden.parts(3)
  # Frames 0, 3 and 6; in the fourth and fifth frame there is nothing to start from.
  assert [(part.name, len(part.frames)) for part in parts] == [
    ("test-000000", 10),
    ("test-000000 from frame 5", 5),
    ("test-000000 from frame 6", 4),
  ]
  np.testing.assert_array_equal(parts[1].frames[1], sequence.frames[6])
  np.testing.assert_array_equal(next(iter(parts[2].frames)), sequence.frames[6])
  np.testing.assert_array_equal(parts[2].boxes_xywh, sequence.boxes_xywh[6:])
  assert [part.name for part in sequence.parts(1)] == ["test-000000"]
  late = dataclasses.replace(sequence, visible=np.array([1] + [0] * 6 + [1] * 3, bool))
  assert [part.name for part in late.parts(4)] == ["test-000000", "test-000000 from frame 7"]
  # More starts than frames: every frame but the last, behind which there is nothing.
  assert len(sequence.parts(50)) == 9


def test_an_unprepared_directory_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=sources.MANIFEST):
    sources.FrameSource(tmp_path)


def test_an_unknown_split_is_refused(prepared):
  with pytest.raises(ValueError, match=r"'validation'.*test.*train"):
    sources.FrameSource(prepared, "validation")


def test_an_index_beyond_the_records_is_refused(prepared):
  with pytest.raises(IndexError, match="position 30"):
    sources.FrameSource(prepared).jpeg(30)


def test_a_damaged_image_is_named(prepared, monkeypatch):
  source = sources.FrameSource(prepared)
  encoded = source.read(14)
  monkeypatch.setattr(source, "read", lambda position: encoded._replace(jpeg=b"no image"))
  with pytest.raises(ValueError, match=r"record 14 .*sequence train-000001, frame 4"):
    source.frame(14)


def test_a_damaged_record_is_named(prepared, tmp_path):
  copy = shutil.copytree(prepared, tmp_path / "copy")
  (shard,) = copy.glob("*-train.array_record-*")
  content = bytearray(shard.read_bytes())
  # Entropy-coded bytes do not compress, so they stand in the file as they are.
  middle = content.index(sources.FrameSource(copy).jpeg(14)[1500:1600])
  content[middle : middle + 100] = bytes(100)
  shard.write_bytes(content)
  source = sources.FrameSource(copy)
  assert source.frame(13).shape == (72, 96, 3)
  with pytest.raises(
    ValueError, match=r"cannot (read|decode).*record 14 .*sequence train-000001, frame 4"
  ):
    source.frame(14)


def test_records_that_do_not_fit_the_index_are_refused(prepared, tmp_path):
  copy = shutil.copytree(prepared, tmp_path / "copy")
  next(copy.glob("*-train.array_record-*")).unlink()
  with pytest.raises(
    ValueError, match=r"0 files .*train.array_record.* expected 1; .*prepare it again"
  ):
    sources.FrameSource(copy).frame(0)


def test_a_shard_of_another_length_is_refused(prepared, tmp_path):
  copy = shutil.copytree(prepared, tmp_path / "copy")
  (train,), (test,) = (list(copy.glob(f"*-{split}.array_record-*")) for split in ("train", "test"))
  shutil.copy(test, train)
  # Damaged: what on_bad_record='skip' leaves out and counts.
  with pytest.raises(sources.DamagedRecordError, match=r"30 records expected in .*, 20 found"):
    sources.FrameSource(copy).frame(0)


def test_a_subset_takes_part_by_name(prepared):
  source = sources.FrameSource(prepared, sequences={"train-000002", "train-000000", "elsewhere"})
  np.testing.assert_array_equal(source.selected, [0, 2])
  np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).selected, [0, 2])
  assert [s.name for s in frame_sequences.iter_sequences(prepared, "train", ["train-000001"])] == [
    "train-000001"
  ]
  with pytest.raises(ValueError, match="none of its 3 sequences is among the 1 asked for"):
    sources.FrameSource(prepared, sequences=["elsewhere"])


def test_data_of_an_older_format_is_refused(prepared, tmp_path):
  copy = shutil.copytree(prepared, tmp_path / "copy")
  manifest = (copy / sources.MANIFEST).read_text().replace(sources.FORMAT, "frame_records/1")
  (copy / sources.MANIFEST).write_text(manifest)
  with pytest.raises(ValueError, match=r"format frame_records/1.*prepare it again"):
    sources.FrameSource(copy)
