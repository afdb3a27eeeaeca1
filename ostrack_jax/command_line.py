"""What every command shares: flags of its own, --help, and errors in one sentence."""

import functools
import re
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging


def new_flags() -> flags.FlagValues:
  """Return a command's own set of flags, with --help.

  absl's global flags stay out, so that two commands can be imported side by side.
  """
  own = flags.FlagValues()
  flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=own)
  return own


def parse(
  argv: Sequence[str], command: str, own: flags.FlagValues, description: str | None
) -> list[str]:
  """Parse a command line and return what is no flag; a wrong flag ends the program in one sentence."""
  # Before parsing, which would ask for the flags that are required.
  if {"--help", "-h", "-help"} & set(argv[1:]):
    print(f"{description}\n{own.get_help()}")
    sys.exit(0)
  try:
    rest = own(argv)
  except flags.Error as error:
    sys.exit(f"{command}: {_sentence(str(error))} (see --help)")
  except (AttributeError, KeyError) as error:
    # ml_collections says only the last part of an unknown key, and perhaps a similar one.
    words = re.findall(r"[\w.]+", str(error))
    key = words[0] if words else str(error)
    given = next((argument for argument in argv if f".{key}" in argument), key).split("=")[0]
    similar = re.search(r'Did you mean "(\w+)"', str(error))
    hint = f"; did you mean {similar[1]}?" if similar else "; its file shows the keys there are"
    sys.exit(f"{command}: {given} is not a key of the configuration{hint}")
  # app.run and grain ask whether absl's global flags are parsed; these commands use none of them.
  flags.FLAGS.mark_as_parsed()
  if rest[1:]:
    sys.exit(
      f"{command}: unexpected argument {rest[1]!r}; options are written --name=value (see --help)"
    )
  return rest


def _sentence(message: str) -> str:
  """Reduce an error with a traceback in it, as configuration files give, to what was raised."""
  lines = [line.strip() for line in message.splitlines() if line.strip()]
  if any("Traceback" in line for line in lines):
    return re.sub(r"^[\w.]*(Error|Exception): ", "", lines[-1])
  return " ".join(lines)


def run(main: Callable, command: str, own: flags.FlagValues, description: str | None) -> None:
  """Parse sys.argv and call main; the body of a console script."""
  # jax and orbax narrate at INFO; the user gets this project's own lines.
  logging.set_verbosity(logging.WARNING)
  try:
    app.run(
      main, flags_parser=functools.partial(parse, command=command, own=own, description=description)
    )
  except KeyboardInterrupt:
    # The code that shells give to a program that Ctrl-C ended.
    print(f"{command}: interrupted", file=sys.stderr)
    sys.exit(130)
