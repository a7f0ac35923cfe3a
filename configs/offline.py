"""The offline suite on the small shipped backbone: nine small tasks, every method, no download.

    launch/vtab.sh --config=configs/offline.py --suite=offline --methods=all --tasks=here \
        --seeds=0,1,2 --backbone=vit_mini --weights=vit_mini --workdir=runs/offline

The protocol `vtab` but shorter: 150 steps of 20 images. Of three rates, that of
`configs/quickstart.py`, a third and a tenth of it, the one that is best on val200 is taken, for
each task; settings are those of the quickstart but for OWN. Ours; it is no protocol of any paper.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

QUICKSTART, VTAB = (
    runpy.run_path(str(pathlib.Path(__file__).with_name(name)))
    for name in ("quickstart.py", "vtab.py")
)


# At the quickstart's rank some seeds collapse on the drawn tasks; docs/offline.md has the figures.
OWN = {"vfm_adapter": dict(rank=8)}


def get_config(arg=None):
    """No arguments."""
    grids = [
        (
            f"{method}/.*",
            dict(
                lr=(rate, rate / 3, rate / 10), weight_decay=(1e-4,), drop_path=(0.0,), scale=(1.0,)
            ),
        )
        for method, rate in QUICKSTART["RATES"].items()
    ]
    protocol = VTAB["OURS"] | dict(name="offline", batch_size=20, epochs=3.0)
    return ConfigDict(
        dict(
            protocol=protocol,
            grids=tuple(grids),
            settings={
                method: {k: v for k, v in QUICKSTART["settings"](method).items() if k != "scale"}
                | OWN.get(method, {})
                for method in QUICKSTART["RATES"]
            },
            eval_batch_size=250,
            save_seconds=60.0,
            compute=dict(dtype="float32", frozen_dtype="float32"),
        )
    )
