"""Kill a run of training again and again, and compare its end with that of an undisturbed run.

  PYTHONPATH=. python tests/training/killed_run.py --kills=20 --folder=runs/killed

kills with SIGKILL at random moments: while the program starts, while it trains, and every third time
while a checkpoint is being written. Prints each kill. Exits with 0 if the whole state, the best
checkpoint and all losses are then equal to the bit.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
from small_run import MODEL, QUICK, Batches, train

from ostrack_jax.training import checkpoint
from ostrack_jax.training.state import init_variables

_MOST_AHEAD = 6
# A checkpoint a step.
OFTEN = dict(pairs_per_epoch=4, validate_every_epochs=4, ema_decay=0.9, keep_checkpoints=2)


def _start(workdir: pathlib.Path, epochs: int) -> int:
  """Train in a process of its own that inherits the imports, which take longer than all else."""
  child = os.fork()
  if child:
    return child
  code = 1
  try:
    log = os.open(workdir.parent / f"{workdir.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    start = jax.device_get(init_variables(MODEL, 0))
    train(workdir, start, Batches(), dataclasses.replace(QUICK, epochs=epochs, **OFTEN))
    code = 0
  finally:
    # What this process inherited is not its own to clean up.
    os._exit(code)


def _wait_for(condition, child: int, seconds: float = float("inf")) -> None:
  """Return when it is true, or the time is over, or the child has ended."""
  end = time.monotonic() + seconds
  while not condition() and time.monotonic() < end:
    if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
      return
    time.sleep(0.0005)


def _newest(workdir: pathlib.Path) -> int:
  return max(checkpoint.steps_in(workdir), default=0)


def _is_saving(workdir: pathlib.Path) -> bool:
  return any((workdir / "checkpoints").glob("*tmp*"))


def _kill(child: int, workdir: pathlib.Path, number: int, rng: random.Random) -> str:
  """Kill at a moment that depends on the number; return what was going on."""
  before = _newest(workdir)
  # Kills spread over the run: a part gives up to six checkpoints, and on a fast machine no more.
  ahead = rng.randint(1, _MOST_AHEAD)
  if number % 3 == 2:
    _wait_for(lambda: _newest(workdir) >= before + ahead, child, rng.uniform(0, 6.0))
  else:
    _wait_for(lambda: _newest(workdir) >= before + ahead, child)
    _wait_for(lambda: _newest(workdir) > before + ahead, child, rng.uniform(0, 1.0))
  if number % 3 == 0:
    _wait_for(lambda: _is_saving(workdir), child)
    time.sleep(rng.uniform(0, 0.1))
  os.kill(child, signal.SIGKILL)
  _, status = os.waitpid(child, 0)
  if os.WIFEXITED(status):
    return f"ended by itself with code {os.WEXITSTATUS(status)}"
  steps = checkpoint.steps_in(workdir)
  what = ", one half written" if _is_saving(workdir) else ""
  return f"killed; checkpoints of steps {steps}{what}"


def _outcome(workdir: pathlib.Path) -> dict:
  """Return all that must be equal: checksums of the state, the best step, each step's loss."""
  _, notes = checkpoint.read_step(workdir, checkpoint.steps_in(workdir)[-1])
  rows = [json.loads(line) for line in (workdir / "scalars.jsonl").read_text().splitlines()]
  values = {
    (row["step"], name): row[name]
    for row in rows
    for name in ("train/loss", "train/grad_norm", "validation/loss")
    if name in row
  }
  best = json.loads((workdir / "best.json").read_text())
  return {"state": notes["checksums"], "data": notes["data"], "best": best, "values": values}


def main() -> None:
  """Run the comparison."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--folder", type=pathlib.Path, required=True)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  rng = random.Random(arguments.seed)
  epochs = 4 + _MOST_AHEAD * arguments.kills
  shutil.rmtree(arguments.folder, ignore_errors=True)
  arguments.folder.mkdir(parents=True)
  undisturbed, disturbed = arguments.folder / "undisturbed", arguments.folder / "disturbed"

  _, status = os.waitpid(_start(undisturbed, epochs), 0)
  if status:
    sys.exit(f"the undisturbed run failed: see {arguments.folder}/undisturbed.log")
  kills = number = 0
  while kills < arguments.kills:
    told = _kill(_start(disturbed, epochs), disturbed, number, rng)
    number += 1
    print(f"{number}: {told}", flush=True)
    if not told.startswith("killed"):
      sys.exit(f"the disturbed run ended before {arguments.kills} kills; see {disturbed}.log")
    kills += 1
  _, status = os.waitpid(_start(disturbed, epochs), 0)
  if status:
    sys.exit(f"the last part failed: see {arguments.folder}/disturbed.log")
  want, got = _outcome(undisturbed), _outcome(disturbed)
  differing = [name for name in want if want[name] != got[name]]
  if differing:
    sys.exit(f"after {kills} kills there differ: {', '.join(differing)}")
  print(f"after {kills} kills all is equal: {len(want['values'])} values, state {want['state']}")


if __name__ == "__main__":
  main()
