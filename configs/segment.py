"""Semantic segmentation: of drawn scenes in a few minutes, of your own images and masks, of ADE20K.

    launch/local.sh train --config=configs/segment.py --workdir=runs/segment
    launch/local.sh train --config=configs/segment.py:path=/data/streets --workdir=runs/streets
    launch/local.sh plan --config=configs/segment.py:recipe=ade20k,data=blank --topology=v5e:4x4

The first takes the small shipped backbone and 600 scenes of 64 pixels that are drawn as they are
read. Your own folder has `images/train`, `masks/train`, `images/test`, `masks/test`, and
`classes.txt`; docs/dense.md has other layouts. Settings and rates of the small recipe are ours,
chosen on `val` of the scenes with one seed; docs/dense.md has the figures.
"""

from dynadapt import backbones, config
from dynadapt.errors import ConfigError, UnknownName

# Recipes: the backbone, and the data where none are given.
RECIPES = {"small": ("vit_mini", "scenes"), "ade20k": ("dinov2_b14", "ade20k")}
NO_TEST = ("ade20k", "voc_segmentation", "pascal_mt", "nyud_mt")  # sets without labels of a test
RATES = {"linear": 1e-2, "full": 1e-3}  # of the small recipe; others have RATE
RATE = 1e-2
# What differs from the methods' own defaults.
SETTINGS = {
    "adaptformer": dict(rank=32, scale=1.0),
    "iconformer": dict(rank=32, scale=1.0),
    "vfm_adapter": dict(rank=8, z=24, scale=1.0),
}


def get_config(arg=None):
    """Arguments: method; path (of images and masks) or data (a data set with labels); recipe (one
    of RECIPES); backbone; kernels (of VFM-Adapter's ablation, or iConFormer's: none, static, layer,
    input, dynamic)."""
    c, recipe = chosen(arg, "segmentation", RECIPES, own="masks", field="labels")
    if recipe == "ade20k":
        return ade20k(c)
    c = small(c, scale=0.3)
    c.task.update(dict(head="fused", dropout=0.1))
    return c


def chosen(arg, task, recipes, own, field):
    """The config that the arguments choose, and its recipe.

    `own` is the data set of a path; of data with several fields `field` is taken.
    """
    known = dict(method="iconformer", path="", data="", recipe="small", backbone="", kernels="")
    arg = config.parse_arg(arg, **known)
    if arg.recipe not in recipes:
        raise UnknownName("recipe", arg.recipe, recipes)
    backbone, data = recipes[arg.recipe]
    data = arg.data or (own if arg.path and arg.recipe == "small" else data)
    c = config.default(
        backbone=arg.backbone or backbone, method=arg.method, task=task, data_set=data
    )
    if arg.path:
        c.data.path = arg.path
    if data in NO_TEST:
        c.input.eval_split = "val"
    if arg.kernels and "kernels" not in c.adapter:
        raise ConfigError(f"{arg.method} makes no kernels; vfm_adapter and iconformer do")
    if arg.kernels:
        c.adapter.kernels = arg.kernels
    if "fields" in c.data:
        c.data.fields = (field,)
    return c, arg.recipe


def small(c, scale):
    """200 steps of 16 images, a head on three depths of the backbone; of photographs parts from
    `scale` of their area up."""
    if c.backbone.name == "vit_mini":
        c.backbone.update(dict(weights="vit_mini", image_size=64))
    depth = getattr(backbones.config(c.backbone.name), "depth", 0)
    if depth:  # hierarchical ones have levels of their own
        c.backbone.levels = tuple(depth * k // 3 - 1 for k in (1, 2, 3))
    c.adapter.update(SETTINGS.get(c.adapter.name, {}))
    drawn = c.data.name == "scenes"
    c.input.train = "flip" if drawn else f"random_resized_crop({{size}},scale=({scale},1.0))|flip"
    c.input.eval = "resize({size})"
    c.input.update(dict(batch_size=16, eval_batch_size=50))
    if c.adapter.name == "full":  # the head starts at random, the backbone does not
        c.optim.lr_mults = (("head/.*", 10.0),)
    c.optim.update(dict(steps=200, lr=RATES.get(c.adapter.name, RATE), clip_norm=5.0))
    return c


def ade20k(c):
    """mmsegmentation's schedule for SegFormer: 160,000 steps of 16 crops (as VFM-Adapter's Table 2
    has no schedule of its own)."""
    c.task.update(dict(head="segformer", dropout=0.1))
    c.input.train = "resize_random(512,2048)|crop({size},category=0.75)|flip|distort"
    c.input.eval = "resize_within({size},{size})|pad({size})"
    c.input.update(dict(batch_size=16, eval_batch_size=16))
    c.optim.update(dict(steps=160_000, warmup=1500 / 160_000, schedule="linear", lr=6e-5))
    c.optim.update(dict(weight_decay=0.01, lr_mults=(("head/.*", 10.0),), drop_path=0.1))
    c.compute.update(dict(dtype="bfloat16", frozen_dtype="bfloat16"))
    c.backbone.scan = True
    c.eval_every = c.save_every = 8000
    return c
