"""The command: exit status, words on the screen, files; and processes that go with their parent."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from data_pipelines import preparation, validate
from data_pipelines.builders.sequence_folder import SequenceFolder

ROOT = pathlib.Path(__file__).parents[2]
FRAMES = 24


def write_sequence(folder: pathlib.Path, seed: int, frames: int = FRAMES, side: int = 8) -> None:
  (folder / "img").mkdir(parents=True)
  rng = np.random.default_rng(seed)
  for i in range(frames):
    coarse = rng.integers(0, 256, (side, side * 3 // 2, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (side * 12, side * 8))
    cv2.imwrite(str(folder / "img" / f"{i + 1:04d}.jpg"), image)
  rows = [f"{30 + 0.5 * i},{20 + 0.25 * i},20,16" for i in range(frames)]
  (folder / "groundtruth.txt").write_text("\n".join(rows) + "\n")


@pytest.fixture
def raw(tmp_path) -> pathlib.Path:
  """A clean raw folder of two sequences."""
  for seed, name in enumerate(("run", "walk")):
    write_sequence(tmp_path / "raw" / name, seed)
  return tmp_path / "raw"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
  """A function that runs the command in a folder of its own: (*flags) -> status, stdout, stderr."""
  work = tmp_path / "work"
  work.mkdir()
  monkeypatch.chdir(work)

  def run(*arguments):
    validate.FLAGS.unparse_flags()
    for name in validate.FLAGS:
      validate.FLAGS[name].unparse()
    monkeypatch.setattr(sys, "argv", ["validate", *arguments])
    with pytest.raises(SystemExit) as exit_:
      validate.run()
    output = capsys.readouterr()
    code = exit_.value.code
    if isinstance(code, str):
      return 1, output.out, output.err + code
    return code or 0, output.out, output.err

  return run


def spoil(raw: pathlib.Path) -> None:
  path = raw / "walk" / "img" / "0008.jpg"
  path.write_bytes(path.read_bytes()[:200])


def test_clean_data_exits_with_0_and_a_summary(raw, command):
  status, out, _ = command("--dataset=folder", f"--raw_dir={raw}", "--num_workers=0")
  assert status == 0
  assert "2 sequences, 2 targets, 48 frames" in out and "visible in 100.0%" in out
  assert "no errors; the report is folder_check/report.html" in out
  assert {p.name for p in pathlib.Path("folder_check").iterdir()} == {
    "report.html",
    "report.json",
    "overview.png",
  }


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_exits_with_1_and_names_file_and_frame(raw, command, num_workers):
  spoil(raw)
  status, out, err = command(
    "--dataset=folder", f"--raw_dir={raw}", f"--num_workers={num_workers}", "--report=found"
  )
  assert status == 1
  assert "1 in 1 of the sequences: frames that cannot be read whole" in out
  assert "walk (walk/img/0008.jpg): frame 7 cannot be read whole" in err
  assert f"1 error in {raw}; see found/report.html" in err
  assert "walk/img/0008.jpg" in pathlib.Path("found/report.html").read_text()
  (finding,) = json.loads(pathlib.Path("found/report.json").read_text())["findings"]
  assert (finding["sequence"], finding["frames"]) == ("walk", [7])


def test_warnings_alone_exit_with_0(raw, command):
  write_sequence(raw / "short", 5, frames=6)
  status, out, _ = command("--dataset=folder", f"--raw_dir={raw}", "--num_workers=0")
  assert status == 0
  assert "targets that never train" in out


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ((), "give --dataset and --raw_dir to check, or --preview"),
    (("--raw_dir=.",), "--dataset missing; expected one of coco2017, detection"),
    (("--dataset=folder", "--raw_dir=nowhere"), "no folder nowhere"),
    (("--dataset=folder", "--raw_dir=."), "no sequence in ."),
    (("--dataset=lasot", "--raw_dir=."), "1120 of 1120 LaSOT train sequences"),
    (("--dataset=folder", "--raw_dir=.", "--splits=val"), "folder has no split 'val', only train"),
    (("--dataset=otb9", "--raw_dir=."), "should be one of"),
    (("--dataset=folder", "--raw_dir=.", "--num_workers=-1"), "non-negative"),
    (("--preview=a.png",), "run `python -m data_pipelines.prepare`"),
    (("--preview=a.png", "--prepared=nothing"), "'nothing' is not prepared in prepared"),
    (("--preview=a.png", "--prepared=x", "--search_size=250"), "search_size 250"),
  ],
)
def test_wrong_wishes_are_refused_in_one_sentence(command, arguments, words):
  status, _, err = command(*arguments)
  assert status == 1
  assert words in err and err.startswith("data_pipelines.validate: ")
  assert err.strip().count("\n") == 0 and "Traceback" not in err
  assert not list(pathlib.Path().iterdir())


def test_help_shows_both_uses(command):
  status, out, _ = command("--help")
  assert status == 0
  assert "--raw_dir" in out and "--preview" in out


def test_missing_sequences_are_left_out_on_request(tmp_path, command):
  video = tmp_path / "LaSOT" / "airplane" / "airplane-10"
  write_sequence(video, 0)
  for i in range(FRAMES):
    (video / "img" / f"{i + 1:04d}.jpg").rename(video / "img" / f"{i + 1:08d}.jpg")
  for name in ("full_occlusion.txt", "out_of_view.txt"):
    (video / name).write_text(",".join("0" * FRAMES))
  arguments = ("--dataset=lasot", f"--raw_dir={tmp_path / 'LaSOT'}", "--num_workers=0")
  assert command(*arguments)[0] == 1
  status, out, _ = command(*arguments, "--allow_missing")
  assert status == 0 and "1 sequences, 1 targets, 24 frames" in out


def test_the_preview_is_written_from_a_directory_and_by_name(raw, tmp_path, command, capsys):
  data = tmp_path / "data"
  directory = preparation.prepare_folder(SequenceFolder, raw, data, "mine")
  capsys.readouterr()
  for file, arguments in {
    "directory.png": (f"--prepared={directory}",),
    "small.png": (f"--prepared={directory}", "--search_size=128", "--template_size=64"),
    "name.png": ("--prepared=mine", f"--data_dir={data}"),
    "large.jpg": (f"--prepared={directory}", "--preset=384"),
  }.items():
    status, out, err = command(f"--preview={file}", "--preview_pairs=4", *arguments)
    assert (status, err) == (0, "") and "4 pairs written" in out
  assert pathlib.Path("name.png").read_bytes() == pathlib.Path("directory.png").read_bytes()
  # As many tiles as fit into a row, each of template, gap and search region.
  assert cv2.imread("directory.png").shape[1] == 4 * (128 + 4 + 256 + 4) - 4
  assert cv2.imread("small.png").shape[1] == 4 * (64 + 4 + 128 + 4) - 4
  assert cv2.imread("large.jpg").shape[1] == 2 * (192 + 4 + 384 + 4) - 4


def start(raw, report):
  arguments = ["--dataset=folder", f"--raw_dir={raw}", "--num_workers=2", f"--report={report}"]
  return subprocess.Popen(
    [sys.executable, "-m", "data_pipelines.validate", *arguments],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )


def members(group: int) -> list[int]:
  """Return the processes of a group that are not zombies."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      fields = path.read_text().rpartition(")")[2].split()
    except OSError:
      continue
    if int(fields[2]) == group and fields[0] != "Z":
      found.append(int(path.parent.name))
  return found


def workers(group: int) -> list[int]:
  return [pid for pid in members(group) if b"spawn_main" in command_line_of(pid)]


def command_line_of(pid: int) -> bytes:
  try:
    return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
  except OSError:
    return b""


def wait_until(condition, seconds=60):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, "it did not come to pass"
    time.sleep(0.02)


@pytest.fixture
def stuck(tmp_path):
  """The command at work, its two processes held up by frames that are pipes nobody writes to."""
  if not pathlib.Path("/proc/self/stat").exists():
    pytest.skip("finds processes in /proc")
  raw = tmp_path / "raw"
  for seed in range(4):
    write_sequence(raw / f"s{seed}", seed)
    pipe = raw / f"s{seed}" / "img" / "0024.jpg"
    pipe.unlink()
    os.mkfifo(pipe)
  process = start(raw, tmp_path / "report")
  wait_until(lambda: len(workers(process.pid)) == 2)
  yield process
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, signal.SIGKILL)


def test_an_interrupt_ends_all_processes_and_leaves_no_report(stuck, tmp_path):
  # Also while the processes still start: they do not hear of it.
  os.killpg(stuck.pid, signal.SIGINT)
  output, _ = stuck.communicate(timeout=60)
  assert stuck.returncode == 1
  assert "interrupted; no report was written" in output and "Traceback" not in output
  wait_until(lambda: not members(stuck.pid))
  assert not (tmp_path / "report").exists()


def test_processes_end_when_the_command_is_killed(stuck, tmp_path):
  stuck.kill()
  stuck.communicate(timeout=60)
  wait_until(lambda: not members(stuck.pid))
  assert not (tmp_path / "report").exists()


def test_a_process_that_dies_ends_the_command_with_a_sentence(stuck):
  os.kill(workers(stuck.pid)[0], signal.SIGKILL)
  output, _ = stuck.communicate(timeout=60)
  assert stuck.returncode == 1
  assert "a worker process died" in output and "Traceback" not in output


def test_the_command_loads_neither_jax_nor_tensorflow_to_check():
  code = (
    "import sys, data_pipelines.validate\n"
    "sys.exit(({'jax', 'flax', 'tensorflow', 'torch', 'grain'} & set(sys.modules) or 0))"
  )
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
