"""A checkpoint's pickle may name any code; none of it runs, and the tensors beside it are read."""

import copyreg
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from ostrack_jax.weights import restricted_pickle
from ostrack_jax.weights.torch_file import read_state_dict, write_torch_file

_STATE = {"layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}


def _text(value: str) -> bytes:
  return b"X" + struct.pack("<i", len(value)) + value.encode()


def _global(name: str) -> bytes:
  module, attribute = name.rsplit(".", 1)
  return f"c{module}\n{attribute}\n".encode()


class _Call:
  """Pickles as a call of a function, with arguments that may be calls as well."""

  def __init__(self, function, *arguments):
    self.parts = (function, arguments)

  def __reduce__(self):
    return self.parts


class _Child:
  pass


def _attack(name: str, marker: str) -> bytes:
  """Return the opcodes (without the STOP) of a pickle that creates the marker file."""
  command = f"touch '{marker}'"
  python = f"open({marker!r}, 'w').close()"
  arguments = b"(" + _text(command) + b"t"
  if name == "os.system":
    return pickle.dumps(_Call(os.system, command), 2)[2:-1]
  if name == "eval":
    return pickle.dumps(_Call(eval, python), 2)[2:-1]
  if name == "exec, protocol 4":
    return pickle.dumps(_Call(exec, python), 4)[11:-1]
  if name == "subprocess":
    return pickle.dumps(_Call(subprocess.call, ["touch", marker]), 2)[2:-1]
  if name == "nested reduce":
    fetched = _Call(getattr, _Call(__import__, "os"), "system")
    return pickle.dumps(_Call(map, fetched, [command]), 2)[2:-1] + b"0" + _call_of(fetched, command)
  if name == "copyreg":
    rebuilt = _Call(copyreg._reconstructor, _Child, object, _Call(os.system, command))
    return pickle.dumps(rebuilt, 2)[2:-1]
  if name == "constructor":
    return _global("zipfile.ZipFile") + b"(" + _text(marker) + _text("w") + b"tR"
  if name == "inst":
    return b"(" + _text(command) + b"ios\nsystem\n"
  if name == "obj":
    return b"(" + _global("os.system") + _text(command) + b"o"
  if name == "state of a rebuilder":
    state = b"(N}" + _text("_build") + _global("os.system") + b"st"
    return _global("torch._utils._rebuild_tensor_v2") + state + b"b" + arguments + b"R"
  if name == "state of an object":
    return (
      _global("collections.OrderedDict")
      + b")R}"
      + _text("a")
      + _global("os.system")
      + arguments
      + b"Rsb"
    )
  if name == "key of a dictionary":
    return b"}" + _global("os.system") + arguments + b"RK\x01s"
  raise KeyError(name)


def _call_of(function: _Call, argument: str) -> bytes:
  return pickle.dumps(function, 2)[2:-1] + b"(" + _text(argument) + b"tR"


_ATTACKS = [
  "os.system",
  "eval",
  "exec, protocol 4",
  "subprocess",
  "nested reduce",
  "copyreg",
  "constructor",
  "inst",
  "obj",
  "state of an object",
  "key of a dictionary",
]


def _file_with(attack: bytes, path) -> None:
  """Write a checkpoint whose pickle holds an attack before and beside the state dict."""
  write_torch_file(path, {"net": _STATE})
  with zipfile.ZipFile(path) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  [name] = [name for name in members if name.endswith("data.pkl")]
  tree = members[name][2:-1]  # }( net {...} u
  members[name] = b"\x80\x02" + attack + b"0" + tree[:-1] + _text("stats") + attack + b"u."
  with zipfile.ZipFile(path, "w") as archive:
    for member, data in members.items():
      archive.writestr(member, data)


@pytest.mark.parametrize("name", _ATTACKS)
def test_nothing_that_a_file_names_is_run_and_the_tensors_are_read(name, tmp_path):
  marker, path = tmp_path / "marker", tmp_path / "evil.pth"
  _file_with(_attack(name, str(marker)), path)
  tensors = read_state_dict(path).tensors
  np.testing.assert_array_equal(tensors["layer.weight"], _STATE["layer.weight"])
  assert not marker.exists()


@pytest.mark.parametrize("name", _ATTACKS)
def test_the_same_bytes_do_run_in_an_ordinary_unpickler(name, tmp_path):
  marker = tmp_path / "marker"
  try:
    pickle.loads(b"\x80\x02" + _attack(name, str(marker)) + b".")
  except Exception as error:  # what follows the call may fail, after it has run
    print(error)
  assert marker.exists()


def test_a_file_cannot_change_how_tensors_are_rebuilt(tmp_path):
  marker = tmp_path / "marker"
  _file_with(_attack("state of a rebuilder", str(marker)), tmp_path / "evil.pth")
  with pytest.raises(ValueError, match=r"evil\.pth"):
    read_state_dict(tmp_path / "evil.pth")
  assert not marker.exists()
  write_torch_file(tmp_path / "good.pth", _STATE)
  found = read_state_dict(tmp_path / "good.pth").tensors
  np.testing.assert_array_equal(found["layer.weight"], _STATE["layer.weight"])


def test_modules_that_a_file_names_are_not_imported(tmp_path, monkeypatch):
  (tmp_path / "module_of_a_stranger.py").write_text("class Settings: pass\n")
  monkeypatch.syspath_prepend(tmp_path)
  path = tmp_path / "evil.pth"
  _file_with(_global("module_of_a_stranger.Settings") + b")\x81", path)
  assert list(read_state_dict(path).tensors) == ["layer.weight"]
  assert "module_of_a_stranger" not in sys.modules


def test_extension_codes_are_refused(tmp_path):
  marker, code = tmp_path / "marker", 0xF1
  program = b"\x80\x02\x82" + bytes([code]) + b"(" + _text(f"touch '{marker}'") + b"tR."
  copyreg.add_extension("os", "system", code)
  try:
    pickle.loads(program)  # it runs here, and leaves os.system in the cache of the process
    assert marker.exists()
    marker.unlink()
    with pytest.raises(ValueError, match="extension codes"):
      restricted_pickle.load(program)
  finally:
    copyreg.remove_extension("os", "system", code)
  assert not marker.exists()


def test_a_memo_index_that_would_take_all_memory_is_refused():
  program = b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + b"."
  with pytest.raises(ValueError, match="memo index 4294967295"):
    restricted_pickle.load(program)


def test_stubs_take_everything_and_say_what_they_stand_for():
  program = (
    b"\x80\x02" + _global("a.b.C") + b")\x81}" + _text("x") + b"K\x01sb"  # new object, its state
    + b"(K\x01K\x02e" + _text("k") + b"K\x03s."  # elements and an item
  )  # fmt: skip
  stub, storages = restricted_pickle.load(program)
  assert isinstance(stub, restricted_pickle.Stub)
  assert stub.source == "a.b.C"
  assert storages == {}


def test_containers_that_hold_themselves_do_not_hang(tmp_path):
  path = tmp_path / "loop.pth"
  _file_with(b"}q\x00" + _text("self") + b"h\x00s", path)
  assert list(read_state_dict(path).tensors) == ["layer.weight"]
