"""A run that is killed goes on as if nothing had been."""

import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def test_killed_runs_end_bit_for_bit_where_an_undisturbed_one_does(tmp_path, xla_flags):
  # Two of the moments; killed_run.py says how to try more by hand.
  root = str(HERE.parent.parent)
  environment = {
    **os.environ,
    "PYTHONPATH": root,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  environment["XLA_FLAGS"] = xla_flags(1)
  done = subprocess.run(
    [sys.executable, str(HERE / "killed_run.py"), "--kills=2", f"--folder={tmp_path / 'runs'}"],
    capture_output=True,
    text=True,
    check=False,
    env=environment,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert "after 2 kills all is equal" in done.stdout
