"""Task families: head, loss, metrics, and the answer for a user. No base class, but a protocol.

A task class has `head(backbone, rngs=)`, `prepare(batch, key, train)`, `loss(outputs, batch)`,
`zero()`, `add(state, outputs, batch)`, `value(state)`, `predict(outputs)` and `headline`, the name
of the metric that a table shows. Everything but `value` runs under `jax.jit`.
"""

import sys
from types import ModuleType
from typing import Any

from dynadapt import choices

_HERE = sys.modules[__name__]


def names() -> list[str]:
    """All tasks."""
    return choices.names(_HERE)


def module(name: str) -> ModuleType:
    """The task's module; UnknownName where there is none."""
    return choices.module(_HERE, name, "task")


def settings(name: str) -> dict[str, Any]:
    """The task's settings and their defaults."""
    return choices.settings(module(name).Task, skip=("info",))


def from_config(section: Any, info: Any) -> Any:
    """The task of a config's `task` section, for a data set described by `info`."""
    given = dict(section)
    name = given.pop("name")
    choices.check_settings(f"task {name!r}", given, settings(name))
    return module(name).Task(info, **given)
