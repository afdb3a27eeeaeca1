import os

import pytest

from ostrack_jax import output_folder


def _check(folder, overwrite):
  output_folder.check(folder, overwrite, lambda name: name.endswith(".png"), "pictures")


def _names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_when_all_is_there(tmp_path):
  out = tmp_path / "out"
  with output_folder.written_whole(out) as folder:
    (folder / "attention_1.png").write_text("a")
    assert not out.exists() and folder.parent == tmp_path
  assert _names(tmp_path) == ["out"] and _names(out) == ["attention_1.png"]


def test_pictures_of_an_earlier_run_go_when_new_ones_come_and_stay_when_none_do(tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  (out / "attention_1.png").write_text("old")

  def replace(fail):
    with output_folder.written_whole(out) as folder:
      (folder / "score_maps_2.png").write_text("new")
      if fail:
        raise ValueError("broken")

  with pytest.raises(ValueError, match="broken"):
    replace(fail=True)
  assert _names(tmp_path) == ["out"]
  assert (out / "attention_1.png").read_text() == "old"
  with pytest.raises(FileNotFoundError), output_folder.written_whole(out) as folder:
    folder.rmdir()
  assert _names(tmp_path) == ["out"] and _names(out) == ["attention_1.png"]
  replace(fail=False)
  assert _names(tmp_path) == ["out"] and _names(out) == ["score_maps_2.png"]


def test_only_an_earlier_runs_pictures_are_overwritten(tmp_path):
  out = tmp_path / "out"
  _check(out, overwrite=False)
  out.mkdir()
  _check(out, overwrite=False)
  for name in ("a.png", "b.png"):
    (out / name).touch()
  _check(out, overwrite=True)
  with pytest.raises(
    FileExistsError, match="is not empty; give another folder, or pass --overwrite"
  ):
    _check(out, overwrite=False)
  (out / "thesis.tex").touch()
  with pytest.raises(
    FileExistsError, match=r"holds 'thesis\.tex' besides pictures and is not overwritten"
  ):
    _check(out, overwrite=True)


def test_places_that_cannot_be_written_are_named(tmp_path, monkeypatch):
  (tmp_path / "file").touch()
  with pytest.raises(FileExistsError, match="file is a file; give a folder"):
    _check(tmp_path / "file", overwrite=True)
  with pytest.raises(FileNotFoundError, match="there is no folder"):
    output_folder.check_parent(tmp_path / "nowhere" / "out")
  # Told, not made, since root may write everywhere.
  monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
  with pytest.raises(PermissionError, match="is not writable"):
    output_folder.check_parent(tmp_path / "out")
