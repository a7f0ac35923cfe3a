"""Instance segmentation with SOLO: of drawn scenes in a few minutes, of your own images, of COCO.

    export EXTRAS=coco
    launch/local.sh train --config=configs/instances.py --workdir=runs/instances
    launch/local.sh train --config=configs/instances.py:path=/data/cells --workdir=runs/cells
    launch/local.sh train --config=configs/instances.py:path=/data/own,data=coco --workdir=runs/own
    launch/local.sh plan --config=configs/instances.py:recipe=coco,data=blank --topology=v5e:4x4

The first takes the small shipped backbone and 600 scenes of 64 pixels that are drawn as they are
read. Your own folder has `images/train`, `instances/train`, `images/test` and `instances/test`, or,
with data=coco, outlines in COCO's format. The recipes are those of configs/detect.py; grids, ranges
and rate of the small one were not searched for: AP 36.6 and AP50 65.6 of masks on the 200 test
scenes, with one seed.
"""

import pathlib
import runpy

from dynadapt import backbones

HERE = pathlib.Path(__file__)
SEGMENT, DETECT = (
    runpy.run_path(str(HERE.with_name(name))) for name in ("segment.py", "detect.py")
)
FIELDS = ("instances", "box_ids", "boxes", "box_classes")


def get_config(arg=None):
    """Arguments: as of configs/detect.py, but for data with instances and boxes."""
    given = "instances", DETECT["RECIPES"]
    c, recipe = SEGMENT["chosen"](arg, *given, own="instances", field="instances")
    if "fields" in c.data:
        c.data.fields = FIELDS
    if "masks" in c.data:  # outlines of COCO's format
        c.data.masks = True
    return coco(c) if recipe == "coco" else small(c)


def small(c):
    """The small recipe of detection; levels, grids and ranges are for 64 pixels."""
    c = DETECT["small"](c)
    c.task.update(dict(channels=64, depth=2, strides=(2.0, 4.0, 8.0), grids=(12, 8, 6)))
    c.task.ranges = ((1.0, 16.0), (8.0, 32.0), (16.0, 64.0))
    return c


def coco(c):
    """SOLO's published head on ViTDet's levels, of 1024 pixels; the schedule is that of detection,
    which is ours."""
    c = DETECT["coco"](c)
    c.input.eval_batch_size = 8
    if hasattr(backbones.config(c.backbone.name), "depth"):  # levels from a quarter of a patch on
        first = backbones.config(c.backbone.name).patch / 4
        c.task.strides = tuple(first * 2**n for n in range(len(c.task.grids)))
    return c
