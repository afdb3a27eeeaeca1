"""What a run is going to be, told before it starts: parameters, arithmetic, memory, steps, time."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.training import cost
from ostrack_jax.training.compiled_steps import scheduled_ratios
from ostrack_jax.training.optimizer import OptimizerSettings, scaled_to_batch

_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
  """Bytes on one device; see expected_memory.

  Attributes:
    parameters, gradients, adam, ema: each a copy of the parameters or none, `adam` two.
    activations: what the backward pass keeps of the forward pass, as jax traces it.
  """

  parameters: int
  gradients: int
  adam: int
  ema: int
  activations: int

  @property
  def total(self) -> int:
    """The sum."""
    return sum(dataclasses.astuple(self))


def summarise(
  model: OSTrack,
  variables: Mapping,
  settings,
  configured: OptimizerSettings,
  mesh: jax.sharding.Mesh,
) -> str:
  """Return all that can be said of a run before its first step, as lines of text.

  Args:
    model: at its final keep ratios.
    variables: {"params", "batch_stats"}, arrays or their shapes.
    settings: loop.LoopSettings.
    configured: the optimiser as configured, not yet scaled to the batch.
    mesh: whose devices train.
  """
  device_kind, pairs_per_device = (
    mesh.devices.flat[0].device_kind,
    settings.batch_size // mesh.size // settings.accumulate_steps,
  )
  counts = counts_by_epoch(
    model, settings.epochs, settings.elimination_start, settings.elimination_warmup
  )
  memory = expected_memory(
    largest_model(model, counts).clone(rematerialise=settings.rematerialise),
    variables,
    pairs_per_device,
    ema=settings.ema_decay > 0,
  )
  steps = settings.epochs * settings.steps_per_epoch
  flops = run_flops(model, counts, settings.steps_per_epoch * settings.batch_size)
  lines = [
    f"{mesh.size} x {device_kind}, {jax.process_count()} process(es); {model.dtype}",
    model_table(model, variables["params"]),
    memory_line(memory, pairs_per_device),
    f"{settings.epochs} epochs of {settings.steps_per_epoch} steps of {settings.batch_size} pairs: "
    f"{steps:,} steps, {steps * settings.batch_size:,} pairs",
    time_line(flops, cost.peak_flops(device_kind, model.dtype), mesh.size),
    learning_rate_line(configured, settings.batch_size),
  ]
  return "\n".join(lines)


def count_parameters(params: Mapping) -> dict[str, int]:
  """Return how many numbers each part holds: patch embedding, position tables, blocks, norm, head.

  Args:
    params: the model's parameters, arrays or their shapes.

  Raises:
    ValueError: a parameter belongs to none of these parts.
  """
  counts = dict.fromkeys(("patch embedding", "position tables", "blocks", "norm", "head"), 0)
  if "fusion" in params:
    counts["fusion"] = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    names = [getattr(key, "key", "") for key in path]
    counts[_part_of(names)] += int(leaf.size)
  return counts


def _part_of(names: Sequence[str]) -> str:
  if names[0] in ("box_head", "fusion"):
    return names[0].removeprefix("box_")
  prefixes = {
    "patch_embed": "patch embedding",
    "pos_embed": "position tables",
    "template_segment": "position tables",
    "search_segment": "position tables",
    "relative_position": "position tables",
    "blocks_": "blocks",
    "norm": "norm",
  }
  if names[0] == "backbone":
    for prefix, part in prefixes.items():
      if names[1].startswith(prefix):
        return part
  raise ValueError(
    f"parameter {'/'.join(names)} belongs to no part of the summary; add it to run_summary._part_of"
  )


def activation_bytes(model: OSTrack, variables: Mapping, batch_size: int) -> int:
  """Return the bytes that the backward pass of `batch_size` pairs keeps, weights left out.

  Found by tracing, without arithmetic. XLA stores less where it fuses, and needs working space beside
  it; a compiled step's temporary memory came within a tenth on a CPU. With rematerialisation, what one
  block computes anew comes on top of what is kept.
  """
  kept = _residual_bytes(model, variables, batch_size)
  if not model.rematerialise:
    return kept
  everything = _residual_bytes(model.clone(rematerialise=False), variables, batch_size)
  return kept + (everything - kept) // model.dimensions()["depth"]


def _residual_bytes(model: OSTrack, variables: Mapping, batch_size: int) -> int:
  """Count what jax.vjp keeps; see activation_bytes."""
  template, search = (
    jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.float32)
    for size in (model.template_size, model.search_size)
  )
  mask = None
  if model.template_tokens == "ground_truth_box":
    mask = jnp.ones((batch_size, (model.template_size // 16) ** 2), bool)

  def kept(variables, template, search):
    weights = {id(leaf) for leaf in jax.tree.leaves(variables)}

    def maps(params):
      output, _ = model.apply(
        {**variables, "params": params},
        template,
        search,
        template_mask=mask,
        train=True,
        rngs={"drop_path": jax.random.key(0)},
        mutable=["batch_stats"],
      )
      return output.score_map, output.size_map, output.offset_map, output.boxes_cxcywh

    # The function that vjp returns is a tree whose leaves are what it keeps.
    _, backward = jax.vjp(maps, variables["params"])
    return [leaf for leaf in jax.tree.leaves(backward) if id(leaf) not in weights]

  leaves = jax.eval_shape(kept, variables, template, search)
  return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def expected_memory(
  model: OSTrack, variables: Mapping, pairs_per_device: int, *, ema: bool = False
) -> Memory:
  """Return what a training step holds on one device; every device holds all parameters.

  Args:
    model: with the most candidates that the run keeps, where memory peaks: ratio 1 in a warm-up.
    variables: {"params", "batch_stats"}, arrays or their shapes.
    pairs_per_device: whose activations live at once.
    ema: whether a moving average of the parameters is kept.
  """
  copy = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables["params"]))
  return Memory(
    parameters=copy,
    gradients=copy,
    adam=2 * copy,
    ema=copy if ema else 0,
    activations=activation_bytes(model, variables, pairs_per_device),
  )


def model_table(model: OSTrack, params: Mapping) -> str:
  """Return parameters and forward multiply-adds of a model by part, as lines of text."""
  parameters, macs = count_parameters(params), cost.forward_macs(model)
  total = sum(macs.values())
  lines = [f"{'parameters':<24}{sum(parameters.values()):>14,}"]
  lines += [f"  {part:<22}{count:>14,}" for part, count in parameters.items()]
  lines.append(
    f"{'forward pass, a pair':<24}{total / 1e9:>14.3f} GMACs, {2 * total / 1e9:.2f} GFLOPs"
  )
  lines += [f"  {part:<22}{count / 1e9:>14.3f}" for part, count in macs.items()]
  if model.keep_ratios:
    grid = model.search_grid**2
    everything = sum(cost.forward_macs(model, (grid,) * len(model.keep_ratios)).values())
    lines[-len(macs) - 1] += f"; {everything / 1e9:.3f} GMACs while nothing is eliminated"
    stages = " -> ".join(map(str, (grid, *model.stage_counts())))
    lines.append(
      f"search tokens {stages} in front of, and behind, blocks {', '.join(map(str, model.elimination_layers))}"
    )
  return "\n".join(lines)


def memory_line(memory: Memory, pairs_per_device: int) -> str:
  """Return the expected memory as one line."""
  parts = ", ".join(
    f"{'Adam' if name == 'adam' else 'EMA' if name == 'ema' else name} {_size(value)}"
    for name, value in dataclasses.asdict(memory).items()
    if value
  )
  return (
    f"memory on a device, estimated: {_size(memory.total)} ({parts} of {pairs_per_device} pairs)"
  )


def _size(count: int) -> str:
  return f"{count / _GIB:.2f} GiB" if count >= _GIB / 10 else f"{count / 2**20:.1f} MiB"


def learning_rate_line(configured: OptimizerSettings, batch_size: int) -> str:
  """Return the learning rates in force, and whether the linear rule made them."""
  rate = scaled_to_batch(configured, batch_size).learning_rate
  rule = "optim.reference_batch is 0: as configured, for any batch"
  if configured.reference_batch:
    rule = f"{configured.learning_rate:g} at batch {configured.reference_batch}, linear rule"
  return (
    f"learning rate {rate:g}, backbone {rate * configured.backbone_multiplier:g} ({rule}); "
    f"times {configured.drop_factor:g} after epoch {configured.drop_epoch}"
  )


def counts_by_epoch(
  model: OSTrack, epochs: int, elimination_start: int, elimination_warmup: int
) -> list[tuple[int, ...]]:
  """Return the search tokens left after each stage in epochs 1, 2, ..."""
  schedule = {"start": elimination_start, "warmup": elimination_warmup}
  ratios = (scheduled_ratios(model, epoch, **schedule) for epoch in range(1, epochs + 1))
  return [model.stage_counts(own) for own in ratios]


def largest_model(model: OSTrack, counts: Sequence[tuple[int, ...]]) -> OSTrack:
  """Return the model with the most candidates that a run holds: all of them, if there is a warm-up."""
  if set(counts) == {model.stage_counts()}:
    return model
  return model.clone(keep_ratios=(1.0,) * len(model.keep_ratios))


def run_flops(model: OSTrack, counts: Sequence[tuple[int, ...]], pairs_per_epoch: int) -> float:
  """Return the floating-point operations of a whole training, its epochs' stage counts given."""
  return sum(cost.training_flops(model, kept) * pairs_per_epoch for kept in counts)


def time_line(flops: float, peak: float | None, devices: int) -> str:
  """Return what can be said of the time before a step has run: a bound, where the peak is known.

  Args:
    flops: of the whole training.
    peak: FLOP/s of one device, or None.
    devices: how many.
  """
  text = f"arithmetic {flops:.3g} FLOPs; time: told after the first steps"
  if peak is None:
    return text
  return f"{text}, at least {duration(flops / (peak * devices))} at the devices' peak, which no run reaches"


def duration(seconds: float) -> str:
  """Return a time as words: `45 s`, `12 min`, `3.4 h` or `2.1 days`."""
  for unit, length in (("days", 86400), ("h", 3600)):
    if seconds >= length:
      return f"{seconds / length:.1f} {unit}"
  return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
