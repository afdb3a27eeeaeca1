"""Prepare a data set: shards in parallel, restartable, then the index, TFDS's metadata, the manifest."""

import collections
import concurrent.futures
import contextlib
import fcntl
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import tqdm
from tensorflow_datasets.core import naming
from tensorflow_datasets.core import splits as tfds_splits

from data_pipelines import context, frame_index, shards, sources, workers
from data_pipelines.builders import frame_records

_WORK = ".preparing"
# Of the progress bar at what workers did.
_SECONDS_BETWEEN_LOOKS = 0.1


def prepare(
  builder_class: type[frame_records.FrameRecordBuilder],
  config: frame_records.RecordConfig,
  data_dir: str | os.PathLike[str],
  *,
  splits: Sequence[str] | None = None,
  num_workers: int = 0,
) -> pathlib.Path:
  """Store splits of a data set unless they are there already, and return the directory.

  The data is a function of the raw data and the configuration alone: not of the number of workers,
  nor of interruptions. Finished shards of an interrupted run are kept; a split counts once the
  manifest names it. Of several processes that prepare the same, one works and the others wait.

  Args:
    builder_class: which data set.
    config: its configuration.
    data_dir: root of all prepared data.
    splits: None for the builder's default.
    num_workers: processes; 0 works in this one.

  Raises:
    FileNotFoundError, ValueError: the raw data is not as it should be, or the directory holds a data
      set made from something else.
    FileExistsError: the directory holds something that no preparation made.
  """
  splits = tuple(builder_class.DEFAULT_SPLITS if splits is None else splits)
  for split in splits:
    if split not in builder_class.SPLITS:
      raise ValueError(
        f"{builder_class.name} has no split {split!r}, only {', '.join(builder_class.SPLITS)}"
      )
  directory = frame_records.prepared_directory(builder_class, config, data_dir)
  done = sources.read_manifest(directory) if (directory / sources.MANIFEST).is_file() else None
  root = getattr(config, "root", None)
  if (
    done is not None and set(splits) <= done["splits"].keys() and root and not os.path.exists(root)
  ):
    # The raw folder may be gone once everything is stored.
    _check_same(done, builder_class, config, {}, directory)
    return directory
  keys = _list(builder_class, config, splits, directory)
  prints = {
    split: frame_records.fingerprint(builder_class, config, split, found)
    for split, found in keys.items()
  }
  if done is not None:
    _check_same(done, builder_class, config, prints, directory)
    if set(splits) <= done["splits"].keys() and not (directory / _WORK).exists():
      return directory
  foreign = done is None and directory.exists() and any(directory.iterdir())
  # Another process may have finished since.
  is_ours = (directory / _WORK).exists() or (directory / sources.MANIFEST).is_file()
  if foreign and not is_ours:
    raise FileExistsError(f"{directory} exists but was not made by this program: move it away")
  directory.mkdir(parents=True, exist_ok=True)
  with _only_one(directory):
    if (directory / sources.MANIFEST).is_file():
      # Another process may have finished meanwhile, with something else under this name.
      _check_same(sources.read_manifest(directory), builder_class, config, prints, directory)
    for split in splits:
      _prepare_split(
        builder_class, config, directory, split, keys[split], prints[split], num_workers
      )
    shutil.rmtree(directory / _WORK, ignore_errors=True)
  return directory


def prepare_folder(
  builder_class: type[frame_records.FrameRecordBuilder],
  root: str | os.PathLike[str],
  data_dir: str | os.PathLike[str],
  name: str = "",
  *,
  storage: context.ContextSettings | None = None,
  splits: Sequence[str] | None = None,
  allow_missing: bool = False,
  num_workers: int = 0,
) -> pathlib.Path:
  """Prepare a raw folder and return the directory; see `prepare`.

  Args:
    name: what to call data of one's own; letters, digits and underscores. "" for the sets that have
      a name already.
    storage: None keeps whole frames.
    allow_missing: leave out what an official list names and the folder lacks.
  """
  if not re.fullmatch(r"\w*", name):
    raise ValueError(f"name {name!r}: use letters, digits and underscores only")
  config = frame_records.RawDataConfig(
    name=config_name(name, storage),
    storage=storage,
    root=os.fspath(pathlib.Path(root).resolve()),
    allow_missing=allow_missing,
  )
  return prepare(builder_class, config, data_dir, splits=splits, num_workers=num_workers)


def config_name(name: str, storage: context.ContextSettings | None) -> str:
  """Return what a way of storing a data set is called on disk."""
  kind = "full_frames" if storage is None else f"context{storage.search_size}"
  return f"{name}-{kind}" if name else kind


def _list(builder_class, config, splits, directory) -> dict[str, list]:
  builder = frame_records.open_builder(builder_class, config, directory / _WORK / "unused")
  keys = {split: builder.list_sequences(split) for split in splits}
  for split, found in keys.items():
    if not found:
      raise ValueError(f"{builder_class.name}, split {split}: there is no sequence to prepare")
  return keys


def _check_same(manifest: dict, builder_class, config, prints: dict, directory) -> None:
  """Refuse a directory that was made from something else."""
  ours, theirs = json.loads(json.dumps(config.describe())), manifest["made_from"]
  if not builder_class.IDENTIFIED_BY_ROOT:
    ours, theirs = ({k: v for k, v in d.items() if k != "root"} for d in (ours, theirs))
  differing = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
  if differing:
    details = ", ".join(f"{k} {theirs.get(k)!r} there, {ours.get(k)!r} now" for k in differing)
    raise ValueError(
      f"{directory} was prepared from something else ({details}): {_cure(builder_class)}"
    )
  for split, ours in prints.items():
    known = manifest["splits"].get(split)
    if known and known["made_from"] != ours:
      theirs = known["made_from"]
      changed = (
        "their annotations are others"
        if ours["sequences"] == theirs["sequences"]
        else f"now there are {ours['sequences']} or they are others"
      )
      raise ValueError(
        f"{directory} was prepared from {theirs['sequences']} sequences, {changed}: {_cure(builder_class)}"
      )


def _cure(builder_class) -> str:
  if builder_class.IDENTIFIED_BY_ROOT:
    return "choose another name, or delete that directory"
  return "delete that directory to prepare it anew"


@contextlib.contextmanager
def _only_one(directory: pathlib.Path) -> Iterator[None]:
  """Let one process at a time into a directory."""
  # Beside the directory and never deleted: whoever waits for a deleted lock waits for nobody.
  with open(directory.parent / f".{directory.name}.lock", "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      print(f"another process prepares {directory}: waiting for it", flush=True)
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _prepare_split(
  builder_class, config, directory, split: str, keys: list, made_from: dict, num_workers: int
):
  manifest_path = directory / sources.MANIFEST
  manifest = sources.read_manifest(directory) if manifest_path.is_file() else None
  if manifest is not None and split in manifest["splits"]:
    return
  work = directory / _WORK
  work.mkdir(exist_ok=True)
  size = builder_class.SEQUENCES_PER_SHARD
  total = -(-len(keys) // size)
  plan = {
    "made_from": config.describe(),
    "sequences": made_from,
    "shards": total,
  }
  _start_over_unless(plan, directory, work / f"{split}.json", split)
  _remove_partial(directory, work, split)
  tasks = [
    shards.ShardTask(
      builder_class, config, directory, work, split, i, total, keys[i * size : (i + 1) * size]
    )
    for i in range(total)
  ]
  _write_all(tasks, f"{builder_class.name} {split}", num_workers)
  # A killed run's workers hear of its end a little later, and may begin a shard until then.
  _remove_partial(directory, work, split)
  parts = [task.index_part for task in tasks]
  frame_index.write(sources.index_path(directory, split), parts)
  summary = _summarise(parts, sources.index_path(directory, split))
  if not summary["records"]:
    raise ValueError(
      f"{builder_class.name}, split {split}: in none of its {summary['frames']} frames is a target visible, so "
      "there is nothing to store; `python -m data_pipelines.validate` shows what the boxes are"
    )
  entry = {"made_from": made_from, **summary}
  known = {} if manifest is None else manifest["splits"]
  known = {**known, split: entry}
  _write_tfds_metadata(builder_class, config, directory, known)
  manifest = {
    "format": sources.FORMAT,
    "builder": builder_class.name,
    "is_video": builder_class.IS_VIDEO,
    **config.describe(),
    "made_from": config.describe(),
    "splits": known,
  }
  temporary = work / sources.MANIFEST
  temporary.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
  os.replace(temporary, manifest_path)


def _remove_partial(directory: pathlib.Path, work: pathlib.Path, split: str) -> None:
  """Remove what a killed process was writing."""
  for leftover in (*directory.glob(f".*-{split}.*.partial"), *work.glob(f".{split}-*.partial")):
    leftover.unlink(missing_ok=True)


def _start_over_unless(plan: dict, directory, path: pathlib.Path, split: str) -> None:
  """Drop what an interrupted preparation from other raw data or settings left."""
  if path.is_file() and json.loads(path.read_text()) == json.loads(json.dumps(plan)):
    return
  leftovers = [*directory.glob(f"*-{split}.array_record-*"), *path.parent.glob(f"{split}-*.npz")]
  if leftovers:
    print(f"{directory}: the raw data or the settings changed; starting split {split} anew")
  for leftover in leftovers:
    leftover.unlink()
  temporary = path.with_suffix(".partial")
  temporary.write_text(json.dumps(plan))
  os.replace(temporary, path)


def _write_all(tasks: list[shards.ShardTask], label: str, num_workers: int) -> None:
  waiting = [task for task in tasks if not task.is_finished()]
  sequences = sum(len(task.keys) for task in tasks)
  left = sum(len(task.keys) for task in waiting)
  with tqdm.tqdm(total=sequences, initial=sequences - left, desc=label, unit="seq") as bar:
    if num_workers < 1:
      for task in waiting:
        shards.write_shard(task, bar.update)
      return
    _write_in_processes(waiting, bar, num_workers)


def _write_in_processes(waiting: list[shards.ShardTask], bar, num_workers: int) -> None:
  progress, is_over = multiprocessing.get_context("spawn").SimpleQueue(), threading.Event()

  def show():
    # Asks whether it is over: nobody could tell it through the queue, whose lock a worker keeps that ended while it
    # was putting something there.
    while not is_over.wait(_SECONDS_BETWEEN_LOOKS):
      update()
    update()

  def update():
    while not progress.empty():
      progress.get()
      bar.update()

  thread = threading.Thread(target=show, daemon=True)
  thread.start()
  count = max(1, min(num_workers, len(waiting)))
  try:
    with workers.process_pool(count, shards.begin_worker, progress) as pool:
      with workers.deaf_children():
        running = [pool.submit(shards.write_in_worker, task) for task in waiting]
      for future in concurrent.futures.as_completed(running):
        future.result()
  finally:
    is_over.set()
    thread.join()


def _summarise(parts: list[pathlib.Path], index_folder: pathlib.Path) -> dict:
  """Return the figures of a split that the manifest keeps."""
  totals: collections.Counter[str] = collections.Counter()
  shard_lengths, shard_bytes = [], []
  for part in parts:
    with np.load(part) as data:
      totals.update({k: int(data[k]) for k in ("raw_bytes", "stored_bytes", "frames")})
      shard_lengths.append(len(data["frames_wh"]))
      shard_bytes.append(int(data["shard_bytes"]))
  index = frame_index.FrameIndex.load(index_folder)
  boxes = index.boxes_xywh[np.flatnonzero(index.visible)]
  sides = np.sqrt(np.maximum(boxes[:, 2] * boxes[:, 3], 0)) if len(boxes) else np.zeros(1)
  return {
    **totals,
    "sequences": len(index.names),
    "positions": len(index.visible),
    "visible": int(np.count_nonzero(index.visible)),
    "records": len(index.frames_wh),
    "box_side_px": [round(float(q), 2) for q in np.quantile(sides, (0, 0.25, 0.5, 0.75, 1))],
    "shard_lengths": shard_lengths,
    "shard_bytes": shard_bytes,
  }


def _write_tfds_metadata(builder_class, config, directory: pathlib.Path, known: dict) -> None:
  """Write dataset_info.json and features.json, so that TFDS reads the directory."""
  builder = frame_records.open_builder(builder_class, config, directory / _WORK / "unused")
  infos = [
    tfds_splits.SplitInfo(
      name=split,
      shard_lengths=entry["shard_lengths"],
      num_bytes=sum(entry["shard_bytes"]),
      filename_template=naming.ShardedFileTemplate(
        # TFDS takes any path, whatever its annotation says.
        data_dir=directory,  # pyrefly: ignore[bad-argument-type]
        dataset_name=builder.name,
        split=split,
        filetype_suffix="array_record",
      ),
    )
    for split, entry in known.items()
  ]
  made = directory / _WORK / "metadata"
  shutil.rmtree(made, ignore_errors=True)
  made.mkdir()
  with frame_records.quiet():
    builder.info.set_splits(tfds_splits.SplitDict(infos))
    builder.info.write_to_directory(made)
  for path in sorted(made.iterdir()):
    os.replace(path, directory / path.name)
