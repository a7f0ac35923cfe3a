"""Adapts DINOv2-S to a folder of photographs on a laptop: a folder for each class, as folder.py.

    launch/local.sh weights dinov2_s14 --download=weights
    launch/local.sh train --config=configs/photos.py:path=/data/photos --workdir=runs/photos

The last three of twelve blocks are adapted, photos are small and unaugmented, and what the blocks
below answer is computed once a photo. docs/photos.md has what it takes and reaches.
"""

import pathlib
import runpy

FOLDER = runpy.run_path(str(pathlib.Path(__file__).with_name("folder.py")))


def get_config(arg=None):
    """Arguments: those of folder.py."""
    c = FOLDER["get_config"](arg)
    c.backbone.update(name="dinov2_s14", weights="weights/dinov2_vits14_pretrain.pth")
    c.backbone.image_size = 98  # 7 x 7 patches
    c.adapter.layers = 3
    c.task.pool = "cls"
    c.input.train = c.input.eval  # a photo is the same at every step, as keeping needs
    c.input.keep_prefix = c.adapter.name != "linear"  # tokens are kept for a block that trains
    c.input.batch_size = 20
    c.input.eval_batch_size = 64
    c.optim.epochs = 3.0
    c.optim.lr = 3e-3
    return c
