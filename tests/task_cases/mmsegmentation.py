"""Segmentation heads in mmsegmentation: settings, names, and what their cases expect."""

import re

import jax
import jax.numpy as jnp

from dynadapt.layers.resample import resize

HEADS = {"SegformerHead": "segformer", "UPerHead": "uper"}
LAYERS = (
    *((r"convs\.(\d+)", r"project/\1"), ("fusion_conv", "mix")),
    *((r"psp_modules\.(\d+)\.1", r"pool/\1"), ("bottleneck", "fuse"), ("fpn_bottleneck", "join")),
    *((r"lateral_convs\.(\d+)", r"lateral/\1"), (r"fpn_convs\.(\d+)", r"smooth/\1")),
)
LEAVES = {
    "conv.weight": "conv/kernel",
    **{"bn.weight": "norm/scale", "bn.bias": "norm/bias"},
    **{"bn.running_mean": "norm/mean", "bn.running_var": "norm/var"},
}


def head(meta):
    """Our head's name, the widths of its levels, its outputs and settings."""
    config = meta["config"]
    assert not config["align_corners"] and config.get("pool_scales", [1, 2, 3, 6]) == [1, 2, 3, 6]
    dims = [config["in_channels"][i] for i in config["in_index"]]
    settings = dict(channels=config["channels"], dropout=config["dropout_ratio"])
    name = next(ours for theirs, ours in HEADS.items() if theirs in meta["source"])
    return name, dims, config["num_classes"], settings


def maps(meta):
    """The names of the inputs that the head takes."""
    return [f"x{i}" for i in meta["config"]["in_index"]]


def path(name, meta):
    """Our path of a tensor."""
    if name.startswith("conv_seg."):
        return {"weight": "out/linear/kernel", "bias": "out/linear/bias"}[name.split(".")[1]]
    layer, leaf = re.fullmatch(r"(.+)\.((?:conv|bn)\.\w+)", name).groups()
    pattern, ours = next((p, ours) for p, ours in LAYERS if re.fullmatch(p, layer))
    return f"{re.sub(pattern, ours, layer)}/{LEAVES[leaf]}"


def found(meta, run, given, inputs):
    """Logits, losses, slopes, moved statistics; `run(maps, train)` answers map and statistics."""
    target = jnp.asarray(inputs["target"])
    valid = target != 255

    def loss(given):
        logits, stats = run(given, True)
        whole = jax.nn.log_softmax(resize(logits, target.shape[1:]))
        own = jnp.take_along_axis(whole, jnp.where(valid, target, 0)[..., None], -1)[..., 0]
        total = -jnp.where(valid, own, 0.0).sum()
        return total / valid.sum(), (logits, total / target.size, stats)

    train = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (mean, (logits, over_all, stats)), slopes = train(given)
    return {
        "logits_eval": jax.jit(lambda given: run(given, False)[0])(given),
        "logits_train": logits,
        "loss_valid_pixels": mean,
        "loss_all_pixels": over_all,
        **{f"grad_{n}": s for n, s in zip(maps(meta), slopes, strict=True)},
        **{f"after/{path}": x for path, x in stats.items()},
    }
