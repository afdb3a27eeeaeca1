"""STARK-S aligned with OSTrack-256 (Table 5): its encoder and decoder behind OSTrack's backbone, in front of its head.

  python -m training --config=configs/stark_aligned.py --workdir=runs/stark_aligned \\
    --config.model.pretrained=mae_pretrain_vit_base.pth

The backbone runs on template and search region by itself. The paper keeps STARK's remaining settings and
trains on 30 M pairs (LaSOT AUC 67.6, TrackingNet AUC 82.6); here sampling, augmentation, schedule and pairs
are OSTrack's too, and of STARK's settings the learning rates alone are kept, 1e-4 and 1e-5 in the backbone: at
OSTrack's 4e-4 the encoder, which normalises behind its sums, makes all tokens alike, and little is learnt.
The short runs of benchmarks.tables warm up for 1,000 steps besides.
"""

from configs import common


def get_config():
  """Return the configuration."""
  config = common.parse("no_ce", common.get_config())
  config.model.relation = "stark"
  config.optim.learning_rate = 1e-4
  config.optim.backbone_multiplier = 0.1
  return config
