"""Heads: from a backbone's features to a task's outputs.

A dense head is a module with `made_for(like, outputs, *, rngs, **settings)`, chosen by its name:
for features whose shapes are `like` it makes what, called as `head(features, ctx)`, answers a tuple
of float32 maps `b h w outputs`. The first is the answer; others are auxiliary ones, there only in
training. What the channels mean, classes or a depth before its sigmoid, is the task's.
"""

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any

from flax import nnx

from dynadapt import choices
from dynadapt.errors import ConfigError

_HERE = sys.modules[__name__]
_INTERVALS = {"channels": "[1, 16384]", "dropout": "[0, 1)"}


def dense_names() -> list[str]:
    """All dense heads."""
    return [name for name in choices.names(_HERE) if _is_dense(name)]


def dense_module(name: str) -> ModuleType:
    """The dense head's module; UnknownName where there is none."""
    others = set(choices.names(_HERE)) - set(dense_names())
    return choices.module(_HERE, name, "head", skip=others)


def dense_settings(name: str) -> dict[str, Any]:
    """The dense head's settings and their defaults."""
    return choices.settings(dense_module(name).made_for, skip=("like", "outputs", "rngs"))


def dense_head(name: str, like: Any, outputs: int, *, rngs: nnx.Rngs, **given: Any) -> nnx.Module:
    """The dense head of that name for features like these.

    Args:
        name: of its module.
        like: shapes of the adapted backbone's features.
        outputs: channels of its maps.
        rngs: source of the random weights.
        **given: settings of the head; -1 is its own default.

    Raises:
        UnknownName: for a head or a setting that does not exist, naming the nearest.
        ConfigError: for a value that a setting can't have, or features that it can't serve.
    """
    known = dense_settings(name)
    given = {key: value for key, value in given.items() if value != -1}
    choices.check_settings(f"head {name!r}", given, known)
    for key, value in given.items():
        interval = _INTERVALS[key]
        if not choices.alike(value, known[key]) or not choices.inside(value, interval):
            kind = "a whole number, " if isinstance(known[key], int) else ""
            raise ConfigError(
                f"{key} of the head {name!r} must be {kind}{choices.words(interval)}, not {value!r}"
            )
    return dense_module(name).made_for(like, outputs, rngs=rngs, **given)


def _is_dense(name: str) -> bool:
    made_for = getattr(importlib.import_module(f"{__name__}.{name}"), "made_for", None)
    return made_for is not None and "outputs" in inspect.signature(made_for).parameters
