"""The flags that the commands on raw data share."""

import os

from absl import flags

from data_pipelines import datasets


def define(own: flags.FlagValues) -> None:
  """Define --dataset, --raw_dir, --splits, --allow_missing, --num_workers and --data_dir."""
  flags.DEFINE_enum(
    "dataset", None, sorted(datasets.DATASETS), "which layout the raw folder has", flag_values=own
  )
  flags.DEFINE_string("raw_dir", None, "the raw folder", flag_values=own)
  flags.DEFINE_list(
    "splits", None, "splits, separated by commas; default: those to train with", flag_values=own
  )
  flags.DEFINE_bool(
    "allow_missing",
    False,
    "leave out sequences that the official list names and the folder lacks",
    flag_values=own,
  )
  flags.DEFINE_integer(
    "num_workers",
    os.cpu_count() or 1,
    "processes; 0 for this one alone",
    lower_bound=0,
    flag_values=own,
  )
  flags.DEFINE_string(
    "data_dir",
    "",
    f"root of all prepared data; if not given, the variable {datasets.DATA_DIR_VARIABLE}, else `prepared`",
    flag_values=own,
  )
