"""Parts of point clouds: of drawn things in a few minutes, of ShapeNetPart.

    launch/local.sh train --config=configs/parts.py --workdir=runs/parts
    launch/local.sh train --config=configs/parts.py:recipe=shapenetpart,path=/data/shapenetpart \\
        --config.backbone.weights=weights/point_mae_s_pretrained.pth --workdir=runs/shapenetpart

The first takes the small shipped backbone and 1,000 drawn clouds of 24 parts, cut, turned and among
others (`hard`). Settings and rates are those of configs/points.py.
"""

import pathlib
import runpy

from dynadapt import backbones

POINTS = runpy.run_path(str(pathlib.Path(__file__).with_name("points.py")))
# Recipes: the backbone, and the data where none are given.
RECIPES = {"small": ("point_mini", "clouds"), "shapenetpart": ("point_mae_s_g128", "shapenetpart")}


def get_config(arg=None):
    """Arguments: as of configs/points.py, but for recipe, one of RECIPES."""
    c, arg = POINTS["chosen"](arg, "parts", RECIPES, own="shapenetpart")
    depth = backbones.config(c.backbone.name).depth
    c.backbone.levels = tuple(depth * k // 3 - 1 for k in (1, 2, 3))
    if c.data.name == "clouds":
        c.data.count = 512  # all of them are seen
    if arg.recipe == "small":
        c = POINTS["small"](c)
        c.task.channels = 128
        return c
    return shapenetpart(c)


def shapenetpart(c):
    """Point-MAE's: 300 epochs of 16 clouds on `train+val`, AdamW, cosine after 10 epochs."""
    c.adapter.update(POINTS["SETTINGS"].get(c.adapter.name, {}))
    if c.data.name == "blank":
        c.data.update(dict(class_count=16, part_count=50, count=14_007, points=2048))
    else:
        c.input.train_split = "train+val"
    c.input.update(dict(batch_size=16, eval_batch_size=16))
    c.optim.update(dict(epochs=300.0, warmup=10 / 300, lr=2e-4, weight_decay=0.05, clip_norm=10.0))
    c.optim.drop_path = 0.1
    return c
