"""A killed evaluation goes on as if nothing had been."""

import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def test_killed_evaluations_end_byte_for_byte_where_an_undisturbed_one_does(tmp_path, xla_flags):
  # Three of the moments; killed_evaluation.py says how to try more by hand.
  environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
  environment["XLA_FLAGS"] = xla_flags(1)
  done = subprocess.run(
    [
      *(sys.executable, str(HERE / "killed_evaluation.py"), "--kills=3"),
      f"--folder={tmp_path / 'runs'}",
    ],
    capture_output=True,
    text=True,
    check=False,
    env=environment,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert "after 3 kills all is equal" in done.stdout
