"""The convert command: files to folders and back, and its words when it cannot."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from ostrack_jax import command_line, convert
from ostrack_jax.loading import load
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.weights import names
from ostrack_jax.weights.torch_file import read_state_dict, write_torch_file

_ROOT = pathlib.Path(__file__).parents[1]


def _state(width=64, depth=1):
  model = OSTrack(
    variant="custom",
    width=width,
    depth=depth,
    num_heads=1,
    template_size=32,
    search_size=64,
    head_channels=8,
    elimination_layers=(),
    keep_ratios=(),
  )
  rng = np.random.default_rng(0)
  return {
    name: np.array(3) if not shape else rng.standard_normal(shape).astype(np.float32)
    for name, shape in names.torch_shapes(model).items()
  }


@pytest.fixture
def official(tmp_path):
  path = tmp_path / "in" / "official.pth.tar"
  path.parent.mkdir()
  write_torch_file(path, {"net": _state(), "epoch": 300})
  return path


def _run(*arguments):
  """Run the command in this process; returns nothing or raises SystemExit with its last words."""
  for name in convert.FLAGS:
    convert.FLAGS[name].unparse()
  convert.FLAGS.unparse_flags()
  argv = ["convert", *map(str, arguments)]
  convert.main(command_line.parse(argv, "ostrack-convert", convert.FLAGS, convert.__doc__))


def _refused(*arguments) -> str:
  with pytest.raises(SystemExit) as end:
    _run(*arguments)
  words = str(end.value.code)
  assert words.startswith("ostrack-convert: ")
  assert "\n" not in words
  return words


def _assert_same(found, expected):
  assert list(found) == list(expected)
  for name, array in expected.items():
    assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_a_file_goes_to_a_folder_and_back_unchanged(official, tmp_path, capsys):
  _run(f"--input={official}", f"--output={tmp_path / 'out'}")
  words = capsys.readouterr().out
  for part in (
    "ostrack",
    "width 64, depth 1, 1 heads",
    "search 64",
    "sha256",
    "template_factor 2, search_factor 4",
  ):
    assert part in words
  _run(f"--input={tmp_path / 'out'}", f"--output={tmp_path / 'back' / 'again.pth'}")
  key, tensors, _ = read_state_dict(tmp_path / "back" / "again.pth")
  assert key == "net"
  _assert_same(tensors, _state())
  assert [path.name for path in (tmp_path / "back").iterdir()] == ["again.pth"]


def test_the_way_through_a_file_keeps_what_tensors_do_not_say(tmp_path):
  back, shipped = tmp_path / "back.pth", load("ostrack_tiny")
  _run("--input=ostrack_tiny", f"--output={back}")
  again = load(back)
  assert again.model == shipped.model
  assert again.model.elimination_layers == (1, 2)
  assert again.description["tracker"] == shipped.description["tracker"]
  _run(f"--input={back}", f"--output={tmp_path / 'off'}", "--elimination=off")
  assert load(tmp_path / "off").model.elimination_layers == ()


def test_the_summary_counts_the_parameters(official, tmp_path, capsys):
  _run(f"--input={official}", f"--output={tmp_path / 'out'}")
  unused = ("cls_token", "pos_embed", "running_mean", "running_var", "num_batches_tracked")
  count = sum(a.size for name, a in _state().items() if not name.endswith(unused))
  assert f"{count:,}" in capsys.readouterr().out


def test_flags_reach_the_description(official, tmp_path):
  write_torch_file(official, {"net": _state(depth=4)})
  flags = ["--num_heads=2", "--elimination=off", "--search_factor=4.5", "--template_factor=1.5"]
  _run(f"--input={official}", f"--output={tmp_path / 'out'}", *flags)
  description = json.loads((tmp_path / "out" / "description.json").read_text())
  assert description["model"]["num_heads"] == 2
  assert description["model"]["elimination_layers"] == []
  assert description["tracker"] == {"template_factor": 1.5, "search_factor": 4.5}


def test_an_encoder_is_converted_for_the_sizes_asked_for(tmp_path, capsys):
  backbone = {
    name.removeprefix("backbone."): array
    for name, array in _state().items()
    if name.startswith("backbone.") and "pos_embed_" not in name
  }
  extra = {f"decoder_blocks.{i}.bias": np.zeros(1) for i in range(6)}
  write_torch_file(tmp_path / "mae.pth", {"model": backbone | extra})
  flags = ["--template_size=32", "--search_size=48", "--head_channels=8", "--seed=1"]
  _run(f"--input={tmp_path / 'mae.pth'}", f"--output={tmp_path / 'out'}", *flags)
  words = capsys.readouterr().out
  assert "the head is new and untrained" in words
  assert "decoder_blocks.3.bias and 2 more" in words
  checkpoint = load(tmp_path / "out")
  assert checkpoint.description["complete"] is False
  assert (checkpoint.model.template_size, checkpoint.model.search_size) == (32, 48)


def test_a_dinov2_becomes_a_plain_encoder_and_stays_untrained_on_its_way_back(tmp_path, capsys):
  state = {
    name.removeprefix("backbone."): array
    for name, array in _state().items()
    if name.startswith("backbone.") and "pos_embed_" not in name
  }
  rng = np.random.default_rng(1)
  state["patch_embed.proj.weight"] = rng.standard_normal((64, 3, 14, 14)).astype(np.float32)
  state["pos_embed"] = rng.standard_normal((1, 26, 64)).astype(np.float32)
  scales = {f"blocks.0.ls{i}.gamma": np.full(64, 2, np.float32) for i in (1, 2)}
  np.savez(tmp_path / "dinov2.npz", **state, **scales, mask_token=np.zeros((1, 64)))
  _run(f"--input={tmp_path / 'dinov2.npz'}", f"--output={tmp_path / 'out'}", "--head_channels=8")
  words = capsys.readouterr().out
  for part in ("dinov2\n", "width 64, depth 1, 1 heads", "mask_token", "new and untrained"):
    assert part in words
  _run(f"--input={tmp_path / 'out'}", f"--output={tmp_path / 'back.pth'}")
  tensors = read_state_dict(tmp_path / "back.pth").tensors
  np.testing.assert_array_equal(
    tensors["backbone.blocks.0.mlp.fc2.weight"], 2 * state["blocks.0.mlp.fc2.weight"]
  )
  assert tensors["backbone.patch_embed.proj.weight"].shape == (64, 3, 16, 16)
  assert load(tmp_path / "back.pth").description["complete"] is False


@pytest.mark.parametrize(
  ("damage", "words"),
  [
    (lambda data: data[: len(data) // 2], "truncated or damaged zip"),
    (lambda data: b"", "is empty, not a PyTorch checkpoint"),
    (lambda data: b"\x93NUMPY" + data, "some other file or a damaged one"),
  ],
)
def test_a_file_that_cannot_be_read_leaves_no_output(damage, words, official, tmp_path):
  official.write_bytes(damage(official.read_bytes()))
  output = tmp_path / "out"
  said = _refused(f"--input={official}", f"--output={output}")
  assert words in said
  assert str(official) in said
  assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_missing_tensor_is_named_and_no_output_is_left(official, tmp_path):
  state = _state()
  del state["box_head.conv3_size.1.running_var"]
  write_torch_file(official, {"net": state})
  said = _refused(f"--input={official}", f"--output={tmp_path / 'out'}")
  assert "lacks the tensor 'box_head.conv3_size.1.running_var' of shape (2,)" in said
  assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_output_with_content_is_refused_before_the_input_is_read(tmp_path):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "notes.txt").write_text("mine")
  said = _refused(f"--input={tmp_path / 'absent.pth'}", f"--output={tmp_path / 'out'}")
  assert "is not empty; give another folder, or pass --overwrite" in said
  said = _refused(
    "--overwrite", f"--input={tmp_path / 'absent.pth'}", f"--output={tmp_path / 'out'}"
  )
  assert "'notes.txt' besides a converted checkpoint" in said
  assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_an_empty_folder_is_written_to(official, tmp_path):
  (tmp_path / "out").mkdir()
  _run(f"--input={official}", f"--output={tmp_path / 'out'}")
  assert load(tmp_path / "out").description["complete"] is True


def test_an_existing_file_is_replaced_only_where_that_is_asked_for(official, tmp_path):
  _run(f"--input={official}", f"--output={tmp_path / 'out'}")
  target = tmp_path / "there.pth"
  target.write_bytes(b"old")
  assert "there.pth exists" in _refused(f"--input={tmp_path / 'out'}", f"--output={target}")
  assert target.read_bytes() == b"old"
  _run("--overwrite", f"--input={tmp_path / 'out'}", f"--output={target}")
  _assert_same(read_state_dict(target).tensors, _state())


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ([], "--input and --output missing"),
    (["--input=a.pth"], "--output missing"),
    (["--input=absent.pth", "--output=x"], "there is no file absent.pth"),
    (["--input=a.pth", "--output=b.pth"], "one of the two must be a checkpoint folder"),
    (["--input=.", "--output=x"], "x must end with one of .pth, .pt, .pth.tar"),
    (["--input=.", "--output=x.pth", "--num_heads=3"], "--num_heads has no use where --input is"),
    (["--input=.", "--output=x.pth"], "has no description.json"),
    (["--inputs=a"], "Unknown command line flag 'inputs'"),
    (["--input=a", "--output=b", "c"], "unexpected argument 'c'"),
    (["--elimination=perhaps"], "value should be one of <on|off>"),
  ],
)
def test_a_command_line_that_cannot_work_is_refused_in_one_sentence(
  arguments, words, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  assert words in _refused(*arguments)
  assert not list(tmp_path.iterdir())


def test_help_tells_what_is_read(capsys):
  with pytest.raises(SystemExit) as end:
    _run("--help")
  assert end.value.code == 0
  words = capsys.readouterr().out
  for part in ("AugReg", "DINOv2", "--num_heads", "--elimination", "--[no]overwrite"):
    assert part in words


def test_the_command_ends_without_a_traceback_and_with_an_exit_code(tmp_path):
  (tmp_path / "wrong.pth").write_bytes(b"<html>")
  command = [sys.executable, "-m", "ostrack_jax.convert", "--input=wrong.pth", "--output=out"]
  environment = os.environ | {"PYTHONPATH": str(_ROOT)}
  end = subprocess.run(
    command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
  )
  assert end.returncode == 1
  assert end.stderr.strip() == "ostrack-convert: wrong.pth is a web page, not a PyTorch checkpoint"
  assert [path.name for path in tmp_path.iterdir()] == ["wrong.pth"]


def test_reading_and_writing_needs_no_torch(official, tmp_path):
  program = (
    "import sys; sys.modules['torch'] = None\n"  # any import of torch would fail
    "from ostrack_jax import convert\n"
    f"convert.import_file({str(official)!r}, 'folder')\n"
    "convert.export_file('folder', 'again.pth')\n"
  )
  environment = os.environ | {"PYTHONPATH": str(_ROOT)}
  subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
  _assert_same(read_state_dict(tmp_path / "again.pth").tensors, _state())


def test_pytorch_loads_the_written_state_dict_strictly(official, tmp_path):
  torch = pytest.importorskip("torch")
  convert.import_file(official, tmp_path / "out")
  convert.export_file(tmp_path / "out", tmp_path / "again.pth")
  tree = torch.load(tmp_path / "again.pth", map_location="cpu", weights_only=True)
  assert list(tree) == ["net", "ostrack_jax"]
  holder = torch.nn.Module()
  for name, array in _state().items():
    *parents, leaf = name.split(".")
    node = holder
    for parent in parents:
      if parent not in dict(node.named_children()):
        node.add_module(parent, torch.nn.Module())
      node = dict(node.named_children())[parent]
    node.register_buffer(leaf, torch.zeros(array.shape, dtype=torch.from_numpy(array).dtype))
  holder.load_state_dict(tree["net"], strict=True)
  for name, array in _state().items():
    np.testing.assert_array_equal(holder.state_dict()[name].numpy(), array, err_msg=name)
