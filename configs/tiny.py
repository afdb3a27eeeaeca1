"""A small OSTrack that learns and tracks procedural video in minutes on a CPU.

  python -m training --config=configs/tiny.py --workdir=runs/tiny

starts from the small checkpoint that ships with the package and trains on for two minutes, on slow machines for up to four;
`configs/tiny.py:scratch` starts from random weights and trains for three. `configs/tiny.py:pretrain`
is how the shipped checkpoint was made, on a GPU. Append `_no_ce` for no candidate elimination.
"""

from configs import common


def get_config(arg: str = ""):
  """Return the small model's configuration; arg is "", "scratch" or "pretrain", each with "_no_ce"."""
  kind = arg.removesuffix("no_ce").removesuffix("_")
  config = common.parse("no_ce" if arg.endswith("no_ce") else "", common.get_config())

  config.model.variant = "custom"
  config.model.width = 128
  config.model.depth = 4
  config.model.num_heads = 2
  config.model.template_size = 64
  config.model.search_size = 128
  config.model.head_channels = 32
  config.model.drop_path_rate = 0.0
  config.model.score_bias = -4.0
  if config.model.elimination_layers:
    config.model.elimination_layers = (1, 2)
    config.model.keep_ratios = (0.7, 0.7)

  config.data.train = ("procedural",)
  config.data.weights = (1.0,)
  config.data.validation = "procedural_test"
  config.data.validation_pairs = 512
  config.data.validation_search_centre = "previous_box"
  config.data.num_workers = 0
  config.data.num_threads = 2
  config.procedural.train_sequences = 120
  config.procedural.test_sequences = 24
  config.procedural.length = 40

  config.sampling.max_gap = 60

  config.optim.learning_rate = 3e-5
  config.optim.reference_batch = 0
  config.optim.backbone_multiplier = 1.0
  config.optim.clip_norm = 1.0
  config.optim.drop_epoch = 20

  config.train.epochs = 28
  config.train.pairs_per_epoch = 512
  config.train.batch_size = 16
  config.train.elimination_start = 0
  config.train.elimination_warmup = 0
  # Two minutes on two quiet cores; stopped before its lower rate has worked, a run may end below its start.
  config.train.max_minutes = 4.0
  config.train.log_every_steps = 32
  config.train.validate_every_epochs = 1000
  config.train.save_every_epochs = 5

  config.report.sequences = 24

  if kind == "":
    config.model.pretrained = "ostrack_tiny"
  elif kind == "scratch":
    config.optim.learning_rate = 1.5e-3
    config.optim.warmup_steps = 50
    config.optim.drop_epoch = 28
    config.train.epochs = 36
    config.train.max_minutes = 3.0
    # Three minutes are too few for the full jitter: the network would only learn where targets usually are.
    config.augmentation.search_centre_jitter = 1.2
    config.augmentation.search_scale_jitter = 0.1
    config.train.elimination_start = 10
    config.train.elimination_warmup = 1
  elif kind == "pretrain":
    config.procedural.train_sequences = 2500
    config.procedural.length = 60
    config.procedural.seed = 1
    config.data.num_workers = 14
    config.data.num_threads = 1
    config.data.validation_pairs = 2048
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 500
    config.optim.drop_epoch = 48
    config.train.epochs = 60
    config.train.pairs_per_epoch = 40_960
    config.train.batch_size = 256
    config.train.elimination_start = 8
    config.train.elimination_warmup = 16
    config.train.max_minutes = 0.0
    config.train.log_every_steps = 40
    config.train.validate_every_epochs = 6
    config.train.save_every_epochs = 6
  else:
    raise ValueError(
      f"config argument {arg!r} is unknown; write nothing, scratch or pretrain, with _no_ce behind it"
    )
  return config
