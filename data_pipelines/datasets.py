"""Data sets by name, as configurations list them: prepared on first use where that can be done."""

import dataclasses
import hashlib
import os
import pathlib
import re

from data_pipelines import sources
from data_pipelines.builders.procedural import ProceduralSettings, prepare_procedural
from data_pipelines.builders.sequence_folder import prepare_sequence_folder
from data_pipelines.procedural_video import ProceduralVideoSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSettings:
  """Where prepared data lies and what to prepare on first use.

  Attributes:
    data_dir: root of all prepared data sets.
    folder_roots: folders of sequences that the name `folder` stands for, one data set each.
    procedural: what the names `procedural` and `procedural_test` stand for.
    num_workers: processes that render procedural video; 0 for this one.
  """

  data_dir: str | os.PathLike[str]
  folder_roots: tuple[str, ...] = ()
  procedural: ProceduralSettings = dataclasses.field(default_factory=ProceduralSettings)
  num_workers: int = 0


def procedural_settings(
  *, train_sequences: int, test_sequences: int, seed: int, **video
) -> ProceduralSettings:
  """Build the settings of procedural video from flat values, as configurations hold them."""
  return ProceduralSettings(
    train_sequences=train_sequences,
    test_sequences=test_sequences,
    seed=seed,
    video=ProceduralVideoSettings(**video),
  )


def locate(name: str, settings: DatasetSettings) -> list[tuple[pathlib.Path, str]]:
  """Return the prepared directories and splits that a name stands for, preparing them if needed.

  Args:
    name: `procedural`, `procedural_test`, `folder`, or a directory below `data_dir`.

  Raises:
    FileNotFoundError: no such data set, with what to do about it.
    ValueError: `folder` without folder_roots, or a root that cannot be read.
  """
  if name in ("procedural", "procedural_test"):
    directory = prepare_procedural(
      settings.data_dir, settings.procedural, num_workers=settings.num_workers
    )
    return [(directory, "test" if name.endswith("_test") else "train")]
  if name == "folder":
    if not settings.folder_roots:
      raise ValueError(
        "data set 'folder' needs the folders of sequences; set config.data.folder_roots"
      )
    return [
      (prepare_sequence_folder(root, settings.data_dir, _folder_name(root)), "train")
      for root in settings.folder_roots
    ]
  directory = pathlib.Path(settings.data_dir) / name
  if not (directory / sources.MANIFEST).is_file():
    raise FileNotFoundError(
      f"data set {name!r} is not prepared: {directory} holds no {sources.MANIFEST}. Prepare it there, set "
      "config.data.data_dir, or train on 'procedural' or 'folder' data"
    )
  return [(directory, "train")]


def _folder_name(root: str) -> str:
  """Name a folder's data set by where it is, so that another folder is another data set."""
  path = pathlib.Path(root).resolve()
  digest = hashlib.sha256(os.fspath(path).encode()).hexdigest()[:8]
  return re.sub(r"\W", "_", f"{path.name}_{digest}")


def open_mixture(
  names, weights, settings: DatasetSettings
) -> list[tuple[sources.FrameSource, float]]:
  """Open data sets with their weights; a name that stands for several shares its weight among them.

  Raises:
    ValueError: not as many weights as names, or none.
  """
  if len(names) != len(weights) or not names:
    raise ValueError(
      f"{len(names)} data sets {tuple(names)} need as many weights, got {tuple(weights)}"
    )
  mixture = []
  for name, weight in zip(names, weights, strict=True):
    parts = locate(name, settings)
    mixture += [
      (sources.FrameSource(directory, split), weight / len(parts)) for directory, split in parts
    ]
  return mixture
