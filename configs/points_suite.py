"""The 3D rows that papers on adapters of point clouds print, as one sweep.

    launch/local.sh sweep run --config=configs/points_suite.py --methods=dapt,adapter_x --dry_run
    launch/local.sh sweep run --methods=linear,dapt,adapter_x --workdir=runs/points_suite \\
        --config=configs/points_suite.py:scanobjectnn=/data/h5_files,modelnet40=/data/modelnet40 \\
        --config.backbone.weights=weights/point_mae_s_pretrained.pth

Three variants of ScanObjectNN, ModelNet40, and its four few-shot rows, which are means over ten
draws of the data. Recipes are those of configs/points.py; the few-shot rows have ModelNet40's,
which is ours. None of them was trained here.
"""

import pathlib
import runpy

from dynadapt import config
from dynadapt.errors import UnknownName

POINTS = runpy.run_path(str(pathlib.Path(__file__).with_name("points.py")))
DRAWS = 10  # of a few-shot row
ROWS = {
    "OBJ-BG": dict(variant="obj_bg"),
    "OBJ-ONLY": dict(variant="obj_only"),
    "PB-T50-RS": dict(variant="pb_t50_rs"),
    "ModelNet40": {},
    "5w10s": dict(ways=5, shots=10),
    "5w20s": dict(ways=5, shots=20),
    "10w10s": dict(ways=10, shots=10),
    "10w20s": dict(ways=10, shots=20),
}


def parsed(arg):
    known = dict(row="", method="dapt", fold=0, scanobjectnn="", modelnet40="")
    arg = config.parse_arg(arg, **known)
    if arg.row and arg.row not in ROWS:
        raise UnknownName("row", arg.row, ROWS)
    return arg


def get_rows(arg=None):
    """The rows by title, each with the arguments of its draws; that of `row` alone where given."""
    arg = parsed(arg)
    given = f"method={arg.method},scanobjectnn={arg.scanobjectnn},modelnet40={arg.modelnet40}"
    return {
        row: [
            f"row={row},fold={fold},{given}" for fold in range(DRAWS if "ways" in settings else 1)
        ]
        for row, settings in ROWS.items()
        if arg.row in ("", row)
    }


def get_config(arg=None):
    """Arguments: row (one of ROWS), method, fold (of a few-shot row), scanobjectnn and modelnet40
    (where they lie)."""
    arg = parsed(arg)
    settings = ROWS[arg.row or "PB-T50-RS"]
    name = "scanobjectnn" if "variant" in settings else "modelnet40"
    c = POINTS["get_config"](f"recipe={name},method={arg.method}")
    c.data.path = arg[name]
    c.data.update(settings)
    if "ways" in settings:
        c.data.fold = arg.fold
    return c
