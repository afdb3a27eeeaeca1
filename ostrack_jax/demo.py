"""Serve a web page: choose a video, draw boxes, track, watch, and download the result.

  python -m ostrack_jax.demo --checkpoint=PATH

Then open the address that it prints in a browser on this machine. Examples come along: procedural video, or
those of --examples=FOLDER. Uploads and results stay in a temporary folder; those of a page go when it is closed,
everything when Ctrl-C ends the command. Nothing is sent anywhere else.

Whoever can reach the address can use it: there is no password. It binds to 127.0.0.1, which other machines
cannot reach, unless --host says otherwise.
"""

import errno
import os
import pathlib
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence

from absl import flags

from ostrack_jax import command_line, network_flags, visualization
from ostrack_jax.tracking.frames import quiet_opencv

_DEFAULT_PORT, _PORTS = 7860, 100

FLAGS = command_line.new_flags()
flags.DEFINE_string(
  "checkpoint", network_flags.SHIPPED, network_flags.CHECKPOINT_HELP, flag_values=FLAGS
)
flags.DEFINE_string(
  "host", "127.0.0.1", "address to bind to; 0.0.0.0 for every machine that reaches this one", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_integer(
  "port", None, f"to bind to; by default the first free one from {_DEFAULT_PORT} on", 1, 65535, flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_string(
  "examples", None, "folder of videos, and of folders of images, in place of procedural video", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_integer("max_frames", 1800, "of a video; the rest is left away", flag_values=FLAGS)
flags.DEFINE_float("max_upload_mb", 200, "size of an uploaded file", flag_values=FLAGS)
flags.DEFINE_float("max_temp_mb", 4096, "size of the temporary folder", flag_values=FLAGS)
flags.DEFINE_float(
  "search_factor", None, "search region side over root of box area; default: the checkpoint's", flag_values=FLAGS
)  # fmt: skip
network_flags.define(FLAGS)


def _import_page():
  """Import what needs Gradio; a ValueError says how to get it."""
  try:
    from ostrack_jax.web import page
  except ImportError as error:
    if (error.name or "").partition(".")[0] != "gradio":
      raise
    raise ValueError(
      'the page needs Gradio, which is not installed: pip install "ostrack-jax[demo]", or pip install gradio av'
    ) from error
  return page


def _keep_offline(folder: pathlib.Path) -> None:
  """Keep Gradio's files in a folder, and let it ask no server for anything; before it is imported."""
  os.environ["GRADIO_TEMP_DIR"] = str(folder)
  os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
  os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
  os.environ["HF_HUB_OFFLINE"] = "1"


def find_port(host: str, port: int | None) -> int:
  """Return the port to bind to: the one asked for, or the first free one; an OSError says what is wrong.

  Asked here, because Gradio tries a hundred ports for seconds each where the host is the mistake.
  """
  tried = range(_DEFAULT_PORT, _DEFAULT_PORT + _PORTS) if port is None else [port]
  for one in tried:
    try:
      # The first address of a name, as the server takes it.
      family, kind, _, _, address = socket.getaddrinfo(host, one, type=socket.SOCK_STREAM)[0]
      with socket.socket(family, kind) as probe:
        # As servers do, so that one that has just ended is not in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
      return one
    except OSError as error:
      if error.errno != errno.EADDRINUSE:
        raise OSError(
          f"cannot bind to --host={host}, port {one}: {error.strerror or error}"
        ) from error
  if port is not None:
    raise OSError(f"--port={port} of {host} is in use; give another, or leave it away")
  raise OSError(f"the ports {tried[0]} to {tried[-1]} of {host} are in use; give another --port")


def _serve(stop: threading.Event) -> int:
  how = network_flags.load_arguments(FLAGS)
  port = find_port(FLAGS.host, FLAGS.port)
  with tempfile.TemporaryDirectory(prefix="ostrack-demo-", ignore_cleanup_errors=True) as name:
    # Apart, since a visitor can hand in as an upload whatever lies in Gradio's folder.
    visitors, place = pathlib.Path(name, "visitors"), pathlib.Path(name, "examples")
    visitors.mkdir()
    place.mkdir()
    _keep_offline(visitors)
    page = _import_page()
    # Late, so that a wrong argument is named at once.
    from ostrack_jax import MultiTracker, load, loading
    from ostrack_jax.web import clips, examples, session

    limits = clips.Limits(
      max_frames=FLAGS.max_frames,
      max_upload_mb=FLAGS.max_upload_mb,
      max_temp_mb=FLAGS.max_temp_mb,
    )
    checkpoint = load(FLAGS.checkpoint, **how)
    # Refuses a network that cannot track, now and not at the first visitor.
    MultiTracker(checkpoint, 1, FLAGS.search_factor)
    if visualization.default_codec() != "h264":
      print("browsers will not play the videos; for H.264: pip install av", file=sys.stderr)
    found = (
      examples.find(pathlib.Path(FLAGS.examples), place)
      if FLAGS.examples
      else examples.render(place)
    )
    is_toy = loading.is_shipped(FLAGS.checkpoint)
    network = page.Network(
      checkpoint=checkpoint,
      label=loading.label(FLAGS.checkpoint),
      note=f", {network_flags.SHIPPED_NOTE}" if is_toy else "",
      search_factor=FLAGS.search_factor,
    )
    sessions = session.Sessions(visitors, limits)
    blocks = page.build(network, sessions, found)
    address = page.launch(blocks, limits, FLAGS.host, port)
    try:
      print(f"the page is at {address} (Ctrl-C ends it)", flush=True)
      stop.wait()
    finally:
      for one in sessions:
        one.stop()
      blocks.close(verbose=False)
  return 0


def main(argv: Sequence[str]) -> int:
  """Run the command with the parsed FLAGS and return its exit code."""
  del argv
  stop = threading.Event()
  if threading.current_thread() is threading.main_thread():
    # As Ctrl-C does, so that the temporary folder goes.
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
  try:
    return _serve(stop)
  except (ValueError, OSError) as error:
    sys.exit(f"ostrack-demo: {error}")
  except KeyboardInterrupt:
    return 130


def run() -> None:
  """Parse the command line and run; the console script."""
  quiet_opencv()
  # Of libraries, about each other.
  warnings.filterwarnings("ignore", category=DeprecationWarning)
  command_line.run(main, "ostrack-demo", FLAGS, __doc__)


if __name__ == "__main__":
  run()
