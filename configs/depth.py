"""Monocular depth: of drawn scenes in a few minutes, of your own images and depth maps, of NYU-v2.

    launch/local.sh train --config=configs/depth.py --workdir=runs/depth
    launch/local.sh train --config=configs/depth.py:path=/data/rooms --workdir=runs/rooms
    launch/local.sh plan --config=configs/depth.py:recipe=nyu,data=blank --topology=v5e:4x4

The first takes the small shipped backbone and 600 scenes of 64 pixels that are drawn as they are
read. Your own folder has `images/train`, `depths/train`, `images/test` and `depths/test`;
docs/dense.md has other layouts. Settings and rates of the small recipe are ours, chosen on `val` of
the scenes with one seed; docs/dense.md has the figures.
"""

from dynadapt import backbones, config
from dynadapt.errors import ConfigError, UnknownName

RECIPES = ("small", "nyu")
RATES = {"linear": 1e-2, "full": 1e-3}  # of the small recipe; others have RATE
RATE = 1e-2
# What differs from the methods' own defaults.
SETTINGS = {
    "adaptformer": dict(rank=32, scale=1.0),
    "iconformer": dict(rank=32, scale=1.0),
    "vfm_adapter": dict(rank=8, z=24, scale=1.0),
}


def get_config(arg=None):
    """Arguments: method; path (of images and depth maps) or data (a data set with depth); recipe
    (one of RECIPES); backbone;
    kernels (of VFM-Adapter's ablation, or iConFormer's: none, static, layer, input, dynamic)."""
    known = dict(method="iconformer", path="", data="", recipe="small", backbone="", kernels="")
    arg = config.parse_arg(arg, **known)
    if arg.recipe not in RECIPES:
        raise UnknownName("recipe", arg.recipe, RECIPES)
    own = dict(small="depths" if arg.path else "scenes", nyu="nyu")
    name = arg.backbone or dict(small="vit_mini", nyu="swin_b")[arg.recipe]
    c = config.default(
        backbone=name, method=arg.method, task="depth", data_set=arg.data or own[arg.recipe]
    )
    if arg.path:
        c.data.path = arg.path
    if arg.kernels and "kernels" not in c.adapter:
        raise ConfigError(f"{arg.method} makes no kernels; vfm_adapter and iconformer do")
    if arg.kernels:
        c.adapter.kernels = arg.kernels
    if "fields" in c.data:
        c.data.fields = ("depth",)
    return small(c) if arg.recipe == "small" else nyu(c)


def small(c):
    """200 steps of 16 images, a head on three depths of the backbone."""
    if c.backbone.name == "vit_mini":
        c.backbone.update(dict(weights="vit_mini", image_size=64))
    depth = getattr(backbones.config(c.backbone.name), "depth", 0)
    if depth:  # hierarchical ones have levels of their own
        c.backbone.levels = tuple(depth * k // 3 - 1 for k in (1, 2, 3))
    c.adapter.update(SETTINGS.get(c.adapter.name, {}))
    c.task.update(dict(head="fused"))
    drawn = c.data.name == "scenes"
    c.input.train = "flip" if drawn else "random_resized_crop({size},scale=(0.5,1.0))|flip"
    c.input.eval = "resize({size})"
    c.input.update(dict(batch_size=16, eval_batch_size=50))
    if c.adapter.name == "full":  # the head starts at random, the backbone does not
        c.optim.lr_mults = (("head/.*", 10.0),)
    c.optim.update(dict(steps=200, lr=RATES.get(c.adapter.name, RATE), clip_norm=5.0))
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
