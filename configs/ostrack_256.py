"""OSTrack-256: ViT-B, MAE start, four training sets, 300 epochs.

  python -m training --config=configs/ostrack_256.py --workdir=runs/ostrack_256 \\
    --config.model.pretrained=mae_pretrain_vit_base.pth

The official start is MAE's encoder (README, Initial weights); the key is empty, random weights, until a file
is named. Append `:no_ce` to the config for the model without candidate elimination. The paper reports, with
elimination, LaSOT AUC 69.1, TrackingNet AUC 83.1; without, 68.7 and 82.9. Its comparison of starts, without
elimination, changes the key alone (LaSOT AUC): MAE 68.7; ImageNet-21k, AugReg's .npz here, 66.9;
ImageNet-1k, DeiT's .pth, 66.1; none 60.4.
"""

from configs import common


def get_config(arg: str = ""):
  """Return vitb_256_mae_ce_32x4_ep300, or with "no_ce" vitb_256_mae_32x4_ep300."""
  return common.parse(arg, common.get_config())
