"""Everything a training step changes, as one pytree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


class TrainState(flax.struct.PyTreeNode):
  """Parameters and what training adds to them.

  Attributes:
    step: int32 scalar, optimiser steps taken.
    params, batch_stats: the model's variables, plain dicts, float32.
    opt_state: the optimiser's state.
    rng: typed key; each step folds its number into it.
    ema_variables: {"params", "batch_stats"} averaged over steps, or None where nothing is averaged.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  rng: jax.Array
  ema_variables: Any = None

  @property
  def variables(self) -> dict:
    """The tree `model.apply` takes in evaluation: the averages where there are some."""
    return self.ema_variables or {"params": self.params, "batch_stats": self.batch_stats}


def init_variables(model, seed: int) -> dict:
  """Return freshly drawn parameters and statistics of a model.

  Drawn one by one: as a single program they would take a minute to compile, a second for each of them.
  """
  images = (
    jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    for size in (model.template_size, model.search_size)
  )
  needs_mask = model.template_tokens == "ground_truth_box"
  mask = jnp.ones((1, (model.template_size // 16) ** 2), bool) if needs_mask else None
  variables = model.lazy_init(jax.random.key(seed), *images, template_mask=mask)
  # A head may have nothing to normalise.
  return {"batch_stats": {}, **variables}


def create_state(
  variables: dict, optimizer: optax.GradientTransformation, seed: int, *, averaged: bool = False
) -> TrainState:
  """Return the state before the first step, with copies of the variables: steps consume their state.

  Args:
    averaged: keep averages as well; make_train_step's ema_decay says of what weight.
  """
  variables = jax.tree.map(jnp.array, {name: variables[name] for name in ("params", "batch_stats")})
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables["params"],
    batch_stats=variables["batch_stats"],
    opt_state=optimizer.init(variables["params"]),
    rng=jax.random.key(seed),
    ema_variables=jax.tree.map(jnp.array, variables) if averaged else None,
  )
