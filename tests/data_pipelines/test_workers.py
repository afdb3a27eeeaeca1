"""Worker processes: the same data, small, without an accelerator, and gone with their parent."""

import gc
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from grain.multiprocessing import SharedMemoryArray

from data_pipelines import pipeline, sources, workers

SHARED = pathlib.Path("/dev/shm")
CROPS = ("template", "search")


@pytest.mark.parametrize("count", [1, 2])
def test_worker_processes_do_not_change_the_data(source, count, take):
  # Crops of a batch of 32 are large enough for shared memory.
  options = {"batch_size": 32}
  sent = take(source, 5, num_workers=count, **options)
  assert all(there[name].nbytes > pipeline._SMALLEST_SHARED for there in sent for name in CROPS)
  for here, there in zip(take(source, 5, **options), sent, strict=True):
    assert here.keys() == there.keys()
    for name in here:
      np.testing.assert_array_equal(here[name], there[name], err_msg=name)


@pytest.mark.skipif(not SHARED.is_dir(), reason="looks for shared memory where Linux keeps it")
def test_a_batch_that_fails_leaves_no_shared_memory(monkeypatch):
  files = []

  class Pairs:
    def __getitem__(self, number):
      if number == 9:
        raise sources.DamagedRecordError("number 9")
      return {"search": np.zeros((64, 64, 3), np.uint8)}

  def watched(*arguments):
    array = SharedMemoryArray(*arguments)
    files.append(SHARED / array.metadata.name)
    assert files[-1].exists()
    return array

  monkeypatch.setattr(pipeline, "_empty", watched)
  with pytest.raises(sources.DamagedRecordError):
    pipeline._Batch(Pairs(), 16, 16, 0)(0)
  gc.collect()
  assert len(files) == 1
  # Where grain has a thread for it, that thread gives it back.
  deadline = time.monotonic() + 10
  while files[0].exists() and time.monotonic() < deadline:
    time.sleep(0.01)
  assert not files[0].exists()


def test_ctrl_c_waits_while_processes_are_started_whichever_thread_takes_it():
  # This thread leaves the signal alone meanwhile; that one does not, and Python then calls the handler in this one.
  over, ended = threading.Event(), False
  other = threading.Thread(target=over.wait)
  other.start()
  try:
    with pytest.raises(KeyboardInterrupt), workers.deaf_children():
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(0.2)
      ended = True
    assert ended
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
  finally:
    over.set()
    other.join()


KILLED = """
import multiprocessing, os, sys
from data_pipelines import pipeline, sources
if __name__ == "__main__":
  source = sources.FrameSource(sys.argv[1])
  iterator = pipeline.train_pipeline(
    [(source, 1.0)], pipeline.PipelineSettings(), batch_size=2, seed=0, num_workers=1
  )
  next(iterator)
  print(*[child.pid for child in multiprocessing.active_children()], flush=True)
  os.kill(os.getpid(), 9)
"""


def run_script(file, script, source, **environment):
  file.write_text(script)
  return subprocess.run(
    [sys.executable, str(file), str(source.directory)],
    stdout=subprocess.PIPE,
    env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **environment},
    timeout=60,
    text=True,
  )


def test_workers_end_with_a_killed_training(source, tmp_path):
  # Their pids come through a pipe that closes, and so lets run() return, when the workers are gone.
  killed = run_script(tmp_path / "killed.py", KILLED, source)
  assert killed.returncode == -9
  (worker,) = map(int, killed.stdout.split())
  assert not pathlib.Path(f"/proc/{worker}/fd").exists() or not os.listdir(f"/proc/{worker}/fd")


# A main module with jax in it, as training has, which each worker would import; its source reports from
# inside the workers.
SMALL_WORKERS = """
import jax, os, pathlib, sys
from data_pipelines import pipeline, sources
MARK = "the parent's main module"
class Probe(sources.FrameSource):
  def stored_frame(self, position):
    assert os.getpid() != PARENT
    bridge = sys.modules.get("jax._src.xla_bridge")
    started = list(bridge._backends) if bridge else []
    resident = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    main = hasattr(sys.modules["__main__"], "MARK")
    accelerator = [f for f in os.listdir("/proc/self/fd") if "nvidia" in os.path.realpath("/proc/self/fd/" + f)]
    if started or main or accelerator or os.environ["JAX_PLATFORMS"] != "cpu" or resident > 300e6:
      raise RuntimeError(f"{started} {main} {accelerator} {resident}")
    return super().stored_frame(position)
PARENT = os.getpid()
before = dict(os.environ), sys.modules["__main__"]
iterator = pipeline.train_pipeline(
  [(Probe(sys.argv[1]), 1.0)], pipeline.PipelineSettings(), batch_size=2, seed=0, num_workers=2
)
for _ in range(4):
  next(iterator)
assert before == (dict(os.environ), sys.modules["__main__"])
iterator.close()
print("fine")
"""


# The second names a platform that does not exist: whoever starts a backend fails.
@pytest.mark.parametrize("environment", [{}, {"JAX_PLATFORMS": "nowhere"}], ids=["", "nowhere"])
def test_workers_start_no_backend_hold_no_accelerator_and_stay_small(source, tmp_path, environment):
  result = run_script(tmp_path / "small.py", SMALL_WORKERS, source, **environment)
  assert result.stdout.split() == ["fine"]


def test_shared_memory_that_is_too_small_is_refused(source, monkeypatch, take):
  free = type("", (), {"f_bavail": 1, "f_frsize": 300_000})
  monkeypatch.setattr(workers.os, "statvfs", lambda path: free)
  with pytest.raises(ValueError, match=r"4 worker processes .* 0 MB free .*num_workers"):
    take(source, 1, num_workers=4)
  assert len(take(source, 1, num_workers=1)) == 1
