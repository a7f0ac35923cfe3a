"""Every choice by name is a module's name, and its settings are a signature's keywords."""

import importlib
import inspect
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
