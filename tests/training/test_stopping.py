"""SIGTERM to one of two processes stops both at the same saved step."""

import os
import pathlib
import socket
import subprocess
import sys

from ostrack_jax.training import checkpoint

HERE = pathlib.Path(__file__).parent
# Two processes of one device each; SIGTERM reaches the second while its third step runs. Steps go on
# until jax has noticed, which it looks for once a second.
SCRIPT = """
import dataclasses, pathlib, signal, sys
import jax
from small_run import MODEL, QUICK, Batches, train
from ostrack_jax.training import stopping
from ostrack_jax.training.state import init_variables

address, index, workdir = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
jax.distributed.initialize(address, 2, index)
stopping.raise_on_sigterm()
start = jax.device_get(init_variables(MODEL, 0))
settings = dataclasses.replace(
  QUICK, epochs=10**6, log_every_steps=100, validate_every_epochs=10**6, save_every_epochs=10**6
)
signals = [signal.SIGTERM] if index == 1 else []
try:
  train(workdir, start, Batches(signal_at=3, signals=signals), settings, devices=2)
except stopping.StoppedBySignalError as stop:
  print("stopped behind step", stop.step)
  sys.exit(stopping.EXIT_CODE)
"""


def test_sigterm_to_one_process_stops_all_at_the_same_saved_step(tmp_path, xla_flags):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent.parent}",
    "XLA_FLAGS": xla_flags(1),
  }
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", SCRIPT, address, str(index), str(tmp_path / "run")],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  outputs = [process.communicate(timeout=200) for process in processes]
  said = []
  for process, (output, errors) in zip(processes, outputs, strict=True):
    assert process.returncode == 75, output + errors
    said.append(output.splitlines()[-1])
  assert said == [f"stopped behind step {checkpoint.steps_in(tmp_path / 'run')[-1]}"] * 2
