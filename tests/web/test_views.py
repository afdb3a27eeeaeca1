"""What the page shows of a track."""

import pathlib

from ostrack_jax.web import views
from ostrack_jax.web.tracks import FrameScore, Tracks


def _tracks(scores):
  nowhere = pathlib.Path("x")
  return Tracks(
    video=nowhere, table=nowhere, elimination=None, scores=scores, frames=3, was_stopped=False
  )


def test_curves_have_the_score_and_where_there_is_one_the_confidence():
  table, colours = views.curves(
    _tracks([FrameScore(1, 0, 0.5, None), FrameScore(2, 0, 0.25, None)])
  )
  assert table.to_numpy().tolist() == [[1, 0.5, "score"], [2, 0.25, "score"]]
  assert list(colours) == ["score"]
  table, colours = views.curves(
    _tracks([FrameScore(1, 0, 0.5, 0.9), FrameScore(1, 1, 0.25, 0.125)])
  )
  assert table.to_numpy().tolist() == [
    [1, 0.5, "object 0 score"],
    [1, 0.9, "object 0 confidence"],
    [1, 0.25, "object 1 score"],
    [1, 0.125, "object 1 confidence"],
  ]
  assert len(set(colours.values())) == 4
