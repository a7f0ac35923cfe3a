"""A run of seconds, for tests: a random ViT of two narrow blocks on 8 x 8 digits.

A method for point clouds alone gets a backbone of those, which digits can't train.

dynadapt train --config=tests/configs_tiny.py:method=lora --workdir=DIR
"""

from dynadapt import config


def get_config(arg=None):
    """Arguments: method, steps, data (a data set's name), path (its folder), weights."""
    arg = config.parse_arg(arg, method="iconformer", steps=12, data="digits", path="", weights="")
    points = arg.method == "dapt"
    name = "point_mae_s" if points else "vit_mini"
    c = config.default(backbone=name, method=arg.method, data_set=arg.data)
    sizes = dict(groups=4, group_size=4) if points else dict(image_size=8)
    c.backbone.update(dict(dim=16, depth=2, heads=2, weights=arg.weights, **sizes))
    if arg.data == "folder":
        c.data.path = arg.path
    if "rank" in c.adapter:
        c.adapter.rank = 4
    if "heads" in c.adapter:
        c.adapter.heads = 2
    c.input.train = c.input.eval = "resize(8)"
    c.input.normalise = "inception"
    c.input.batch_size = 16
    c.input.eval_batch_size = 32
    c.input.eval_split = "test[:40]" if arg.data == "digits" else "test"
    c.optim.steps = arg.steps
    c.optim.lr = 1e-2
    c.log.every = 5
    return c
