"""The small recipes of segmentation and depth on scenes of 16 pixels and a random narrow ViT.

Arguments: task (segment or depth); all else is that of configs/<task>.py.
"""

import runpy
from pathlib import Path

SIDE = 16


def get_config(arg=None):
    name, _, rest = (arg or "task=segment").removeprefix("task=").partition(",")
    path = Path(__file__).resolve().parents[1] / "configs" / f"{name}.py"
    c = runpy.run_path(str(path))["get_config"](rest or None)
    c.backbone.weights = ""
    c.backbone.update(dict(dim=16, heads=2, depth=3, levels=(0, 1, 2), image_size=SIDE))
    c.data.size = SIDE
    c.task.channels = 8
    if "rank" in c.adapter:
        c.adapter.rank = 4
    c.input.batch_size = 8
    c.optim.update(dict(steps=8, lr=0.02))
    c.log.every = 1
    return c
