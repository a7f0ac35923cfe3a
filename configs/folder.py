"""Adapts a backbone to your own images: a folder for each class, in `train` and `test`.

launch/local.sh train --config=configs/folder.py:path=/data/flowers --workdir=runs/flowers
launch/local.sh train --config=configs/folder.py:path=/data/flowers,method=lora --workdir=runs/lora
"""

from dynadapt import adapters, config


def get_config(arg=None):
    """Arguments: path (of the images), method (a module of `dynadapt.adapters`), task
    (classification, or multilabel for images with any number of labels)."""
    arg = config.parse_arg(arg, path="", method="iconformer", task="classification")
    adapters.module(arg.method)  # an unknown name is answered here, with the nearest

    c = config.default(backbone="vit_mini", method=arg.method, task=arg.task, data_set="folder")
    c.backbone.weights = "vit_mini"
    c.data.path = arg.path
    c.input.train = "random_resized_crop({size})|flip"
    c.input.eval = "resize_short({short})|center_crop({size})"
    c.input.batch_size = 32
    c.optim.epochs = 30.0
    c.optim.lr = 2e-3
    return c
