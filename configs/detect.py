"""Object detection with ATSS: of drawn scenes in a few minutes, of your own images, of COCO.

    export EXTRAS=coco
    launch/local.sh train --config=configs/detect.py --workdir=runs/detect
    launch/local.sh train --config=configs/detect.py:path=/data/cells --workdir=runs/cells
    launch/local.sh train --config=configs/detect.py:path=/data/VOC2012,data=voc --workdir=runs/voc
    launch/local.sh plan --config=configs/detect.py:recipe=coco,data=blank --topology=v5e:4x4

The first takes the small shipped backbone and 600 scenes of 64 pixels that are drawn as they are
read. Your own folder has annotations in COCO's format, or, with data=voc, in PASCAL VOC's. The
small recipe is that of configs/segment.py, with levels and anchors that suit 64 pixels and a rate
that was not searched for: AP 56.7 and AP50 82.1 on the 200 test scenes, with one seed.
"""

import pathlib
import runpy

from dynadapt import backbones

SEGMENT = runpy.run_path(str(pathlib.Path(__file__).with_name("segment.py")))
# Recipes: the backbone, and the data where none are given.
RECIPES = {"small": ("vit_mini", "scenes"), "coco": ("dinov2_b14", "coco")}
SIDE = 1024  # pixels of COCO's canvas, or as many as patches fill
# What gives the counts of VFM-Adapter's Tables 1 and 4, which print no rank; docs/detection.md has
# what does not fit.
BASE = {
    "lora": dict(rank=20),
    "arc": dict(rank=128),
    "lorand": dict(factor=4, branches=4, rank=16, bias=False),
}
HUGE = {
    "lora": dict(rank=200),
    "arc": dict(rank=500),
    "vfm_adapter": dict(rank=160, z=64, bias=False),
}
TABLES = {
    "dinov2_b14": BASE,
    "sam_b16": BASE,
    "swin_b": {"lora": dict(rank=43), "vfm_adapter": dict(rank=48, z=72, bias=False)},
    "vit_h14": HUGE,
    "mae_h14": HUGE,
}


def get_config(arg=None):
    """Arguments: as of configs/segment.py, but for recipe, one of RECIPES, and data with boxes."""
    c, recipe = SEGMENT["chosen"](arg, "detection", RECIPES, own="coco", field="boxes")
    if c.data.name == "voc":  # the annotations of VOC2012's test split are not public
        c.task.metric, c.input.eval_split = "voc", "val"
    if recipe == "coco":
        return coco(c)
    c = small(c)
    c.task.update(dict(channels=64, depth=2, strides=(4.0, 8.0, 16.0), scale=4.0))
    return c


def small(c):
    """400 steps of 16 images, a neck on the backbone's last map."""
    c = SEGMENT["small"](c, scale=1.0)
    if "levels" in c.backbone:
        c.backbone.levels = ()
    if c.data.name != "scenes":  # objects keep their proportions
        c.input.train = "resize_within({size},{size})|flip|pad({size})"
        c.input.eval = "resize_within({size},{size})|pad({size})"
    c.optim.update(dict(steps=400, lr=3e-3))
    return c


def coco(c):
    """VFM-Adapter's neck and head, of 1024 pixels; its schedule is not published. Ours is of twelve
    epochs, as is usual for such heads, with AdamW."""
    side = SIDE - SIDE % backbones.config(c.backbone.name).patch
    c.backbone.update(dict(image_size=side, scan=True))
    c.adapter.update(TABLES.get(c.backbone.name, {}).get(c.adapter.name, {}))
    c.input.train = f"resize_within({side},{side})|flip|pad({side})"
    c.input.eval = f"resize_within({side},{side})|pad({side})"
    c.input.update(dict(batch_size=16, eval_batch_size=16))
    if c.data.name == "coco":
        c.input.update(dict(train_split="train2017", eval_split="val2017"))
        c.data.filled = ("train2017",)
    if c.data.name == "blank":  # as many, and as large as most
        c.data.update(dict(class_count=80, size=(480, 640), count=118_287))
    c.optim.update(dict(epochs=12.0, warmup=0.01, lr=1e-4, weight_decay=0.05, clip_norm=1.0))
    c.optim.drop_path = 0.1
    c.compute.update(dict(dtype="bfloat16", frozen_dtype="bfloat16"))
    c.eval_every = c.save_every = 8000
    return c
