"""Compiled programs kept on disk, so that a second start does not compile again."""

import os
import pathlib

import jax


def enable(folder: str) -> str:
  """Let jax keep what it compiles in a folder, and return the folder in use; "" for none.

  Beside the time, a run that goes on after a kill then runs the very programs that it ran before:
  on a GPU, compiling again may choose other kernels, which round otherwise. A folder that jax was
  told by JAX_COMPILATION_CACHE_DIR stays. Nothing in the folder is ever deleted; it may be, at any time.

  Args:
    folder: made if it is missing; `~` is the home; "" leaves jax as it is.

  Raises:
    OSError: the folder cannot be made or written.
  """
  already = jax.config.jax_compilation_cache_dir  # pyrefly: ignore[missing-attribute]
  if already:
    return already
  if not folder:
    return ""
  try:
    path = pathlib.Path(folder).expanduser()
  except RuntimeError as error:
    raise OSError(
      f"config.compilation_cache {folder!r} has no home folder to lie in; name another folder, or '' for none"
    ) from error
  try:
    path.mkdir(parents=True, exist_ok=True)
    writable = os.access(path, os.W_OK | os.X_OK)
  except OSError as error:
    raise OSError(
      f"config.compilation_cache {folder!r} cannot be made ({error.strerror}); name another folder, or '' for none"
    ) from error
  if not writable:
    raise OSError(
      f"config.compilation_cache {folder!r} cannot be written; name another folder, or '' for none"
    )
  jax.config.update("jax_compilation_cache_dir", str(path))
  return str(path)
