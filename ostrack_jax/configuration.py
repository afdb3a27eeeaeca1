"""Checks of a configuration before anything runs: its keys, its workdir, where its file is."""

import difflib
import itertools
import json
import pathlib

from configs import common
from ostrack_jax.training.checkpoint import STEPS_FOLDER

# These may change between a run and its continuation.
_FREE_TO_CHANGE = (
  "train.max_minutes",
  "train.log_every_steps",
  "train.keep_checkpoints",
  "report",
  "data.num_",
  "data.data_dir",
  "data.on_bad_record",
)


def check_keys(config) -> None:
  """Refuse a configuration with keys that nothing reads, or without keys that something does."""
  known, given = _flatten(common.get_config().to_dict()), _flatten(config.to_dict())
  for name in given.keys() - known.keys():
    similar = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {similar[0]}?" if similar else "configs/common.py lists all keys"
    raise ValueError(f"config.{name} is not a key of the configuration; {hint}")
  missing = sorted(known.keys() - given.keys())
  if missing:
    raise ValueError(
      f"the configuration lacks {missing[0]}; start from configs.common.get_config()"
    )


def check_workdir(config, workdir: pathlib.Path) -> None:
  """Refuse a workdir whose checkpoints another configuration made, naming the keys that differ."""
  path = workdir / "config.json"
  if not path.exists() or not any((workdir / STEPS_FOLDER).glob("[0-9]*")):
    return
  theirs = _flatten(json.loads(path.read_text()))
  ours = _flatten(json.loads(config.to_json_best_effort()))
  differing = [
    f"{name} ({theirs.get(name)!r} there, {ours.get(name)!r} now)"
    for name in sorted(theirs.keys() | ours.keys())
    if theirs.get(name) != ours.get(name) and not name.startswith(_FREE_TO_CHANGE)
  ]
  if differing:
    raise ValueError(
      f"{workdir} belongs to a run with another configuration: {', '.join(differing)}; choose another --workdir"
    )


def _flatten(tree: dict, prefix: str = "") -> dict:
  rows = ((f"{prefix}{key}", value) for key, value in tree.items())
  return dict(
    itertools.chain.from_iterable(
      _flatten(value, f"{name}.").items() if isinstance(value, dict) else [(name, value)]
      for name, value in rows
    )
  )


def installed_config(argument: str) -> str:
  """Let --config=configs/X.py name a configuration of the installed package, outside a checkout too."""
  flag, _, name = argument.partition("=")
  path = pathlib.PurePath(name)
  file = path.name.partition(":")[0]
  if (
    flag.lstrip("-") != "config"
    or path.parent.name != "configs"
    or pathlib.Path(path.with_name(file)).exists()
  ):
    return argument
  installed = pathlib.Path(common.__file__).parent
  return f"{flag}={installed / path.name}" if (installed / file).exists() else argument
