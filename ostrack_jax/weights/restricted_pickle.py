"""Unpickle PyTorch checkpoints without running anything that they name.

A pickle is a program that may call whatever it can import. Official OSTrack files name classes of the
training code, so PyTorch's own `weights_only` loading refuses them. Here nothing is ever imported: the
few functions that rebuild tensors become records of what they would build, and every other name an
inert stub.
"""

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

STORAGE_DTYPES = {
  "FloatStorage": "f4",
  "HalfStorage": "f2",
  "BFloat16Storage": "bfloat16",
  "DoubleStorage": "f8",
  "ByteStorage": "u1",
  "CharStorage": "i1",
  "ShortStorage": "i2",
  "IntStorage": "i4",
  "LongStorage": "i8",
  "BoolStorage": "?",
  "ComplexFloatStorage": "c8",
  "ComplexDoubleStorage": "c16",
}


# An opcode may set the state of any object on the stack, with setattr where there is no __setstate__.
# Tuples have no settable attribute, and every class below takes a state and drops it.
class StorageType(NamedTuple):
  """The element type of a storage: a value of STORAGE_DTYPES."""

  dtype: str


class Storage(NamedTuple):
  """A run of elements in the file: `numel` of them from element `start` of storage `key`."""

  key: str
  dtype: str
  numel: int
  start: int


class StoredTensor(NamedTuple):
  """A tensor that has not been read yet: a strided view of a storage, in elements."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class Stub:
  """Stands for any class or function that a pickle names: takes everything, does nothing."""

  __slots__ = ()
  source = "an unknown object"

  def __new__(cls, *args, **kwargs):
    return object.__new__(cls)

  def __init__(self, *args, **kwargs):
    pass

  def __call__(self, *args, **kwargs):
    return Stub()

  def _ignore(self, *args):
    return None

  __setstate__ = __setitem__ = append = extend = add = _ignore


class PlainDict(dict):
  """Stands for collections.OrderedDict; drops the attributes that PyTorch hangs on it."""

  __slots__ = ()

  def __setstate__(self, state):
    pass


class _Rebuild:
  """Stands for one of PyTorch's functions that rebuild tensors."""

  __slots__ = ("_build",)

  def __init__(self, build: Callable):
    self._build = build

  def __call__(self, *args):
    return self._build(*args)

  def __setstate__(self, state):
    pass


def _is_count(value) -> bool:
  return type(value) is int and value >= 0


def _tensor(storage, offset, shape, strides, *_):
  if not isinstance(storage, Storage):
    raise ValueError(f"a tensor is built on {type(storage).__name__}, expected a storage")
  if not (_is_count(offset) and type(shape) is tuple and type(strides) is tuple):
    raise ValueError("a tensor has no proper offset, shape and strides")
  if len(shape) != len(strides) or not all(map(_is_count, (*shape, *strides))):
    raise ValueError(f"a tensor has shape {shape} and strides {strides}")
  return StoredTensor(storage, offset, shape, strides)


def _parameter(data, *_):
  return data


def _from_type(build, new_type, args, state):
  return build(*args) if isinstance(build, _Rebuild) else Stub()


_REBUILDERS = {
  ("torch._utils", "_rebuild_tensor"): _tensor,
  ("torch._utils", "_rebuild_tensor_v2"): _tensor,
  ("torch._utils", "_rebuild_parameter"): _parameter,
  ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
  ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
}


class _Unpickler(pickle.Unpickler):
  def __init__(self, file: BinaryIO):
    super().__init__(file, encoding="utf-8", errors="replace")
    self.dtypes: dict[str, str] = {}

  def find_class(self, module, name):
    if module in ("torch", "torch.cuda") and name in STORAGE_DTYPES:
      return StorageType(STORAGE_DTYPES[name])
    if (module, name) in _REBUILDERS:
      return _Rebuild(_REBUILDERS[module, name])
    if (module, name) == ("collections", "OrderedDict"):
      return PlainDict
    return type("Stub", (Stub,), {"__slots__": (), "source": f"{module}.{name}"})

  def persistent_load(self, pid):
    if type(pid) is tuple and len(pid) > 1 and pid[0] == "module":
      return pid[1]  # legacy layout: (class, source file, source text)
    if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
      raise ValueError("a persistent id is not that of a storage")
    _, storage_type, key, _, numel, *view = pid
    if not (isinstance(storage_type, StorageType) and type(key) is str and _is_count(numel)):
      raise ValueError("a storage has an unknown element type, key or size")
    self.dtypes[key] = storage_type.dtype
    if not view or view[0] is None:
      return Storage(key, storage_type.dtype, numel, 0)
    _, start, size = view[0]
    if not (_is_count(start) and _is_count(size)):
      raise ValueError(f"a view of storage {key!r} has no proper offset and size")
    return Storage(key, storage_type.dtype, size, start)


def _check_opcodes(file: BinaryIO) -> None:
  """Read a pickle's opcodes without obeying them, and refuse two that find_class never sees.

  Extension codes fetch objects from a registry of the process; a memo index beyond the number of
  opcodes makes the unpickler reserve memory for it.
  """
  for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
    if opcode.name.startswith("EXT"):
      raise ValueError("it uses copyreg extension codes")
    if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(str(argument)) > count:
      raise ValueError(f"memo index {argument} at opcode {count}")


def load(file: BinaryIO | bytes) -> tuple[Any, dict[str, str]]:
  """Unpickle one object and leave the file behind its end.

  Args:
    file: a seekable binary file at the start of a pickle, or the pickle itself.

  Returns:
    (what it holds: plain containers and numbers, StoredTensor records, and Stub objects; the element
    type of every storage that it names, also of those inside stubs).

  Raises:
    ValueError: the pickle is damaged, or does what no checkpoint needs.
  """
  stream = io.BytesIO(file) if isinstance(file, bytes) else file
  start = stream.tell()
  try:
    _check_opcodes(stream)
    stream.seek(start)
    unpickler = _Unpickler(stream)
    return unpickler.load(), unpickler.dtypes
  # A damaged pickle can fail in any way: stack underflow, wrong types, absent memo entries.
  except Exception as error:
    raise ValueError(f"its pickle cannot be read ({error or type(error).__name__})") from error
