"""Two processes, one device each, train as one process with two devices does."""

import json
import os
import socket
import subprocess
import sys

import numpy as np

SCRIPT = """
import pathlib, sys
import jax
from configs import tiny
from ostrack_jax import train

address, count, index, data_dir, workdir = sys.argv[1:]
if int(count) > 1:
  jax.distributed.initialize(address, int(count), int(index))
assert len(jax.devices()) == 2
config = tiny.get_config("scratch")
config.update_from_flattened_dict({
  "data.data_dir": data_dir, "data.validation_pairs": 4, "model.width": 16, "model.depth": 1,
  "model.num_heads": 1, "model.template_size": 32, "model.search_size": 64, "model.head_channels": 8,
  "model.elimination_layers": (0,), "model.keep_ratios": (0.7,), "procedural.train_sequences": 2,
  "procedural.test_sequences": 1, "procedural.length": 20, "procedural.width": 160,
  "procedural.height": 120, "train.epochs": 1, "train.pairs_per_epoch": 8, "train.batch_size": 4,
  "train.elimination_start": 0, "train.elimination_warmup": 0, "train.log_every_steps": 1,
  "train.max_minutes": 0.0, "report.sequences": 0,
})
report = train.train_and_report(config, pathlib.Path(workdir))
assert report["steps"] == 2
"""


def _start(tmp_path, name, count, devices):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  # Compiling is most of the time here; unoptimised programs are as good.
  options = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
  environment = {**os.environ, "XLA_FLAGS": options}
  arguments = [sys.executable, "-c", SCRIPT, address, str(count)]
  processes = [
    subprocess.Popen(
      [*arguments, str(index), str(tmp_path / "prepared"), str(tmp_path / name)],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(count)
  ]
  outputs = [process.communicate(timeout=300)[0] for process in processes]
  for process, output in zip(processes, outputs, strict=True):
    assert process.returncode == 0, output
  rows = (tmp_path / name / "scalars.jsonl").read_text().splitlines()
  return [json.loads(row) for row in rows]


def test_two_processes_train_as_one_with_two_devices(tmp_path):
  one = _start(tmp_path, "one", 1, 2)
  two = _start(tmp_path, "two", 2, 1)
  assert [row["step"] for row in one] == [row["step"] for row in two] == [1, 2, 2]
  for alone, together in zip(one, two, strict=True):
    for key in alone.keys() & {"train/loss", "train/iou", "train/grad_norm", "validation/loss"}:
      np.testing.assert_allclose(together[key], alone[key], rtol=2e-3, err_msg=key)
