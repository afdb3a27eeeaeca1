"""The command benchmarks.track_video: mistakes end in one sentence, and before the video is made."""

import pytest

from benchmarks import track_video


def test_a_checkpoint_that_is_not_there_is_told_before_the_video_is_made(monkeypatch):
  made = []
  monkeypatch.setattr(track_video, "write_video", lambda path, count: made.append(path))
  track_video.FLAGS(["track_video", "--checkpoint=nope"])
  with pytest.raises(SystemExit, match=r"^benchmarks\.track_video: there is no checkpoint nope"):
    track_video.main([])
  assert not made
