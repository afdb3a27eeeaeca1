"""OSTrack-256 trained on GOT-10k alone, for its one-shot protocol: 100 epochs.

  python -m training --config=configs/ostrack_256_got10k.py --workdir=runs/ostrack_256_got10k \\
    --config.model.pretrained=mae_pretrain_vit_base.pth

Append `:no_ce` for the model without candidate elimination. The paper reports, with elimination,
GOT-10k AO 71.0; without, 71.0.
"""

from configs import ostrack_256


def get_config(arg: str = ""):
  """Return vitb_256_mae_ce_32x4_got10k_ep100, or with "no_ce" the same without elimination."""
  config = ostrack_256.get_config(arg)
  config.data.train = ("got10k_train_full",)
  config.data.weights = (1.0,)
  config.data.validation = "got10k_val"
  config.train.epochs = 100
  config.train.elimination_warmup = 50
  config.optim.drop_epoch = 80
  return config
