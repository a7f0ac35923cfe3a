"""Methods of adaptation, one a file, chosen by their module's name.

A method file has `adapt(backbone, *, rngs, **settings)`, which attaches; `TRAINS`, patterns of
backbone parameters that it trains besides; and `merge(backbone)` where it folds into the base
exactly.
"""

import sys
from types import ModuleType
from typing import Any

from flax import nnx

from dynadapt import choices, tree

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


def trains(name: str) -> tuple[str, ...]:
    """Patterns of backbone parameters that the method trains, with the `backbone/` prefix."""
    return tuple(f"backbone/{p}" for p in module(name).TRAINS)


def trainable(patterns: tuple[str, ...] = ()) -> Any:
    """The filter for `nnx.split`: in an adapter, in the head, or matching a pattern."""

    def trains_leaf(path: tuple, _: Any) -> bool:
        parts = [str(p) for p in path]
        return (
            "adapter" in parts or parts[0] == "head" or tree.matches_any(patterns, "/".join(parts))
        )

    return trains_leaf
