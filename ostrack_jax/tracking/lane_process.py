"""Lanes in a process of their own, whose threads do not wait for the interpreter of the one that tracks.

RemoteHost starts `main` in one, with two descriptors that it inherits: of a connection and of the batches.
"""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import pickle
import subprocess
import sys
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import cv2

from ostrack_jax.tracking.lane import CropSettings, LaneResult, LaneSequence
from ostrack_jax.tracking.lane_host import Batches, BatchShape, Cut, Found, HostPlan, LaneHost

_MODULE = "ostrack_jax.tracking.lane_process"
_SECONDS_TO_END = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Work:
  """What a process is to do until the next: the lanes, and how many threads decode for them."""

  plan: HostPlan
  settings: CropSettings
  threads: int
  depth: int
  shape: BatchShape


class RemoteHost:
  """A LaneHost in another process, which starts at once and works after `start`.

  begin, finish: as LocalHost's. `start` again for other lanes, once all that was begun is finished. All
  raise ChildProcessError where the process failed or ended.
  """

  def __init__(self, batches: Batches):
    self._batches = batches
    self._sequences: list[LaneSequence] = []
    self._connection, theirs = multiprocessing.Pipe()
    descriptors = (theirs.fileno(), batches.file)
    # It finds modules where this process does, and not in a folder that it happens to start in.
    code = f"import sys; sys.path[:] = {sys.path!r}; from {_MODULE} import main; main(sys.argv[1:])"
    self._process = subprocess.Popen(
      [sys.executable, "-P", "-c", code, *map(str, descriptors)],
      pass_fds=descriptors,
      stdin=subprocess.DEVNULL,
      # Ctrl-C is for the process that tracks, which then closes the connection.
      process_group=0,
    )
    theirs.close()

  def start(self, plan: HostPlan, settings: CropSettings, threads: int, depth: int) -> None:
    """Send what to track, and how many threads decode."""
    # They come back as numbers in this list.
    self._sequences = [sequence for sequences in plan.values() for sequence in sequences]
    sent = {
      place: [dataclasses.replace(one, frames=tuple(one.frames)) for one in sequences]
      for place, sequences in plan.items()
    }
    shape = self._batches.shape
    self._send(_Work(plan=sent, settings=settings, threads=threads, depth=depth, shape=shape))

  def begin(self, group: int, found: Found | None) -> None:
    self._send((group, found))

  def finish(self) -> Cut:
    try:
      answer = self._connection.recv()
    except (EOFError, OSError):
      self._fail()
    if isinstance(answer, str):
      raise ChildProcessError(f"a process that cuts frames failed:\n{answer}")
    cut, ended = answer
    results = [LaneResult(sequence=self._sequences[number], **fields) for number, fields in ended]
    return dataclasses.replace(cut, ended=results)

  def disconnect(self) -> None:
    """Let the process end, by and by."""
    self._connection.close()

  def close(self, deadline: float) -> None:
    """Wait for the end of a disconnected process until a time.monotonic(), then end it."""
    try:
      self._process.wait(max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()

  def _send(self, message) -> None:
    try:
      self._connection.send(message)
    except OSError:
      self._fail()

  def _fail(self) -> NoReturn:
    self._process.kill()  # Does nothing to one that has ended.
    code = self._process.wait()
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    raise ChildProcessError(
      f"a process that cuts frames {how}; if memory was short, take a smaller batch or fewer threads"
    )


def close_all(hosts: list[RemoteHost]) -> None:
  """Take the hosts out of the list and end their processes, whatever they do."""
  # First of all, so that one who is interrupted here leaves no host that still has an answer to give.
  closing, hosts[:] = hosts[:], []
  for host in closing:
    host.disconnect()
  deadline = time.monotonic() + _SECONDS_TO_END
  for host in closing:
    host.close(deadline)


def _fields(result: LaneResult) -> dict[str, Any]:
  """Return a result without its sequence, with an error that can travel."""
  fields = {name: value for name, value in vars(result).items() if name != "sequence"}
  try:
    pickle.loads(pickle.dumps(result.error))
  except Exception:
    # Whatever a class of its own refuses with; what it says is kept.
    fields["error"] = RuntimeError(f"{type(result.error).__name__}: {result.error}")
  return fields


def serve(connection: Connection, memory: int) -> NoReturn:
  """Cut what is asked for; raises EOFError when the connection is closed."""
  work = connection.recv()
  while True:
    work = _do(work, connection, memory)


def _do(work: _Work, connection: Connection, memory: int) -> _Work:
  """Cut for one plan; return what is to be done next."""
  began = time.process_time()
  every = (sequence for sequences in work.plan.values() for sequence in sequences)
  numbers = {id(sequence): number for number, sequence in enumerate(every)}
  decoders = concurrent.futures.ThreadPoolExecutor(work.threads, "decode")
  try:
    batches = Batches(work.shape, memory)
    host = LaneHost(work.plan, work.settings, decoders, work.depth, batches)
    while not isinstance(message := connection.recv(), _Work):
      cut = host.step(*message)
      ended = [(numbers[id(one.sequence)], _fields(one)) for one in cut.ended]
      cpu_seconds = time.process_time() - began
      connection.send((dataclasses.replace(cut, ended=[], cpu_seconds=cpu_seconds), ended))
    return message
  finally:
    decoders.shutdown(cancel_futures=True)


def main(arguments: list[str]) -> None:
  """Serve over the inherited descriptors."""
  # Its own threads would fight with ours over the cores.
  cv2.setNumThreads(1)
  connection = Connection(int(arguments[0]))
  try:
    serve(connection, int(arguments[1]))
  except EOFError:
    pass  # Nobody waits any more.
  except Exception:
    # Told to who tracks, who raises it.
    with contextlib.suppress(OSError):
      connection.send(traceback.format_exc())
    sys.exit(1)
