"""What the builders share: one record a frame, an index beside the records, all or nothing on disk."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import shuffle

from data_pipelines import sources

FORMAT = "frame_records/1"


@dataclasses.dataclass(frozen=True)
class EncodedSequence:
  """One sequence to store: JPEG bytes a frame, boxes_xywh [n, 4] pixels, visible [n] bool."""

  name: str
  jpegs: Iterable[bytes]
  boxes_xywh: np.ndarray
  visible: np.ndarray


class FrameRecordBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A TFDS builder of one record a frame; subclasses say which sequences a split has.

  Frames keep their order, so a sequence is a run of records, which the index beside the records
  names. `tfds.builder_from_directory(...).as_data_source()` reads the records as well.
  """

  VERSION = tfds.core.Version("1.0.0")
  SPLITS: tuple[str, ...] = ("train",)

  def sequences(self, split: str) -> Iterator[EncodedSequence]:
    """Yield the sequences of a split."""
    raise NotImplementedError

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict(
      {
        "jpeg": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        "box_xywh": tfds.features.Tensor(shape=(4,), dtype=np.float32),
        "visible": tfds.features.Scalar(dtype=np.bool_),
        "sequence": tfds.features.Text(),
        "frame": tfds.features.Scalar(dtype=np.int32),
      }
    )
    return tfds.core.DatasetInfo(
      builder=self, description=type(self).__doc__, features=features, disable_shuffling=True
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    self.indices: dict[str, sources.SequenceIndex] = {}
    return {split: self._generate_examples(split) for split in self.SPLITS}

  def _generate_examples(self, split: str):
    names, starts, boxes_xywh, visible = [], [0], [], []
    for sequence in self.sequences(split):
      for frame, jpeg in enumerate(sequence.jpegs):
        yield (
          starts[-1] + frame,
          {
            "jpeg": io.BytesIO(jpeg),
            "box_xywh": sequence.boxes_xywh[frame].astype(np.float32),
            "visible": bool(sequence.visible[frame]),
            "sequence": sequence.name,
            "frame": frame,
          },
        )
      names.append(sequence.name)
      starts.append(starts[-1] + len(sequence.boxes_xywh))
      boxes_xywh.append(sequence.boxes_xywh)
      visible.append(sequence.visible)
    self.indices[split] = sources.SequenceIndex(
      names=tuple(names),
      starts=np.asarray(starts, np.int64),
      boxes_xywh=np.concatenate(boxes_xywh).astype(np.float32),
      visible=np.concatenate(visible).astype(bool),
    )


@contextlib.contextmanager
def _sorting_in_memory():
  """Keep TFDS from spilling records to disk beyond 1000 MiB a split: it does so through TensorFlow.

  A split's JPEGs must fit into memory while it is written.
  """
  limit = shuffle.MAX_MEM_BUFFER_SIZE
  shuffle.MAX_MEM_BUFFER_SIZE = sys.maxsize
  try:
    yield
  finally:
    shuffle.MAX_MEM_BUFFER_SIZE = limit


@contextlib.contextmanager
def _quiet():
  """Silence TFDS's own progress bars and notes: the builders show one bar of their own."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(verbosity)
    tfds.enable_progress_bar()


def prepared_directory(builder_class, config, data_dir: str | os.PathLike[str]) -> pathlib.Path:
  """Return where a configuration of a builder lives below `data_dir`."""
  return pathlib.Path(data_dir) / builder_class.name / config.name / str(builder_class.VERSION)


def prepare(
  builder_class, config, data_dir: str | os.PathLike[str], settings: dict
) -> pathlib.Path:
  """Run a builder once and return the finished directory; at once if it is there already.

  Everything is written beside its final place and moved in one rename, the manifest with it: a
  directory that exists is complete, whatever interrupted an earlier attempt.

  Args:
    builder_class: a FrameRecordBuilder.
    config: its BuilderConfig.
    data_dir: root of all prepared data.
    settings: what the data was made from, kept in the manifest.
  """
  final = prepared_directory(builder_class, config, data_dir)
  if (final / sources.MANIFEST).is_file():
    return final
  if final.exists():
    raise FileExistsError(f"{final} exists but was not made by this program: move it away")
  final.parent.mkdir(parents=True, exist_ok=True)
  staging = pathlib.Path(tempfile.mkdtemp(prefix=".preparing-", dir=final.parent))
  try:
    with _quiet(), _sorting_in_memory():
      builder = builder_class(
        data_dir=os.fspath(staging), config=config, file_format="array_record"
      )
      builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
      )
    made = pathlib.Path(builder.data_dir)
    splits = {}
    for split, index in builder.indices.items():
      index.save(sources.index_path(made, split))
      splits[split] = {"sequences": len(index.names), "frames": len(index.visible)}
    manifest = {"format": FORMAT, "builder": builder.name, "settings": settings, "splits": splits}
    (made / sources.MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    try:
      made.rename(final)
    except OSError:
      # Another process finished the same preparation first: its data is as good.
      if not (final / sources.MANIFEST).is_file():
        raise
  finally:
    shutil.rmtree(staging, ignore_errors=True)
  return final
