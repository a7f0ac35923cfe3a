"""Monocular depth: of drawn scenes in a few minutes, of your own images and depth maps, of NYU-v2.

    launch/local.sh train --config=configs/depth.py --workdir=runs/depth
    launch/local.sh train --config=configs/depth.py:path=/data/rooms --workdir=runs/rooms
    launch/local.sh plan --config=configs/depth.py:recipe=nyu,data=blank --topology=v5e:4x4

The first takes the small shipped backbone and 600 scenes of 64 pixels that are drawn as they are
read. Your own folder has `images/train`, `depths/train`, `images/test` and `depths/test`;
docs/dense.md has other layouts. The small recipe is that of configs/segment.py, with its settings
and rates; docs/dense.md has the figures.
"""

import pathlib
import runpy

SEGMENT = runpy.run_path(str(pathlib.Path(__file__).with_name("segment.py")))
# Recipes: the backbone, and the data where none are given.
RECIPES = {"small": ("vit_mini", "scenes"), "nyu": ("swin_b", "nyu")}


def get_config(arg=None):
    """Arguments: as of configs/segment.py, but for recipe, one of RECIPES, and data with depth."""
    c, recipe = SEGMENT["chosen"](arg, "depth", RECIPES, own="depths", field="depth")
    if recipe == "nyu":
        return nyu(c)
    c = SEGMENT["small"](c, scale=0.5)
    c.task.head = "fused"
    return c


def nyu(c):
    """GLPDepth's data and loss, 25 epochs of crops of 448 x 576; the schedule is ours."""
    c.task.update(dict(head="glpdepth", crop="eigen", flip=True))
    c.input.train = "crop((448,576))|flip|jitter(0.1,0.1,0.1)|gamma"
    c.input.eval = ""
    c.input.update(dict(batch_size=16, eval_batch_size=16))
    c.optim.update(dict(epochs=25.0, warmup=0.1, lr=1e-4, weight_decay=0.01, drop_path=0.1))
    c.compute.update(dict(dtype="bfloat16", frozen_dtype="bfloat16"))
    return c
