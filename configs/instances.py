"""Instance segmentation: of drawn scenes in a few minutes, of your own images and masks, of COCO.

    launch/local.sh train --config=configs/instances.py --workdir=runs/instances
    launch/local.sh train --config=configs/instances.py:path=/data/cells --workdir=runs/cells
    launch/local.sh plan --config=configs/instances.py:recipe=coco,data=blank --topology=v5e:4x4

The first takes the small shipped backbone and 600 scenes of 64 pixels that are drawn as they are
read. The small recipe is that of configs/segment.py, with a SOLO head whose levels and grids suit
64 pixels.
"""

import pathlib
import runpy

SEGMENT = runpy.run_path(str(pathlib.Path(__file__).with_name("segment.py")))
# Recipes: the backbone, and the data where none are given.
RECIPES = {"small": ("vit_mini", "scenes"), "coco": ("vit_b16", "coco")}
FIELDS = ("instances", "box_ids", "boxes", "box_classes")


def get_config(arg=None):
    """Arguments: as of configs/segment.py, but for recipe, one of RECIPES, and data with instances
    and boxes."""
    c, recipe = SEGMENT["chosen"](arg, "instances", RECIPES, own="instances", field="instances")
    if "fields" in c.data:
        c.data.fields = FIELDS
    if recipe == "coco":
        return coco(c)
    c = SEGMENT["small"](c, scale=0.5)
    c.task.update(dict(channels=64, depth=2, strides=(2, 4, 8), grids=(12, 8, 6)))
    c.task.ranges = ((0, 16), (10, 28), (20, 64))
    c.optim.update(dict(steps=400, lr=3e-3))
    return c


def coco(c):
    """mmdetection's data and head for SOLO; the schedule is that of twelve epochs, ours for frozen
    backbones."""
    c.input.train = "resize_within({size},{size})|flip|pad({size})"
    c.input.eval = "resize_within({size},{size})|pad({size})"
    c.input.update(dict(batch_size=16, eval_batch_size=8))
    c.optim.update(dict(epochs=12.0, warmup=0.01, lr=1e-4, weight_decay=0.05, clip_norm=1.0))
    c.optim.drop_path = 0.1
    c.compute.update(dict(dtype="bfloat16", frozen_dtype="bfloat16"))
    c.backbone.update(dict(image_size=1024, scan=True))
    c.save_every = 8000
    return c
