"""VTAB-1K: protocols, grids and settings of the methods, for `dynadapt vtab run`.

    dynadapt vtab run --methods=iconformer,lora --tasks=all --seeds=0,1,2 \
        --backbone=vit_b16 --weights=vit_b16_augreg_in21k.npz --workdir=runs/vtab
    dynadapt vtab report --workdir=runs/vtab
    dynadapt vtab run --config=configs/vtab.py:protocol=noah …

A protocol is all that two numbers must share to stand in one table: it is hashed, and its name
and hash are in every result. All of them choose on val200 after training on train800, then train
on both and evaluate the test split once, at the last epoch. The papers of noah, ssf and unit
choose, and take the best epoch, by test accuracy: their printed numbers are somewhat optimistic
beside these.
"""

from ml_collections import ConfigDict

from dynadapt import config
from dynadapt.errors import UnknownName

OURS = dict(
    # The backbone's image size takes the place of {size}.
    transform="resize({size})",
    normalise="inception",
    pool="cls",
    batch_size=64,
    # Length of training in epochs, or in steps where steps isn't 0.
    epochs=100.0,
    steps=0,
    optimizer="adamw",
    momentum=0.9,
    schedule="cosine",
    warmup=0.1,
    # Seeds of the runs that choose among the grid; "val" takes the best on val200, "first" none.
    select="val",
    tuning_seeds=(0,),
)
PROTOCOLS = {
    # Ours: the inputs that AugReg and the original ViT weights were trained on.
    "vtab": OURS,
    # NOAH, FacT, Convpass, RepAdapter: ImageNet's mean and deviation.
    "noah": dict(OURS, normalise="imagenet"),
    # SSF: timm's values for the in21k weights.
    "ssf": OURS | dict(batch_size=32),
    # Bi-LoRA and Bi-Adapter: pixels from 0 to 1.
    "unit": dict(OURS, normalise="unit"),
    # task_adaptation: SGD for 1,000 steps, rate 0.01 in stairs, no choice.
    "official": dict(
        OURS,
        transform="resize({size}, method='plain_bilinear')",
        normalise="unit",
        steps=1000,
        optimizer="sgd",
        schedule="stairs",
        warmup=0.0,
        select="first",
    ),
}

# Values to choose among, by the first pattern that matches METHOD/TASK; a method without a fixed
# scale has none. All are ours: published grids go with published test-set choices.
COMMON = dict(lr=(1e-3, 5e-3), weight_decay=(1e-4,), drop_path=(0.1,), scale=(0.1, 1.0, 10.0))
GRIDS = (
    ("linear/.*", dict(COMMON, lr=(1e-3, 1e-2, 1e-1), drop_path=(0.0,))),
    ("full/.*", dict(COMMON, lr=(1e-4, 3e-4, 1e-3))),
    ("(bitfit|norm_tune|ssf|vpt)/.*", dict(COMMON, lr=(1e-3, 5e-3, 2e-2))),
    (".*", COMMON),
)
SGD = dict(lr=(0.01,), weight_decay=(0.0,), drop_path=(0.0,), scale=(0.1,))

# What differs from the methods' defaults: the ranks of published VTAB-1K tables.
SETTINGS = dict(
    adaptformer=dict(rank=8),
    adapter=dict(rank=8, form="pfeiffer"),
    iconformer=dict(rank=8),
)


def get_config(arg=None):
    """Arguments: protocol (one of PROTOCOLS)."""
    arg = config.parse_arg(arg, protocol="vtab")
    if arg.protocol not in PROTOCOLS:
        raise UnknownName("protocol", arg.protocol, PROTOCOLS)
    official = arg.protocol == "official"
    return ConfigDict(
        dict(
            protocol=dict(name=arg.protocol, **PROTOCOLS[arg.protocol]),
            grids=((".*", SGD),) if official else GRIDS,
            settings=SETTINGS,
            # Images of one evaluation batch, seconds between checkpoints of what is being trained.
            eval_batch_size=256,
            save_seconds=60.0,
            compute=dict(dtype="float32", frozen_dtype="float32"),
        )
    )
