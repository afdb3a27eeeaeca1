"""The named splits: their counts, what they share, and lists that were changed."""

import shutil

import pytest

from data_pipelines import splits


@pytest.fixture
def forbidden():
  return set(splits._lines("got10k_vot_forbidden_names"))


@pytest.mark.parametrize(
  ("dataset", "split", "count"),
  [
    ("lasot", "train", 1120),
    ("lasot", "test", 280),
    ("got10k", "train_full", 9335),
    ("got10k", "vottrain", 7086),
    ("got10k", "votval", 1249),
    ("got10k", "vottrain_by_name", 7211),
    ("got10k", "votval_by_name", 1124),
    ("got10k", "val", 180),
    ("trackingnet", "train", 30134),
  ],
)
def test_every_split_has_its_count_without_repeats(dataset, split, count):
  names = splits.subset(dataset, split)
  assert len(names) == len(set(names)) == count


@pytest.mark.parametrize(
  ("train", "val", "together"),
  [("vottrain", "votval", 8335), ("vottrain_by_name", "votval_by_name", 8335)],
)
def test_training_and_validation_share_nothing(train, val, together):
  sets = set(splits.subset("got10k", train)), set(splits.subset("got10k", val))
  assert not sets[0] & sets[1]
  assert len(sets[0] | sets[1]) == together


def test_lasot_has_seventy_classes_and_no_video_in_both_parts():
  train, test = (set(splits.subset("lasot", split)) for split in ("train", "test"))
  assert not train & test
  assert len({name.rpartition("-")[0] for name in train}) == 70


def test_the_official_index_lists_keep_890_forbidden_sequences(forbidden):
  kept = [len(forbidden & set(splits.subset("got10k", s))) for s in ("vottrain", "votval")]
  assert kept == [765, 125]


def test_the_official_index_lists_leave_out_the_numbers_as_positions(forbidden):
  kept = {*splits.subset("got10k", "vottrain"), *splits.subset("got10k", "votval")}
  left_out = set(splits.subset("got10k", "train_full")) - kept
  assert left_out == {f"GOT-10k_Train_{int(name[-6:]) + 1:06d}" for name in forbidden}


@pytest.mark.parametrize("split", ["vottrain_by_name", "votval_by_name"])
def test_splits_by_name_hold_nothing_forbidden(forbidden, split):
  assert not forbidden & set(splits.subset("got10k", split))


def test_splits_by_name_are_all_that_is_not_forbidden(forbidden):
  by_name = (splits.subset("got10k", s) for s in ("vottrain_by_name", "votval_by_name"))
  assert {n for names in by_name for n in names} == set(
    splits.subset("got10k", "train_full")
  ) - forbidden


def test_positions_count_from_zero():
  # The first line of the list of vottrain is 3784.
  assert splits.subset("got10k", "vottrain")[0] == "GOT-10k_Train_003785"
  assert splits.subset("got10k", "val")[-1] == "GOT-10k_Val_000180"


def test_the_part_that_stores_a_split():
  assert splits.stored_part("got10k", "votval") == "train"
  assert splits.stored_part("got10k", "val") == "val"
  assert splits.stored_part("lasot", "test") == "test"


@pytest.mark.parametrize(
  ("dataset", "split", "message"),
  [
    ("got10k", "votrain", "has no split 'votrain'; choose from train_full, vottrain"),
    ("otb", "train", "'otb', only for lasot, got10k, trackingnet"),
  ],
)
def test_unknown_names_are_answered_with_the_known(dataset, split, message):
  with pytest.raises(ValueError, match=message):
    splits.subset(dataset, split)


@pytest.fixture
def package_copy(tmp_path, monkeypatch):
  source = splits.importlib.resources.files("data_pipelines") / "split_lists"
  shutil.copytree(source, tmp_path / "split_lists")
  monkeypatch.setattr(splits.importlib.resources, "files", lambda package: tmp_path)
  splits.subset.cache_clear()
  yield tmp_path / "split_lists"
  splits.subset.cache_clear()


@pytest.mark.parametrize(
  ("old", "new", "lines"), [("zebra-11\n", "", 1119), ("zebra-13\n", "zebra-1\n", 1120)]
)
def test_a_changed_list_is_refused(package_copy, old, new, lines):
  path = package_copy / "lasot_train_names.txt"
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new))
  with pytest.raises(
    ValueError, match=rf"lasot_train_names\.txt was changed: {lines} lines .*expected 1120"
  ):
    splits.subset("lasot", "train")


def test_line_ends_of_windows_change_nothing(package_copy):
  path = package_copy / "lasot_train_names.txt"
  path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
  assert len(splits.subset("lasot", "train")) == 1120
