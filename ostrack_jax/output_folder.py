"""A folder of results that appears when all of them are there, and not before."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Generator


def check(
  folder: str | os.PathLike, overwrite: bool, is_ours: Callable[[str], bool], what: str
) -> None:
  """Refuse a folder that would lose what it holds.

  An empty one may be written, and with `overwrite` one that holds nothing else than results of an earlier run.

  Args:
    is_ours: whether a name in it is of such a result. what: what they are, in words.

  Raises:
    FileExistsError: the folder is a file, holds something, or something else; says the cure.
  """
  folder = pathlib.Path(folder)
  if not folder.exists():
    return
  if not folder.is_dir():
    raise FileExistsError(f"{folder} is a file; give a folder to write to")
  content = sorted(entry.name for entry in folder.iterdir())
  if content and not overwrite:
    raise FileExistsError(f"{folder} is not empty; give another folder, or pass --overwrite")
  foreign = next((name for name in content if not is_ours(name)), None)
  if foreign is not None:
    raise FileExistsError(f"{folder} holds {foreign!r} besides {what} and is not overwritten")


def check_parent(folder: str | os.PathLike) -> None:
  """Raise an OSError where a folder could not be written because there is no place for it."""
  folder = pathlib.Path(folder).absolute()
  if not folder.parent.is_dir():
    raise FileNotFoundError(f"cannot write {folder}: there is no folder {folder.parent}")
  if not os.access(folder.parent, os.W_OK):
    raise PermissionError(f"cannot write {folder}: folder {folder.parent} is not writable")


@contextlib.contextmanager
def written_whole(folder: str | os.PathLike) -> Generator[pathlib.Path]:
  """Give a new folder beside `folder`, which takes its place if the block ends without an error.

  What an earlier run left there goes away then, so that nothing old stays between the new. After an
  error everything is as it was. Ask check first.
  """
  folder = pathlib.Path(folder).resolve()
  temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
  replaced = folder.with_name(f".{folder.name}.{os.getpid()}.old")
  temporary.mkdir()
  try:
    yield temporary
    if folder.exists():
      folder.rename(replaced)
    temporary.rename(folder)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
    if replaced.exists() and not folder.exists():
      replaced.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)
