"""Merged runs answer alike in the libraries that they are written for, where those are installed.

What `convert` says loads its folder is run as it stands.
"""

import functools

import numpy as np
import pytest
import saved_runs

from dynadapt import convert

VIT = dict(dim=16, depth=2, heads=2, image_size=16)
DINOV2 = VIT | dict(backbone="dinov2_s14", patch=4)
SWIN = dict(backbone="swin_t", dim=8, depths=(2, 2), heads=(1, 2), window=2, image_size=16)
SAM = dict(backbone="sam_b16", dim=16, depth=2, heads=2, patch=4, image_size=16)
SAM |= dict(window=2, whole=(1,), neck=8)
EQUAL = 1e-5  # of the largest logit

RUNS = {
    **{f"vit {m} {p}": dict(method=m, pool=p) for m in ("lora", "ssf", "full") for p in ("cls", "mean")},
    "vit max": dict(pool="max"),
    "vit tanh": dict(act="gelu_tanh", pool="cls"),
    "vit epsilon": dict(epsilon=1e-3),
    "vit of another size": dict(side=24),
    "vit mlp": dict(mlp_ratio=37 / 16),
    "deit": dict(backbone="deit_ti16_distilled", patch=4, pool="cls"),
    "mae": dict(backbone="mae_b16", patch=4),
    **{f"dinov2 {p}": DINOV2 | dict(pool=p) for p in ("cls", "mean", "max")},
    **{f"dinov2 registers {p}": DINOV2 | dict(pool=p, registers=4) for p in ("cls", "mean")},
    "dinov2 gated": DINOV2 | dict(act="silu", gated=True, mlp_ratio=8 / 3, dim=24, pool="mean"),
    "swin": SWIN,
    "swin max": SWIN | dict(pool="max"),
    "swin padded": SWIN | dict(window=3),
    "swin lora": SWIN | dict(method="lora"),
    "sam": SAM,
    "sam max": SAM | dict(pool="max", epsilon=1e-5),
}
