"""Multiply-adds against the paper, the reference's own count and XLA's; peaks and MFU."""

import math

import jax
import jax.numpy as jnp
import pytest

from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.training import cost
from ostrack_jax.training.state import init_variables

NO_ELIMINATION = dict(elimination_layers=(), keep_ratios=())


@pytest.mark.parametrize(
  ("fields", "paper", "with_products"),
  [
    (dict(**NO_ELIMINATION), 29.0, 30.912),
    (dict(), 21.5, 22.640),
    (dict(template_size=192, search_size=384, **NO_ELIMINATION), 65.3, 74.859),
    (dict(template_size=192, search_size=384), 48.3, 54.085),
  ],
)
def test_vit_b_costs_what_the_paper_says(fields, paper, with_products):
  macs = cost.forward_macs(OSTrack(**fields))
  # The paper's profiler leaves out QK^T and PV; both counts leave out the ranking rows.
  ranking, products = macs["candidate ranking"], macs["attention products"]
  assert (sum(macs.values()) - ranking - products) / 1e9 == pytest.approx(paper, abs=0.05)
  assert (sum(macs.values()) - ranking) / 1e9 == pytest.approx(with_products, abs=1e-3)


@pytest.mark.parametrize("keep_ratio", [1.0, 0.5])
def test_count_equals_xlas(keep_ratio):
  model = OSTrack(
    variant="custom",
    width=128,
    depth=3,
    num_heads=2,
    template_size=64,
    search_size=256,
    head_channels=64,
    elimination_layers=(1,),
    keep_ratios=(keep_ratio,),
  )
  variables = jax.eval_shape(lambda: init_variables(model, 0))
  images = [jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32) for size in (64, 256)]
  compiled = jax.jit(lambda v, z, x: model.apply(v, z, x)).lower(variables, *images).compile()
  xla = compiled.cost_analysis()["flops"]
  macs = cost.forward_macs(model)
  # XLA leaves out products with the head's padding: 46 of 48 rows and columns are left.
  inside = sum(macs.values()) - macs["head"] * (1 - (46 / 48) ** 2)
  # Its count holds norms, softmax and GELU too, 5 % at this width and 1 % at ViT-B's.
  assert 1.0 <= xla / (2 * 2 * inside) < 1.06


def test_training_is_three_forward_passes_and_follows_the_counts():
  model = OSTrack()
  assert cost.training_flops(model) == 6 * sum(cost.forward_macs(model).values())
  kept_all = cost.training_flops(model, (256, 256, 256))
  assert kept_all == cost.training_flops(OSTrack(**NO_ELIMINATION))
  assert cost.training_flops(model, (200, 180, 150)) < kept_all
  with pytest.raises(ValueError, match="one entry for each of the 3 elimination layers"):
    cost.forward_macs(model, (200,))


@pytest.mark.parametrize(
  ("kind", "dtype", "peak"),
  [
    ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
    ("NVIDIA H100 PCIe", "bfloat16", 756e12),
    ("NVIDIA H200", "float32", 495e12),
    ("NVIDIA H200", "float16", 989e12),
    ("NVIDIA A100-SXM4-40GB", "bfloat16", 312e12),
    ("Tesla V100-SXM2-16GB", "float32", 15.7e12),
    ("Tesla V100-SXM2-16GB", "bfloat16", None),
    ("NVIDIA L4", "bfloat16", 121e12),
    ("Tesla T4", "float32", 8.1e12),
    ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "bfloat16", None),
    ("NVIDIA GH200 480GB", "bfloat16", None),
    ("cpu", "float32", None),
  ],
)
def test_peaks_are_known_or_none(kind, dtype, peak):
  assert cost.peak_flops(kind, dtype) == peak


def test_utilisation_is_useful_arithmetic_over_all_peaks():
  assert cost.model_flops_utilisation(100.0, 2e12, 1e14, 4) == 0.5
  assert cost.model_flops_utilisation(100.0, 2e12, None, 4) is None


def test_multiply_adds_of_two_streams_are_those_of_the_products_in_the_program():
  for relation in ("stark", "swintrack"):
    model = OSTrack(variant="ti", relation=relation, **NO_ELIMINATION)
    macs = cost.forward_macs(model)
    variables = jax.eval_shape(lambda model=model: init_variables(model, 0))
    images = [jax.ShapeDtypeStruct((1, s, s, 3), jnp.float32) for s in (128, 256)]
    counted = _products(jax.make_jaxpr(model.apply)(variables, *images).jaxpr)
    # Positions are not counted: SwinTrack's linear layers, and their products.
    extra = 0
    if relation == "swintrack":
      width, z, x = 192, 64, 256
      n = z + x
      extra = 2 * (z + x) * width**2 + n * n * width + (z + 2 * x) * width**2 + x * n * width
    assert counted == sum(macs.values()) + extra


def _products(jaxpr) -> int:
  total = 0
  for equation in jaxpr.eqns:
    for value in equation.params.values():
      for inner in value if isinstance(value, (tuple, list)) else [value]:
        inner = getattr(inner, "jaxpr", inner)
        if hasattr(inner, "eqns"):
          total += _products(inner)
    output = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      total += output * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
    elif equation.primitive.name == "conv_general_dilated":
      # Every tap counts, those on the padding too.
      total += output * math.prod(equation.invars[1].aval.shape[:-1])
  return total
