"""Draws that come to nothing: rejected ones are counted, damaged records stop training or are skipped."""

import dataclasses

import numpy as np
import pytest

from data_pipelines import pair_transform, sources
from data_pipelines.sources import DamagedRecordError, FrameSource

# In this process, in threads, in worker processes.
WAYS = [{"num_threads": 0}, {"num_threads": 2}, {"num_workers": 2}]


@pytest.fixture
def skip(settings):
  """Settings that skip damaged records."""
  return dataclasses.replace(settings, on_bad_record="skip")


def spoil_records(directory, positions):
  """Overwrite a few bytes of the images at these positions."""
  whole = FrameSource(directory)
  (path,) = directory.glob("*-train.array_record*")
  content = bytearray(path.read_bytes())
  for position in positions:
    jpeg = whole.jpeg(position)
    # A block's header may stand in the middle of an image, but not at three places.
    found = [
      content.find(jpeg[at : at + 30])
      for at in range(len(jpeg) // 4, len(jpeg) - 30, len(jpeg) // 4)
    ]
    start = max(found)
    assert start > 0
    content[start : start + 20] = bytes(20)
  path.write_bytes(content)
  return FrameSource(directory)


def test_a_frame_that_context_records_left_out_is_drawn_anew(copy, start):
  path = sources.index_path(copy, "train") / "records.npy"
  records = np.load(path)
  records[:24] = -1
  np.save(path, records)
  source = FrameSource(copy)
  iterator = start(source, batch_size=40)
  next(iterator)
  assert iterator.counts["redraws"] > 0


@pytest.mark.parametrize("options", WAYS)
def test_a_damaged_record_stops_training_with_its_name(copy, options, take):
  source = spoil_records(copy, range(96))
  with pytest.raises(
    DamagedRecordError, match=r"record \d+ of .*copy.* \(sequence train-\d+, frame"
  ):
    take(source, 1, **options)


@pytest.mark.parametrize("options", WAYS)
def test_a_damaged_record_is_skipped_and_counted_where_that_is_asked_for(
  copy, options, start, skip
):
  spoilt = set(range(30, 40))
  source = spoil_records(copy, spoilt)
  iterator = start(source, skip, batch_size=40, **options)
  batches = [next(iterator), next(iterator)]
  iterator.close()
  assert iterator.counts["pairs"] == 80
  # Two frames a pair of 96, of which 10 are spoilt: about one in five.
  assert 5 < iterator.counts["skipped"] < 40
  assert iterator.counts["redraws"] == 0
  assert np.isfinite(batches[0]["search_box_xywh"]).all()


def test_each_skipped_record_is_logged_once(copy, monkeypatch, take, skip):
  logged = []
  monkeypatch.setattr(
    pair_transform.logging, "warning", lambda *parts: logged.append(parts[0] % parts[1:])
  )
  source = spoil_records(copy, range(24))
  take(source, 3, skip, batch_size=40)
  # The last of the 24 can be no template and is drawn as search frame but rarely.
  assert 10 < len(logged) == len(set(logged)) <= 20
  assert all("skipped: cannot read record" in line for line in logged)
  assert all("sequence train-000000" in line for line in logged)


def test_other_errors_are_never_skipped(source, monkeypatch, take, skip):
  def fail(position):
    raise MemoryError("no room")

  monkeypatch.setattr(source, "stored_frame", fail)
  with pytest.raises(MemoryError, match="no room"):
    take(source, 1, skip)


def test_a_box_that_cannot_be_cropped_around_is_named(copy, take, skip):
  path = sources.index_path(copy, "train") / "boxes_xywh.npy"
  boxes_xywh = np.load(path)
  boxes_xywh[:, 2] = np.nan
  np.save(path, boxes_xywh)
  with pytest.raises(ValueError, match=r"sequence train-\d+, frame \d+\): cannot crop around"):
    take(FrameSource(copy), 1, skip)


def test_boxes_that_never_show_a_target_end_in_words(monkeypatch, take, spoil_boxes):
  monkeypatch.setattr(pair_transform, "_MOST_REDRAWS", 5)
  source = spoil_boxes(range(4), 9000, 0, 0, 0)
  with pytest.raises(ValueError, match=r"5 pairs in a row .* 0 had a damaged record, and 5 showed"):
    take(source, 1)


def test_nothing_but_damage_ends_in_words_even_where_damage_is_skipped(
  copy, monkeypatch, take, skip
):
  monkeypatch.setattr(pair_transform, "_MOST_REDRAWS", 5)
  source = spoil_records(copy, range(96))
  with pytest.raises(ValueError, match=r"5 pairs in a row .* 5 had a damaged record"):
    take(source, 1, skip)


def test_counts_are_of_what_was_given_and_do_not_reach_the_batch(start, spoil_boxes):
  # A pair from one of four sequences is rejected: a third of a redraw a pair.
  source = spoil_boxes([2], 9000, 0, 0, 0)
  iterator = start(source, batch_size=25, num_threads=2, read_ahead=8)
  assert iterator.counts == {"pairs": 0, "redraws": 0, "skipped": 0}
  batches = [next(iterator) for _ in range(12)]
  iterator.close()
  assert all(isinstance(value, np.ndarray) for batch in batches for value in batch.values())
  assert iterator.counts["pairs"] == 300 and iterator.counts["skipped"] == 0
  # Geometric with mean 1/3, variance 4/9: the sum of 300 has mean 100, deviation 11.5.
  assert 54 < iterator.counts["redraws"] < 146
  one = start(source, batch_size=300)
  next(one)
  assert one.counts == iterator.counts


def test_workers_count_alike(start, spoil_boxes):
  source = spoil_boxes([2], 9000, 0, 0, 0)
  counts = []
  for options in WAYS:
    iterator = start(source, batch_size=10, **options)
    for _ in range(4):
      next(iterator)
    counts.append(iterator.counts)
    iterator.close()
  assert counts[0] == counts[1] == counts[2]
  assert counts[0]["redraws"] > 0
