"""Time calls, here or in a process of PyTorch's own: with both libraries in one, each slows the other down."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO


def call_times(step: Callable[[], object], seconds: float) -> list[float]:
  """Return how many seconds each call of a step took, one after another for so many seconds, at least one."""
  times: list[float] = []
  end = time.perf_counter() + seconds
  while not times or time.perf_counter() < end:
    began = time.perf_counter()
    step()
    times.append(time.perf_counter() - began)
  return times


class PeerProcess:
  """A process that runs the networks of torch_peer, and sleeps between two questions."""

  def __init__(self):
    command = [sys.executable, "-m", "benchmarks.peer_process"]
    pipe = subprocess.PIPE
    self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

  def make_step(self, search_size: int, keep_ratio: float, batch_size: int) -> "PeerStep":
    """Return a step as torch_peer.make_step does, in that process."""
    return PeerStep(self, self.ask({"network": [search_size, keep_ratio, batch_size]}))

  def ask(self, question: dict[str, Any]):
    """Return the process's answer; raises SystemExit where it ended instead, having said why."""
    assert self._process.stdin and self._process.stdout
    with contextlib.suppress(BrokenPipeError):
      print(json.dumps(question), file=self._process.stdin, flush=True)
    answer = self._process.stdout.readline()
    if not answer:
      raise SystemExit("benchmarks.inference: the process with PyTorch ended; does it have torch?")
    return json.loads(answer)

  def close(self) -> None:
    """End the process."""
    self._process.communicate()


class PeerStep:
  """A step in a PeerProcess."""

  def __init__(self, process: PeerProcess, number: int):
    self._process, self._number = process, number

  def times(self, seconds: float) -> list[float]:
    """Do what call_times does."""
    return self._process.ask({"step": self._number, "seconds": seconds})


def answers_alone() -> TextIO:
  """Return the standard output for answers; what else is printed goes to the standard error from now on."""
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  return answers


def serve(make_step: Callable[..., Callable[[], object]], answers: TextIO) -> None:
  """Answer what PeerProcess asks on the standard input, until that ends."""
  steps: list[Callable[[], object]] = []
  for line in sys.stdin:
    asked = json.loads(line)
    if "network" in asked:
      steps.append(make_step(*asked["network"]))
      answer: object = len(steps) - 1
    else:
      answer = call_times(steps[asked["step"]], asked["seconds"])
    print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
  """Serve torch_peer's networks."""
  answers = answers_alone()
  # Not before: what it prints while it is imported is no answer either.
  from benchmarks import torch_peer

  serve(torch_peer.make_step, answers)


if __name__ == "__main__":
  main()
