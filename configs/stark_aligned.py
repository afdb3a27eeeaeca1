"""STARK-S aligned with OSTrack-256 (Table 5): its encoder and decoder behind OSTrack's backbone, in front of its head.

  python -m training --config=configs/stark_aligned.py --workdir=runs/stark_aligned \\
    --config.model.pretrained=mae_pretrain_vit_base.pth

The backbone runs on template and search region by itself. The paper keeps STARK's remaining settings and
trains on 30 M pairs (LaSOT AUC 67.6, TrackingNet AUC 82.6); here sampling, augmentation, schedule and pairs
are OSTrack's too, so that the network alone differs.
"""

from configs import common


def get_config():
  """Return the configuration."""
  config = common.parse("no_ce", common.get_config())
  config.model.relation = "stark"
  return config
