"""Classification of point clouds: of drawn things in a few minutes, of your own, of published sets.

    launch/local.sh train --config=configs/points.py --workdir=runs/points
    launch/local.sh train --config=configs/points.py:path=/data/things --workdir=runs/things
    launch/local.sh plan --config=configs/points.py:recipe=scanobjectnn,data=blank

The first takes the small shipped backbone and 1,000 drawn clouds of ten kinds of things, cut,
turned and among others (`hard`). docs/clouds_data.md says what a folder of clouds is, and
docs/points.md has the figures. Settings of the small recipe are ours; rates were chosen on `val`
with one seed.
"""

from dynadapt import config
from dynadapt.errors import UnknownName

# Recipes: the backbone, and the data where none are given.
RECIPES = {
    "small": ("point_mini", "clouds"),
    "scanobjectnn": ("point_mae_s_g128", "scanobjectnn"),
    "modelnet40": ("point_mae_s", "modelnet40"),
}
RATES = {"full": 1e-3}  # of the small recipe; others have RATE
RATE = 1e-2
# What differs from the methods' own defaults: in the small recipe, and in published ones. DAPT-X is
# adapter_x, with r and k (ours) such that its count is the paper's.
SMALL = {
    "dapt": dict(dropout=0.0),
    "adapter_x": dict(dropout=0.0, scale=1.0),
    "adaptformer": dict(scale=1.0),
}
SETTINGS = {
    "dapt": dict(rank=64, dropout=0.2, scaled=False),
    "adapter_x": dict(heads=3, rank=24, width=32, scale=1.0),
}


def get_config(arg=None):
    """Arguments: method; path (of clouds) or data (a data set with clouds); recipe (one of
    RECIPES); backbone; variant (of drawn clouds or of ScanObjectNN); early (DAPT's first settings
    for ScanObjectNN, without dropout and with drop-path 0.1)."""
    c, arg = chosen(arg, "points", RECIPES, own="cloud_folder", early=False)
    if c.data.name == "clouds":
        c.data.count = 600  # of which training takes 512 at random
    if arg.recipe == "small":
        c = small(c)
        c.task.points = 512
        return c
    return published(c, arg.recipe, arg.early)


def chosen(arg, task, recipes, own, **more):
    """The config that the arguments choose, and these; `own` is the data set of a path."""
    known = dict(method="dapt", path="", data="", recipe="small", backbone="", variant="")
    arg = config.parse_arg(arg, **known, **more)
    if arg.recipe not in recipes:
        raise UnknownName("recipe", arg.recipe, recipes)
    backbone, data = recipes[arg.recipe]
    data = arg.data or (own if arg.path and arg.recipe == "small" else data)
    c = config.default(
        backbone=arg.backbone or backbone, method=arg.method, task=task, data_set=data
    )
    if arg.path:
        c.data.path = arg.path
    if data == "clouds" or arg.variant:
        c.data.variant = arg.variant or "hard"
    if data == "blank":
        c.data.fields = ("points", "label", *(("parts",) if task == "parts" else ()))
    c.input.train = c.input.eval = ""
    return c, arg


def small(c):
    """150 steps of 32 clouds, turned at random."""
    if c.backbone.name == "point_mini":
        c.backbone.weights = "point_mini"
    c.adapter.update(SMALL.get(c.adapter.name, {}))
    c.task.turn = True
    c.input.update(dict(batch_size=32, eval_batch_size=200))
    if c.adapter.name == "full":  # the head starts at random, the backbone does not
        c.optim.lr_mults = (("head/.*", 3.0),)
    rate = RATES.get(c.adapter.name, RATE)
    c.optim.update(dict(steps=150, lr=rate, clip_norm=10.0, weight_decay=0.05))
    return c


def published(c, recipe, early):
    """DAPT's: 300 epochs of 32 clouds, AdamW, cosine after 10 epochs of warm-up, clip 10."""
    scan = recipe == "scanobjectnn"
    if c.data.name == "blank":
        c.data.update(dict(class_count=15 if scan else 40, count=11_416 if scan else 9_843))
        c.data.points = 2048 if scan else 8192
    c.adapter.update(SETTINGS.get(c.adapter.name, {}))
    if c.adapter.name == "dapt" and (early or not scan):
        c.adapter.update(dict(dropout=0.0) if scan else dict(rank=72, dropout=0.0))
    # ModelNet40's head reads class token and groups alone.
    c.task.update(dict(points=2048 if scan else 1024, prompts=scan))
    c.input.update(dict(batch_size=32, eval_batch_size=32))
    c.optim.update(dict(epochs=300.0, warmup=10 / 300, lr=5e-4, weight_decay=0.05, clip_norm=10.0))
    c.optim.drop_path = 0.3 if scan and not early else 0.1
    return c
