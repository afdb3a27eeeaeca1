"""Runs of the evaluator over small networks: see ostrack_jax/evaluation/tracking_runs.py."""

import dataclasses

import cv2
import jax
import numpy as np
import pytest

from ostrack_jax.evaluation import tracking_runs
from ostrack_jax.evaluation.tracking_runs import Options
from ostrack_jax.evaluation.videos import Video, first_box_only
from ostrack_jax.models import fused_blocks

_SMALL = {"width": 16, "depth": 1, "num_heads": 1, "head_channels": 8, "elimination_layers": (0,)}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
  monkeypatch.setattr(jax, "local_device_count", lambda: 1)


@pytest.fixture
def checkpoint(make_checkpoint):
  made = make_checkpoint(**_SMALL)
  return dataclasses.replace(made, description={**made.description, "model": _SMALL})


@pytest.fixture
def videos(tmp_path, make_frame):
  made = []
  for number, length in enumerate((4, 6, 5)):
    paths = tuple(tmp_path / f"{number}-{index}.png" for index in range(length))
    for index, path in enumerate(paths):
      cv2.imwrite(str(path), make_frame(10 * number + index))
    rng = np.random.default_rng(number)
    boxes = np.c_[rng.uniform(20, 60, (length, 2)), rng.uniform(12, 30, (length, 2))]
    made.append(Video(name=f"v{number}", frames=paths, boxes_xywh=boxes))
  return made


def run(checkpoint, videos, unfinished=None, **options):
  planned = tracking_runs.plan(checkpoint, videos, Options(threads=2, **options))
  steps = []
  tracked = planned.track(videos if unfinished is None else unfinished, steps.append)
  return planned, {one.video.name: one for one in tracked}, sum(steps)


@pytest.mark.parametrize("teacher_forced", [False, True])
def test_lanes_and_one_by_one_find_the_same(checkpoint, videos, teacher_forced):
  # Three lanes at once, or two that take turns over three sequences.
  batch_size = 1 if teacher_forced else 2
  lanes, many, steps = run(checkpoint, videos, batch_size=batch_size, teacher_forced=teacher_forced)
  single, alone, alone_steps = run(
    checkpoint, videos, one_by_one=True, teacher_forced=teacher_forced
  )
  assert steps == alone_steps == 15
  for name, one in alone.items():
    np.testing.assert_allclose(many[name].boxes_xywh, one.boxes_xywh, atol=1e-3)
    np.testing.assert_allclose(many[name].scores, one.scores, atol=1e-5)
    assert one.seconds.shape == (len(one.boxes_xywh),)
    assert isinstance(many[name].seconds, float)
  assert lanes.settings["checkpoint"] == single.settings["checkpoint"]
  assert lanes.settings["batch_size"] == batch_size and single.settings["one_by_one"]
  assert lanes.settings["teacher_forced"] is teacher_forced
  assert lanes.timing()["stages"]["frames"] == 12


def test_fused_blocks_are_of_lanes_alone(checkpoint, videos):
  for some, options in ((videos, {"one_by_one": True}), (videos[:1], {})):
    with pytest.raises(ValueError, match="one after another have such blocks by themselves"):
      run(checkpoint, some, fuse_blocks=True, **options)
  with pytest.raises(ValueError, match="Hopper GPU"):
    run(checkpoint, videos, fuse_blocks=True)


def test_runs_with_fused_blocks_and_without_are_told_apart(make_checkpoint, videos, monkeypatch):
  made = make_checkpoint(**{**_SMALL, "width": 64})
  checkpoint = dataclasses.replace(made, description={**made.description, "model": _SMALL})
  monkeypatch.setattr(fused_blocks, "suits", lambda batch, *_: batch == 2)
  with_them, without = (
    tracking_runs.plan(checkpoint, videos, Options(threads=1, batch_size=2, fuse_blocks=asked))
    for asked in (True, False)
  )
  assert with_them.settings == {**without.settings, "fuse_blocks": True}


def test_a_single_sequence_is_followed_where_the_device_cuts(checkpoint, videos, monkeypatch):
  _, want, _ = run(checkpoint, videos[1:2], one_by_one=True)
  lanes, _, _ = run(checkpoint, videos[1:2])
  monkeypatch.setattr(tracking_runs, "PLATFORMS_THAT_CUT", ("cpu",))
  followed, got, steps = run(checkpoint, videos[1:2])
  np.testing.assert_allclose(got["v1"].boxes_xywh, want["v1"].boxes_xywh, atol=1e-3)
  np.testing.assert_allclose(got["v1"].scores, want["v1"].scores, atol=1e-5)
  assert steps == 6 and isinstance(got["v1"].seconds, float)
  # A run that goes on elsewhere, where lanes would cut on the host, is another run.
  assert followed.settings["cut_on_device"] and followed.settings != lanes.settings
  # More than one sequence, a batch that was asked for, and given boxes are for the lanes.
  for chosen, options in (
    (videos, {}),
    (videos[:1], {"batch_size": 1}),
    (videos[:1], {"teacher_forced": True}),
  ):
    planned = tracking_runs.plan(checkpoint, chosen, Options(**options))
    assert "cut_on_device" not in planned.settings


def test_what_ends_a_followed_sequence_is_told_with_its_frame(checkpoint, videos, monkeypatch):
  monkeypatch.setattr(tracking_runs, "PLATFORMS_THAT_CUT", ("cpu",))
  video = videos[1]

  def error(video):
    _, found, _ = run(checkpoint, [video])
    return str(found["v1"].error)

  cv2.imwrite(str(video.frames[3]), np.zeros((50, 60, 3), np.uint8))
  assert "frame 3: frame of 60 x 50 pixels follows frames of" in error(video)
  video.frames[2].write_bytes(b"broken")
  assert "frame 2: " in error(video) and "1-2.png is not a readable image" in error(video)
  cv2.imwrite(str(video.frames[0]), np.zeros((5, 6, 3), np.uint8))
  assert "frame 0: frame of 6 x 5 pixels is too small" in error(video)
  assert "the sequence has no frames" in error(dataclasses.replace(video, frames=()))


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({}, "block 0 keeps 0.5"),
    ({"keep_ratios": (0.25,)}, "block 0 keeps 0.25"),
    ({"keep_ratios": (0.7000001,)}, "block 0 keeps 0.7000001"),
    ({"keep_ratios": (1,)}, "block 0 keeps 1"),
    ({"keep_ratios": (1.0,)}, "block 0 keeps 1"),
    ({"elimination_layers": (), "keep_ratios": ()}, "none"),
  ],
)
def test_what_a_run_eliminates_is_among_its_settings(checkpoint, videos, change, said):
  model = checkpoint.model.clone(**{"keep_ratios": (0.5,), **change})
  changed = dataclasses.replace(checkpoint, model=model)
  planned = tracking_runs.plan(changed, videos, Options(one_by_one=True))
  assert planned.settings["elimination"] == said


def test_forced_and_free_runs_differ(checkpoint, videos):
  (_, free, _), (_, forced, _) = (
    run(checkpoint, videos, batch_size=2, teacher_forced=forced) for forced in (False, True)
  )
  assert np.abs(free["v1"].boxes_xywh - forced["v1"].boxes_xywh).max() > 1


def test_what_is_left_of_a_run_is_tracked_to_the_bit_as_in_the_whole(checkpoint, videos):
  _, whole, _ = run(checkpoint, videos, batch_size=2)
  _, rest, steps = run(checkpoint, videos, unfinished=videos[2:], batch_size=2)
  assert list(rest) == ["v2"] and steps == 5
  np.testing.assert_array_equal(rest["v2"].boxes_xywh, whole["v2"].boxes_xywh)


@pytest.mark.parametrize(("count", "wanted", "expected"), [(3, 0, 2), (1, 0, 1), (3, 1, 1)])
def test_batches_are_no_larger_than_the_sequences_need(checkpoint, videos, count, wanted, expected):
  planned = tracking_runs.plan(checkpoint, videos[:count], Options(batch_size=wanted))
  assert planned.settings["batch_size"] == expected


def test_processes_get_shares_by_length_and_record_the_same(checkpoint, videos, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  planned = []
  for process in range(2):
    monkeypatch.setattr(jax, "process_index", lambda process=process: process)
    planned.append(tracking_runs.plan(checkpoint, videos, Options()))
  assert [[video.name for video in one.videos] for one in planned] == [["v1"], ["v0", "v2"]]
  assert planned[0].settings == planned[1].settings
  assert planned[0].settings["processes"] == 2


def test_a_warm_up_on_a_broken_frame_is_left_to_the_sequence(checkpoint, videos):
  videos[0].frames[0].write_bytes(b"broken")
  _, alone, _ = run(checkpoint, videos, one_by_one=True)
  assert "0-0.png is not a readable image" in str(alone["v0"].error)
  assert alone["v1"].error is None and alone["v2"].error is None


def test_forcing_needs_every_box(checkpoint, videos):
  hidden = first_box_only("hidden", videos[0].frames, videos[0].boxes_xywh[0])
  with pytest.raises(ValueError, match="--teacher_forced needs every frame's box, which hidden"):
    tracking_runs.plan(checkpoint, [*videos, hidden], Options(teacher_forced=True))
