"""benchmarks.compare_dtypes: which tokens stay, and what two types say of the same frames."""

import cv2
import numpy as np
import pytest
from small_network import make_model

from benchmarks import compare_dtypes
from ostrack_jax import loading
from ostrack_jax.training.state import init_variables


@pytest.fixture
def root(tmp_path):
  """A sequence of a bright patch that moves; the target is absent in the third frame."""
  rng = np.random.default_rng(0)
  folder = tmp_path / "videos" / "patch"
  folder.mkdir(parents=True)
  scene = cv2.resize(rng.integers(0, 256, (9, 16, 3), np.uint8), (320, 180))
  rows = []
  for number in range(6):
    frame, x = scene.copy(), 60 + 8 * number
    frame[70:110, x : x + 40] = 255
    cv2.imwrite(str(folder / f"{number + 1:08d}.png"), frame)
    rows.append("nan,nan,nan,nan" if number == 2 else f"{x},70,40,40")
  (folder / "groundtruth.txt").write_text("\n".join(rows) + "\n")
  return folder.parent


def _flags(root, *more):
  compare_dtypes.FLAGS([
    "compare_dtypes", "--checkpoint=ostrack_tiny", f"--root={root}", "--batch_size=4", "--dataset=folder", *more
  ])  # fmt: skip


def test_kept_are_those_that_no_stage_removed():
  left = compare_dtypes.kept([np.array([[3], [0]]), np.array([[0, 1], [1, 3]])], 2, 4)
  assert left.tolist() == [
    [[True, True, True, False], [False, True, True, True]],
    [[False, False, True, False], [False, False, True, False]],
  ]


def test_a_network_that_keeps_all_is_compared_without_stages(root, monkeypatch):
  _flags(root)
  (video,) = compare_dtypes.find_videos()
  still = np.full((4, 4), 0.5, np.float32)
  monkeypatch.setattr(compare_dtypes, "forward", lambda network: lambda *crops: (still, ()))
  networks = dict.fromkeys(compare_dtypes.DTYPES, loading.load("ostrack_tiny", keep_ratios=1))
  compared = compare_dtypes.from_annotated_boxes(networks, [video])
  assert compared["frames"] == 5
  for half in compare_dtypes.HALVES:
    assert compared["against_float32"][half]["kept_in_common_by_stage"] == []


def test_two_streams_are_compared_too(root):
  _flags(root)
  (video,) = compare_dtypes.find_videos()
  model = make_model(relation="stark", elimination_layers=(), keep_ratios=())
  factors = {"template_factor": 2.0, "search_factor": 4.0}
  network = loading.Checkpoint(model, init_variables(model, 0), {"tracker": factors})
  compared = compare_dtypes.from_annotated_boxes(
    dict.fromkeys(compare_dtypes.DTYPES, network), [video]
  )
  assert compared["against_float32"]["float16"]["px_apart"]["99th percentile"] == 0


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ("--checkpoint=nope", "benchmarks.compare_dtypes: there is no checkpoint nope"),
    ("--root=nowhere", "benchmarks.compare_dtypes: nowhere is not a folder"),
  ],
)
def test_mistakes_end_in_one_sentence(root, change, said):
  _flags(root, change)
  with pytest.raises(SystemExit) as raised:
    compare_dtypes.main([])
  assert said in str(raised.value)


def test_a_type_agrees_with_itself_and_nearly_with_the_others_float16_more_than_bfloat16(root):
  _flags(root)
  (video,) = compare_dtypes.find_videos()
  networks = {dtype: loading.load("ostrack_tiny", dtype=dtype) for dtype in compare_dtypes.DTYPES}
  same = compare_dtypes.from_annotated_boxes(
    {"float32": networks["float32"], "bfloat16": networks["float32"]}, [video]
  )
  assert same["frames"] == 5
  assert same["against_float32"]["bfloat16"]["px_apart"] == {"median": 0.0, "99th percentile": 0.0}
  assert same["against_float32"]["bfloat16"]["kept_in_common_by_stage"] == [1.0, 1.0]
  # The absent frame has no overlap to count: a box of NaN would make the mean NaN.
  assert 0.3 < same["mean_iou"]["float32"] == same["mean_iou"]["bfloat16"] <= 1
  compared = compare_dtypes.from_annotated_boxes(networks, [video])
  bfloat16, float16 = (compared["against_float32"][half] for half in compare_dtypes.HALVES)
  assert 0 < 2 * float16["px_apart"]["median"] < bfloat16["px_apart"]["median"] < 2
  assert 0.8 < bfloat16["kept_in_common_by_stage"][-1] <= 1
  assert 0.95 < float16["kept_in_common_by_stage"][-1] <= 1
  assert compared["mean_iou"]["float32"] == same["mean_iou"]["float32"]
  for half in (bfloat16, float16):
    assert 0 < abs(half["mean_iou_difference"]) < 0.05


def test_every_root_needs_its_data_set(root):
  _flags(f"{root},{root}")
  with pytest.raises(SystemExit, match="for each --root, of which there are 2"):
    compare_dtypes.find_videos()
