"""Mona's published names: in the detection code's Swin, and of one module."""

import re
from types import SimpleNamespace

import jax.numpy as jnp

from dynadapt.adapters import mona

BRANCHES = {"my_module_1": "attn", "my_module_2": "mlp"}
LAYERS = {
    **{"project1": "down", "project2": "up", "adapter_conv.projector": "mix", "norm": "norm"},
    **{f"adapter_conv.conv{i + 1}": f"convs/{i}" for i in range(3)},
}


def adapter(meta, rngs):
    """The adapter of a host as wide as the case's module."""
    h = meta["hyperparameters"]
    return mona.Mona(SimpleNamespace(dim=h["dim"]), rank=h["bottleneck"], rate=0.0, rngs=rngs)


def settings(meta):
    return dict(rank=64, dropout=0.0)  # the published bottleneck, on a narrower backbone


def loss(case, features):
    """The sum over stages of the mean square of their maps."""
    maps = features.maps
    return sum(jnp.square(m).mean() for m in maps), {f"stage{i}": m for i, m in enumerate(maps)}


def ours(published):
    """Our adapter leaves by path, from tensors (or gradients) by their published names."""
    return {_path(name): _value(value) for name, value in published.items()}


def _path(name):
    site = re.match(r"layers\.(\d+)\.blocks\.(\d+)\.(\w+)\.", name)
    path = ""
    if site:
        stage, block, module = site.groups()
        path = f"stages/{stage}/blocks/{block}/{BRANCHES[module]}/adapter/"
        name = name[site.end() :]
    if name in ("gamma", "gammax"):
        return path + {"gamma": "gamma", "gammax": "gamma_x"}[name]
    layer, kind = name.rsplit(".", 1)
    if kind == "weight":
        kind = "scale" if layer == "norm" else "kernel"
    return f"{path}{LAYERS[layer]}/{kind}"


def _value(value):
    if value.ndim == 4 and value.shape[2] > 1:
        return value.transpose(2, 3, 1, 0)
    return value.reshape(value.shape[:2]).T if value.ndim == 4 else value.T
