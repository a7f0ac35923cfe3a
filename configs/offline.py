"""The offline suite on the small shipped backbone: nine small tasks, every method, no download.

    launch/vtab.sh --config=configs/offline.py --suite=offline --methods=all --tasks=here \
        --seeds=0,1,2 --backbone=vit_mini --weights=vit_mini --workdir=runs/offline

One short recipe for all: 150 steps of 20 images, class token. Of two rates, that of
`configs/quickstart.py` and a third of it, the one that is better on val200 is taken, for each task;
settings are those of the quickstart. Ours; it is no protocol of any paper.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

QUICKSTART = runpy.run_path(str(pathlib.Path(__file__).with_name("quickstart.py")))


def get_config(arg=None):
    """No arguments."""
    grids = [
        (
            f"{method}/.*",
            dict(lr=(rate, rate / 3), weight_decay=(1e-4,), drop_path=(0.0,), scale=(1.0,)),
        )
        for method, rate in QUICKSTART["RATES"].items()
    ]
    protocol = dict(
        name="offline",
        transform="resize({size})",
        normalise="inception",
        pool="cls",
        batch_size=20,
        epochs=3.0,
        steps=0,
        optimizer="adamw",
        momentum=0.9,
        schedule="cosine",
        warmup=0.1,
        select="val",
        tuning_seeds=(0,),
    )
    return ConfigDict(
        dict(
            protocol=protocol,
            grids=tuple(grids),
            settings={
                method: {k: v for k, v in QUICKSTART["settings"](method).items() if k != "scale"}
                for method in QUICKSTART["RATES"]
            },
            eval_batch_size=250,
            save_seconds=60.0,
            compute=dict(dtype="float32", frozen_dtype="float32"),
        )
    )
