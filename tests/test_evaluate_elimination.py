"""What ostrack-evaluate's flags say of candidate elimination reaches the run that it plans."""

import cv2
import numpy as np
import pytest

from ostrack_jax import evaluate
from ostrack_jax.evaluation import benchmarks


@pytest.fixture
def videos(tmp_path):
  """A sequence of two frames."""
  folder = tmp_path / "root" / "still" / "img"
  folder.mkdir(parents=True)
  for number in (1, 2):
    cv2.imwrite(str(folder / f"{number:04d}.png"), np.zeros((30, 40, 3), np.uint8))
  (folder.parent / "groundtruth.txt").write_text("5,5,10,10\n" * 2)
  return benchmarks.select(benchmarks.BENCHMARKS["folder"], tmp_path / "root").videos


@pytest.fixture
def own_flags():
  """The command's flags, put back afterwards."""
  yield evaluate.FLAGS
  for name in evaluate.FLAGS:
    evaluate.FLAGS[name].unparse()
  evaluate.FLAGS.unparse_flags()


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ([], "block 1 keeps 0.7, block 2 keeps 0.7"),
    (["--keep_ratios=0.5"], "block 1 keeps 0.5, block 2 keeps 0.5"),
    (["--keep_ratios=0.5", "--elimination_layers=2"], "block 2 keeps 0.5"),
    (["--keep_ratios=1"], "none"),
  ],
)
def test_a_run_eliminates_what_the_flags_say(videos, own_flags, arguments, said):
  own_flags(
    ["evaluate", "--checkpoint=ostrack_tiny", "--one_by_one", "--compilation_cache=", *arguments]
  )
  run = evaluate.open_run(videos)
  assert [video.name for video in run.videos] == ["still"]
  assert run.settings["elimination"] == said
