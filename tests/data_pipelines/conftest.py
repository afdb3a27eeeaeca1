"""Small data sets, and batches from them."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from data_pipelines import pipeline, sources
from data_pipelines.augmentation import AugmentationSettings
from data_pipelines.builders.procedural import ProceduralSettings, prepare_procedural
from data_pipelines.procedural_video import ProceduralVideoSettings


@pytest.fixture
def make_source():
  """A function that makes a source of which only the index exists: sampling reads no frame."""

  def make(folder, lengths, visible=None, is_video=True, boxes_xywh=None, **options):
    directory = sources.index_path(folder, "train")
    directory.mkdir(parents=True)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    count = starts[-1]
    index = {
      "names": np.array([f"s{i}" for i in range(len(lengths))]),
      "starts": starts,
      "target_numbers": np.zeros(len(lengths), np.int32),
      "boxes_xywh": np.ones((count, 4)) if boxes_xywh is None else np.asarray(boxes_xywh),
      "visible": np.ones(count, bool) if visible is None else np.asarray(visible),
      "records": np.arange(count),
      "regions_xyxy": np.zeros((count, 4), np.int32),
      "frames_wh": np.zeros((count, 2), np.int32),
    }
    for name, value in index.items():
      np.save(directory / f"{name}.npy", value)
    manifest = {
      "format": sources.FORMAT,
      "builder": "index_only",
      "is_video": is_video,
      "storage": None,
      "splits": {"train": {"shard_lengths": [int(count)]}},
    }
    (folder / sources.MANIFEST).write_text(json.dumps(manifest))
    return sources.FrameSource(folder, **options)

  return make


@pytest.fixture(scope="session")
def source(tmp_path_factory):
  """Four videos of 24 frames each, 96 positions in all."""
  video = ProceduralVideoSettings(width=96, height=72, length=24, max_target_size=30)
  settings = ProceduralSettings(train_sequences=4, test_sequences=1, video=video)
  directory = prepare_procedural(tmp_path_factory.mktemp("data"), settings)
  return sources.FrameSource(directory)


@pytest.fixture
def copy(source, tmp_path):
  """A copy of the directory of `source`, to be spoilt."""
  return pathlib.Path(shutil.copytree(source.directory, tmp_path / "copy"))


@pytest.fixture
def settings():
  """Pipeline settings with small crops."""
  augmentation = AugmentationSettings(template_size=32, search_size=64)
  return pipeline.PipelineSettings(augmentation=augmentation)


@pytest.fixture
def start(settings):
  """A function that starts a training pipeline: (source, settings=settings, **options)."""
  started = []

  def start_one(source, settings=settings, **options):
    options = {"batch_size": 4, "seed": 7, "num_threads": 0} | options
    started.append(pipeline.train_pipeline([(source, 1.0)], settings, **options))
    return started[-1]

  yield start_one
  for iterator in started:
    iterator.close()


@pytest.fixture
def take(start):
  """A function that gives the first batches of a pipeline: (source, count, *settings, **options)."""

  def take_some(source, count, *settings, **options):
    iterator = start(source, *settings, **options)
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches

  return take_some


@pytest.fixture
def spoil_boxes(copy):
  """A function that adds to the boxes of some sequences of `copy`: (sequences, x, y, w, h) -> source."""

  def spoil(sequences, *added):
    path = sources.index_path(copy, "train") / "boxes_xywh.npy"
    boxes_xywh = np.load(path)
    for sequence in sequences:
      boxes_xywh[sources.FrameSource(copy).positions(sequence)] += np.array(added, np.float32)
    np.save(path, boxes_xywh)
    return sources.FrameSource(copy)

  return spoil
