"""Adapts the small shipped backbone to real handwritten digits, in a minute or two on a laptop.

    launch/local.sh train --config=configs/quickstart.py --workdir=runs/quickstart
    launch/local.sh train --config=configs/quickstart.py:method=lora --workdir=runs/lora
    launch/local.sh train --config=configs/quickstart.py --methods=all --workdir=runs/all

One short recipe for all methods: 8 epochs of 1,000 digits, class token, no augmentation. The
learning rates were chosen on 200 of the 1,000 training digits, from the few values noted below.
Expected of iconformer, mean of three seeds: 96.61 % top-1; the README has all methods.
"""

from dynadapt import adapters, config
from dynadapt.errors import UnknownName

RATES = {  # chosen; tried
    "linear": 0.1,  # 0.1
    "norm_tune": 0.1,  # 0.003, 0.01, 0.03, 0.1, 0.3
    "bitfit": 0.03,  # 0.003, 0.01, 0.03
    "ssf": 0.03,  # 0.003, 0.01, 0.03, 0.1
    "vpt": 0.1,  # 0.003, 0.01, 0.03, 0.1
    "lora": 0.01,  # 0.003, 0.01, 0.03
    "dora": 0.03,  # 0.003, 0.01, 0.03, 0.1
    "fact": 0.01,  # 0.003, 0.01, 0.03
    "arc": 0.03,  # 0.003, 0.01, 0.03, 0.1
    "repadapter": 0.01,  # 0.003, 0.01, 0.03
    "adapter": 0.01,  # 0.003, 0.01
    "adaptformer": 0.01,  # 0.003, 0.01, 0.03
    "lorand": 0.01,  # 0.003, 0.01
    "convpass": 0.01,  # 0.003, 0.01, 0.03
    "mona": 0.01,  # 0.001, 0.003, 0.01
    "iconformer": 0.01,  # 0.003, 0.01, 0.02
    "adapter_x": 0.01,  # 0.003, 0.01, 0.02
    "vfm_adapter": 0.01,  # 0.001, 0.003, 0.01, 0.03
    "full": 0.002,  # 0.0003, 0.001, 0.002
}
# What differs from the methods' own defaults.
SETTINGS = {
    "vpt": dict(prompts=10),
    "adapter": dict(rank=32),
    "adaptformer": dict(rank=32, scale=1.0),
    "lorand": dict(rank=8),
    "mona": dict(rank=32),
    "iconformer": dict(rank=32, scale=1.0),
    "adapter_x": dict(rank=32, heads=4, scale=1.0),
    "vfm_adapter": dict(rank=32, z=24, scale=1.0),
}


def settings(method):
    """What differs from the method's defaults; nothing is dropped in so short a training."""
    dropout = {"dropout": 0.0} if "dropout" in adapters.settings(method) else {}
    return {**SETTINGS.get(method, {}), **dropout}


def get_config(arg=None):
    """Arguments: method (one of RATES). The file of a method of your own will do as well."""
    method = config.parse_arg(arg, method="iconformer").method
    if method not in RATES and not method.endswith(".py"):
        raise UnknownName("method", method, RATES)

    c = config.default(backbone="vit_mini", method=method, data_set="digits")
    c.backbone.weights = "vit_mini"
    c.task.pool = "cls"
    c.adapter.update(settings(method))
    c.input.batch_size = 50
    c.optim.epochs = 8.0
    c.optim.lr = RATES.get(method, 0.01)
    return c
