"""Table 3: what elimination saves, and the curve over keep ratios."""

import json

import pytest

from benchmarks import elimination_table, speed_rows
from ostrack_jax.evaluation import published_ablations


@pytest.fixture(scope="module")
def measured():
  """Speeds of the smaller models alone."""
  about = {"device": "NVIDIA H100 80GB HBM3", "dtype": "bfloat16", "jax": "0.10"}
  speeds = {False: {"network": 1000.0, "step": 500.0}, True: {"network": 1125.0, "step": 550.0}}
  return {speed_rows.key("b", 256, on): {**one, **about} for on, one in speeds.items()}


@pytest.fixture(scope="module")
def table(measured):
  """Table 3 as Markdown, and its rows."""
  return elimination_table.table({"fps": measured}, "b", (256, 384))


@pytest.mark.parametrize(("number", "true"), [(0, 30.9), (1, 22.6), (2, 74.9), (3, 54.1)])
def test_macs_are_the_papers_within_a_hundredth(table, number, true):
  row, printed = table[1][number], published_ablations.elimination_models()[number]
  assert (row["search"], row["eliminates"]) == (printed.search_size, printed.eliminates)
  assert row["giga_macs"] == pytest.approx(printed.giga_macs, rel=0.01)
  assert row["true_giga_macs"] == pytest.approx(true, abs=0.05)


def test_parameters_are_the_official_ones_that_are_used(table):
  unused = sum(elimination_table.UNUSED_TENSORS.values())
  assert [row["parameters"] + unused for row in table[1][::2]] == [92_518_533, 92_825_733]


def test_speeds_that_were_measured_are_printed_and_the_others_named(table):
  lines = table[0].splitlines()
  rows = {tuple(line.split(" | ")[:2]): line for line in lines if line[2:5] in ("256", "384")}
  assert "| 29.0 | 29.0 | 30.9 | 1000.0 | 500.0 | 93.1 | 68.7 |" in rows["| 256", "without"]
  assert "| 21.5 | 21.5 | 22.6 | 1125.0 | 550.0 | 105.4 | 69.1 |" in rows["| 256", "with"]
  assert "| 48.3 | 48.3 | 54.1 | not run yet | not run yet | 58.1 |" in rows["| 384", "with"]
  assert any("FPS by +12.5 %; in the paper -25.9 % and +13.2 %" in line for line in lines)


def test_a_call_writes_markdown_and_json_and_names_what_is_unrun(command, tmp_path):
  text = command("--table=3", "--variant=ti", "--search_sizes=256", f"--output={tmp_path}")
  assert "FPS: not run yet" in text and "Curve over keep ratios: not run yet" in text
  assert (tmp_path / "table_3.md").read_text() in text
  written = json.loads((tmp_path / "table_3.json").read_text())
  assert [row["fps"] for row in written["models"]] == [None, None]


def test_speeds_of_different_devices_make_no_ratio(speed):
  fast, slow = speed(200.0), speed(100.0)
  assert speed_rows.ratio(fast, slow) == 2.0
  assert speed_rows.ratio(fast, speed(100.0, "cpu")) is None
  assert speed_rows.ratio_text(fast, None) == "not run yet"


def test_speeds_are_frames_a_second_of_models_that_take_turns(monkeypatch):
  monkeypatch.setattr(speed_rows.inference, "network_step", lambda model, variables, batch: model)
  monkeypatch.setattr(speed_rows.inference, "tracking_step", lambda model, variables: model)
  monkeypatch.setattr(
    speed_rows.inference,
    "median_ms",
    lambda steps: {name: 4.0 if name == "with" else 5.0 for name in steps},
  )
  models = {
    name: speed_rows.make_model("ti", 256, name == "with").clone(dtype="bfloat16")
    for name in ("with", "without")
  }
  found = speed_rows.measure(models, 0.1, variables={})
  assert {name: (one["network"], one["step"]) for name, one in found.items()} == {
    "with": (250.0, 250.0),
    "without": (200.0, 200.0),
  }
  assert found["with"]["dtype"] == "bfloat16"


def _curve(speed):
  points = ((1.0, 0.61, []), (0.5, 0.59, [128, 64, 32]))
  return {
    "trained_keep_ratios": [0.7, 0.7, 0.7],
    "rule": "otb",
    "measure": "success_auc",
    "sequences": "2 of 100",
    "points": [
      {"keep_ratio": ratio, "score": score, "kept": kept, "giga_macs": 4.0, **speed(100 / ratio)}
      for ratio, score, kept in points
    ],
  }


def test_a_curve_stands_below_the_table_with_its_picture(command, speed, tmp_path):
  (tmp_path / "gathered.json").write_text(json.dumps({"curves": {"mine otb": _curve(speed)}}))
  text = command("--table=3", "--variant=ti", "--search_sizes=256", f"--output={tmp_path}")
  assert "| 1 | all | 4.000 | 100.0 | 50.0 | 0.6100 |" in text
  assert "| 0.5 | 128, 64, 32 | 4.000 | 200.0 | 100.0 | 0.5900 |" in text
  assert "2 of 100 sequences; FPS at batch 1 on NVIDIA H100 80GB HBM3, bfloat16" in text
  assert (tmp_path / "keep_ratio_mine_otb.png").stat().st_size > 10_000


def test_every_point_of_a_curve_is_evaluated_in_a_folder_of_its_own(tmp_path):
  commands = elimination_table.evaluation_commands("run/5", "otb", "OTB", (1.0, 0.35), tmp_path)
  assert list(commands) == [1.0, 0.35]
  command, folder = commands[0.35]
  assert "--keep_ratios=0.35" in command and f"--output={folder}" in command
  assert folder != commands[1.0][1]
