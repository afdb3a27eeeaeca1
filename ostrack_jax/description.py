"""description.json: what a checkpoint folder says of the network that it holds."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ostrack_jax.models.ostrack import OSTrack

FORMAT = "ostrack_jax/1"
FILE_NAME = "description.json"


def build_model(fields: Mapping[str, Any], source: str) -> OSTrack:
  """Build the module from its fields; ValueError naming the source for fields that do not fit."""
  try:
    return OSTrack(**fields)
  except TypeError as error:
    raise ValueError(f"{source} does not fit this version's model: {error}") from error
  except ValueError as error:
    raise ValueError(f"{source}: {error}") from error


def describe(model: OSTrack, tracker: Mapping[str, float], source: Mapping, complete: bool) -> dict:
  """Return the description of a checkpoint: every field of the model, nothing left to defaults."""
  fields = {
    field.name: getattr(model, field.name)
    for field in dataclasses.fields(model)
    if field.name not in ("parent", "name", "rematerialise")
  }
  fields |= model.dimensions()
  return {
    "format": FORMAT,
    "model": {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()},
    "tracker": dict(tracker),
    "source": dict(source),
    "complete": complete,
  }


def read_description(folder: pathlib.Path) -> dict[str, Any]:
  """Read and check a folder's description.json; ValueError where it is not one of ours."""
  file = folder / FILE_NAME
  if not file.is_file():
    raise ValueError(
      f"{folder} has no {FILE_NAME}; it is neither a converted checkpoint nor a training work "
      "folder"
    )
  return check_description(read_json(file), str(file))


def check_description(content: Mapping[str, Any], source: str) -> dict[str, Any]:
  """Return a description, or raise ValueError naming the source where it is not one of ours."""
  found = content.get("format") if isinstance(content, Mapping) else None
  if found != FORMAT:
    raise ValueError(f"{source} has format {found!r}; this version reads {FORMAT!r}")
  for key in ("model", "tracker"):
    if not isinstance(content.get(key), dict):
      raise ValueError(f"{source} lacks its entry {key!r}; write the checkpoint again")
  return dict(content)


def read_json(file: pathlib.Path) -> dict[str, Any]:
  """Read a JSON object; ValueError naming the file where it holds none."""
  try:
    content = json.loads(file.read_text())
  except ValueError as error:
    raise ValueError(f"{file} is not readable JSON ({error})") from error
  if not isinstance(content, dict):
    raise ValueError(f"{file} holds a {type(content).__name__}; expected an object")
  return content
