"""SwinTrack aligned with OSTrack-256 (Table 5): its encoder and decoder behind OSTrack's backbone, in front of its head.

  python -m training --config=configs/swintrack_aligned.py --workdir=runs/swintrack_aligned \\
    --config.model.pretrained=mae_pretrain_vit_base.pth

The backbone runs on template and search region by itself. The paper keeps SwinTrack's remaining settings and
trains on 39.3 M pairs (LaSOT AUC 68.0, TrackingNet AUC 82.9); here sampling, augmentation, schedule and pairs
are OSTrack's too, so that the network alone differs. The encoder has the 4 blocks of SwinTrack's small model.
"""

from configs import common


def get_config():
  """Return the configuration."""
  config = common.parse("no_ce", common.get_config())
  config.model.relation = "swintrack"
  return config
