"""FacT's published names, in its tensor-train form."""

import numpy as np


def method(meta):
    return "fact"


def settings(meta):
    h = meta["hyperparameters"]
    return dict(form="tt", rank=h["rank"], scale=h["scale"], dropout=0.0)


def ours(published):
    """Our adapter leaves by path, from tensors (or gradients) by their published names."""
    found = {
        "adapter/module/u": published["FacTu.weight"].T,
        "adapter/module/v": published["FacTv.weight"].T,
    }
    blocks = {name.split(".")[1] for name in published if name.startswith("blocks.")}
    for block in blocks:

        def inner(layer, block=block):
            return published[f"blocks.{block}.{layer}_FacTs.weight"].T

        qkv = np.concatenate([inner(f"attn.{n}") for n in "qkv"], axis=1)
        found[f"blocks/{block}/attn/qkv/adapter/s"] = qkv
        found[f"blocks/{block}/attn/proj/adapter/s"] = inner("attn.proj")
        for layer in ("fc1", "fc2"):
            found[f"blocks/{block}/mlp/{layer}/adapter/s"] = inner(f"mlp.{layer}")
    return found
