"""Train with several processes on this machine, each with one device of it.

  python -m launch.local 2 --config=configs/ostrack_256.py --workdir=runs/ostrack_256

What stands behind the number goes to `python -m training`. One process alone drives all GPUs of a machine
just as well; this shows, on CPUs or GPUs, that a run over several hosts will work. Each process reads with
a worker a core unless told otherwise (--config.data.num_workers=...). SIGTERM reaches all
processes; if one fails, the others are ended, and its exit code is the launcher's.
"""

import signal
import socket
import subprocess
import sys
import time


def supervise(commands: list[list[str]], *, grace_seconds: float = 60.0) -> int:
  """Run commands side by side; return 0, or the exit code of the first to fail, 128 + N for signal N.

  Args:
    commands: each with its arguments.
    grace_seconds: how long the others may go on, to save, once one has failed.
  """
  processes = [subprocess.Popen(command) for command in commands]

  def pass_on(number, frame=None):
    del frame
    for process in processes:
      if process.poll() is None:
        process.send_signal(number)

  # Ctrl-C in a terminal reaches all processes by itself.
  handlers = {signal.SIGTERM: pass_on, signal.SIGINT: signal.SIG_IGN}
  before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
  try:
    code, deadline = 0, float("inf")
    while None in (codes := [process.poll() for process in processes]):
      if any(codes) and not code:
        code = next(filter(None, codes))
        deadline = time.monotonic() + grace_seconds
      if time.monotonic() > deadline:
        pass_on(signal.SIGKILL)
      time.sleep(0.1)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  code = code or next(filter(None, codes), 0)
  return 128 - code if code < 0 else code


def launch(count: int, arguments: list[str]) -> int:
  """Train with `count` processes that find each other through jax.distributed; return the exit code."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  myself = [sys.executable, "-m", "launch.local", "join", address, str(count)]
  return supervise([[*myself, str(index), *arguments] for index in range(count)])


def join(address: str, count: int, index: int, arguments: list[str]) -> None:
  """Become one of the processes and train."""
  import jax

  from ostrack_jax import train

  jax.distributed.initialize(address, count, index, local_device_ids=[index])
  sys.argv = ["training", *arguments]
  train.run()


def main() -> None:
  """Read the command line; the first word is a number, or `join` in the processes started here."""
  words = sys.argv[1:]
  if words[:1] == ["join"]:
    join(words[1], int(words[2]), int(words[3]), words[4:])
  elif words and words[0].isdigit() and int(words[0]) > 0:
    sys.exit(launch(int(words[0]), words[1:]))
  else:
    sys.exit(f"launch.local: how many processes? {__doc__}")


if __name__ == "__main__":
  main()
