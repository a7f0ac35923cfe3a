"""The small recipes of point clouds on clouds of 40 points and a random narrow backbone.

Arguments: task (points or parts); all else is that of configs/<task>.py.
"""

import runpy
from pathlib import Path


def get_config(arg=None):
    name, _, rest = (arg or "task=points").removeprefix("task=").partition(",")
    path = Path(__file__).resolve().parents[1] / "configs" / f"{name}.py"
    c = runpy.run_path(str(path))["get_config"](rest or None)
    c.backbone.weights = ""
    c.backbone.update(dict(dim=16, heads=2, depth=3, groups=6, group_size=8, embed=4))
    if c.data.name == "clouds":
        c.data.count = 40
        c.input.eval_split = "test[:60]"
    if "points" in c.task:
        c.task.points = 32
    else:
        c.task.channels = 16
        c.backbone.levels = (0, 1, 2)
    if "rank" in c.adapter:
        c.adapter.rank = 4
    c.input.update(dict(batch_size=16, eval_batch_size=24))
    c.optim.update(dict(steps=12, lr=0.005))
    c.log.every = 1
    return c
