"""Several dense tasks at once: of drawn scenes in a few minutes, of your own images and maps, of
PASCAL-Context and NYUD.

    launch/local.sh train --config=configs/multitask.py --workdir=runs/multitask
    launch/local.sh train --config=configs/multitask.py:path=/data/rooms,tasks=semseg+depth \\
        --workdir=runs/rooms
    launch/local.sh plan --config=configs/multitask.py:recipe=pascal,data=blank --topology=v5e:4x4

The first takes the small shipped backbone and 600 scenes of 64 pixels that are drawn as they are
read. Your own folder has `images/train`, `images/test`, and for each task's field a folder such as
`labels/train` and `depth/train`; docs/multitask.md has the fields. The small recipe is that of
configs/segment.py but for heads half as wide and RATE, chosen of two with one seed.
"""

import pathlib
import runpy

from dynadapt import config, tasks
from dynadapt.errors import ConfigError, UnknownName

SEGMENT = runpy.run_path(str(pathlib.Path(__file__).with_name("segment.py")))
# Recipes: the backbone, the data and the tasks where none are given.
RECIPES = {
    "small": ("vit_mini", "scenes", ("semseg", "depth", "saliency", "normals")),
    "pascal": ("swin_t", "pascal_mt", ("semseg", "human_parts", "saliency", "normals")),
    "nyud": ("swin_t", "nyud_mt", ("semseg", "normals", "depth")),
}
# Of models for one task alone on PASCAL-Context, Swin-T fine-tuned in full: TADFormer's table.
REFERENCES = {"semseg": 67.21, "human_parts": 61.93, "saliency": 62.35, "normals": 17.97}

RATE = 3e-3  # of the small recipe with streams of tasks, whose factors count four times


def get_config(arg=None):
    """Arguments: method; path (of images and maps) or data (a data set with the tasks' fields);
    recipe (one of RECIPES); tasks, joined by +; backbone; rank, of methods that have one."""
    known = dict(method="tadformer", path="", data="", recipe="small", tasks="", backbone="")
    arg = config.parse_arg(arg, **known, rank=0)
    if arg.recipe not in RECIPES:
        raise UnknownName("recipe", arg.recipe, RECIPES)
    backbone, data, names = RECIPES[arg.recipe]
    c = config.default(
        backbone=arg.backbone or backbone,
        method=arg.method,
        task="several",
        data_set=arg.data or ("folders" if arg.path and arg.recipe == "small" else data),
    )
    c.task.tasks = tuple(arg.tasks.split("+")) if arg.tasks else names
    if "tasks" in c.adapter:  # their features differ
        c.adapter.tasks = c.task.tasks
    fields = tasks.needed(c.task)
    if "fields" in c.data:
        c.data.fields = fields
    if c.data.name == "folders":
        c.data.update({field: f"{field}/{{split}}" for field in fields})
    if arg.path:
        c.data.path = arg.path
    if c.data.name in SEGMENT["NO_TEST"]:
        c.input.eval_split = "val"
    if arg.recipe == "small":
        c = SEGMENT["small"](c, scale=0.5)
        c.task.channels = 9  # half of HRNet's own, for features of 128 channels
        if "tasks" in c.adapter:
            c.optim.lr = RATE
    else:
        c = published(c, arg.recipe)
    if arg.rank and "rank" not in c.adapter:
        raise ConfigError(f"{arg.method} has no rank")
    if arg.rank:
        c.adapter.rank = arg.rank
    return c


def published(c, recipe):
    """MTLoRA's and TADFormer's on PASCAL-Context: 300 epochs of 32 images of 448 pixels, 20 of them
    with a rising rate. On NYUD what they augment by, and the same schedule, as none is printed."""
    c.backbone.update(dict(image_size=448, scan=True))
    c.input.train = {
        "pascal": "flip|rotate(20,scale=(0.75,1.25))|resize({size})",
        "nyud": "flip|zoom|resize({size})",
    }[recipe]
    c.input.update(dict(batch_size=32, eval_batch_size=32))
    if c.data.name == "blank":
        classes, count = {"pascal": (21, 4998), "nyud": (40, 795)}[recipe]
        c.data.update(dict(class_count=classes, count=count, size=(448, 448)))
    if recipe == "pascal" and REFERENCES.keys() >= {*c.task.tasks}:
        c.task.references = tuple(REFERENCES[name] for name in c.task.tasks)
    c.optim.update(dict(epochs=300.0, warmup=20 / 300, schedule="cosine_hundredth"))
    c.optim.update(dict(lr=5e-4 * 32 / 512, weight_decay=0.05, clip_norm=5.0, drop_path=0.2))
    c.compute.update(dict(dtype="bfloat16", frozen_dtype="bfloat16"))
    c.eval_every = c.save_every = 2000
    return c
