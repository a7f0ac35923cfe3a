"""LoRand's published names, of one module."""

from types import SimpleNamespace

import numpy as np

from dynadapt.adapters import lorand

PROJECTIONS = {"project1": "down", "project2": "up"}


def adapter(meta, rngs):
    """The adapter of a host as wide as the case's module."""
    h = meta["hyperparameters"]
    host = SimpleNamespace(dim=h["dim"])
    given = dict(factor=h["factor"], branches=h["branches"], rank=h["kernel_dim"], bias=True)
    return lorand.Lorand(host, **given, rngs=rngs)


def ours(published):
    """Our adapter leaves by path, from tensors by their published names."""
    found = {}
    for theirs, path in PROJECTIONS.items():
        found[f"{path}/bias"] = published[f"{theirs}.bias"]
        for factor in "AgB":
            parts = [k for k in published if k.startswith(f"{theirs}.param_dict.{factor}")]
            values = [published[f"{theirs}.param_dict.{factor}{i}"] for i in range(len(parts))]
            found[f"{path}/{factor.lower()}"] = np.stack(values)
    return found
