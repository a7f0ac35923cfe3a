"""What a value may be: the name of a module, a keyword of its signature, a number of an interval.

An interval is written `[0, 1)`; an infinite bound never belongs to it.
"""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from dynadapt.errors import UnknownName


def names(package: ModuleType, skip: Iterable[str] = ()) -> list[str]:
    """Names of the package's modules."""
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in skip)


def module(package: ModuleType, name: str, kind: str, skip: Iterable[str] = ()) -> ModuleType:
    """The package's module of that name.

    Raises:
        UnknownName: naming the nearest.
    """
    choices = names(package, skip)
    if name not in choices:
        raise UnknownName(kind, name, choices)
    return importlib.import_module(f"{package.__name__}.{name}")


def settings(function: Callable[..., Any], skip: Iterable[str] = ()) -> dict[str, Any]:
    """The function's keywords and their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in skip}


def check_settings(kind: str, given: Iterable[str], known: Mapping[str, Any]) -> None:
    """Raises UnknownName for the first given setting that is not known."""
    for key in given:
        if key not in known:
            raise UnknownName(f"setting of {kind}", key, known)


def alike(value: Any, default: Any) -> bool:
    """Whether a value is of the default's type: whole numbers are numbers, lists are tuples."""
    kind = {float: int | float, tuple: tuple | list}.get(type(default), type(default))
    return isinstance(value, kind) and isinstance(value, bool) == isinstance(default, bool)


def _number(value: Any) -> bool:
    """Whether a value is a number, which truth values are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def inside(value: Any, interval: str) -> bool:
    """Whether a value is a number of the interval."""
    low, high = _bounds(interval)
    if not _number(value) or not low <= value <= high:
        return False
    return (value != low or interval[0] == "[") and (value != high or interval[-1] == "]")


def words(interval: str) -> str:
    """The interval in words: `above 0`, `at least 1`, `in [0, 1)`, `finite`."""
    low, high = _bounds(interval)
    if math.isfinite(high):
        return f"in {interval}"
    if math.isinf(low):
        return "finite"
    return f"{'above' if interval[0] == '(' else 'at least'} {low:g}"


def _bounds(interval: str) -> tuple[float, float]:
    low, high = map(float, interval[1:-1].split(", "))
    return low, high
