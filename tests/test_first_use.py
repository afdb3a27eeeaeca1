"""What somebody is told who has no weights yet."""

import cv2
import numpy as np
import pytest

from ostrack_jax import command_line, loading, track


def test_a_missing_checkpoint_is_told_with_what_to_get_and_how_to_convert_it(tmp_path):
  with pytest.raises(FileNotFoundError, match="there is no checkpoint") as raised:
    loading.load(tmp_path / "OSTrack_ep0300.pth.tar")
  for words in (
    "ships with the package (ostrack_tiny)",
    "OSTrack_ep0300.pth.tar of vitb_256_mae_ce_32x4_ep300",
    "python -m ostrack_jax.convert --input=FILE --output=DIR",
  ):
    assert words in str(raised.value)


def test_a_name_of_the_package_means_a_folder_here_first(tmp_path, monkeypatch):
  assert loading.is_shipped("ostrack_tiny") and not loading.is_shipped("nowhere")
  monkeypatch.chdir(tmp_path)
  (tmp_path / "ostrack_tiny").mkdir()
  assert not loading.is_shipped("ostrack_tiny")
  with pytest.raises(ValueError, match=r"ostrack_tiny has no description\.json"):
    loading.load("ostrack_tiny")


def test_an_empty_checkpoint_is_a_mistake_and_not_the_one_that_ships(tmp_path, monkeypatch):
  cv2.imwrite(str(tmp_path / "0.png"), np.zeros((96, 128, 3), np.uint8))
  monkeypatch.chdir(tmp_path)
  track.FLAGS.unparse_flags()
  for name in track.FLAGS:
    track.FLAGS[name].unparse()
  arguments = ["track", "--checkpoint=", "--source=.", "--init_box=40,30,30,30", "--boxes=o.csv"]
  with pytest.raises(SystemExit, match=r"has no description\.json"):
    track.main(command_line.parse(arguments, "ostrack-track", track.FLAGS, ""))


def test_without_a_checkpoint_the_one_that_ships_tracks_and_that_is_said(tmp_path, capsys):
  for number in range(3):
    frame = np.full((96, 128, 3), 90, np.uint8)
    frame[30:60, 40 + number : 70 + number] = (20, 200, 240)
    cv2.imwrite(str(tmp_path / f"{number}.png"), frame)
  common = (f"--source={tmp_path}", "--init_box=40,30,30,30", "--overwrite")
  tables, said = [], []
  for given in ((), ("--checkpoint=ostrack_tiny",)):
    tables.append(tmp_path / f"{len(given)}.csv")
    track.FLAGS.unparse_flags()
    for name in track.FLAGS:
      track.FLAGS[name].unparse()
    arguments = ["track", *common, *given, f"--boxes={tables[-1]}"]
    assert track.main(command_line.parse(arguments, "ostrack-track", track.FLAGS, "")) == 0
    lines = capsys.readouterr().err.splitlines()
    said.append([line for line in lines if line.startswith("ostrack-track: ")])
  assert len(said[0]) == 1 and said[1] == []
  assert "no --checkpoint, so ostrack_tiny tracks: a toy of 2 MB" in said[0][0]
  assert "'Official weights' in the README" in said[0][0]
  assert tables[0].read_text() == tables[1].read_text()
