"""The network's numbers are the official code's, block by block."""

import jax
import numpy as np
import pytest

from ostrack_jax.loading import load
from ostrack_jax.models.fused_norm import add
from ostrack_jax.models.ostrack import OSTrack, normalise_images
from ostrack_jax.weights import names


def _is_feed_forward(_, method):
  return method == "feed_forward"


def _apply(model, variables, template, search, **kwargs):
  """Return the output, every block's output, and the grid cells kept at each stage."""

  @jax.jit
  def run(variables, template, search):
    return model.apply(
      variables,
      template,
      search,
      capture_intermediates=_is_feed_forward,
      mutable=["intermediates"],
      **kwargs,
    )

  output, captured = run(variables, template, search)
  blocks = captured["intermediates"]["backbone"]
  depth = model.dimensions()["depth"]
  kept = [np.asarray(blocks[f"kept_{i}"][0]) for i in range(len(model.keep_ratios))]
  results = [add(*blocks[f"blocks_{i}"]["feed_forward"][0]) for i in range(depth)]
  return output, [np.asarray(tokens) for tokens in results], kept


def _hash(count, salt):
  i = np.arange(count, dtype=np.float64)
  v = np.sin(0.731 * i + 1.37 * salt + 0.1) * 43758.5453
  return 2 * (v - np.floor(v)) - 1


def _hash_state(shapes):
  """Fill a state dict by formula: the same numbers the official code was run with."""
  state = {}
  for position, name in enumerate(sorted(shapes)):
    shape = shapes[name]
    if name.endswith("num_batches_tracked"):
      continue
    u = _hash(int(np.prod(shape)), position)
    if name.endswith("running_var"):
      values = 1 + 0.5 * u * u
    elif ("norm" in name and name.endswith("weight")) or (
      name.startswith("box_head") and ".1.weight" in name
    ):
      values = 1 + 0.1 * u
    elif len(shape) >= 2 and "pos_embed" not in name and "cls" not in name:
      values = (
        u
        * np.sqrt(3 / np.prod(shape[1:]))
        * (2 if "qkv" in name else 1)
        * (4 if "conv5" in name else 1)
      )
    else:
      values = (0.5 if "pos_embed" in name else 0.1) * u
    state[name] = values.reshape(shape).astype(np.float32)
  return state


def _hash_images(size, salt):
  return np.transpose(
    (1.5 * _hash(3 * size * size, salt)).reshape(1, 3, size, size), (0, 2, 3, 1)
  ).astype(np.float32)


@pytest.mark.parametrize(
  ("config", "sizes", "fields"),
  [
    ("vitb_256_mae_ce_32x4_ep300", (128, 256), {}),
    ("vitb_384_mae_ce_32x4_ep300", (192, 384), {}),
    ("vitb_256_mae_32x4_ep300", (128, 256), dict(elimination_layers=(), keep_ratios=())),
  ],
)
def test_full_size_network_equals_the_official_one(config, sizes, fields, golden):
  expected = np.load(golden(f"hashfill/hashfill_{config}_f32.npz"))
  model = OSTrack(template_size=sizes[0], search_size=sizes[1], **fields)
  state = _hash_state(names.torch_shapes(model))
  variables = names.variables_from_torch(state, model, source="hashfill")
  template, search = _hash_images(sizes[0], 1001), _hash_images(sizes[1], 1002)
  output, blocks, _ = _apply(model, variables, template, search)

  for stage, removed in enumerate(output.removed):
    np.testing.assert_array_equal(np.sort(removed[0]), expected[f"removed_{stage}_sorted"])
  assert len(output.removed) == len(model.elimination_layers)
  np.testing.assert_allclose(
    [np.abs(b).mean() for b in blocks], expected["block_abs_mean"], rtol=1e-5
  )
  for name in ("score_map", "size_map", "offset_map"):
    np.testing.assert_allclose(
      np.transpose(getattr(output, name), (0, 3, 1, 2)), expected[name], atol=1e-4
    )
  np.testing.assert_allclose(output.boxes_cxcywh, expected["pred_boxes"][0], atol=1e-4)
  if "backbone_feat" in expected:
    np.testing.assert_allclose(output.features, expected["backbone_feat"], atol=1e-3)


_TINY = {
  "ostrack_tiny256_ce": ("ostrack_tiny256.pth.tar", 6, {}),
  "ostrack_tiny256_noce": (
    "ostrack_tiny256.pth.tar",
    6,
    dict(elimination_layers=(), keep_ratios=()),
  ),
  "ostrack_tiny256_ce_all": ("ostrack_tiny256.pth.tar", 6, dict(template_tokens="all")),
  "ostrack_tiny256_ce_rec": (
    "ostrack_tiny256.pth.tar",
    6,
    dict(template_tokens="centre_rectangle"),
  ),
  "ostrack_tiny256_ce_gtbox": (
    "ostrack_tiny256.pth.tar",
    6,
    dict(template_tokens="ground_truth_box"),
  ),
  "ostrack_tiny384_ce": ("ostrack_tiny384.pth.tar", 4, {}),
}


def _tiny(case, golden):
  file, heads, fields = _TINY[case]
  expected = np.load(golden(f"{case}.npz"))
  checkpoint = load(golden(file), num_heads=heads)
  count = len(expected["search_u8"])
  template = normalise_images(np.repeat(expected["template_u8"][None], count, axis=0))
  mask = (
    expected["ce_template_mask"] if fields.get("template_tokens") == "ground_truth_box" else None
  )
  return expected, checkpoint.model.clone(**fields), checkpoint.variables, template, mask


@pytest.mark.parametrize("case", _TINY)
def test_converted_checkpoint_on_real_crops_equals_the_official_code(case, golden):
  expected, model, variables, template, mask = _tiny(case, golden)
  search = normalise_images(expected["search_u8"])
  output, blocks, kept = _apply(model, variables, template, search, template_mask=mask)

  for name in ("score_map", "size_map", "offset_map"):
    np.testing.assert_allclose(
      np.transpose(getattr(output, name), (0, 3, 1, 2)), expected[name], atol=1e-4
    )
  np.testing.assert_allclose(output.boxes_cxcywh, expected["pred_boxes_cxcywh"][:, 0], atol=1e-4)
  np.testing.assert_allclose(output.features, expected["backbone_feat"], rtol=1e-3, atol=1e-3)

  num_z = template.shape[1] // 16 * (template.shape[2] // 16)
  ours = theirs = np.tile(np.arange(model.search_grid**2), (len(search), 1))
  for layer, block in enumerate(blocks):
    if layer in model.elimination_layers:
      stage = model.elimination_layers.index(layer)
      np.testing.assert_array_equal(
        np.sort(output.removed[stage], axis=1), np.sort(expected[f"removed_{stage}"], axis=1)
      )
      ours, theirs = kept[stage], expected[f"kept_{stage}"]
      np.testing.assert_array_equal(np.sort(ours, axis=1), np.sort(theirs, axis=1))
    if f"block{layer:02d}_out" in expected:
      want = expected[f"block{layer:02d}_out"]
      scale = np.abs(want).max()
      np.testing.assert_allclose(block[:, :num_z], want[:, :num_z], atol=1e-3 * scale)
      # Rows stand in score order, which float noise may swap: match them by grid cell.
      np.testing.assert_allclose(
        _rows_by_cell(block[:, num_z:], ours),
        _rows_by_cell(want[:, num_z:], theirs),
        atol=1e-3 * scale,
      )


def _rows_by_cell(rows, cells):
  return np.take_along_axis(rows, np.argsort(cells, axis=1)[:, :, None], axis=1)
