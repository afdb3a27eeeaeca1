import sys

import cv2
import jax
import numpy as np
import pytest

import ostrack_jax
from ostrack_jax import command_line, description, loading, visualize
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.training.state import init_variables


@pytest.fixture
def command(capsys):
  """Runs the command in this process; gives (exit code, stdout, stderr)."""

  def run(*arguments):
    visualize.FLAGS.unparse_flags()
    for name in visualize.FLAGS:
      visualize.FLAGS[name].unparse()
    try:
      code = visualize.main(
        command_line.parse(
          ["visualize", *arguments], "ostrack-visualize", visualize.FLAGS, visualize.__doc__
        )
      )
    except SystemExit as stop:
      code = stop.code
      if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    return code, *capsys.readouterr()

  return run


def _write(folder, **fields):
  model = OSTrack(
    **{
      "variant": "custom", "width": 32, "depth": 2, "num_heads": 2, "template_size": 32,
      "search_size": 64, "head_channels": 8, "elimination_layers": (0,), "keep_ratios": (0.6,),
      **fields,
    }
  )  # fmt: skip
  variables = jax.eval_shape(lambda: init_variables(model, 0))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda leaf: rng.uniform(0.01, 0.1, leaf.shape).astype(np.float32), variables
  )
  factors = {"template_factor": 2.0, "search_factor": 4.0}
  source = {"kind": "random", "file": "", "sha256": ""}
  about = description.describe(model, factors, source, complete=True)
  loading.write_folder(loading.Checkpoint(model, variables, about), folder)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
  """A folder of checkpoints: one_stream, and two_stream."""
  folder = tmp_path_factory.mktemp("networks")
  _write(folder / "one_stream")
  _write(
    folder / "two_stream", depth=1, relation="stark", relation_layers=1, elimination_layers=(),
    keep_ratios=(),
  )  # fmt: skip
  return folder


@pytest.fixture
def clip(tmp_path):
  """A folder of eight numbered images, laid out as benchmarks do."""
  folder = tmp_path / "clip" / "img"
  folder.mkdir(parents=True)
  rng = np.random.default_rng(1)
  for number in range(8):
    cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 256, (48, 64, 3), np.uint8))
  return folder


def _names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_all_pictures_of_a_one_stream_network_beside_a_two_stream_one(
  clip, networks, tmp_path, command
):
  arguments = (
    f"--checkpoint={networks / 'one_stream'}", f"--compare={networks / 'two_stream'}",
    f"--source={clip}", "--init_box=20,15,16,14", f"--output={tmp_path / 'out'}",
  )  # fmt: skip
  code, out, _ = command(*arguments, "--limit=2")
  assert code == 0
  kinds = ("activations", "attention", "elimination", "score_maps")
  expected = {f"{kind}_1.png" for kind in kinds}
  assert _names(tmp_path / "out") == sorted(expected | {"elimination.mp4"})
  assert "frames 1;" in out and "left out" not in out
  assert int(cv2.VideoCapture(str(tmp_path / "out" / "elimination.mp4")).get(7)) == 1
  widths = {
    kind: cv2.imread(str(tmp_path / "out" / f"{kind}_1.png")).shape[1] / 351 for kind in kinds
  }
  # A panel of the region, and one of each network, block, stage and map.
  assert widths == {"activations": 3, "attention": 3, "elimination": 2, "score_maps": 4}
  # Again, of other frames; the old pictures go.
  code, _, err = command(*arguments)
  assert code == 1 and "pass --overwrite" in err
  chosen = (*arguments, "--overwrite", "--frames=4", "--layers=1,0")
  assert command(*chosen)[0] == 0
  expected = [f"{kind}_4.png" for kind in kinds]
  assert _names(tmp_path / "out") == sorted([*expected, "elimination.mp4"])
  assert int(cv2.VideoCapture(str(tmp_path / "out" / "elimination.mp4")).get(7)) == 7


def test_a_two_stream_network_says_what_it_leaves_out(clip, networks, tmp_path, command):
  common = (f"--source={clip}", "--init_box=20,15,16,14", f"--output={tmp_path / 'out'}")
  code, out, _ = command(
    f"--checkpoint={networks / 'two_stream'}", *common, "--frames=2", "--limit=3", "--layers=0"
  )
  assert code == 0
  assert _names(tmp_path / "out") == ["activations_2.png", "score_maps_2.png"]
  (line,) = [line for line in out.splitlines() if line.startswith("left out")]
  assert line.startswith("left out: attention (with relation 'stark' the template meets")
  assert line.endswith("elimination (a two-stream model eliminates nothing)")


def test_a_line_names_what_lacks_and_why():
  plain = OSTrack(elimination_layers=(), keep_ratios=())
  all_kinds = ["attention", "elimination", "activations", "score_maps"]
  assert visualize.left_out(OSTrack(), all_kinds) == ""
  assert (
    visualize.left_out(plain, ["attention", "activations", "score_maps"])
    == "left out: elimination (this model keeps all candidates)"
  )
  assert visualize.left_out(OSTrack(), all_kinds[:3]) == (
    "left out: score_maps (its head has no score map)"
  )


def test_an_error_on_the_way_leaves_nothing(clip, networks, tmp_path, command):
  (clip / "4.png").write_bytes(b"broken")
  before = _names(tmp_path)
  code, _, err = command(
    f"--checkpoint={networks / 'one_stream'}", f"--source={clip}", "--init_box=20,15,16,14",
    f"--output={tmp_path / 'out'}", "--frames=6",
  )  # fmt: skip
  assert code == 1
  assert err.splitlines()[-1] == f"ostrack-visualize: {clip / '4.png'} is not a readable image"
  assert _names(tmp_path) == before


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"--source": None}, "--source missing"),
    ({"--checkpoint": None, "--output": None}, "--checkpoint and --output missing"),
    ({"--init_box": "1,2,3"}, "--init_box=1,2,3 must be four numbers x,y,w,h"),
    ({"--init_box": "1,2,3,wide"}, "must be four numbers"),
    ({"--init_box": "999,2,3,4"}, "frame 0: box_xywh [999.0"),
    ({"--source": "nowhere.mp4"}, "nowhere.mp4 does not exist"),
    ({"--checkpoint": "nowhere"}, "there is no checkpoint nowhere"),
    ({"--compare": "nowhere"}, "there is no checkpoint nowhere"),
    ({"--output": "nowhere/out"}, "there is no folder"),
    ({"--output": "clip/img", "--overwrite": "true"}, "holds '0.png' besides such pictures"),
    ({"--frames": "1,x"}, "--frames=1,x must be frame numbers such as 1,25,50"),
    ({"--frames": "0,3"}, "frame 0 cannot be drawn; the first is 1"),
    ({"--frames": "3,8"}, "frame 8 is behind the last, 7"),
    ({"--frames": "5", "--limit": "5"}, "frame 5 is behind the last, 4"),
    ({"--limit": "1"}, "--limit=1 leaves no frame behind the first"),
    ({"--layers": "0,2"}, "layer 2 is not in the model, whose blocks are 0 to 1"),
    ({"--layers": "first"}, "--layers=first must be block numbers"),
    ({"--search_factor": "0.5"}, "search_factor 0.5 must lie between"),
    ({"--colour": "red"}, "Unknown command line flag 'colour'"),
  ],
)
def test_mistakes_are_named_in_one_sentence(
  clip, networks, tmp_path, command, monkeypatch, changes, message
):
  monkeypatch.chdir(tmp_path)
  given = {
    "--checkpoint": str(networks / "one_stream"), "--source": "clip/img", "--init_box": "1,2,9,9",
    "--output": "out", **changes,
  }  # fmt: skip
  code, _, err = command(*(f"{name}={value}" for name, value in given.items() if value is not None))
  assert code == 1
  last = err.strip().splitlines()[-1]
  assert last.startswith("ostrack-visualize: ") and message in last
  assert "Traceback" not in err
  assert _names(tmp_path) == ["clip"] and len(_names(clip)) == 8


def test_frames_are_spread_over_what_there_is():
  assert visualize.choose_frames(None, 101, None) == [1, 25, 50, 75]
  assert visualize.choose_frames(None, 101, 20) == [1, 5, 10, 15]
  assert visualize.choose_frames(None, 2, None) == [1]
  assert visualize.choose_frames("7,3,7", None, None) == [3, 7]
  with pytest.raises(ValueError, match="does not say how many frames it has"):
    visualize.choose_frames(None, None, None)
  with pytest.raises(ValueError, match="the source has 1 frame; expected at least 2"):
    visualize.choose_frames(None, 1, None)


def test_elimination_is_changed_in_the_first_network_alone(clip, tmp_path, command, monkeypatch):
  asked = []

  def load(path, **options):
    asked.append((path, options))
    if len(asked) == 2:
      raise ValueError("seen enough")

  monkeypatch.setattr(ostrack_jax, "load", load, raising=False)
  code, _, err = command(
    "--checkpoint=a", "--compare=b", f"--source={clip}", "--init_box=20,15,16,14",
    f"--output={tmp_path / 'out'}", "--keep_ratios=0.5", "--elimination_layers=1", "--num_heads=3",
  )  # fmt: skip
  assert code == 1 and "seen enough" in err
  common = {"num_heads": 3, "dtype": None}
  assert asked == [
    ("a", {**common, "keep_ratios": (0.5,), "elimination_layers": (1,)}),
    ("b", common),
  ]


def test_ctrl_c_ends_it_as_other_commands(clip, tmp_path, command, monkeypatch):
  def press(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(visualize.output_folder, "check_parent", press)
  code, _, err = command(
    "--checkpoint=a", f"--source={clip}", "--init_box=20,15,16,14", f"--output={tmp_path / 'out'}"
  )
  assert (code, err) == (130, "ostrack-visualize: interrupted; nothing was written\n")


def test_help_explains_itself(command):
  code, out, _ = command("--help")
  assert code == 0
  assert "--init_box=x,y,w,h" in out and "--compare" in out and "--layers" in out
