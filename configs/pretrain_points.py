"""Pretrains the small backbone of point clouds that ships, on shapes joined at random.

launch/local.sh train --config=configs/pretrain_points.py --workdir=runs/pretrain_points
launch/local.sh convert runs/pretrain_points dynadapt/assets/point_mini.safetensors --dtype=float16
"""

from dynadapt import config


def get_config(arg=None):
    """No arguments."""
    config.parse_arg(arg)
    c = config.default(
        backbone="point_mini", method="full", task="masked_points", data_set="generated_clouds"
    )
    c.input.train = c.input.eval = ""
    c.input.batch_size = 32
    c.optim.steps = 2500
    c.optim.lr = 1.5e-3
    c.optim.beta2 = 0.98
    c.optim.weight_decay = 0.05
    c.optim.warmup = 0.05
    c.optim.clip_norm = 1.0
    c.save_every = 500
    c.log.every = 50
    return c
