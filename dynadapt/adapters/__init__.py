"""Methods of adaptation, one a file, chosen by their module's name.

A method file has `adapt(backbone, *, rngs, **settings)`, which attaches, and `TRAINS`, patterns of
backbone parameters that it trains besides. Where the method folds into the base exactly, its
adapters have `merged(host, shared)`: the host's parameters with the adapter in them, by name, in
float32; `shared` is the module that the root lends. Where it does not, `NOT_MERGEABLE` may say why.
"""

import sys
from types import ModuleType
from typing import Any

import jax.numpy as jnp
from flax import nnx

from dynadapt import choices, tree
from dynadapt.attach import Shared, adapted, detach
from dynadapt.errors import DynadaptError, NotMergeable

_HERE = sys.modules[__name__]


def names() -> list[str]:
    """All methods."""
    return choices.names(_HERE)


def module(name: str) -> ModuleType:
    """The method's module; UnknownName where there is none."""
    return choices.module(_HERE, name, "method")


def settings(name: str) -> dict[str, Any]:
    """The method's settings and their defaults."""
    return choices.settings(module(name).adapt, skip=("backbone", "rngs"))


def adapt(backbone: nnx.Module, name: str, *, rngs: nnx.Rngs, **given: Any) -> None:
    """Attaches the method to the backbone, in place."""
    choices.check_settings(f"method {name!r}", given, settings(name))
    module(name).adapt(backbone, rngs=rngs, **given)


def merge(backbone: nnx.Module, name: str) -> None:
    """Folds the method's adapters into the weights and detaches them, in place.

    What is left has the parameters of the bare backbone, in their own dtypes; the sums are float32.

    Raises:
        NotMergeable: for a method, or a layer, that can't take its adapter in.
        DynadaptError: for a merged weight that is not finite. Nothing is changed then.
    """
    why = getattr(module(name), "NOT_MERGEABLE", "its effect depends on the input")
    hosts, shared = dict(adapted(backbone)), None
    if "" in hosts and isinstance(hosts[""].adapter, Shared):
        shared = hosts.pop("").adapter.module
    merged = []
    for path, host in hosts.items():
        if not hasattr(host.adapter, "merged"):
            raise NotMergeable(f"{name} can't be merged into the weights: {why}")
        for leaf, value in host.adapter.merged(host, shared).items():
            old = getattr(host, leaf)
            if old is None:
                raise NotMergeable(f"{name} can't be merged into {path!r}, which has no {leaf}")
            value = value.astype(old.dtype)
            if not jnp.isfinite(value).all():
                raise DynadaptError(f"merged, {path}/{leaf} is not finite; nothing was changed")
            merged.append((old, value))
    for old, value in merged:
        old[...] = value
    detach(backbone)


def trains(name: str) -> tuple[str, ...]:
    """Patterns of backbone parameters that the method trains, with the `backbone/` prefix."""
    return tuple(f"backbone/{p}" for p in module(name).TRAINS)


def trainable(patterns: tuple[str, ...] = ()) -> Any:
    """The filter for `nnx.split`: in an adapter, in the head, or matching a pattern.

    Statistics of batch norms never train.
    """

    def trains_leaf(path: tuple, leaf: Any) -> bool:
        if isinstance(leaf, nnx.BatchStat):
            return False
        parts = [str(p) for p in path]
        return (
            "adapter" in parts or parts[0] == "head" or tree.matches_any(patterns, "/".join(parts))
        )

    return trains_leaf
