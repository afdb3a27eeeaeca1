"""The web page's command: how it starts, and what it says where it cannot."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

import pytest

from ostrack_jax import command_line, demo, web
from ostrack_jax.web.clips import Limits


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
  """Runs the command in this process; gives (exit code, stdout, stderr)."""
  for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_OFFLINE"):
    # So that they are as before in the end.
    monkeypatch.setenv(name, os.environ.get(name, ""))
  monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
  (tmp_path / "temporary").mkdir()
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
  demo.FLAGS.unparse_flags()
  for name in demo.FLAGS:
    demo.FLAGS[name].unparse()

  def run(*arguments):
    try:
      argv = command_line.parse(["demo", *arguments], "ostrack-demo", demo.FLAGS, demo.__doc__)
      code = demo.main(argv)
    except SystemExit as end:
      code = end.code
      if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    return code, *capsys.readouterr()

  return run


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--checkpoint=nope"], "ostrack-demo: there is no checkpoint nope; give a folder or file"),
    (["--examples=nope"], "ostrack-demo: --examples=nope is not a folder"),
    (["--max_frames=1"], "ostrack-demo: --max_frames=1 leaves nothing to track"),
    (["--port=0"], "port"),
    (["--keep_ratios=half"], "ostrack-demo: --keep_ratios has 'half'; expected a number"),
    (["--search_factor=0.5"], "search_factor 0.5"),
    (["clip.mp4"], "unexpected argument 'clip.mp4'"),
    # An address of no machine, kept for documentation (RFC 5737).
    (["--host=192.0.2.1"], "cannot bind to --host=192.0.2.1, port 7860: Cannot assign"),
    (["--host=no such host"], "cannot bind to --host=no such host, port 7860: "),
  ],
)
def test_mistakes_are_named_in_one_sentence_and_leave_no_folder(
  command, tmp_path, arguments, message
):
  code, out, err = command(*arguments)
  last = err.strip().splitlines()[-1]
  assert (code, out) == (1, "")
  assert message in last and "Traceback" not in err
  assert list((tmp_path / "temporary").iterdir()) == []


def test_without_gradio_it_says_what_to_install(command, monkeypatch):
  monkeypatch.delitem(sys.modules, "ostrack_jax.web.page", raising=False)
  monkeypatch.delattr(web, "page", raising=False)
  monkeypatch.setitem(sys.modules, "gradio", None)
  code, _, err = command()
  assert code == 1
  assert err.strip() == (
    "ostrack-demo: the page needs Gradio, which is not installed: "
    'pip install "ostrack-jax[demo]", or pip install gradio av'
  )


def test_a_taken_port_is_named(command):
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = taken.getsockname()[1]
    code, _, err = command(f"--port={port}")
  assert code == 1 and f"ostrack-demo: --port={port} of 127.0.0.1 is in use" in err


def test_the_first_free_port_is_taken(monkeypatch):
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = taken.getsockname()[1]
    monkeypatch.setattr(demo, "_DEFAULT_PORT", port)
    assert port < demo.find_port("127.0.0.1", None) < port + 100
    monkeypatch.setattr(demo, "_PORTS", 1)
    with pytest.raises(OSError, match=rf"the ports {port} to {port} of 127\.0\.0\.1 are in use"):
      demo.find_port("127.0.0.1", None)


@pytest.mark.parametrize(
  ("host", "name"), [("::1", "[::1]"), ("127.0.0.1", "127.0.0.1"), ("localhost", "localhost")]
)
def test_an_ipv6_address_is_in_brackets_as_in_addresses_of_pages(host, name):
  page = pytest.importorskip("ostrack_jax.web.page")

  class Blocks:
    def queue(self, **_):
      return self

    def launch(self, **options):
      return None, options["server_name"], None

  assert page.launch(Blocks(), Limits(), host, 7860) == name


def test_it_serves_this_machine_alone_until_ctrl_c_and_leaves_nothing(tmp_path):
  # A process of its own, since uvicorn sets up the logging of the whole process anew.
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  server = subprocess.Popen(
    [sys.executable, "-m", "ostrack_jax.demo", f"--port={port}"],
    cwd=pathlib.Path(demo.__file__).parents[1],
    env=os.environ | {"TMPDIR": str(tmp_path)},
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  try:
    assert server.stdout.readline() == f"the page is at http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
    (folder,) = tmp_path.glob("ostrack-demo-*")
    assert len(list(folder.glob("examples/*.mp4"))) == 2
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as page:
      text = page.read().decode()
    assert "ostrack_tiny" in text and "a toy of 2 MB" in text
    # What lies in the folder that is served could be handed in as an upload, and so taken from the others.
    with pytest.raises(urllib.error.HTTPError, match="403") as refused:
      urllib.request.urlopen(
        f"http://127.0.0.1:{port}/gradio_api/file={folder}/examples/dim_light.mp4", timeout=30
      )
    refused.value.close()
    with socket.socket() as other:
      # Bound to one address alone, the port is free at another of this machine's.
      other.bind(("127.0.0.2", port))
    server.send_signal(signal.SIGINT)
    _, err = server.communicate(timeout=30)
  finally:
    server.kill()
    server.wait()
  assert (server.returncode, err) == (130, "")
  assert list(tmp_path.glob("ostrack-demo-*")) == []
