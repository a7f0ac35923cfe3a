"""Several dense tasks at once: of drawn scenes in a few minutes.

    launch/local.sh train --config=configs/multitask.py --workdir=runs/multitask

takes the small shipped backbone and 600 scenes of 64 pixels that are drawn as they are read.
"""

import pathlib
import runpy

from dynadapt import config, tasks
from dynadapt.errors import UnknownName

SEGMENT = runpy.run_path(str(pathlib.Path(__file__).with_name("segment.py")))
# Recipes: the backbone, the data and the tasks where none are given.
RECIPES = {
    "small": ("vit_mini", "scenes", ("semseg", "depth", "saliency", "normals")),
}


def get_config(arg=None):
    """Arguments: method; path and data (a data set with the fields of the tasks); recipe (one of
    RECIPES); tasks, joined by +; backbone; rank (of methods that have one; 0 is their own)."""
    known = dict(method="tadformer", path="", data="", recipe="small", tasks="", backbone="")
    arg = config.parse_arg(arg, **known, rank=0)
    if arg.recipe not in RECIPES:
        raise UnknownName("recipe", arg.recipe, RECIPES)
    backbone, data, names = RECIPES[arg.recipe]
    names = tuple(arg.tasks.split("+")) if arg.tasks else names
    c = config.default(
        backbone=arg.backbone or backbone,
        method=arg.method,
        task="several",
        data_set=arg.data or data,
    )
    c.task.tasks = names
    if "tasks" in c.adapter:
        c.adapter.tasks = names
    if "fields" in c.data:
        c.data.fields = tuple(tasks.needed(c.task))
    return small(c)


def small(c):
    """That of configs/segment.py."""
    c = SEGMENT["small"](c, scale=0.5)
    return c
