"""How fast a run goes: pairs per second, waiting for data, MFU."""

import concurrent.futures
import contextlib
import time
from collections.abc import Iterator, Sequence

import jax

from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.training import cost, run_summary


class Speed:
  """Measure between readings; each process measures itself, and the first one's figures are written.

  Steps are dispatched and run while the next batch is fetched, so the time spent fetching says little:
  waiting for data is what is left of it after the running step has ended. A thread waits for each step
  and notes when it ended.
  """

  def __init__(self, model: OSTrack, devices: Sequence[jax.Device]):
    self._model, self._devices = model, list(devices)
    self._peak = cost.peak_flops(self._devices[0].device_kind, model.dtype)
    self._watcher = concurrent.futures.ThreadPoolExecutor(1, "step-end")
    self._end: concurrent.futures.Future | None = None
    self._waited = 0.0

  def dispatched(self, results) -> None:
    """Note the step that runs now, by results that nobody donates."""
    self._end = self._watcher.submit(_end_of, jax.tree.leaves(results)[0])

  @contextlib.contextmanager
  def fetching(self) -> Iterator[None]:
    """Measure the fetching of a batch."""
    start = time.perf_counter()
    yield
    now = time.perf_counter()
    if self._end is not None and self._end.done():
      self._waited += now - max(start, self._end.result())

  def restart(self) -> None:
    """Forget what was measured since the last reading."""
    self._waited = 0.0

  def read(self, pairs: int, seconds: float, stage_counts: tuple[int, ...]) -> dict[str, float]:
    """Return the scalars since the last reading and start anew.

    Args:
      pairs, seconds: trained over all devices, and the time it took; without a pair, there are no speeds.
      stage_counts: search tokens left after each stage, the same in all of these steps.

    Returns:
      `search_tokens_stage_1` and so on, pairs_per_second, data_wait_share of the time, and mfu, the
      useful share of all devices' peak, where the peak is known.
    """
    waited, self._waited = self._waited, 0.0
    scalars = {
      f"search_tokens_stage_{stage}": float(count)
      for stage, count in enumerate(stage_counts, start=1)
    }
    if not pairs:
      return scalars
    scalars["pairs_per_second"] = pairs / seconds
    scalars["data_wait_share"] = min(waited / seconds, 1.0)
    utilisation = cost.model_flops_utilisation(
      scalars["pairs_per_second"],
      cost.training_flops(self._model, stage_counts),
      self._peak,
      len(self._devices),
    )
    return scalars if utilisation is None else scalars | {"mfu": utilisation}

  def estimate(self, pairs_per_second: float, pairs_left: int) -> str:
    """Return the time that the rest takes at a speed, and the memory used, where the device tells."""
    text = f"{pairs_per_second:.0f} pairs/s: about {run_summary.duration(pairs_left / pairs_per_second)} of training left"
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
      text += (
        f"; at most {statistics['peak_bytes_in_use'] / 2**30:.2f} GiB of device memory used so far"
      )
    return text

  def close(self) -> None:
    """Wait for the step being watched and end the thread."""
    self._watcher.shutdown()


def _end_of(result: jax.Array) -> float:
  result.block_until_ready()
  return time.perf_counter()
