"""Adapts the small shipped backbone to real handwritten digits, in a minute or two on a laptop.

    launch/local.sh train --config=configs/quickstart.py --workdir=runs/quickstart
    launch/local.sh train --config=configs/quickstart.py:method=lora --workdir=runs/lora
    launch/local.sh train --config=configs/quickstart.py:method=all --workdir=runs/all

One short recipe for all methods: 8 epochs of 1,000 digits, class token, no augmentation. The
learning rates were chosen on 200 of the 1,000 training digits, from the few values noted below.
Expected of iconformer, mean of three seeds: 97.66 % top-1; the README has all methods.
"""

from dynadapt import adapters, config

RATES = {  # chosen; tried
    "linear": 0.1,  # 0.1
    "bitfit": 0.01,  # 0.01
    "lora": 0.01,  # 0.003, 0.01
    "adaptformer": 0.01,  # 0.01
    "iconformer": 0.01,  # 0.003, 0.01, 0.02
    "full": 0.002,  # 0.0003, 0.001, 0.002
}


def get_config(arg=None):
    """Arguments: method (one of RATES, or all)."""
    arg = config.parse_arg(arg, method="iconformer")
    every = arg.method == "all"
    method = "iconformer" if every else arg.method
    adapters.module(method)  # an unknown name is answered here, with the nearest

    c = config.default(backbone="vit_mini", method=method, data_set="digits")
    c.compare = tuple(RATES) if every else ()
    c.backbone.weights = "vit_mini"
    c.task.pool = "cls"
    if method in ("adaptformer", "iconformer"):
        c.adapter.rank, c.adapter.scale, c.adapter.dropout = 32, 1.0, 0.0
    if method == "iconformer":
        c.adapter.identity_bias = True
    c.input.train = c.input.eval = "resize(32)"
    c.input.normalise = "inception"
    c.input.batch_size = 50
    c.optim.epochs = 8.0
    c.optim.lr = RATES[method]
    return c
