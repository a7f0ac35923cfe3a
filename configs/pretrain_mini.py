"""Pretrains the small backbone that ships, on images drawn by formula.

launch/local.sh train --config=configs/pretrain_mini.py --workdir=runs/pretrain_mini
launch/local.sh convert runs/pretrain_mini dynadapt/assets/vit_mini.safetensors --dtype=float16

Expected: hidden_error 0.35 after some 35 minutes on 2 CPU cores; the card beside the file has the
rest.
"""

from dynadapt import config


def get_config(arg=None):
    """No arguments."""
    config.parse_arg(arg)
    c = config.default(backbone="vit_mini", method="full", task="pretraining", data_set="generated")
    c.data.size = 32768
    c.input.train = c.input.eval = ""
    c.input.normalise = "inception"
    c.input.batch_size = 64
    c.optim.epochs = 6.0
    c.optim.lr = 1.5e-3
    c.optim.beta2 = 0.98
    c.optim.weight_decay = 0.05
    c.optim.warmup = 0.05
    c.optim.clip_norm = 1.0
    c.optim.accumulate = 4
    c.save_every = 500
    c.log.every = 50
    return c
