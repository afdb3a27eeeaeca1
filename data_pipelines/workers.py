"""Worker processes: started small, without an accelerator, and gone when training is gone.

A spawned process first imports the main module of its parent, which for training means all of JAX and
450 MB. Ours begin with this file in its place.
"""

import concurrent.futures
import contextlib
import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool

import cv2

_SHARED_MEMORY = "/dev/shm"
_SECONDS_TO_START = 30
# grain imports jax, which must start no backend that takes an accelerator's memory. And glibc is to keep
# the memory of one frame for the next, since fresh pages cost a tenth of a worker's time, but not a batch's.
_ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "MALLOC_MMAP_THRESHOLD_": "8000000",
  "MALLOC_TRIM_THRESHOLD_": "64000000",
}
# Set in worker processes by begin_worker.
_is_worker = False


@contextlib.contextmanager
def small_children(count: int):
  """Let the processes that are spawned herein begin with this file instead of the main module.

  Args:
    count: how many; other threads may start them, so the end waits until as many are there, or until
      it is clear that they will not come.
  """
  main, known = sys.modules["__main__"], {name: os.environ.get(name) for name in _ENVIRONMENT}
  before = set(multiprocessing.active_children())
  stand_in = types.ModuleType("__main__")
  stand_in.__spec__ = importlib.util.find_spec(__name__)
  sys.modules["__main__"] = stand_in
  os.environ.update(_ENVIRONMENT)
  try:
    yield
    deadline = time.monotonic() + _SECONDS_TO_START
    while len(set(multiprocessing.active_children()) - before) < count:
      if time.monotonic() > deadline:
        break
      time.sleep(0.005)
  finally:
    sys.modules["__main__"] = main
    for name, value in known.items():
      if value is None:
        del os.environ[name]
      else:
        os.environ[name] = value


@contextlib.contextmanager
def deaf_children():
  """Keep Ctrl-C, which reaches the whole group, from processes started meanwhile: the parent decides.

  To this process it comes afterwards: raised while one is started, it would leave that one half begun.
  """
  came: list[bool] = []
  handler, before = signal.getsignal(signal.SIGINT), None
  # None is a handler that Python could not put back.
  is_ours = threading.current_thread() is threading.main_thread() and handler is not None
  try:
    # This process may have threads that take the signal, for which Python calls the handler in the main thread.
    if is_ours:
      signal.signal(signal.SIGINT, lambda *signal_and_frame: came.append(True))
    # Inherited by processes.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    yield
  finally:
    if before is not None:
      signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if is_ours:
      signal.signal(signal.SIGINT, handler)
    if came:
      signal.raise_signal(signal.SIGINT)


def _end_with(lifeline) -> None:
  """End this process when the other end of a pipe is closed, as it is when the parent ends."""

  def wait():
    # Nothing is ever sent.
    with contextlib.suppress(EOFError, OSError):
      lifeline.recv()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def process_pool(
  count: int, begin: Callable[..., None], *arguments
) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
  """Give a pool of processes that end with this one, and at once when the block ends in an error.

  Args:
    count: processes.
    begin: called in each with the arguments, before anything else.

  Raises:
    ChildProcessError: a process died.
  """
  # A fork would copy the threads of jax.
  spawn = multiprocessing.get_context("spawn")
  lifeline, held = spawn.Pipe(duplex=False)
  pool = concurrent.futures.ProcessPoolExecutor(
    count, spawn, _begin_pooled, (lifeline, begin, arguments)
  )
  try:
    yield pool
    pool.shutdown()
  except BrokenProcessPool as error:
    raise ChildProcessError(
      "a worker process died, perhaps for want of memory: take fewer with --num_workers, or 0 to see more"
    ) from error
  finally:
    # Not cancelled, which the executor does not survive when its processes end as well.
    held.close()
    pool.shutdown()


def _begin_pooled(lifeline, begin: Callable[..., None], arguments) -> None:
  cv2.setNumThreads(1)
  _end_with(lifeline)
  begin(*arguments)


def begin_worker(worker_index: int, worker_count: int) -> None:
  """Prepare a worker process; grain calls it there."""
  global _is_worker
  del worker_index, worker_count
  _is_worker = True
  cv2.setNumThreads(1)
  # Ctrl-C and a cluster's SIGTERM reach the whole group; training ends its workers when it has saved.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def follow_parent():
    if parent is not None:
      parent.join()
      os._exit(1)

  # grain's workers wait for room in a queue that a killed training never empties: they would stay.
  threading.Thread(target=follow_parent, daemon=True).start()


def in_worker() -> bool:
  """Return whether this process is one that begin_worker prepared."""
  return _is_worker


def check_shared_memory(num_workers: int, batches: int, batch_bytes: int) -> None:
  """Refuse workers whose batches shared memory cannot hold: writing beyond its end kills a process.

  Raises:
    ValueError: less is free than `batches` of each worker take.
  """
  if not os.path.isdir(_SHARED_MEMORY):
    return
  state = os.statvfs(_SHARED_MEMORY)
  free, need = state.f_bavail * state.f_frsize, num_workers * batches * batch_bytes
  if need > free:
    raise ValueError(
      f"{num_workers} worker processes pass batches of {batch_bytes / 1e6:.0f} MB through {_SHARED_MEMORY}, "
      f"which has {free / 1e6:.0f} MB free and needs {need / 1e6:.0f}: enlarge it (docker run --shm-size), or "
      "set data.num_workers lower, or to 0 for threads"
    )
