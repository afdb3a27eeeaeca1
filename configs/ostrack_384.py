"""OSTrack-384: ViT-B, MAE start, larger images, four training sets, 300 epochs.

  python -m training --config=configs/ostrack_384.py --workdir=runs/ostrack_384 \\
    --config.model.pretrained=mae_pretrain_vit_base.pth

Append `:no_ce` for the model without candidate elimination. The paper reports, with elimination,
LaSOT AUC 71.1, TrackingNet AUC 83.9; without, 71.0 and 83.5.
"""

from configs import common


def get_config(arg: str = ""):
  """Return vitb_384_mae_ce_32x4_ep300, or with "no_ce" vitb_384_mae_32x4_ep300."""
  config = common.parse(arg, common.get_config())
  config.model.template_size = 192
  config.model.search_size = 384
  config.tracker.search_factor = 5.0
  config.augmentation.search_centre_jitter = 4.5
  config.augmentation.search_scale_jitter = 0.5
  return config
