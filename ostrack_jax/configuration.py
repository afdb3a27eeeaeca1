"""Checks of a configuration before anything runs: its keys, its workdir, where its file is."""

import contextlib
import difflib
import itertools
import json
import pathlib

from configs import common
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.training import checkpoint

# These may change between a run and its continuation.
_FREE_TO_CHANGE = (
  "train.max_minutes",
  "train.log_every_steps",
  "train.keep_checkpoints",
  "train.profile_steps",
  "compilation_cache",
  "report",
  "data.num_",
  "data.data_dir",
  "data.on_bad_record",
)


def build_model(config) -> OSTrack:
  """Build the network of config.model; its `pretrained` says where training starts, not what it is."""
  return OSTrack(**{name: value for name, value in config.model.items() if name != "pretrained"})


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


def as_json(config) -> dict:
  """Return a configuration as JSON has it."""
  return json.loads(config.to_json_best_effort())


def check_workdir(config, workdir: pathlib.Path) -> None:
  """Refuse a workdir whose checkpoints another configuration made, naming the keys that differ.

  Raises:
    ValueError: so it is, or nothing there says which configuration it was.
  """
  steps = checkpoint.steps_in(workdir)
  if not steps:
    return
  # Keys that came later were, in effect, at their defaults.
  theirs = _flatten(as_json(common.get_config())) | _flatten(_config_of(workdir, steps))
  ours = _flatten(as_json(config))
  differing = [
    f"{name} ({theirs.get(name)!r} there, {ours.get(name)!r} now)"
    for name in sorted(theirs.keys() | ours.keys())
    if theirs.get(name) != ours.get(name) and not name.startswith(_FREE_TO_CHANGE)
  ]
  if differing:
    raise ValueError(
      f"{workdir} belongs to a run with another configuration: {', '.join(differing)}; choose another --workdir"
    )


def _config_of(workdir: pathlib.Path, steps: list[int]) -> dict:
  """Read the configuration that a workdir's checkpoints were made with."""
  with contextlib.suppress(OSError, ValueError):
    return json.loads((workdir / "config.json").read_text())
  # Each checkpoint has its own copy; damaged ones are dealt with when the run resumes.
  for step in reversed(steps):
    with contextlib.suppress(Exception):
      return checkpoint.read_notes(workdir, step)["config"]
  raise ValueError(
    f"{workdir} holds checkpoints, but neither config.json nor one of them says with which configuration they were "
    "made; choose another --workdir"
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
