"""Prepared data is a function of the raw data: not of workers, kills, or who else prepares it."""

import fcntl
import functools
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines import context, datasets, preparation, prepared_summary, shards, sources, splits
from data_pipelines import sequences as frame_sequences
from data_pipelines.builders import frame_records
from data_pipelines.builders.lasot import Lasot
from data_pipelines.builders.masks import MaskSequences
from data_pipelines.builders.sequence_folder import SequenceFolder

ROOT = pathlib.Path(__file__).parents[2]


def write_raw(root, names, length=6, size=(64, 48)):
  """Write sequences of random frames whose third frame has no target."""
  rng = np.random.default_rng(0)
  for name in names:
    folder = root / name / "img"
    folder.mkdir(parents=True)
    rows = []
    for i in range(length):
      frame = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), size)
      cv2.imwrite(str(folder / f"{i + 1:08d}.jpg"), frame)
      rows.append("0,0,0,0" if i == 2 else f"{10 + i},{8 + i},{6 + i},7")
    (folder.parent / "groundtruth.txt").write_text("\n".join(rows) + "\n")
    for mark in ("full_occlusion.txt", "out_of_view.txt"):
      (folder.parent / mark).write_text(",".join("0" * length) + "\n")
  return root


def contents(directory: pathlib.Path) -> dict[str, str]:
  return {
    path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(directory.rglob("*"))
    if path.is_file()
  }


@pytest.fixture
def many(monkeypatch):
  """Two sequences a shard, so that little data has several."""
  monkeypatch.setattr(SequenceFolder, "SEQUENCES_PER_SHARD", 2)


def prepare(raw, data_dir, **options):
  return preparation.prepare_folder(SequenceFolder, raw, data_dir, "mine", **options)


def test_whole_frames_are_kept_byte_for_byte(tmp_path, many):
  raw = write_raw(tmp_path / "raw", "abcde")
  directory = prepare(raw, tmp_path / "data")
  source = sources.FrameSource(directory)
  assert len(list(directory.glob("*.array_record-*-of-00003"))) == 3
  for number, name in enumerate("abcde"):
    positions = source.positions(number)
    for i in range(6):
      want = (raw / name / f"img/{i + 1:08d}.jpg").read_bytes()
      assert source.jpeg(positions.start + i) == want
  assert list(source.index.names) == list("abcde")
  np.testing.assert_array_equal(source.index.visible[:6], [1, 1, 0, 1, 1, 1])
  np.testing.assert_array_equal(source.index.boxes_xywh[7], [11, 9, 7, 7])


def test_context_records_leave_out_frames_without_a_target(tmp_path, many):
  raw = write_raw(tmp_path / "raw", "abc", size=(640, 480))
  directory = prepare(raw, tmp_path / "data", storage=context.PRESETS[256])
  source = sources.FrameSource(directory)
  np.testing.assert_array_equal(source.index.records[:7], [0, 1, -1, 2, 3, 4, 5])
  stored = source.stored_frame(7)
  full = cv2.imread(str(raw / "b/img/00000002.jpg"))[..., ::-1]
  x1, y1, x2, y2 = stored.region_xyxy
  assert stored.frame_wh == (640, 480) and x2 - x1 < 300
  assert np.abs(stored.image.astype(int) - full[y1:y2, x1:x2]).mean() < 3
  with pytest.raises(ValueError, match=r"sequence a, frame 2.*not stored"):
    source.stored_frame(2)
  with pytest.raises(ValueError, match="--full_frames"):
    source.frame(0)
  with pytest.raises(ValueError, match="--full_frames"):
    next(frame_sequences.iter_sequences(directory, "train"))


def test_tfds_reads_what_was_written(tmp_path, many):
  raw = write_raw(tmp_path / "raw", "abc")
  directory = prepare(raw, tmp_path / "data")
  builder = tfds.builder_from_directory(directory)
  assert builder.info.splits["train"].num_examples == 18
  record = builder.as_data_source("train")[8]
  assert (record["sequence"], record["frame"]) == (b"b", 2)
  record = builder.as_data_source("train")[9]
  np.testing.assert_array_equal(record["boxes_xywh"], [[13, 11, 9, 7]])
  np.testing.assert_array_equal(record["frame_wh"], [64, 48])
  want = cv2.imread(str(raw / "b/img/00000004.jpg"))[..., ::-1]
  np.testing.assert_array_equal(record["jpeg"], want)


def test_the_builders_own_generator_gives_what_is_stored(tmp_path, many):
  raw = write_raw(tmp_path / "raw", "abc", size=(640, 480))
  directory = prepare(raw, tmp_path / "data", storage=context.PRESETS[256])
  config = frame_records.RawDataConfig(root=str(raw), storage=context.PRESETS[256])
  builder = frame_records.open_builder(SequenceFolder, config, tmp_path / "unused")
  (generator,) = builder._split_generators(None).values()
  made = [(key, example["sequence"], example["jpeg"].getvalue()) for key, example in generator]
  source = sources.FrameSource(directory)
  stored = np.flatnonzero(source.index.records >= 0)
  names = [name for name in "abc" for _ in range(5)]
  assert made == [(i, names[i], source.jpeg(int(p))) for i, p in enumerate(stored)]


def test_the_number_of_workers_does_not_matter(tmp_path, many):
  raw = write_raw(tmp_path / "raw", "abcde")
  alone = contents(prepare(raw, tmp_path / "alone"))
  assert alone == contents(prepare(raw, tmp_path / "three", num_workers=3))
  assert "manifest.json" in alone and not any(".preparing" in name for name in alone)


def test_finished_shards_are_not_done_again(tmp_path, many, monkeypatch):
  raw = write_raw(tmp_path / "raw", "abcde")
  damaged = raw / "e/img/00000004.jpg"
  good = damaged.read_bytes()
  damaged.write_bytes(good[: len(good) // 2])
  with pytest.raises(ValueError, match=r"00000004\.jpg.*truncated"):
    prepare(raw, tmp_path / "data")
  damaged.write_bytes(good)
  written = []
  real = shards.write_shard
  monkeypatch.setattr(
    shards, "write_shard", lambda task, done: (written.append(task.number), real(task, done))
  )
  directory = prepare(raw, tmp_path / "data")
  assert written == [2]
  monkeypatch.undo()
  monkeypatch.setattr(SequenceFolder, "SEQUENCES_PER_SHARD", 2)
  assert contents(directory) == contents(prepare(raw, tmp_path / "undisturbed"))


def test_a_leftover_of_other_raw_data_is_dropped(tmp_path, many):
  raw = write_raw(tmp_path / "raw", "abcde")
  whole = raw / "e/img/00000004.jpg"
  whole.write_bytes(b"no image")
  with pytest.raises(ValueError):
    prepare(raw, tmp_path / "data")
  for path in sorted((raw / "e").rglob("*"), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()
  (raw / "e").rmdir()
  directory = prepare(raw, tmp_path / "data")
  assert contents(directory) == contents(prepare(raw, tmp_path / "undisturbed"))


def test_a_split_can_be_added_later(tmp_path):
  train, test = (splits.subset("lasot", split)[:2] for split in ("train", "test"))
  raw = write_raw(tmp_path / "raw", [*train, *test])
  options = {"allow_missing": True}
  for data_dir, steps in (("a", [["train"], ["test"]]), ("b", [["train", "test"]])):
    for step in steps:
      directory = preparation.prepare_folder(
        Lasot, raw, tmp_path / data_dir, splits=step, **options
      )
  assert contents(directory) == contents(
    preparation.prepare_folder(Lasot, raw, tmp_path / "a", **options)
  )
  assert list(sources.FrameSource(directory, "test").index.names) == list(test)
  (entry,) = [s for s in prepared_summary.summaries(directory, ["test"])]
  assert "2 sequences, 12 frames" in str(entry)


def test_an_unknown_split_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"no split 'valid', only train"):
    prepare(tmp_path, tmp_path / "data", splits=["valid"])


def test_another_folder_under_the_same_name_is_refused(tmp_path):
  prepare(write_raw(tmp_path / "raw", "ab"), tmp_path / "data")
  with pytest.raises(ValueError, match=r"prepared from something else \(root"):
    prepare(write_raw(tmp_path / "other", "ab"), tmp_path / "data")


def test_two_processes_prepare_once(tmp_path):
  raw = write_raw(tmp_path / "raw", [f"s{i:02d}" for i in range(30)])
  command = [sys.executable, "-m", "data_pipelines.prepare", "--dataset=folder", "--name=mine"]
  command += [
    f"--raw_dir={raw}",
    f"--data_dir={tmp_path / 'data'}",
    "--num_workers=0",
    "--full_frames",
  ]
  running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
  assert [process.wait(timeout=120) for process in running] == [0, 0]
  directory = tmp_path / "data/sequence_folder/mine-full_frames/2.0.0"
  assert contents(directory) == contents(prepare(raw, tmp_path / "undisturbed"))


def test_what_a_killed_runs_worker_begins_late_is_removed(tmp_path, monkeypatch):
  raw = write_raw(tmp_path / "raw", splits.subset("lasot", "train")[:3], length=5, size=(32, 24))
  make = functools.partial(
    preparation.prepare_folder, Lasot, raw, storage=context.PRESETS[256], allow_missing=True
  )
  undisturbed = make(tmp_path / "undisturbed")
  write_all = preparation._write_all

  def with_an_orphan(tasks, *arguments):
    (tasks[0].directory / f".{tasks[0].path.name}.1.partial").touch()
    write_all(tasks, *arguments)

  monkeypatch.setattr(preparation, "_write_all", with_an_orphan)
  assert contents(make(tmp_path / "disturbed")) == contents(undisturbed)


def test_kills_at_any_moment_leave_the_same_bytes(tmp_path):
  names = splits.subset("lasot", "train")[:200]
  raw = write_raw(tmp_path / "raw", names, length=50, size=(32, 24))
  undisturbed = preparation.prepare_folder(
    Lasot, raw, tmp_path / "undisturbed", storage=context.PRESETS[256], allow_missing=True
  )
  command = [sys.executable, "-m", "data_pipelines.prepare", "--dataset=lasot", "--allow_missing"]
  command += [f"--raw_dir={raw}", f"--data_dir={tmp_path / 'data'}", "--num_workers=2"]
  directory = tmp_path / "data/lasot/context256" / undisturbed.name
  moments, kills = random.Random(0), 0
  while kills < 10:
    process = subprocess.Popen(
      command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    # Between the first sign of work and a little later: before that there is nothing to spoil.
    deadline = time.monotonic() + 30
    while not (directory / ".preparing").exists() and time.monotonic() < deadline:
      time.sleep(0.02)
    time.sleep(moments.uniform(0, 2.5))
    if process.poll() is None:
      process.send_signal(signal.SIGKILL)
      kills += 1
    process.wait()
    if (directory / sources.MANIFEST).exists():
      assert contents_without_work(directory) == contents(undisturbed)
      for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
      directory.rmdir()
  subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
  assert contents(directory) == contents(undisturbed)
  manifest = json.loads((directory / sources.MANIFEST).read_text())
  assert manifest["splits"]["train"]["frames"] == 10_000


def contents_without_work(directory):
  return {k: v for k, v in contents(directory).items() if not k.startswith(".preparing")}


class Vanishing(SequenceFolder):
  """A builder whose process ends while it reads."""

  name = "vanishing"

  def read_sequence(self, split, key):
    (self.root / "read").touch()
    os._exit(1)


class VanishingInTheMiddle(Vanishing):
  """The same while it tells how far it is, as a worker that is ended may."""

  name = "vanishing_in_the_middle"

  def read_sequence(self, split, key):
    shards._progress._wlock.acquire()
    super().read_sequence(split, key)


@pytest.mark.parametrize("builder", [Vanishing, VanishingInTheMiddle])
def test_a_worker_that_vanishes_is_explained(builder, tmp_path, monkeypatch):
  # The worker imports this module by this name, from where its parent would.
  monkeypatch.syspath_prepend(os.fspath(pathlib.Path(__file__).parent))
  monkeypatch.setitem(sys.modules, "test_preparation", sys.modules[__name__])
  monkeypatch.setattr(builder, "__module__", "test_preparation")
  raw, said = write_raw(tmp_path / "raw", "ab"), []

  def prepare():
    with pytest.raises(ChildProcessError, match="worker process died"):
      preparation.prepare_folder(builder, raw, tmp_path / "data", "mine", num_workers=1)
    said.append(True)

  # Not here, where it could wait for ever.
  thread = threading.Thread(target=prepare, daemon=True)
  thread.start()
  thread.join(timeout=60)
  assert said
  assert (raw / "read").exists()


def test_who_waited_is_refused_what_another_made_under_the_name(tmp_path):
  first = write_raw(tmp_path / "first", [f"s{i:02d}" for i in range(40)])
  second = write_raw(tmp_path / "second", "ab")
  command = [sys.executable, "-m", "data_pipelines.prepare", "--dataset=folder", "--name=mine"]
  command += [f"--data_dir={tmp_path / 'data'}", "--num_workers=0", "--full_frames"]
  lock = tmp_path / "data/sequence_folder/mine-full_frames/.2.0.0.lock"
  lock.parent.mkdir(parents=True)
  with open(lock, "w") as held:
    fcntl.flock(held, fcntl.LOCK_EX)
    running = [
      subprocess.Popen(
        [*command, f"--raw_dir={raw}"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
      )
      for raw in (first, second)
    ]
    time.sleep(4)
  ends = [(process.communicate(timeout=60)[1].decode(), process.returncode) for process in running]
  assert sorted(code for _, code in ends) == [0, 1]
  assert any("was prepared from something else" in text for text, _ in ends)


def test_edited_boxes_are_not_taken_for_those_that_were_prepared(tmp_path):
  raw = write_raw(tmp_path / "raw", "ab")
  prepare(raw, tmp_path / "data")
  path = raw / "a/groundtruth.txt"
  path.write_text(path.read_text().replace("10,8,6,7", "10,8,9,7"))
  with pytest.raises(ValueError, match=r"2 sequences, their annotations are others.*delete"):
    prepare(raw, tmp_path / "data")


def test_a_set_without_a_visible_target_is_refused(tmp_path):
  raw = write_raw(tmp_path / "raw", "a")
  (raw / "a/groundtruth.txt").write_text("0,0,0,0\n" * 6)
  with pytest.raises(ValueError, match="in none of its 6 frames is a target visible"):
    prepare(raw, tmp_path / "data", storage=context.PRESETS[256])


def test_a_damaged_file_with_an_end_marker_is_named(tmp_path):
  raw = write_raw(tmp_path / "raw", "a")
  path = raw / "a/img/00000005.jpg"
  path.write_bytes(path.read_bytes()[:-400] + b"\xff\xd9")
  with pytest.raises(ValueError, match=r"00000005\.jpg, is damaged"):
    prepare(raw, tmp_path / "data")


@pytest.mark.parametrize("name", ["folder", "procedural", "lasot_train"])
def test_names_that_mean_something_else_are_refused(tmp_path, name):
  command = [sys.executable, "-m", "data_pipelines.prepare", "--dataset=folder", f"--name={name}"]
  done = subprocess.run(
    [*command, f"--raw_dir={tmp_path}"], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 1
  assert f"'{name}' means something else in configurations" in done.stderr
  assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_ends_in_one_sentence_and_can_go_on(tmp_path):
  names = splits.subset("lasot", "train")[:200]
  raw = write_raw(tmp_path / "raw", names, length=50, size=(32, 24))
  command = [sys.executable, "-m", "data_pipelines.prepare", "--dataset=lasot", "--allow_missing"]
  command += [f"--raw_dir={raw}", f"--data_dir={tmp_path / 'data'}", "--num_workers=2"]
  process = subprocess.Popen(
    command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
  )
  directory = tmp_path / "data/lasot/context256/2.0.0"
  deadline = time.monotonic() + 60
  while not list(directory.glob(".preparing/*.npz")) and time.monotonic() < deadline:
    time.sleep(0.02)
  os.killpg(process.pid, signal.SIGINT)
  errors = process.communicate(timeout=60)[1].decode()
  assert process.returncode == 1
  assert "interrupted; the same command goes on" in errors and "Traceback" not in errors
  subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
  assert (directory / sources.MANIFEST).exists()


def test_one_name_in_two_layouts_is_refused(tmp_path):
  for builder_class in (SequenceFolder, MaskSequences):
    directory = tmp_path / builder_class.name / "mine-full_frames/2.0.0"
    directory.mkdir(parents=True)
    (directory / sources.MANIFEST).write_text("{}")
  with pytest.raises(ValueError, match="prepared from several layouts"):
    datasets.locate("mine", datasets.DatasetSettings(data_dir=tmp_path))
