"""Adapts a small frozen backbone to real handwritten digits, in minutes on a laptop.

launch/local.sh train --config=configs/quickstart.py --workdir=runs/quickstart
launch/local.sh train --config=configs/quickstart.py:method=lora --workdir=runs/lora
launch/local.sh train --config=configs/quickstart.py:method=all --workdir=runs/all
"""

from dynadapt import adapters, config

METHODS = ("linear", "bitfit", "lora", "adaptformer", "iconformer", "full")


def get_config(arg=None):
    """Arguments: method (one of METHODS, or all)."""
    arg = config.parse_arg(arg, method="iconformer")
    every = arg.method == "all"
    method = "iconformer" if every else arg.method
    adapters.module(method)  # an unknown name is answered here, with the nearest

    c = config.default(backbone="vit_mini", method=method, data_set="digits")
    c.compare = METHODS if every else ()
    c.input.train = c.input.eval = "resize(32)"
    c.input.normalise = "inception"
    c.input.batch_size = 50
    c.optim.epochs = 40.0
    c.optim.lr = 2e-3
    return c
