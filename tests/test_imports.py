"""Who may import whom, read from the source; and what an import must not load."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
COMMANDS = {
  "train",
  "convert",
  "track",
  "visualize",
  "evaluate",
  "compare",
  "pack",
  "calibrate",
  "demo",
}
# A room and the project modules it may import; its own always.
ALLOWED = {
  "ostrack_jax.boxes": set(),
  "ostrack_jax.crop": set(),
  "ostrack_jax.annotations": set(),
  "ostrack_jax.visualization": set(),
  "ostrack_jax.network_figures": {"ostrack_jax.tracking", "ostrack_jax.visualization"},
  "ostrack_jax.output_folder": set(),
  "ostrack_jax.command_line": set(),
  "ostrack_jax.sharding": set(),
  "ostrack_jax.models": {"ostrack_jax.boxes"},
  "ostrack_jax.training": {"ostrack_jax.models", "ostrack_jax.boxes", "ostrack_jax.sharding"},
  "ostrack_jax.weights": set(),
  "ostrack_jax.tracking": {
    "ostrack_jax.models",
    "ostrack_jax.boxes",
    "ostrack_jax.crop",
    "ostrack_jax.sharding",
  },
  "ostrack_jax.evaluation": {
    "ostrack_jax.tracking",
    "ostrack_jax.boxes",
    "ostrack_jax.annotations",
  },
  "ostrack_jax.web": {
    "ostrack_jax.tracking",
    "ostrack_jax.loading",
    "ostrack_jax.network_figures",
    "ostrack_jax.track_drawing",
    "ostrack_jax.track_outputs",
    "ostrack_jax.visualization",
    "data_pipelines.procedural_video",
  },
  "data_pipelines": {
    "ostrack_jax.boxes",
    "ostrack_jax.crop",
    "ostrack_jax.annotations",
    # None of them knows jax either; the commands and what they draw need them.
    "ostrack_jax.command_line",
    "ostrack_jax.visualization",
  },
  "configs": set(),
}
# Packages that only some rooms may know.
FLAX_LINEN = ("ostrack_jax.models", "ostrack_jax.training.state", "ostrack_jax.training.step")
ORBAX = ("ostrack_jax.training.checkpoint", "ostrack_jax.training.checkpoint_store")
TORCH = ("ostrack_jax.weights.torch_file",)
GRADIO = ("ostrack_jax.web.page",)
NUMPY_ONLY = {
  "ostrack_jax.boxes": set(),
  "ostrack_jax.crop": {"numpy", "cv2"},
  "ostrack_jax.annotations": {"numpy"},
  "ostrack_jax.tracking.cutting": {"numpy"},
  "ostrack_jax.tracking.lane": {"numpy"},
  "ostrack_jax.tracking.lane_host": {"numpy"},
  "ostrack_jax.tracking.lane_process": {"cv2"},
  "ostrack_jax.evaluation.metrics": {"numpy"},
  "ostrack_jax.evaluation.measures": {"numpy"},
  "ostrack_jax.evaluation.curves": {"numpy"},
  "ostrack_jax.evaluation.box_errors": {"numpy"},
  "ostrack_jax.evaluation.calibration": {"numpy", "scipy"},
  "ostrack_jax.evaluation.plots": {"numpy", "matplotlib"},
  "configs": {"ml_collections"},
}


def _modules():
  for folder in ("ostrack_jax", "data_pipelines", "configs"):
    for path in sorted((ROOT / folder).rglob("*.py")):
      name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
      yield name, path


def _imports(path: pathlib.Path) -> set[str]:
  """Return every dotted name a file imports, wherever in the file."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path} imports relatively"
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return found


def _within(name: str, room: str) -> bool:
  return name == room or name.startswith(room + ".")


MODULES = dict(_modules())


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_their_neighbours(room):
  for name, path in MODULES.items():
    if not _within(name, room):
      continue
    for imported in _imports(path):
      if imported.split(".")[0] not in (
        "ostrack_jax",
        "data_pipelines",
        "configs",
        "benchmarks",
        "tests",
      ):
        continue
      neighbours = {room, *ALLOWED[room]}
      assert any(_within(imported, n) for n in neighbours), f"{name} imports {imported}"


def test_nothing_imports_a_command():
  for name, path in MODULES.items():
    for imported in _imports(path):
      first, _, rest = imported.partition(".")
      assert not (first == "ostrack_jax" and rest.split(".")[0] in COMMANDS), (
        f"{name} imports {imported}"
      )


@pytest.mark.parametrize(
  ("package", "rooms"),
  [
    ("flax.linen", FLAX_LINEN),
    ("orbax", ORBAX),
    ("torch", TORCH),
    ("tensorflow", ()),
    ("gradio", GRADIO),
  ],
)
def test_packages_stay_in_their_rooms(package, rooms):
  for name, path in MODULES.items():
    if any(_within(imported, package) for imported in _imports(path)):
      assert any(_within(name, room) for room in rooms), f"{name} imports {package}"


@pytest.mark.parametrize("room", NUMPY_ONLY)
def test_plain_rooms_need_little(room):
  for name, path in MODULES.items():
    if _within(name, room):
      outside = {i.split(".")[0] for i in _imports(path)} - set(sys.stdlib_module_names)
      assert outside - {"ostrack_jax", "configs"} <= NUMPY_ONLY[room], f"{name} imports {outside}"


def test_data_pipelines_never_name_jax():
  for name, path in MODULES.items():
    if _within(name, "data_pipelines"):
      assert not any(i.split(".")[0] in ("jax", "flax") for i in _imports(path)), name


def test_importing_the_package_starts_no_jax_and_no_framework():
  code = (
    "import sys, ostrack_jax, ostrack_jax.boxes, ostrack_jax.crop, ostrack_jax.annotations\n"
    "import ostrack_jax.tracking.lane_process\n"
    "loaded = {'jax', 'flax', 'torch', 'tensorflow'} & set(sys.modules)\n"
    "sys.exit(f'loaded {loaded}' if loaded else 0)"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_whole_product_imports_without_torch_and_loads_no_tensorflow():
  code = (
    f"import sys; sys.modules['torch'] = None\nimport {', '.join(MODULES)}\n"
    "sys.exit('tensorflow was loaded' if 'tensorflow' in sys.modules else 0)"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
