"""Scalars to TensorBoard and to a JSON-lines file, from process 0 alone."""

import json
import pathlib

import jax
import tensorboardX


class MetricWriter:
  """Write scalars of a run; on other processes than the first, do nothing.

  `scalars.jsonl` holds one object a call: {"step": n, "train/loss": ...}. A run that resumes appends;
  rows beyond the step it resumes from are dropped first, so that no step stands there twice.
  """

  def __init__(self, workdir: pathlib.Path, *, resume_step: int = 0):
    self._active = jax.process_index() == 0
    if not self._active:
      return
    self.path = workdir / "scalars.jsonl"
    if self.path.exists():
      rows = [line for line in self.path.read_text().splitlines() if _step_of(line) <= resume_step]
      temporary = self.path.with_suffix(".tmp")
      temporary.write_text("".join(line + "\n" for line in rows))
      temporary.replace(self.path)
    self._jsonl = self.path.open("a", buffering=1)
    self._board = tensorboardX.SummaryWriter(
      str(workdir / "tensorboard"), purge_step=resume_step + 1
    )

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Record scalars of a step."""
    if not self._active:
      return
    self._jsonl.write(json.dumps({"step": step, **scalars}) + "\n")
    for name, value in scalars.items():
      self._board.add_scalar(name, value, step)

  def close(self) -> None:
    """Flush and close both files."""
    if self._active:
      self._jsonl.close()
      self._board.close()


def _step_of(line: str) -> int:
  """Return a row's step; a row cut off by a kill counts as beyond every step."""
  try:
    return json.loads(line)["step"]
  except ValueError:
    return 2**62
