"""Four CPU devices, strict broadcasting, exact products, and where the golden numbers are."""

import atexit
import importlib.metadata
import os
import pathlib
import shutil
import signal
import tempfile

# Before jax starts: sharding tests need several devices on one host.
if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
  )
os.environ.setdefault("MPLBACKEND", "Agg")
# A shell starts what runs in the background deaf to Ctrl-C, and so would be all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)
# Programs compiled once serve every test of a run, those in subprocesses too.
_cache = tempfile.mkdtemp(prefix="ostrack-tests-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _cache)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Of programs for CPUs, which compile for longer than these small networks run: by flags of XLA, which ends
# the process where it does not know one, in a third of the time.
_FLAGS = "--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE --xla_cpu_parallel_codegen_split_count=1"
_COMPILE_SOON = {"0.10.2": f"{_FLAGS} --xla_cpu_use_fusion_emitters=false", "0.11.2": _FLAGS}
if shutil.which("nvidia-smi") is None:
  os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
  os.environ["XLA_FLAGS"] += f" {_COMPILE_SOON.get(importlib.metadata.version('jaxlib'), '')}"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# GPUs would multiply float32 in TF32, too coarse to compare with.
jax.config.update("jax_default_matmul_precision", "highest")

_OWN_GOLDEN = pathlib.Path(__file__).parent / "data" / "golden"


def _reference() -> pathlib.Path | None:
  folder = os.environ.get("OSTRACK_REFERENCE")
  return pathlib.Path(folder) if folder else None


@pytest.fixture
def four_devices():
  """Four devices to make a mesh of; without them the test is skipped."""
  found = jax.devices()[:4]
  if len(found) < 4:
    pytest.skip(f"this test needs 4 devices; here are {len(found)}")
  return found


@pytest.fixture
def xla_flags():
  """A function from a number of devices to XLA_FLAGS of another process, which compiles as this one does."""
  # Of a flag that is given twice the last one holds.
  return lambda devices: (
    f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
  )


@pytest.fixture
def reference_dir() -> pathlib.Path:
  """The folder of reference material named by OSTRACK_REFERENCE; skips without."""
  folder = _reference()
  if folder is None:
    pytest.skip("OSTRACK_REFERENCE is not set")
  return folder


@pytest.fixture
def golden():
  """A function from a golden file's name to its path: the full reference's, else the project's own.

  The project's own copies are the same numbers, some of them cut down to keep the repository small.
  """

  def find(name: str) -> pathlib.Path:
    for folder in (*([_reference() / "golden"] if _reference() else []), _OWN_GOLDEN):
      if (folder / name).exists():
        return folder / name
    pytest.skip(f"golden file {name} is not here and OSTRACK_REFERENCE does not lead to it")

  return find


@pytest.fixture
def result_files(tmp_path):
  """Folders of result files and of annotations, of sequences a and b, three frames each."""
  for folder in ("boxes", "truth"):
    (tmp_path / folder).mkdir()
    for name in "ab":
      (tmp_path / folder / f"{name}.txt").write_text("0,0,10,10\n" * 3)
  return tmp_path / "boxes", tmp_path / "truth"
