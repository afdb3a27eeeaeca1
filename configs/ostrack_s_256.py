"""OSTrack-S-256 on little video: ViT-S from DINOv2, minutes on one GPU. Not a configuration of the paper.

  P="python -m data_pipelines.prepare --data_dir=prepared"
  $P --dataset=masks --name=davis --raw_dir=DAVIS --context=256;  the same with --full_frames
  $P --dataset=vot --name=vot --raw_dir=VOT --context=256;        the same with --full_frames
  $P --dataset=folder --name=tinytlp --raw_dir=TinyTLP --context=256
  $P --dataset=detection --name=tiny_coco --raw_dir=tiny_coco --splits=train,validation --context=256
  $P --dataset=detection --name=coco128 --raw_dir=coco128 --context=256
  python -m training --config=configs/ostrack_s_256.py --workdir=runs/s --config.data.data_dir=prepared \\
    --config.model.pretrained=dinov2_vits14_fp16.npz

trains on six DAVIS sequences, one of TinyTLP, one of VOT and still images; two DAVIS sequences and one of VOT
are held out, for validation and for choosing the best checkpoint. docs/results.md says how well it tracks.
Behind a colon: `long` for three times as many pairs, which the backbone learns from more slowly, with more drop path
and a longer average of the weights, `absent` for search regions without the target in a fifth of the pairs, so that
the score falls when the target is gone, `no_ce` for no candidate elimination; several in this order, such as
`long_absent_no_ce`. A data set of one video keeps its target in every pair, so that here it is a sixth of them in truth.
"""

from configs import common

_WORDS = ("long", "absent", "no_ce")


def get_config(arg: str = ""):
  """Return the configuration; arg joins some of "long", "absent" and "no_ce" by "_", in this order."""
  words = [word for word in _WORDS if word in arg]
  if arg != "_".join(words):
    raise ValueError(
      f"config argument {arg!r} is unknown; join some of {', '.join(_WORDS)} by '_', in this order, or write nothing"
    )
  config = common.parse("no_ce" if "no_ce" in words else "", common.get_config())

  config.model.variant = "s"
  config.model.pretrained = "dinov2_vits14_fp16.npz"
  config.model.dtype = "bfloat16"

  config.data.train = (
    "davis[!car-shadow,libby]",
    "tinytlp",
    "vot[!book]",
    "tiny_coco",
    "tiny_coco:validation",
    "coco128",
  )
  # As many pairs from a target in a still image as from another; half of all from video.
  config.data.weights = (0.30, 0.10, 0.10, 0.13, 0.11, 0.26)
  config.data.validation = "davis[car-shadow,libby] + vot[book]"
  config.data.validation_pairs = 1024
  config.sampling.min_image_side = 20.0
  if "absent" in words:
    config.sampling.absent_probability = 0.2

  config.augmentation.half_pixel_labels = False
  config.augmentation.rotation_degrees = 25.0
  config.augmentation.aspect_jitter = 0.2
  config.augmentation.colour_jitter = 0.3
  config.augmentation.blur_probability = 0.3
  config.augmentation.distractor_probability = 0.3

  # An epoch is a hundredth of the run: 844,800 pairs, or 2,534,400.
  config.train.epochs = 100
  config.train.pairs_per_epoch = 128 * (198 if "long" in words else 66)
  config.train.elimination_start = 10
  config.train.elimination_warmup = 25
  config.train.elimination_buckets = 1
  config.train.ema_decay = 0.999
  config.train.validate_every_epochs = 20
  config.train.save_every_epochs = 20
  config.train.track_validation_sequences = 3
  config.train.track_validation_starts = 4
  # A dozen tracks say less of a checkpoint than a thousand pairs.
  config.train.best_by = "iou"
  config.train.log_every_steps = 50
  config.optim.drop_epoch = 80
  config.optim.warmup_steps = 100
  # What DINOv2 has seen is worth more than what so little video teaches.
  config.optim.backbone_multiplier = 0.03
  if "long" in words:
    # Three times the steps at a third of the rate; with the recipe above the videos are learnt by heart.
    config.optim.backbone_multiplier = 0.01
    config.model.drop_path_rate = 0.2
    config.train.ema_decay = 0.9998
  return config
