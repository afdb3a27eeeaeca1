"""The names in configurations lead to prepared data, and the official mixture trains from it."""

import shutil
import types

import numpy as np
import pytest

from configs import ostrack_256
from data_pipelines import context, datasets, preparation
from data_pipelines.augmentation import AugmentationSettings
from data_pipelines.sources import FrameSource
from ostrack_jax import train

AUGMENTATION = AugmentationSettings()


def prepare(dataset, root, data_dir, name="", storage=context.PRESETS[256]):
  return preparation.prepare_folder(
    datasets.DATASETS[dataset], root, data_dir, name, storage=storage, allow_missing=True
  )


def locate(name, data_dir, augmentation=AUGMENTATION):
  return datasets.locate(name, datasets.DatasetSettings(data_dir=data_dir), augmentation)


def test_the_smallest_way_of_storing_that_fits_is_taken(lasot_root, tmp_path):
  stored = {
    size: prepare("lasot", lasot_root, tmp_path / "data", storage=context.PRESETS.get(size))
    for size in (256, 384, None)
  }
  wide = AugmentationSettings(search_size=384, template_size=192)
  for augmentation, size in ((AUGMENTATION, 256), (wide, 384), (None, None)):
    (found,) = locate("lasot_train", tmp_path / "data", augmentation)
    assert found.directory == stored[size]
  shutil.rmtree(stored[384])
  assert locate("lasot_train", tmp_path / "data", wide)[0].directory == stored[None]
  shutil.rmtree(stored[None])
  with pytest.raises(ValueError, match=r"the size is larger.*--context=384"):
    locate("lasot_train", tmp_path / "data", wide)
  with pytest.raises(ValueError, match="not whole frames"):
    locate("lasot_train", tmp_path / "data", None)


def test_parts_of_got10k_are_subsets_of_one_stored_split(got10k_root, tmp_path):
  directory = prepare("got10k", got10k_root, tmp_path / "data")
  names = {}
  for part in ("train_full", "vottrain", "votval", "vottrain_by_name"):
    (found,) = locate(f"got10k_{part}", tmp_path / "data")
    assert (found.directory, found.split) == (directory, "train")
    index = FrameSource(directory).index
    names[part] = set(index.names[np.isin(index.names, found.sequences)].tolist())
  assert names["train_full"] >= names["vottrain"] | names["votval"]
  assert not names["vottrain"] & names["votval"]
  assert locate("got10k_val", tmp_path / "data")[0].split == "val"


def test_own_data_is_found_by_its_name(coco_root, tmp_path):
  directory = prepare("detection", coco_root, tmp_path / "data", "mine")
  (found,) = locate("mine", tmp_path / "data")
  assert found == datasets.Located(directory, "train")
  with pytest.raises(ValueError, match="has no split valid"):
    locate("mine:valid", tmp_path / "data")


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("trackingnet_train", "--dataset=trackingnet --raw_dir=DIR"),
    ("unheard_of", "known names are lasot_train"),
  ],
)
def test_what_is_not_prepared_is_named_with_its_cure(tmp_path, name, message):
  with pytest.raises(FileNotFoundError, match=message):
    locate(name, tmp_path)


def test_the_root_is_given_or_the_variable_or_a_default(monkeypatch):
  monkeypatch.delenv(datasets.DATA_DIR_VARIABLE, raising=False)
  assert str(datasets.data_dir()) == "prepared"
  monkeypatch.setenv(datasets.DATA_DIR_VARIABLE, "/somewhere")
  assert str(datasets.data_dir()) == "/somewhere"
  assert str(datasets.data_dir("here")) == "here"


def test_the_official_mixture_trains_from_all_four_sets(
  lasot_root, got10k_root, coco_root, trackingnet_root, tmp_path, monkeypatch
):
  data_dir = tmp_path / "data"
  monkeypatch.setenv(datasets.DATA_DIR_VARIABLE, str(data_dir))
  for dataset, root in (
    ("lasot", lasot_root),
    ("got10k", got10k_root),
    ("coco2017", coco_root),
    ("trackingnet", trackingnet_root),
  ):
    prepare(dataset, root, data_dir)
  config = ostrack_256.get_config()
  assert config.data.train == (
    "lasot_train",
    "got10k_vottrain",
    "coco2017_train",
    "trackingnet_train",
  )
  # The miniature: the network, the length of the run, and of the videos.
  config.update_from_flattened_dict(
    {
      "model.variant": "custom",
      "model.width": 32,
      "model.depth": 2,
      "model.num_heads": 2,
      "model.head_channels": 8,
      "model.template_size": 32,
      "model.search_size": 64,
      "model.elimination_layers": (1,),
      "model.keep_ratios": (0.7,),
      "data.validation": "got10k_val",
      "data.validation_pairs": 4,
      "data.num_workers": 2,
      "sampling.min_length": 4,
      "sampling.min_visible_over": 1,
      "train.epochs": 1,
      "train.pairs_per_epoch": 8,
      "train.batch_size": 4,
      "train.elimination_start": 0,
      "train.elimination_warmup": 0,
    }
  )
  report = train.train_and_report(config, tmp_path / "run")
  assert (report["steps"], report["pairs"]) == (2, 8)
  mixture = datasets.open_mixture(
    config.data.train,
    config.data.weights,
    datasets.DatasetSettings(data_dir=data_dir),
    AUGMENTATION,
  )
  assert [(source.name, source.is_video) for source, _ in mixture] == [
    ("lasot train", True),
    ("got10k train", True),
    ("coco2017 train", False),
    ("trackingnet train", True),
  ]


def test_sequences_are_chosen_or_left_out_in_brackets(tmp_path, lasot_root):
  prepare("lasot", lasot_root, tmp_path / "data")

  def names(name):
    return [part.sequences for part in locate(name, tmp_path / "data")]

  assert names("lasot_train[zebra-1]") == [("zebra-1",)]
  assert names("lasot_train[!zebra-1]") == [("airplane-10", "bear-1")]
  assert names("lasot_train[zebra-1, bear-1]") == [("bear-1", "zebra-1")]
  assert names("lasot_train[zebra-1] + lasot_train[bear-1]") == [("zebra-1",), ("bear-1",)]
  with pytest.raises(
    ValueError, match=r"no sequence zebra-2, but 3 such as airplane-10, bear-1, zebra-1"
  ):
    names("lasot_train[!zebra-2]")
  with pytest.raises(ValueError, match="no sequence is left"):
    names("lasot_train[!zebra-1,bear-1,airplane-10]")


def test_a_sequence_in_brackets_means_all_its_targets(tmp_path):
  part = datasets.Located(tmp_path, "train")
  names = np.array(["dogs/1", "dogs/2", "dogs-two"])

  class Source:
    index = types.SimpleNamespace(names=names)
    selected = np.arange(3)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(datasets.sources, "FrameSource", lambda *_: Source())
    assert datasets._choose([part], ["dogs"], False, "x")[0].sequences == ("dogs/1", "dogs/2")
    assert datasets._choose([part], ["dogs/2"], True, "x")[0].sequences == ("dogs/1", "dogs-two")
