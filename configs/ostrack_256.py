"""OSTrack-256: ViT-B, MAE start, four training sets, 300 epochs.

  python -m training --config=configs/ostrack_256.py --workdir=runs/ostrack_256 \\
    --config.init_from=mae_vit_base_256

`mae_vit_base_256` is the MAE encoder after `python -m ostrack_jax.convert`. Append `:no_ce` to the config for
the model without candidate elimination. The paper reports, with elimination, LaSOT AUC 69.1,
TrackingNet AUC 83.1; without, 68.7 and 82.9.
"""

from configs import common


def get_config(arg: str = ""):
  """Return vitb_256_mae_ce_32x4_ep300, or with "no_ce" vitb_256_mae_32x4_ep300."""
  return common.parse(arg, common.get_config())
