"""The command benchmarks.tables, its flags put back behind every test."""

import json

import pytest

from benchmarks import tables


def _reset():
  for name in tables.FLAGS:
    tables.FLAGS[name].unparse()
  tables.FLAGS.unparse_flags()


@pytest.fixture
def command(tmp_path, capsys):
  """Run the command with these arguments, gathering in tmp_path; return what it prints."""

  def run(*arguments):
    _reset()
    tables.FLAGS(["tables", f"--gathered={tmp_path / 'gathered.json'}", *map(str, arguments)])
    tables.main([])
    return capsys.readouterr().out

  yield run
  _reset()


@pytest.fixture
def speed():
  """Make what speed_rows.measure tells of a model of so many frames per second."""

  def make(fps, device="NVIDIA H100 80GB HBM3"):
    return {"network": fps, "step": fps / 2, "device": device, "dtype": "bfloat16", "jax": "0.10"}

  return make


@pytest.fixture
def summary(tmp_path):
  """Write what evaluate says of a run; return the folder."""

  def write(name, **changes):
    content = {
      "dataset": "lasot",
      "tracker": "mine",
      "teacher_forced": False,
      "elimination_set_to": None,
      "rule": "pytracking_lasot",
      "sequences": "280 of 280",
      "mean": {"success_auc": 0.685, "precision_20px": 0.74, "normalised_precision_0.2": None},
      "all_frames": {"ao": 0.6},
      **changes,
    }
    folder = tmp_path / name
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(content))
    return folder

  return write
