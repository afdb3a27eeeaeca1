import json
import zipfile

import numpy as np
import pytest

from ostrack_jax import command_line, pack
from ostrack_jax.evaluation import packing, results

FRAMES = 3


def write_roots(root):
  """Write both test sets whole, three empty frames a sequence, and return name to first box."""
  got10k = [f"GOT-10k_Test_{number:06d}" for number in range(1, 181)]
  trackingnet = [f"a{number}_0" for number in range(511)]
  (root / "test").mkdir(parents=True)
  (root / "TEST/anno").mkdir(parents=True)
  (root / "test/list.txt").write_text("\n".join(got10k))
  for name in got10k:
    folder = root / "test" / name
    folder.mkdir()
    (folder / "groundtruth.txt").write_text("5.5,6.0,7.0,8.0\n")
    for number in range(1, FRAMES + 1):
      (folder / f"{number:08d}.jpg").touch()
  for name in trackingnet:
    (root / "TEST/anno" / f"{name}.txt").write_text("5,6,7,8\n")
    folder = root / "TEST/frames" / name
    folder.mkdir(parents=True)
    for number in range(FRAMES):
      (folder / f"{number}.jpg").touch()
  return {"got10k_test": got10k, "trackingnet": trackingnet}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
  root = tmp_path_factory.mktemp("sets")
  return root, write_roots(root)


@pytest.fixture
def recorded(roots, tmp_path):
  """A function that writes the results of a whole set and returns their folder."""

  def write(dataset):
    first = 5.5 if dataset == "got10k_test" else 5.0
    boxes_xywh = np.array([[first, 6, 7, 8], [-1.75, 6.9994, 7.25, 8], [1e5, 0, 1.5, 8]])
    seconds = np.array([0.5, 0.25, 0.125])
    for name in roots[1][dataset]:
      results.write_result(tmp_path / "boxes", name, results.RecordedResult(boxes_xywh, seconds))
    return tmp_path / "boxes"

  return write


def contents(path):
  with zipfile.ZipFile(path) as archive:
    assert archive.testzip() is None
    return {name: archive.read(name).decode() for name in archive.namelist()}


def test_got10k_gets_a_folder_a_sequence_with_its_times(roots, recorded, tmp_path):
  folder = recorded("got10k_test")
  before = {path.name: path.read_bytes() for path in folder.iterdir()}
  output = tmp_path / "new" / "up.zip"
  assert packing.pack("got10k_test", folder, roots[0], output) == 180
  members = contents(output)
  assert len(members) == 360
  name = "GOT-10k_Test_000007"
  # Truncated toward zero, as the official code's int() does.
  assert members[f"{name}/{name}_001.txt"] == "5,6,7,8\n-1,6,7,8\n100000,0,1,8\n"
  assert members[f"{name}/{name}_time.txt"] == "0.50000000\n0.25000000\n0.12500000\n"
  assert [path.name for path in output.parent.iterdir()] == ["up.zip"]
  assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_trackingnet_is_flat_and_may_keep_decimals(roots, recorded, tmp_path):
  folder = recorded("trackingnet")
  output = tmp_path / "up.zip"
  assert packing.pack("trackingnet", folder, roots[0], output, integer_boxes=False) == 511
  members = contents(output)
  assert set(members) == {f"{name}.txt" for name in roots[1]["trackingnet"]}
  assert members["a3_0.txt"].splitlines() == [
    "5.000,6.000,7.000,8.000",
    "-1.750,6.999,7.250,8.000",
    "100000.000,0.000,1.500,8.000",
  ]


def test_the_same_results_give_the_same_bytes_and_nothing_is_replaced_unasked(
  roots, recorded, tmp_path
):
  folder = recorded("got10k_test")
  first, second = tmp_path / "a.zip", tmp_path / "b.zip"
  for output in (first, second):
    packing.pack("got10k_test", folder, roots[0], output)
  assert first.read_bytes() == second.read_bytes()
  with pytest.raises(FileExistsError, match="--overwrite"):
    packing.pack("got10k_test", folder, roots[0], first)
  packing.pack("got10k_test", folder, roots[0], first, overwrite=True)
  with pytest.raises(ValueError, match=r"does not end with \.zip"):
    packing.pack("got10k_test", folder, roots[0], tmp_path / "up.tar")


def test_every_problem_is_told_at_once_and_nothing_is_written(roots, recorded, tmp_path):
  folder = recorded("got10k_test")
  names = roots[1]["got10k_test"]

  def rewrite(index, text, suffix=""):
    (folder / f"{names[index]}{suffix}.txt").write_text(text)

  good = "5,6,7,8\n"
  rewrite(0, good * 2)
  rewrite(1, "6.5,6,7,8\n" + good * 2)
  rewrite(2, good + "5,6,0.9,8\n" + good)
  rewrite(3, good + "nan,6,7,8\n" + good)
  rewrite(4, "word\n")
  rewrite(5, "1\n1\n", "_time")
  rewrite(6, "1\n-1\n1\n", "_time")
  (folder / f"{names[7]}_time.txt").unlink()
  (folder / f"{names[8]}.txt").unlink()
  (folder / f"{names[8]}_time.txt").unlink()
  rewrite(9, good * 3)
  (folder / "Basketball.txt").write_text(good)
  output = tmp_path / "up.zip"
  with pytest.raises(ValueError) as error:
    packing.pack("got10k_test", folder, roots[0], output)
  head, *lines = str(error.value).splitlines()
  assert head == (
    f"{folder} cannot be packed for got10k_test, 10 problems; evaluate again what is wrong:"
  )
  assert lines == [
    "  Basketball: is no sequence of got10k_test",
    f"  {names[0]}: 2 rows for 3 frames",
    f"  {names[1]}: its first row [6.5, 6.0, 7.0, 8.0] is not the given box [5.5, 6.0, 7.0, 8.0]",
    f"  {names[2]}: row 2 would be packed without width or height: [5.0, 6.0, 0.0, 8.0]",
    f"  {names[3]}: row 2 holds a number that is not finite",
    f"  {names[4]}: {folder / names[4]}.txt, line 1: 'word' is not a row of numbers",
    f"  {names[5]}: 2 rows of seconds for 3 frames",
    f"  {names[6]}: a time is negative or not finite",
    f"  {names[7]}: no seconds, which the server asks for, in {names[7]}_time.txt or timing.json: "
    "evaluate with --one_by_one, since sequences in lanes share their time",
    f"  {names[8]}: no result file",
  ]
  assert not output.exists()


def test_times_come_from_the_evaluators_file_as_well(roots, recorded, tmp_path):
  folder = recorded("got10k_test")
  seconds = {name: {"seconds": [0.5, 0.25, i]} for i, name in enumerate(roots[1]["got10k_test"])}
  for name in seconds:
    (folder / f"{name}_time.txt").unlink()
  (tmp_path / results.TIMING_FILE).write_text(json.dumps({"per_sequence": seconds}))
  output = tmp_path / "up.zip"
  packing.pack("got10k_test", folder, roots[0], output)
  name = "GOT-10k_Test_000003"
  assert contents(output)[f"{name}/{name}_time.txt"] == "0.50000000\n0.25000000\n2.00000000\n"


def test_trackingnet_needs_no_times(roots, recorded, tmp_path):
  folder = recorded("trackingnet")
  for path in folder.glob("*_time.txt"):
    path.unlink()
  assert packing.pack("trackingnet", folder, roots[0], tmp_path / "up.zip") == 511


def test_a_failed_write_leaves_nothing(roots, recorded, tmp_path, monkeypatch):
  folder = recorded("trackingnet")
  output = tmp_path / "out" / "up.zip"

  def full(*arguments, **options):
    raise OSError("no space left")

  monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
  with pytest.raises(OSError, match="no space left"):
    packing.pack("trackingnet", folder, roots[0], output)
  assert list(output.parent.iterdir()) == []


@pytest.fixture
def main():
  """Run the command with these arguments, flags put back afterwards."""

  def call(*arguments):
    pack.FLAGS.unparse_flags()
    argv = ["pack", *map(str, arguments)]
    pack.main(command_line.parse(argv, "ostrack-pack", pack.FLAGS, pack.__doc__))

  yield call
  for name in pack.FLAGS:
    pack.FLAGS[name].unparse()
  pack.FLAGS.unparse_flags()


def test_the_command_packs(roots, recorded, tmp_path, main, capsys):
  folder, output = recorded("got10k_test"), tmp_path / "up.zip"
  main("--dataset=got10k_test", f"--results={folder}", f"--root={roots[0]}", f"--output={output}",
       "--nointeger_boxes")  # fmt: skip
  assert capsys.readouterr().out == f"packed 180 sequences into {output}\n"
  name = "GOT-10k_Test_000001"
  assert contents(output)[f"{name}/{name}_001.txt"].startswith("5.500,6.000,7.000,8.000\n")


def test_mistakes_end_in_one_sentence(roots, recorded, tmp_path, main):
  folder = recorded("trackingnet")
  rest = ("--dataset=trackingnet", f"--root={roots[0]}", f"--output={tmp_path / 'up.zip'}")
  cases = [
    ((), "--dataset and --results and --root and --output missing"),
    (
      (*rest, f"--results={tmp_path / 'sets'}"),
      "sets is not a folder; expected one <sequence>.txt",
    ),
    # The evaluator's output stands for the results in it.
    ((*rest, f"--results={tmp_path}"), f"{tmp_path}/results/trackingnet cannot be packed"),
    ((*rest, f"--results={folder}", "--root=gone"), "gone is not a folder; expected <root>/TEST"),
    (("--dataset=otb",), "should be one of"),
  ]
  (tmp_path / "results" / "trackingnet").mkdir(parents=True)
  (tmp_path / "results" / "trackingnet" / "a0_0.txt").write_text("1,2,3,4\n")
  for arguments, said in cases:
    with pytest.raises(SystemExit) as stop:
      main(*arguments)
    assert str(stop.value).startswith("ostrack-pack: ")
    assert said in str(stop.value)
