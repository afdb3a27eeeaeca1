"""TrackingNet: twelve chunks, frames counted from 0 without leading zeros, the official list."""

import numpy as np
import pytest

from data_pipelines import splits
from data_pipelines.builders.trackingnet import TrackingNet

KEYS = ["TRAIN_0/--8shIp3t0I_0", "TRAIN_0/-0y7A0GDVY8_3", "TRAIN_11/zzljeIZDjM8_0"]


def test_it_is_stored_as_trackingnet():
  assert TrackingNet.name == "trackingnet"


def test_videos_of_all_chunks_are_found(trackingnet_root, open_raw, read_all):
  builder = open_raw(TrackingNet, trackingnet_root, allow_missing=True)
  assert builder.list_sequences("train") == KEYS
  assert [s.name for s in read_all(builder)] == [key.split("/")[1] for key in KEYS]


def test_frames_follow_their_numbers(trackingnet_root, open_raw):
  sequence = open_raw(TrackingNet, trackingnet_root).read_sequence("train", KEYS[0])
  assert [path.name for path in sequence.frames] == [f"{i}.jpg" for i in range(12)]


def test_boxes_are_those_of_the_file_and_hidden_without_height(trackingnet_root, open_raw):
  (target,) = open_raw(TrackingNet, trackingnet_root).read_sequence("train", KEYS[1]).targets
  written = np.loadtxt(trackingnet_root / "TRAIN_0/anno/-0y7A0GDVY8_3.txt", delimiter=",")
  np.testing.assert_array_equal(np.flatnonzero(~target.visible), [4])
  np.testing.assert_array_equal(np.delete(target.boxes_xywh, 4, 0), np.delete(written, 4, 0))


def test_missing_videos_are_counted_and_named(trackingnet_root, open_raw):
  with pytest.raises(FileNotFoundError, match=r"30131 of 30134 .*-0U1vm6LIi8_0, .*--allow_missing"):
    open_raw(TrackingNet, trackingnet_root).list_sequences("train")


def test_a_complete_list_needs_no_permission(trackingnet_root, open_raw, monkeypatch):
  names = tuple(key.split("/")[1] for key in KEYS)
  monkeypatch.setattr(splits, "subset", lambda dataset, split: names)
  assert open_raw(TrackingNet, trackingnet_root).list_sequences("train") == KEYS


def test_frames_without_boxes_and_boxes_without_frames_are_missing(trackingnet_root, open_raw):
  (trackingnet_root / "TRAIN_11/anno/zzljeIZDjM8_0.txt").unlink()
  (trackingnet_root / "TRAIN_0/frames/--8shIp3t0I_0").rename(trackingnet_root / "elsewhere")
  builder = open_raw(TrackingNet, trackingnet_root, allow_missing=True)
  assert builder.list_sequences("train") == [KEYS[1]]


def test_videos_beyond_the_official_list_are_left_out(trackingnet_root, open_raw, caplog):
  chunk = trackingnet_root / "TRAIN_3"
  (chunk / "anno/own_video_0.txt").write_text("1,2,3,4\n")
  (chunk / "frames/own_video_0").mkdir()
  builder = open_raw(TrackingNet, trackingnet_root, allow_missing=True)
  with caplog.at_level("WARNING"):
    assert builder.list_sequences("train") == KEYS
  assert "1 sequences" in caplog.text and "own_video_0" in caplog.text


def test_one_name_in_two_chunks_is_refused(trackingnet_root, open_raw):
  for part in ("anno/--8shIp3t0I_0.txt", "frames/--8shIp3t0I_0"):
    (trackingnet_root / "TRAIN_5" / part).symlink_to(trackingnet_root / "TRAIN_0" / part)
  with pytest.raises(ValueError, match="--8shIp3t0I_0 is in TRAIN_0 and in TRAIN_5"):
    open_raw(TrackingNet, trackingnet_root, allow_missing=True).list_sequences("train")


def test_a_lost_frame_is_named(trackingnet_root, open_raw):
  (trackingnet_root / KEYS[2].replace("/", "/frames/") / "7.jpg").unlink()
  with pytest.raises(ValueError, match=r"zzljeIZDjM8_0: 12 boxes .* 11 frames .*7\.jpg is missing"):
    open_raw(TrackingNet, trackingnet_root).read_sequence("train", KEYS[2])
