"""What the official configurations share: REFERENCE values of OSTrack, Ye et al. 2022.

Every key that training reads stands here with its default; the files beside this one change a few.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Return the values common to all official configurations."""
  config = ml_collections.ConfigDict()

  # Where compiled programs are kept for the next start, unless JAX_COMPILATION_CACHE_DIR says; "" for nowhere.
  config.compilation_cache = "~/.cache/ostrack_jax/compilation"

  config.model = ml_collections.ConfigDict()
  # Weights to start from: whatever ostrack_jax.convert reads (a file of MAE, DeiT, AugReg, DINOv2 or
  # OSTrack), a converted folder, a workdir, a name of a checkpoint that ships with the package, or ""
  # for random. An encoder leaves the head random.
  config.model.pretrained = ""
  config.model.variant = "b"
  config.model.width = ml_collections.config_dict.placeholder(int)
  config.model.depth = ml_collections.config_dict.placeholder(int)
  config.model.num_heads = ml_collections.config_dict.placeholder(int)
  config.model.template_size = 128
  config.model.search_size = 256
  config.model.head_channels = 256
  config.model.elimination_layers = (3, 6, 9)
  config.model.keep_ratios = (0.7, 0.7, 0.7)
  config.model.template_tokens = "centre_point"
  config.model.drop_path_rate = 0.1
  config.model.score_bias = ml_collections.config_dict.placeholder(float)
  # Where template and search region meet: one_stream, or behind a two-stream backbone stark or swintrack,
  # with so many encoder layers (None for the paper's).
  config.model.relation = "one_stream"
  config.model.relation_layers = ml_collections.config_dict.placeholder(int)
  # center, or without a score map corner or mlp.
  config.model.head = "center"
  # Learnt vectors that tell template from search tokens; learnt biases of attention by relative position.
  config.model.identity_embeddings = False
  config.model.relative_positions = False
  config.model.dtype = "float32"

  config.tracker = ml_collections.ConfigDict()
  config.tracker.template_factor = 2.0
  config.tracker.search_factor = 4.0

  # Prepared data sets under data_dir ("": the variable OSTRACK_DATA_DIR, else the folder prepared), drawn
  # with these weights, then a sequence uniformly. `python -m data_pipelines.prepare` makes them; the names
  # procedural, procedural_test and folder are prepared on first use; folder stands for folder_roots.
  config.data = ml_collections.ConfigDict()
  config.data.data_dir = ""
  config.data.train = ("lasot_train", "got10k_vottrain", "coco2017_train", "trackingnet_train")
  config.data.weights = (1.0, 1.0, 1.0, 1.0)
  config.data.validation = "got10k_votval"
  config.data.validation_pairs = 10_000
  # Prepared with whole frames, for train.track_validation_sequences; "" for data.validation.
  config.data.validation_tracking = ""
  # jitter, as in training; or previous_box, where a tracker that lost nothing would look.
  config.data.validation_search_centre = "jitter"
  config.data.folder_roots = ()
  # A record that cannot be read stops training with its name, or is skipped and counted: stop or skip.
  config.data.on_bad_record = "stop"
  # Processes that read and crop, -1 for one a core; with 0, num_threads threads of this process do.
  config.data.num_workers = -1
  config.data.num_threads = 16

  config.procedural = ml_collections.ConfigDict()
  config.procedural.train_sequences = 400
  config.procedural.test_sequences = 20
  config.procedural.seed = 0
  config.procedural.length = 60
  config.procedural.width = 240
  config.procedural.height = 180

  config.sampling = ml_collections.ConfigDict()
  config.sampling.max_gap = 200
  config.sampling.gap_step = 5
  config.sampling.min_visible_over = 4
  config.sampling.min_length = 20
  # Targets of still images with a smaller sqrt(width * height), px, do not take part.
  config.sampling.min_image_side = 0.0
  # Share of training pairs whose search region shows another video's or image's target: there the score map
  # is to be empty. Not in the official code.
  config.sampling.absent_probability = 0.0

  config.augmentation = ml_collections.ConfigDict()
  config.augmentation.template_centre_jitter = 0.0
  config.augmentation.template_scale_jitter = 0.0
  config.augmentation.search_centre_jitter = 3.0
  config.augmentation.search_scale_jitter = 0.25
  config.augmentation.grey_probability = 0.05
  config.augmentation.joint_flip_probability = 0.5
  config.augmentation.separate_flip_probability = 0.5
  config.augmentation.brightness = 0.2
  # The official second flip, which mirrors template and search region against each other in half the pairs.
  config.augmentation.independent_flip = True
  # The official label centre, (size - 1) / 2, half a crop pixel beside the one that tracking uses.
  config.augmentation.half_pixel_labels = True
  # A crop of context records that lacks a larger share of what its frame shows there is drawn anew.
  config.augmentation.max_missing_share = 0.05
  # Not in the official code, for little video: the search region turned by up to so many degrees and
  # stretched (deviation of the log), either crop's colours changed by up to this share, either crop
  # blurred, another target pasted into the search region.
  config.augmentation.rotation_degrees = 0.0
  config.augmentation.aspect_jitter = 0.0
  config.augmentation.colour_jitter = 0.0
  config.augmentation.blur_probability = 0.0
  config.augmentation.distractor_probability = 0.0

  config.optim = ml_collections.ConfigDict()
  config.optim.learning_rate = 4e-4
  # The global batch that this rate is for: with another, it is multiplied by batch_size / reference_batch;
  # 0 takes the rate as it is.
  config.optim.reference_batch = 128
  config.optim.backbone_multiplier = 0.1
  config.optim.weight_decay = 1e-4
  config.optim.clip_norm = 0.1
  config.optim.drop_epoch = 240
  config.optim.drop_factor = 0.1
  config.optim.warmup_steps = 0

  config.loss = ml_collections.ConfigDict()
  config.loss.focal = 1.0
  config.loss.giou = 2.0
  config.loss.l1 = 5.0

  config.train = ml_collections.ConfigDict()
  config.train.epochs = 300
  config.train.pairs_per_epoch = 60_000
  config.train.batch_size = 128
  config.train.elimination_start = 20
  config.train.elimination_warmup = 80
  # The warm-up is compiled in so many parts; within a part the schedule's numbers are masked, not recompiled.
  config.train.elimination_buckets = 3
  # For less memory: the batch in so many parts one after another; activations computed twice.
  config.train.accumulate_steps = 1
  config.train.rematerialise = False
  # BatchNorm over the global batch, or as officially over each device's part: global or device.
  config.train.batch_norm = "global"
  config.train.max_minutes = 0.0
  config.train.log_every_steps = 50
  config.train.validate_every_epochs = 20
  # So many sequences of data.validation_tracking are tracked at each validation, 0 for none.
  config.train.track_validation_sequences = 0
  # From so many frames of each, evenly spaced, to its end.
  config.train.track_validation_starts = 1
  # The best checkpoint is the one of the highest AO, where sequences are tracked, else of the highest IoU;
  # "iou" for the latter anyway.
  config.train.best_by = "ao"
  config.train.save_every_epochs = 10
  config.train.keep_checkpoints = 2
  # Decay of the average of the weights that is validated, reported and loaded; 0 for no average (official).
  config.train.ema_decay = 0.0
  config.train.seed = 42
  # (first, last) step to trace with jax's profiler into the workdir's folder profile; () for none.
  config.train.profile_steps = ()

  # After training, so many sequences of a data set are tracked and reported; 0 for none.
  config.report = ml_collections.ConfigDict()
  config.report.dataset = "procedural_test"
  config.report.sequences = 0

  return config


def parse(arg: str, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Apply the argument behind the colon: "" keeps elimination, "no_ce" switches it off."""
  if arg == "no_ce":
    config.model.elimination_layers = ()
    config.model.keep_ratios = ()
  elif arg:
    raise ValueError(
      f"config argument {arg!r} is unknown; write nothing, or no_ce for no candidate elimination"
    )
  return config
