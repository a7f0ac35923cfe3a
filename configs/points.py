"""Classification of point clouds: of drawn things in a few minutes, of your own, of published sets.

    launch/local.sh train --config=configs/points.py --workdir=runs/points
    launch/local.sh train --config=configs/points.py:path=/data/things --workdir=runs/things
    launch/local.sh plan --config=configs/points.py:recipe=scanobjectnn,data=blank

The first takes the small shipped backbone and 1,000 drawn clouds of ten kinds of things, cut,
turned and among others (`hard`). docs/points.md has the figures, and says what a folder of clouds
is. Settings and rates of the small recipe are ours, chosen on `val` with one seed.
"""

from dynadapt import config
from dynadapt.errors import UnknownName

# Recipes: the backbone, and the data where none are given.
RECIPES = {
    "small": ("point_mini", "clouds"),
    "scanobjectnn": ("point_mae_s_g128", "scanobjectnn"),
    "modelnet40": ("point_mae_s", "modelnet40"),
}
RATES = {"linear": 3e-3, "full": 1e-3}  # of the small recipe; others have RATE
RATE = 3e-3
# What differs from the methods' own defaults: in the small recipe, and with width 384 in published
# ones. DAPT-X is our adapter_x with r and k of such a size that its count is the paper's.
SMALL = {
    "dapt": dict(dropout=0.0),
    "adapter_x": dict(dropout=0.0, scale=1.0),
    "adaptformer": dict(scale=1.0),
    "iconformer": dict(scale=1.0),
}
SETTINGS = {
    "dapt": dict(rank=64, dropout=0.2),
    "adapter_x": dict(heads=3, rank=24, width=32, scale=1.0),
}


def get_config(arg=None):
    """Arguments: method; path (of clouds) or data (a data set with clouds); recipe (one of
    RECIPES); backbone; variant (of the drawn clouds: clean, background, hard; of ScanObjectNN:
    obj_bg, obj_only, pb_t50_rs); early (DAPT's earlier settings for ScanObjectNN)."""
    known = dict(method="dapt", path="", data="", recipe="small", backbone="", variant="")
    arg = config.parse_arg(arg, **known, early=False)
    if arg.recipe not in RECIPES:
        raise UnknownName("recipe", arg.recipe, RECIPES)
    backbone, data = RECIPES[arg.recipe]
    data = arg.data or ("cloud_folder" if arg.path and arg.recipe == "small" else data)
    c = config.default(
        backbone=arg.backbone or backbone, method=arg.method, task="points", data_set=data
    )
    if arg.path:
        c.data.path = arg.path
    if "variant" in c.data:
        c.data.variant = arg.variant or {"clouds": "hard"}.get(data, c.data.variant)
    c.input.train = c.input.eval = ""
    if arg.recipe == "small":
        return small(c)
    return published(c, arg.recipe, arg.early)


def small(c):
    """150 steps of 32 clouds, of each 512 points."""
    if c.backbone.name == "point_mini":
        c.backbone.weights = "point_mini"
    c.adapter.update(SMALL.get(c.adapter.name, {}))
    c.task.update(dict(points=512, turn=True))
    c.input.update(dict(batch_size=32, eval_batch_size=200))
    if c.adapter.name == "full":  # the head starts at random, the backbone does not
        c.optim.lr_mults = (("head/.*", 3.0),)
    c.optim.update(dict(steps=150, lr=RATES.get(c.adapter.name, RATE), clip_norm=10.0))
    c.optim.weight_decay = 0.05
    return c


def published(c, recipe, early):
    """DAPT's: 300 epochs of 32 clouds, AdamW, cosine after 10 epochs of warm-up, clip 10."""
    scan = recipe == "scanobjectnn"
    if c.data.name == "blank":
        classes = 15 if scan else 40
        c.data.update(dict(fields=("points", "label"), class_count=classes, count=11_416))
        c.data.points = 2048 if scan else 8192
    c.adapter.update(SETTINGS.get(c.adapter.name, {}))
    if not scan and c.adapter.name == "dapt":
        c.adapter.update(dict(rank=72, dropout=0.0))
    if scan and early and c.adapter.name == "dapt":
        c.adapter.dropout = 0.0
    # ModelNet40's head reads class token and groups alone.
    c.task.update(dict(points=2048 if scan else 1024, prompts=scan))
    c.input.update(dict(batch_size=32, eval_batch_size=32))
    c.optim.update(dict(epochs=300.0, warmup=10 / 300, lr=5e-4, weight_decay=0.05, clip_norm=10.0))
    c.optim.drop_path = 0.3 if scan and not early else 0.1
    return c
