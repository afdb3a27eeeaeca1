"""Whatever holds a checkpoint is loaded; whatever does not is refused with the cure."""

import json
import shutil

import jax
import numpy as np
import pytest

from ostrack_jax import loading
from ostrack_jax.description import describe
from ostrack_jax.loading import Checkpoint, load
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.training import checkpoint as checkpoint_lib
from ostrack_jax.weights import names
from ostrack_jax.weights.torch_file import write_torch_file

_MODEL = OSTrack(
  variant="custom",
  width=16,
  depth=1,
  num_heads=2,
  template_size=32,
  search_size=64,
  head_channels=8,
  elimination_layers=(),
  keep_ratios=(),
)


def _state():
  rng = np.random.default_rng(0)
  return {
    name: np.array(4) if not shape else rng.standard_normal(shape).astype(np.float32)
    for name, shape in names.torch_shapes(_MODEL).items()
  }


def _checkpoint():
  variables = names.variables_from_torch(_state(), _MODEL, "state")
  source = {"file": "f.pth", "sha256": "0" * 64, "kind": "ostrack"}
  description = describe(
    _MODEL, {"template_factor": 2.0, "search_factor": 4.0}, source, complete=True
  )
  return Checkpoint(_MODEL, variables, description)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp("loading") / "converted"
  loading.write_folder(_checkpoint(), folder)
  return folder


@pytest.fixture
def folder(written, tmp_path):
  return shutil.copytree(written, tmp_path / "converted")


def _assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_a_converted_folder_gives_back_model_weights_and_description(written):
  wanted, found = _checkpoint(), load(written)
  assert found.model == wanted.model
  assert found.description == wanted.description
  _assert_same(found.variables, wanted.variables)


def test_a_description_leaves_nothing_to_defaults():
  model = describe(OSTrack(variant="s"), {}, {}, complete=True)["model"]
  assert (model["width"], model["depth"], model["num_heads"]) == (384, 12, 6)
  assert model["elimination_layers"] == [3, 6, 9]
  assert OSTrack(**model).dimensions() == OSTrack(variant="s").dimensions()


def test_what_was_loaded_runs(written):
  checkpoint = load(str(written), num_heads=2)
  output = jax.jit(checkpoint.model.apply)(
    checkpoint.variables, np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 64, 64, 3), np.float32)
  )
  assert output.score_map.shape == (1, 4, 4, 1)


def test_an_official_file_is_loaded_directly(tmp_path):
  write_torch_file(tmp_path / "f.pth", {"net": _state()})
  checkpoint = load(tmp_path / "f.pth", num_heads=2)
  _assert_same(checkpoint.variables, _checkpoint().variables)
  assert checkpoint.model.num_heads == 2


def test_the_package_resolves_load_late():
  import ostrack_jax

  assert ostrack_jax.load is load


def _workdir(folder, best=None):
  shutil.rmtree(folder / "variables")
  (folder / "checkpoints" / "40").mkdir(parents=True)
  if best is not None:
    (folder / "best.json").write_text(json.dumps(best))
  return folder


@pytest.mark.parametrize(("best", "step"), [(None, None), ({"step": 40}, 40)])
def test_a_training_folder_gives_its_best_step_or_its_last(best, step, folder, monkeypatch):
  asked = []

  def restore(workdir, wanted):
    asked.append((workdir, wanted))
    variables = _checkpoint().variables
    return {name: variables[name] for name in ("params", "batch_stats")}

  monkeypatch.setattr(checkpoint_lib, "restore_step_variables", restore)
  checkpoint = load(_workdir(folder, best))
  assert asked == [(folder, step)]
  assert set(checkpoint.variables) == {"params", "batch_stats"}


def test_a_step_of_a_training_folder_is_loaded_and_labelled_by_its_path(folder, monkeypatch):
  asked = []

  def restore(workdir, wanted):
    asked.append((workdir, wanted))
    return {name: _checkpoint().variables[name] for name in ("params", "batch_stats")}

  monkeypatch.setattr(checkpoint_lib, "restore_step_variables", restore)
  workdir = _workdir(folder, {"step": 40})
  load(workdir / "checkpoints" / "20")
  assert asked == [(folder, 20)]
  assert loading.label(workdir / "checkpoints" / "20") == f"{folder.name}-20"
  assert loading.label(workdir) == folder.name


def test_another_type_to_compute_in_keeps_the_weights(folder):
  given, changed = load(folder), load(folder, dtype="bfloat16")
  assert (given.model.dtype, changed.model.dtype) == ("float32", "bfloat16")
  assert changed.description == given.description
  for ours, theirs in zip(
    jax.tree.leaves(changed.variables), jax.tree.leaves(given.variables), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)
  with pytest.raises(ValueError, match="dtype 'int8' is not supported; choose one of float32"):
    load(folder, dtype="int8")


@pytest.mark.parametrize("described", ["float32", "bfloat16"])
@pytest.mark.parametrize("on_cuda", [False, True])
def test_what_was_trained_in_bfloat16_tracks_in_float16_on_cuda(
  folder, tmp_path, monkeypatch, described, on_cuda
):
  given = load(folder)
  model = given.model.clone(dtype=described)
  description = {**given.description, "model": {**given.description["model"], "dtype": described}}
  trained = loading.Checkpoint(model, given.variables, description)
  loading.write_folder(trained, tmp_path / "trained")
  monkeypatch.setattr(loading, "has_kernels", lambda dtype: on_cuda)
  found = load(tmp_path / "trained")
  assert found.model.dtype == ("float16" if on_cuda and described == "bfloat16" else described)
  assert found.description["model"]["dtype"] == described
  assert load(tmp_path / "trained", dtype=described).model.dtype == described


def _removed(checkpoint):
  images = [np.ones((1, size, size, 3), np.float32) for size in (32, 64)]
  # A pattern, without which all candidates would be alike.
  images[1] *= np.linspace(-1, 1, 64, dtype=np.float32)[None, :, None, None] ** 3
  output = jax.jit(checkpoint.model.apply)(checkpoint.variables, *images)
  return [set(np.asarray(stage)[0].tolist()) for stage in output.removed], output.score_map


def test_elimination_changed_at_test_time_changes_which_candidates_stay(folder):
  stages, scores = _removed(load(folder))
  assert stages == []
  (half,), half_scores = _removed(load(folder, keep_ratios=0.5, elimination_layers=(0,)))
  (most,), _ = _removed(load(folder, keep_ratios=(0.25,), elimination_layers=[0]))
  assert (len(half), len(most)) == (8, 12)
  # Those that the template attends to least go first.
  assert half < most
  assert not np.allclose(scores, half_scores)
  stages, all_scores = _removed(load(folder, keep_ratios=1.0, elimination_layers=(0,)))
  assert stages == []
  np.testing.assert_array_equal(all_scores, scores)


def test_elimination_changed_at_test_time_leaves_weights_and_description_alone(folder):
  given = load(folder)
  changed = load(folder, keep_ratios=0.5, elimination_layers=(0,), dtype="bfloat16")
  assert (changed.model.elimination_layers, changed.model.dtype) == ((0,), "bfloat16")
  assert changed.description == given.description
  _assert_same(changed.variables, given.variables)


_OFFICIAL = OSTrack(variant="s")


@pytest.mark.parametrize(
  ("arguments", "layers", "ratios"),
  [
    ({}, (3, 6, 9), (0.7, 0.7, 0.7)),
    ({"keep_ratios": 0.5}, (3, 6, 9), (0.5, 0.5, 0.5)),
    ({"keep_ratios": [0.9, 0.8, 0.4]}, (3, 6, 9), (0.9, 0.8, 0.4)),
    ({"keep_ratios": 1}, (), ()),
    ({"keep_ratios": (1, 1, 0.5)}, (3, 6, 9), (1, 1, 0.5)),
    ({"elimination_layers": ()}, (), ()),
    ({"elimination_layers": [2, 4]}, (2, 4), (0.7, 0.7)),
    ({"elimination_layers": (2,), "keep_ratios": 0.3}, (2,), (0.3,)),
  ],
)
def test_one_ratio_is_for_all_stages_and_1_for_none(arguments, layers, ratios):
  model = loading.change_elimination(_OFFICIAL, **arguments)
  assert (model.elimination_layers, model.keep_ratios) == (layers, ratios)
  assert model.variant == "s"


def test_folders_are_labelled_by_their_whole_name_and_files_without_suffix(tmp_path):
  (tmp_path / "vitb.v1").mkdir()
  assert loading.label(tmp_path / "vitb.v1") == "vitb.v1"
  assert loading.label(tmp_path / "official.pth") == "official"


@pytest.mark.parametrize(
  ("model", "arguments", "words"),
  [
    (_OFFICIAL, {"keep_ratios": (0.7, 0.5)}, r"do not fit elimination_layers \(3, 6, 9\); give one"),
    (_OFFICIAL, {"keep_ratios": 0}, r"keep_ratios \(0, 0, 0\) must lie in \(0, 1\]"),
    (_OFFICIAL, {"keep_ratios": 1.2}, "must lie in"),
    (_OFFICIAL, {"elimination_layers": (6, 3)}, "must be increasing"),
    (_OFFICIAL, {"elimination_layers": (3, 12)}, r"must lie in 0\.\.11"),
    (_OFFICIAL, {"elimination_layers": (99,), "keep_ratios": 1}, r"must lie in 0\.\.11"),
    (_OFFICIAL, {"elimination_layers": (), "keep_ratios": 0.5}, "are for no stage; give elimination"),
    (_MODEL, {"keep_ratios": 0.5}, "are for no stage; give elimination_layers"),
    (_MODEL, {"elimination_layers": (0,)}, r"keep_ratios \(\) do not fit elimination_layers \(0,\)"),
    (OSTrack(elimination_layers=(2, 5), keep_ratios=(0.9, 0.5)), {"elimination_layers": (1,)}, "do not fit"),
    (OSTrack(relation="stark", elimination_layers=(), keep_ratios=()), {"keep_ratios": 0.5}, "'stark' has no candidates"),
  ],
)  # fmt: skip
def test_elimination_that_does_not_fit_is_refused(model, arguments, words):
  with pytest.raises(ValueError, match=words):
    loading.change_elimination(model, **arguments)


def test_a_step_that_is_not_there_is_named_with_those_that_are(folder):
  with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 20; there are 40"):
    load(_workdir(folder) / "checkpoints" / "20")


def test_a_best_step_that_is_no_number_is_refused(folder):
  with pytest.raises(ValueError, match=r"best\.json marks step 'x'; expected a whole number"):
    load(_workdir(folder, {"step": "x"}))


def test_a_path_without_anything_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*nowhere; give a folder"):
    load(tmp_path / "nowhere")


def test_a_folder_of_something_else_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"has no description\.json; it is neither"):
    load(tmp_path)


def test_a_description_without_weights_is_named(folder):
  shutil.rmtree(folder / "variables")
  with pytest.raises(ValueError, match="but neither variables/ nor checkpoints/"):
    load(folder)


def test_an_encoder_is_refused_with_the_command_that_converts_it(tmp_path):
  backbone = {
    name.removeprefix("backbone."): array
    for name, array in _state().items()
    if name.startswith("backbone.") and "pos_embed_" not in name
  }
  write_torch_file(tmp_path / "mae.pth", {"model": backbone})
  words = r"without a trained head; convert it first: python -m ostrack_jax\.convert --input="
  with pytest.raises(ValueError, match=words):
    load(tmp_path / "mae.pth", num_heads=2)


def test_heads_that_contradict_a_folder_are_refused(written):
  with pytest.raises(ValueError, match="has 2 attention heads, not 4; leave num_heads away"):
    load(written, num_heads=4)


def test_heads_that_contradict_a_width_are_refused(tmp_path):
  write_torch_file(tmp_path / "f.pth", {"net": _state()})
  with pytest.raises(ValueError, match="width 16 is not divisible by num_heads 3"):
    load(tmp_path / "f.pth", num_heads=3)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"format": "other/9"}, "has format 'other/9'; this version reads 'ostrack_jax/1'"),
    ({"model": None}, "lacks its entry 'model'"),
    ({"tracker": []}, "lacks its entry 'tracker'"),
    ({"model": {"wings": 2}}, "does not fit this version's model: .*wings"),
    ({"model": {"variant": "xxl"}}, r"description\.json: variant 'xxl' is unknown"),
  ],
)
def test_descriptions_that_do_not_fit_are_named(change, words, folder):
  file = folder / "description.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  with pytest.raises(ValueError, match=words):
    load(folder)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_a_damaged_description_is_named(text, folder):
  (folder / "description.json").write_bytes(text.encode("latin1"))
  with pytest.raises(ValueError, match=r"description\.json (is not readable|holds a list)"):
    load(folder)


def test_weights_of_another_network_are_named(folder):
  file = folder / "description.json"
  content = json.loads(file.read_text())
  content["model"]["search_size"] = 96
  file.write_text(json.dumps(content))
  with pytest.raises(ValueError, match=r"pos_embed_x should have shape \(1, 36, 16\), found shape"):
    load(folder)


def test_damaged_weights_are_named(folder):
  for file in (folder / "variables").rglob("*"):
    if file.is_file():
      file.write_bytes(b"")
  with pytest.raises(ValueError, match="variables holds no complete checkpoint"):
    load(folder)


def test_a_folder_with_content_is_not_written_over(folder):
  before = (folder / "description.json").read_bytes()
  with pytest.raises(FileExistsError, match="is not empty"):
    loading.write_folder(_checkpoint(), folder)
  assert (folder / "description.json").read_bytes() == before


def test_a_converted_folder_is_replaced_where_that_is_asked_for(folder):
  (folder / "description.json").write_text("old")
  loading.write_folder(_checkpoint(), folder, overwrite=True)
  assert load(folder).description == _checkpoint().description
  assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def test_folders_with_anything_else_are_never_replaced(folder):
  (folder / "checkpoints" / "40").mkdir(parents=True)
  with pytest.raises(FileExistsError, match="holds 'checkpoints' besides a converted checkpoint"):
    loading.write_folder(_checkpoint(), folder, overwrite=True)


def test_a_failed_write_leaves_nothing_behind_and_the_old_folder_alone(folder, monkeypatch):
  def fail(*_args):
    raise OSError("no space left on device")

  monkeypatch.setattr(checkpoint_lib, "save_variables", fail)
  for target in (folder, folder.parent / "new"):
    with pytest.raises(OSError, match="no space"):
      loading.write_folder(_checkpoint(), target, overwrite=True)
  assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]
  assert load(folder).description == _checkpoint().description
