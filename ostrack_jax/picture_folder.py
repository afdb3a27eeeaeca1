"""A folder of pictures that appears when all of them are drawn, and not before."""

import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Generator

_OURS = re.compile(r"(attention|elimination|activations|score_maps)_\d+\.png|elimination\.mp4")


def check_output(folder: pathlib.Path, overwrite: bool) -> None:
  """Refuse a folder that could not be written in the end, or would lose what it holds.

  An empty one may be written, and with `overwrite` one that holds pictures of an earlier run alone.
  Raises an OSError that names the path and the cure.
  """
  folder = folder.absolute()
  if not folder.parent.is_dir():
    raise FileNotFoundError(f"cannot write {folder}: there is no folder {folder.parent}")
  if not os.access(folder.parent, os.W_OK):
    raise PermissionError(f"cannot write {folder}: folder {folder.parent} is not writable")
  if not folder.exists():
    return
  if not folder.is_dir():
    raise NotADirectoryError(f"{folder} is a file; give a folder to write to")
  content = sorted(entry.name for entry in folder.iterdir())
  if content and not overwrite:
    raise FileExistsError(f"{folder} is not empty; give another folder, or pass --overwrite")
  foreign = [name for name in content if not _OURS.fullmatch(name)]
  if foreign:
    raise FileExistsError(
      f"{folder} holds {foreign[0]!r} besides such pictures and is not overwritten"
    )


@contextlib.contextmanager
def written_whole(folder: pathlib.Path) -> Generator[pathlib.Path]:
  """Give a new folder beside `folder`, which takes its place if the block ends without an error.

  Pictures of an earlier run go away then, so that none of other frames stay between the new. After an
  error everything is as it was. Ask check_output first.
  """
  folder = folder.resolve()
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
