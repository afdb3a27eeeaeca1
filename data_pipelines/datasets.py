"""Data sets by name, as configurations and commands list them."""

import dataclasses
import hashlib
import os
import pathlib
import re

from absl import logging

from data_pipelines import context, preparation, sources, splits
from data_pipelines.augmentation import AugmentationSettings
from data_pipelines.builders import frame_records
from data_pipelines.builders.coco import Coco2017
from data_pipelines.builders.detection_folder import DetectionFolder
from data_pipelines.builders.got10k import Got10k
from data_pipelines.builders.lasot import Lasot
from data_pipelines.builders.masks import MaskSequences
from data_pipelines.builders.procedural import ProceduralSettings, prepare_procedural
from data_pipelines.builders.sequence_folder import SequenceFolder, prepare_sequence_folder
from data_pipelines.builders.trackingnet import TrackingNet
from data_pipelines.procedural_video import ProceduralVideoSettings

# Says where prepared data lies if nothing else does.
DATA_DIR_VARIABLE = "OSTRACK_DATA_DIR"

# What --dataset takes. `vot`, `otb` and `folder` are one layout: frames and a text file of boxes.
DATASETS: dict[str, type[frame_records.FrameRecordBuilder]] = {
  "lasot": Lasot,
  "got10k": Got10k,
  "trackingnet": TrackingNet,
  "coco2017": Coco2017,
  "folder": SequenceFolder,
  "vot": SequenceFolder,
  "masks": MaskSequences,
  "detection": DetectionFolder,
}
# Data of the user's own, which gets a name.
OWN = ("folder", "vot", "masks", "detection")

# What configurations list: the builder, the split as stored, and the part of it that takes part.
NAMES: dict[str, tuple[str, str, str | None]] = {
  "lasot_train": ("lasot", "train", None),
  "trackingnet_train": ("trackingnet", "train", None),
  "coco2017_train": ("coco2017", "train", None),
  "coco2017_val": ("coco2017", "validation", None),
  **{
    f"got10k_{part}": ("got10k", splits.stored_part("got10k", part), part)
    for part in splits.parts("got10k")
  },
}


# A data set, and in brackets the sequences that alone take part, or behind ! do not.
_CHOICE = re.compile(r"(?P<name>[^\[\]]+)\[(?P<without>!?)(?P<listed>[^\[\]]+)\]")


def is_reserved(name: str) -> bool:
  """Return whether a name means something already, and cannot be given to data of one's own."""
  return name in NAMES or name in ("procedural", "procedural_test", "folder")


def data_dir(given: str | os.PathLike[str] = "") -> pathlib.Path:
  """Return the root of all prepared data: what is given, else OSTRACK_DATA_DIR, else `prepared`."""
  return pathlib.Path(given or os.environ.get(DATA_DIR_VARIABLE) or "prepared")


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


@dataclasses.dataclass(frozen=True)
class Located:
  """A prepared directory, a split of it, and the sequences that take part (None: all)."""

  directory: pathlib.Path
  split: str
  sequences: tuple[str, ...] | None = None


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


def locate(
  name: str, settings: DatasetSettings, augmentation: AugmentationSettings | None = None
) -> list[Located]:
  """Return the prepared directories that a name stands for; procedural video and folders are prepared.

  Of a data set that is stored in several ways, the smallest that holds what `augmentation` draws.

  Args:
    name: one of NAMES, `procedural`, `procedural_test`, `folder`, the name that data of one's own got
      when it was prepared (with `:validation` behind it for another split than train), or a
      directory below `data_dir`. Behind it, `[a,b]` takes the sequences a and b alone, and `[!a,b]` all
      but these; of a sequence with several targets, `dogs` means all of them, `dogs/2` one. Several such
      names with + between them stand for all of it.
    augmentation: the crops to be taken; None wants whole frames.

  Raises:
    FileNotFoundError: no such data set, with what to do about it.
    ValueError: `folder` without folder_roots, a root that cannot be read, context crops too small, or a
      sequence in brackets that is not there.
  """
  if "+" in name:
    pieces = (locate(piece.strip(), settings, augmentation) for piece in name.split("+"))
    return [part for piece in pieces for part in piece]
  choice = _CHOICE.fullmatch(name)
  if choice is None:
    return _locate(name, settings, augmentation)
  parts = _locate(choice["name"], settings, augmentation)
  listed = [part.strip() for part in choice["listed"].split(",")]
  return _choose(parts, listed, bool(choice["without"]), name)


def _choose(parts: list[Located], listed: list[str], without: bool, name: str) -> list[Located]:
  """Restrict what was located to the listed sequences, or to all others."""
  chosen, known, unknown = [], [], set(listed)
  for part in parts:
    source = sources.FrameSource(part.directory, part.split, part.sequences)
    names = [str(target) for target in source.index.names[source.selected]]
    known += names
    matches = {
      target: {one for one in listed if target == one or target.startswith(f"{one}/")}
      for target in names
    }
    unknown -= set().union(*matches.values())
    taken = tuple(target for target in names if bool(matches[target]) != without)
    if taken:
      chosen.append(dataclasses.replace(part, sequences=taken))
  if unknown:
    raise ValueError(
      f"data set {name!r}: it has no sequence {', '.join(sorted(unknown))}, but {len(known)} such as "
      f"{', '.join(known[:5])}"
    )
  if not chosen:
    raise ValueError(f"data set {name!r}: no sequence is left")
  return chosen


def _locate(
  name: str, settings: DatasetSettings, augmentation: AugmentationSettings | None
) -> list[Located]:
  if name in ("procedural", "procedural_test"):
    directory = prepare_procedural(
      settings.data_dir, settings.procedural, num_workers=settings.num_workers
    )
    return [Located(directory, "test" if name.endswith("_test") else "train")]
  if name == "folder":
    if not settings.folder_roots:
      raise ValueError(
        "data set 'folder' needs the folders of sequences; set config.data.folder_roots"
      )
    return [
      Located(prepare_sequence_folder(root, settings.data_dir, _folder_name(root)), "train")
      for root in settings.folder_roots
    ]
  root = pathlib.Path(settings.data_dir)
  if (root / name / sources.MANIFEST).is_file():
    return [_fitting([root / name], "train", None, name, augmentation)]
  if name in NAMES:
    dataset, split, part = NAMES[name]
    found = _stored(root, DATASETS[dataset], "")
    if not found:
      raise FileNotFoundError(
        f"data set {name!r} is not prepared in {root}: run `python -m data_pipelines.prepare "
        f"--dataset={dataset} --raw_dir=DIR --data_dir={root}`, or name another config.data.data_dir"
      )
    sequences = None if part is None else splits.subset(dataset, part)
    return [_fitting(found, split, sequences, name, augmentation)]
  own, _, split = name.partition(":")
  kinds = {DATASETS[dataset]: _stored(root, DATASETS[dataset], own) for dataset in OWN}
  found = [path for paths in kinds.values() for path in paths]
  if sum(map(bool, kinds.values())) > 1:
    raise ValueError(
      f"data set {name!r} was prepared from several layouts: {', '.join(map(str, found))}; delete all but one"
    )
  if not found:
    raise FileNotFoundError(
      f"data set {name!r} is not prepared in {root}; known names are {', '.join(NAMES)}, procedural, "
      "procedural_test, folder, and those given to `python -m data_pipelines.prepare --name=...`"
    )
  return [_fitting(found, split or "train", None, name, augmentation)]


def _stored(root: pathlib.Path, builder_class, name: str) -> list[pathlib.Path]:
  """Return the prepared directories of a data set, the smallest way of storing first."""
  ways = [*(context.PRESETS[size] for size in sorted(context.PRESETS)), None]
  version = str(builder_class.VERSION)
  folders = [
    root / builder_class.name / preparation.config_name(name, way) / version for way in ways
  ]
  return [folder for folder in folders if (folder / sources.MANIFEST).is_file()]


def _fitting(directories, split: str, sequences, name: str, augmentation) -> Located:
  reasons = []
  for directory in directories:
    manifest = sources.read_manifest(directory)
    if split not in manifest["splits"]:
      reasons.append(
        f"{directory} has no split {split}, only {', '.join(manifest['splits'])}: prepare it with --splits={split}"
      )
      continue
    storage = manifest["storage"]
    if storage is None:
      return Located(directory, split, sequences)
    if augmentation is None:
      reasons.append(f"{directory} holds context crops, not whole frames")
      continue
    lacking = context.ContextSettings(**storage).shortcomings(augmentation)
    if not lacking:
      return Located(directory, split, sequences)
    reasons.append(f"{directory} holds context crops for less ({', '.join(lacking)})")
  raise ValueError(
    f"data set {name!r} cannot serve: {'; '.join(reasons)}. Where crops are too small, prepare it with --context=384 or --full_frames"
  )


def _folder_name(root: str) -> str:
  """Name a folder's data set by where it is, so that another folder is another data set."""
  path = pathlib.Path(root).resolve()
  digest = hashlib.sha256(os.fspath(path).encode()).hexdigest()[:8]
  return re.sub(r"\W", "_", f"{path.name}_{digest}")


def open_mixture(
  names, weights, settings: DatasetSettings, augmentation: AugmentationSettings
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
    parts = locate(name, settings, augmentation)
    for part in parts:
      source = sources.FrameSource(part.directory, part.split, part.sequences)
      if part.sequences is not None and len(source.selected) < len(part.sequences):
        logging.warning(
          "data set %s: %d of its %d sequences are stored in %s; the others were missing when it was prepared",
          name,
          len(source.selected),
          len(part.sequences),
          part.directory,
        )
      mixture.append((source, weight / len(parts)))
  return mixture
