"""Read and write PyTorch checkpoint files without PyTorch.

Both layouts of `torch.save` are read: the zip archive (data.pkl and one member a storage) and the
older stream of pickles. Nothing that a file names is run; see restricted_pickle.py.
"""

import os
import pathlib
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ostrack_jax.weights import restricted_pickle
from ostrack_jax.weights.restricted_pickle import STORAGE_DTYPES, Storage, StoredTensor, Stub

# Where checkpoints keep their state dict: OSTrack; MAE and DeiT; common elsewhere.
WRAPPING_KEYS = ("net", "model", "state_dict")

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_STORAGE_NAMES = {np.dtype(d): n for n, d in STORAGE_DTYPES.items() if d != "bfloat16"}

# A damaged header may ask for encryption (RuntimeError) or a future version (NotImplementedError).
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)

_ReadStorage = Callable[[Storage], bytes]


# Where files of this project describe the network; other readers pass over it.
NOTE_KEY = "ostrack_jax"


class StateDict(NamedTuple):
  """A state dict and what a file says beside it.

  Attributes:
    key: of the outer dict where it stood, or None for the whole.
    tensors: by PyTorch's names.
    note: the text that the outer dict holds under NOTE_KEY, or None.
  """

  key: str | None
  tensors: dict[str, np.ndarray]
  note: str | None = None


def read_state_dict(path: str | os.PathLike) -> StateDict:
  """Read the tensors of a checkpoint's state dict.

  Args:
    path: a file that torch.save wrote: a state dict, or a dict that holds one under WRAPPING_KEYS.

  Returns:
    Arrays in PyTorch's names and layouts, read-only, little-endian; bfloat16 comes as float32.
    Storages of anything else in the file, such as the optimiser's, are not read.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is not such a file, truncated, or damaged; one sentence that says which.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"there is no file {path}")
  with path.open("rb") as file:
    start = file.read(512)
    file.seek(0)
    try:
      if start.startswith(b"PK"):
        return _read_zip(file)
      if start[257:262] == b"ustar":
        raise ValueError(
          "is in the tar layout of PyTorch before 0.2; load it there and save it again"
        )
      return _read_legacy(file, start)
    except ValueError as error:
      raise ValueError(f"{path} {error}") from error


def _read_zip(file: BinaryIO) -> StateDict:
  try:
    archive = zipfile.ZipFile(file)
  except ZIP_ERRORS as error:
    raise ValueError("is a truncated or damaged zip archive; fetch it again") from error
  with archive:
    members = archive.namelist()
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
      raise ValueError("is a zip archive without a data.pkl, not a PyTorch checkpoint")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in members:
      raise ValueError("is a TorchScript archive; save the model's state_dict() instead")

    def read(name: str) -> bytes:
      try:
        if archive.getinfo(prefix + name).compress_type != zipfile.ZIP_STORED:
          raise ValueError(f"has a compressed member {name!r}, which PyTorch never writes")
        return archive.read(prefix + name)
      except KeyError:
        raise ValueError(f"is damaged: its member {name!r} is missing") from None
      except ZIP_ERRORS as error:
        raise ValueError(f"is truncated or damaged at its member {name!r}") from error

    order = read("byteorder") if f"{prefix}byteorder" in members else b"little"
    if order not in (b"little", b"big"):
      raise ValueError(f"declares the byte order {order[:16]!r}; expected little or big")
    tree, _ = _unpickle(read("data.pkl"))
    return _read_tensors(tree, lambda s: read(f"data/{s.key}"), ">" if order == b"big" else "<")


def _read_legacy(file: BinaryIO, start: bytes) -> StateDict:
  try:
    magic, _ = restricted_pickle.load(file)
  except ValueError:
    magic = None
  if magic != _LEGACY_MAGIC:
    raise ValueError(f"is {_describe_other_file(start)}, not a PyTorch checkpoint")
  protocol, _ = _unpickle(file)
  if protocol != _LEGACY_PROTOCOL:
    raise ValueError(f"has PyTorch protocol {protocol!r}; expected {_LEGACY_PROTOCOL}")
  _unpickle(file)  # system information; the data is little-endian whatever it says
  tree, dtypes = _unpickle(file)
  keys, _ = _unpickle(file)
  if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
    raise ValueError("is damaged: it has no list of storages where PyTorch writes one")
  position = file.tell()
  end = file.seek(0, os.SEEK_END)
  locations = {}
  for key in keys:
    file.seek(position)
    header = file.read(8)
    if len(header) < 8 or key not in dtypes:
      raise ValueError(f"is truncated or damaged at storage {key!r}")
    (numel,) = struct.unpack("<q", header)
    locations[key] = (position + 8, numel * _itemsize(dtypes[key]))
    position = sum(locations[key])
    if numel < 0 or position > end:
      raise ValueError(f"is truncated or damaged: storage {key!r} should have {numel} elements")

  def read(storage: Storage) -> bytes:
    if storage.key not in locations:
      raise ValueError(f"is damaged: storage {storage.key!r} is missing")
    position, length = locations[storage.key]
    file.seek(position)
    return file.read(length)

  return _read_tensors(tree, read, "<")


def _describe_other_file(start: bytes) -> str:
  if not start:
    return "empty"
  if start.lstrip().startswith(b"<"):
    return "a web page"
  if start.startswith(b"version https://git-lfs"):
    return "a Git LFS pointer (run git lfs pull)"
  return "some other file or a damaged one"


def _unpickle(source: BinaryIO | bytes) -> tuple[Any, dict[str, str]]:
  try:
    return restricted_pickle.load(source)
  except ValueError as error:
    raise ValueError(f"is truncated or damaged: {error}") from error


def _find_state_dict(tree: Any) -> tuple[str | None, dict]:
  if isinstance(tree, Stub):
    raise ValueError(f"holds a whole {tree.source} object; save its state_dict() instead")
  if not isinstance(tree, dict):
    raise ValueError(f"holds a {type(tree).__name__}; expected a state dict")
  for key in WRAPPING_KEYS:
    inner = tree.get(key)
    if isinstance(inner, dict) and any(isinstance(v, StoredTensor) for v in inner.values()):
      return key, inner
    if isinstance(inner, Stub):
      raise ValueError(f"holds a whole {inner.source} object under {key!r}; save its state_dict()")
  if not any(isinstance(value, StoredTensor) for value in tree.values()):
    found = ", ".join(repr(key) for key in list(tree)[:8]) or "nothing"
    expected = ", ".join(map(repr, WRAPPING_KEYS))
    raise ValueError(f"holds no tensors at its top or under {expected}; found {found}")
  return None, tree


def _read_tensors(tree: Any, read: _ReadStorage, byte_order: str) -> StateDict:
  key, stored = _find_state_dict(tree)
  storages: dict[str, np.ndarray] = {}
  tensors = {}
  for name, tensor in stored.items():
    if not isinstance(tensor, StoredTensor):
      continue
    storage = tensor.storage
    if storage.key not in storages:
      storages[storage.key] = _decode(read(storage), storage.dtype, byte_order)
    try:
      tensors[str(name)] = _view(storages[storage.key], tensor)
    except ValueError as error:
      raise ValueError(f"is truncated or damaged: tensor {name!r} {error}") from error
  note = tree.get(NOTE_KEY) if isinstance(tree, dict) else None
  return StateDict(key, tensors, note if isinstance(note, str) else None)


def _itemsize(dtype: str) -> int:
  return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _decode(data: bytes, dtype: str, byte_order: str) -> np.ndarray:
  """Return a storage's elements in the machine's order; a cut-off last element is left out."""
  data = data[: len(data) // _itemsize(dtype) * _itemsize(dtype)]
  if dtype == "bfloat16":
    halves = np.frombuffer(data, byte_order + "u2").astype(np.uint32)
    return (halves << 16).view(np.float32)
  elements = np.frombuffer(data, np.dtype(byte_order + dtype))
  return elements.astype(np.dtype(dtype), copy=False)


def _view(elements: np.ndarray, tensor: StoredTensor) -> np.ndarray:
  storage = tensor.storage
  first = storage.start + tensor.offset
  reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides))
  if 0 in tensor.shape:
    return np.zeros(tensor.shape, elements.dtype)
  if first + reach >= len(elements):
    raise ValueError(
      f"of shape {tensor.shape} needs {first + reach + 1} elements of storage {storage.key!r}, "
      f"which has {len(elements)}"
    )
  strides = [stride * elements.itemsize for stride in tensor.strides]
  return np.lib.stride_tricks.as_strided(elements[first:], tensor.shape, strides, writeable=False)


def write_torch_file(path: str | os.PathLike, tree: Mapping) -> None:
  """Write a checkpoint that `torch.load(path, weights_only=True)` reads.

  Args:
    path: the file; it appears only when it is complete, and replaces one that is there.
    tree: nested dicts of arrays (C order is made; PyTorch's layouts are the caller's), texts, numbers.

  Raises:
    ValueError: an array's type, or any other value, has no place in such a file.
  """
  path = pathlib.Path(path)
  storages: list[np.ndarray] = []
  program = b"\x80\x02" + _emit(tree, storages) + b"."
  prefix = path.name.split(".")[0] or "archive"
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
      # A fixed date: the same weights give the same bytes.
      def add(name: str, data: bytes):
        archive.writestr(zipfile.ZipInfo(f"{prefix}/{name}"), data)

      add("data.pkl", program)
      add("byteorder", sys.byteorder.encode())
      for key, array in enumerate(storages):
        add(f"data/{key}", array.tobytes())
      add("version", b"3\n")
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def _emit(value: Any, storages: list[np.ndarray]) -> bytes:
  """Return the protocol 2 opcodes that push a value; pickle itself would have to import torch."""
  if isinstance(value, Mapping):
    items = b"".join(_emit(part, storages) for pair in value.items() for part in pair)
    return b"}(" + items + b"u"
  if isinstance(value, tuple):
    return b"(" + b"".join(_emit(part, storages) for part in value) + b"t"
  if value is None or type(value) in (str, int, float, bool):
    return pickle.dumps(value, protocol=2)[2:-1]
  if not isinstance(value, np.ndarray) or value.dtype not in _STORAGE_NAMES:
    what = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
    raise ValueError(f"a PyTorch file cannot hold {what}; give float, int or bool arrays")
  array = value.astype(value.dtype, order="C", copy=False)
  strides = tuple(stride // array.itemsize for stride in array.strides)
  storage = f"ctorch\n{_STORAGE_NAMES[array.dtype]}\n".encode()
  storages.append(array)
  key = _emit(str(len(storages) - 1), storages)
  persistent_id = (
    b"(" + _emit("storage", storages) + storage + key + _emit("cpu", storages)
    + _emit(array.size, storages) + b"tQ"
  )  # fmt: skip
  layout = b"".join(_emit(part, storages) for part in (0, array.shape, strides, False))
  return (
    b"ctorch._utils\n_rebuild_tensor_v2\n(" + persistent_id + layout
    + b"ccollections\nOrderedDict\n)R" + b"tR"
  )  # fmt: skip
