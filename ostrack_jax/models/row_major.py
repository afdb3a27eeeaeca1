"""How tokens lie in memory."""

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.layout import Layout, with_layout_constraint


def _constrain(tokens):
  return with_layout_constraint(tokens, Layout(major_to_minor=(0, 1, 2)))


# Without it the partitioner would gather the whole batch on each device, to lay it out there.
_constrain_each = custom_partitioning(_constrain)
_constrain_each.def_partition(
  partition=lambda mesh, shapes, result: (
    mesh,
    _constrain,
    shapes[0].sharding,
    (shapes[0].sharding,),
  ),
  infer_sharding_from_operands=lambda mesh, shapes, result: shapes[0].sharding,
  sharding_rule="b n d -> b n d",
)


@jax.custom_vjp
def row_major(tokens):
  """Return tokens [b, n, d] and their gradient laid out in this order, the batch outermost.

  Left to itself, XLA puts the batch innermost here and transposes tokens for every product.
  """
  return _constrain_each(tokens)


row_major.defvjp(
  lambda tokens: (_constrain_each(tokens), None),
  lambda _, gradient: (_constrain_each(gradient),),
)
