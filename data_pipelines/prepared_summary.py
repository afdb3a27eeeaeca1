"""What a prepared data set holds, for people."""

import dataclasses
import pathlib
from collections.abc import Sequence

from data_pipelines import sources


@dataclasses.dataclass(frozen=True)
class Summary:
  """What a prepared split holds, for people."""

  name: str
  entry: dict

  def __str__(self) -> str:
    e = self.entry
    smallest, low, median, high, largest = e["box_side_px"]
    saved = 1 - e["stored_bytes"] / max(e["raw_bytes"], 1)
    return (
      f"{self.name}: {e['sequences']:,} sequences, {e['frames']:,} frames, {e['records']:,} of them stored\n"
      f"  target visible in {e['visible'] / max(e['positions'], 1):.1%} of {e['positions']:,} boxes\n"
      f"  box side sqrt(w h), pixels: {smallest:g} smallest, {low:g} / {median:g} / {high:g} quartiles, "
      f"{largest:g} largest\n"
      f"  {e['raw_bytes'] / 1e6:,.1f} MB of images in, {e['stored_bytes'] / 1e6:,.1f} MB out "
      f"({abs(saved):.0%} {'saved' if saved >= 0 else 'more'}), {len(e['shard_lengths'])} shards"
    )


def summaries(directory: pathlib.Path, splits: Sequence[str] | None = None) -> list[Summary]:
  """Return the figures of a prepared directory's splits."""
  manifest = sources.read_manifest(directory)
  chosen = manifest["splits"] if splits is None else splits
  return [Summary(f"{manifest['builder']} {split}", manifest["splits"][split]) for split in chosen]
