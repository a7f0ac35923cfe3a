"""A sweep of seconds, for tests: few steps, and a grid as large as asked for.

python tests/tiny_sweep.py vtab run --config=tests/configs_sweep.py:steps=4,lrs=2 …
"""

import runpy
from pathlib import Path

from dynadapt import config

SWEEP = Path(__file__).resolve().parents[1] / "configs" / "vtab.py"
LRS, SCALES = (1e-2, 3e-2, 1e-3), (1.0, 0.1)


def get_config(arg=None):
    """Arguments: steps, batch, lrs and scales (how many of each), select, save (seconds)."""
    arg = config.parse_arg(arg, steps=4, batch=16, lrs=1, scales=1, select="val", save=60.0)
    c = runpy.run_path(str(SWEEP))["get_config"]()
    c.protocol.update(dict(steps=arg.steps, batch_size=arg.batch, select=arg.select))
    point = dict(lr=LRS[: arg.lrs], weight_decay=(1e-4,), drop_path=(0.1,))
    c.grids = ((".*", dict(point, scale=SCALES[: arg.scales])),)
    c.settings = dict(lora=dict(rank=2), iconformer=dict(rank=4), adapter=dict(rank=4))
    c.eval_batch_size, c.save_seconds = 50, arg.save
    return c
