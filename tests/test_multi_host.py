"""Two processes, one process with two devices, and one device alone train the same; and how they are launched."""

import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import jax
import numpy as np
import yaml

from launch import local
from ostrack_jax.training.checkpoint import restore_step_variables

LAUNCH = pathlib.Path(__file__).parent.parent / "launch"
STEPS = 4
CONFIG = {
  "data.validation_pairs": 4,
  "model.width": 16,
  "model.depth": 1,
  "model.num_heads": 1,
  "model.template_size": 32,
  "model.search_size": 64,
  "model.head_channels": 8,
  "model.elimination_layers": "(0,)",
  "model.keep_ratios": "(0.7,)",
  "procedural.train_sequences": 2,
  "procedural.test_sequences": 1,
  "procedural.length": 20,
  "procedural.width": 160,
  "procedural.height": 120,
  "optim.learning_rate": 1e-3,
  "optim.warmup_steps": 0,
  "train.epochs": 1,
  "train.pairs_per_epoch": 4 * STEPS,
  "train.batch_size": 4,
  "train.elimination_start": 0,
  "train.elimination_warmup": 0,
  "train.log_every_steps": 1,
  "train.max_minutes": 0.0,
  "report.sequences": 0,
}


def _train(tmp_path, name, module, *words, flags):
  """Run the training command; return its scalars and its final parameters by path."""
  overrides = CONFIG | {"data.data_dir": tmp_path / "prepared"}
  workdir = tmp_path / name
  done = subprocess.run(
    [
      *(sys.executable, "-m", module, *words, "--config=configs/tiny.py:scratch"),
      f"--workdir={workdir}",
      *(f"--config.{key}={value}" for key, value in overrides.items()),
    ],
    env={**os.environ, "XLA_FLAGS": flags},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  rows = [json.loads(row) for row in (workdir / "scalars.jsonl").read_text().splitlines()]
  params = restore_step_variables(workdir, STEPS)["params"]
  leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(params))
  return rows, {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _rounding_alone(name: str, width: int) -> slice | None:
  """Return the entries whose gradient is 0 in exact arithmetic: Adam makes steps of its rounding errors.

  A convolution's bias in front of BatchNorm changes nothing, nor does a bias of the attention's keys.
  """
  if re.search(r"conv[1-4]_\w+'\]\['conv'\]\['bias'\]", name):
    return slice(None)
  return slice(width, 2 * width) if name.endswith("['qkv']['bias']") else None


def test_processes_and_devices_train_as_one(tmp_path, xla_flags):
  with concurrent.futures.ThreadPoolExecutor() as pool:
    alone, one = (
      run.result()
      for run in [
        pool.submit(_train, tmp_path, name, "training", flags=xla_flags(devices))
        for name, devices in (("alone", 1), ("one", 2))
      ]
    )
  two = _train(tmp_path, "two", "launch.local", "2", flags=xla_flags(1))
  steps = [*range(1, STEPS + 1), STEPS]
  assert [row["step"] for row in alone[0]] == steps
  for rows, params in (one, two):
    assert [row["step"] for row in rows] == steps
    for expected, row in zip(alone[0], rows, strict=True):
      for key in ("train/loss", "train/iou", "train/grad_norm", "validation/loss"):
        # Validation normalises with running statistics, which the noise in biases does not leave alone.
        tolerance = 1e-5 if key.startswith("train/") else 1e-4
        if key in expected:
          np.testing.assert_allclose(
            row[key], expected[key], rtol=tolerance, atol=1e-7, err_msg=key
          )
    for name, expected in alone[1].items():
      value = params[name]
      noise = _rounding_alone(name, CONFIG["model.width"])
      if noise is not None:
        expected, value = expected.copy(), value.copy()
        expected[noise] = value[noise] = 0
      np.testing.assert_allclose(value, expected, atol=1e-5, rtol=0, err_msg=name)


def test_launch_files_are_well_formed():
  subprocess.run(["bash", "-n", str(LAUNCH / "slurm.sh")], check=True)
  documents = list(yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text()))
  assert [document["kind"] for document in documents] == [
    *("ServiceAccount", "Role", "RoleBinding", "JobSet"),
  ]
  (job,) = documents[-1]["spec"]["replicatedJobs"]
  job = job["template"]["spec"]
  assert job["completionMode"] == "Indexed"
  assert job["parallelism"] == job["completions"]
  (container,) = job["template"]["spec"]["containers"]
  assert "--multi_host" in container["command"]


def _command(code):
  return [sys.executable, "-c", f"import os, signal, sys, time\n{code}"]


def test_launcher_gives_the_first_failures_code_and_ends_the_others():
  start = time.monotonic()
  others = _command("time.sleep(100)")
  assert local.supervise([others, _command("sys.exit(75)")], grace_seconds=0.3) == 75
  assert time.monotonic() - start < 30
  assert local.supervise([_command("os.kill(os.getpid(), signal.SIGABRT)")]) == 128 + 6
  assert local.supervise([_command(""), _command("")]) == 0


def test_launcher_passes_sigterm_on():
  polite = _command(
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
    "os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(100)"
  )
  assert local.supervise([polite]) == 75


def test_launcher_asks_for_a_number():
  done = subprocess.run(
    [sys.executable, "-m", "launch.local", "--config=nowhere.py"],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1
  assert done.stderr.startswith("launch.local: how many processes?")
