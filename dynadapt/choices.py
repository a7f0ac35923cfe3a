"""What a value may be: the name of a module, a keyword of its signature, a number of an interval.

A module may come from another distribution, by an entry point, or be a file that the user gives.
An interval is written `[0, 1)`; an infinite bound never belongs to it.
"""

import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import math
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

from dynadapt import files
from dynadapt.errors import ConfigError, UnknownName, suggest

# The packages whose modules other distributions add to, by entry points of a group of that name,
# and what each module must have.
OPEN = {"dynadapt.adapters": "adapt", "dynadapt.tasks": "Task", "dynadapt.data": "source"}


def names(package: ModuleType, skip: Iterable[str] = ()) -> list[str]:
    """Names of the package's modules, and of those that other distributions add to it."""
    return sorted(name for name in {*_own(package), *_added(package)} if name not in skip)


def module(package: ModuleType, name: str, kind: str, skip: Iterable[str] = ()) -> ModuleType:
    """The package's module of that name.

    Raises:
        UnknownName: naming the nearest.
        ConfigError: for another distribution's module that can't be used.
    """
    choices = names(package, skip)
    if name not in choices:
        raise UnknownName(kind, name, choices)
    if name in _own(package):
        return importlib.import_module(f"{package.__name__}.{name}")
    point = _added(package)[name]
    try:
        found = point.load()
    except Exception as error:
        reason = f"{type(error).__name__}: {files.first_line(error)}"
        raise ConfigError(f"the {kind} {name!r} of {_from(point)} fails: {reason}") from error
    if not hasattr(found, OPEN[package.__name__]):
        needed = OPEN[package.__name__]
        raise ConfigError(f"the {kind} {name!r} of {_from(point)} has no {needed!r} in it")
    return found


def _own(package: ModuleType) -> set[str]:
    return {found.name for found in pkgutil.iter_modules(package.__path__)}


def _added(package: ModuleType) -> dict[str, EntryPoint]:
    """What other distributions add to a package; raises a ConfigError for a name that is taken."""
    group = package.__name__
    found: dict[str, EntryPoint] = {}
    for point in _points(group) if group in OPEN else ():
        if point.name in _own(package) or point.name in found:
            other = _from(found[point.name]) if point.name in found else "dynadapt"
            raise ConfigError(
                f"{_from(point)} adds {point.name!r} to {group}, a name that {other} has already; "
                "it must be renamed, or that package uninstalled"
            )
        found[point.name] = point
    return found


@functools.cache
def _points(group: str) -> tuple[EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=group))


def _from(point: EntryPoint) -> str:
    return f"the package {point.dist.name!r}" if point.dist else repr(point.value)


# The modules of files that the user gave to this process, by the SHA-256 of the file.
_given: dict[str, ModuleType] = {}
_RECORD = re.compile(r"(.+\.py)#sha256=([0-9a-f]{64})")
_MOST = 1 << 20  # bytes of such a file


def is_file(name: Any) -> bool:
    """Whether a name is that of a file, as the user gives it or as `record` writes it."""
    return isinstance(name, str) and (name.endswith(".py") or is_record(name))


def is_record(name: Any) -> bool:
    """Whether a name is what `record` writes of a file."""
    return isinstance(name, str) and _RECORD.fullmatch(name) is not None


def record(name: str) -> str:
    """`/path/file.py#sha256=…` of a file that the user gives; any other name stays as it is."""
    if not is_file(name) or is_record(name):
        return name
    path, content = _read(name)
    return f"{path}#sha256={hashlib.sha256(content).hexdigest()}"


def title(name: str) -> str:
    """What a table calls a module: its name, or that of its file without the rest."""
    return Path(name.partition("#")[0]).stem if is_file(name) else name


def file_module(name: str, kind: str, needed: str) -> ModuleType:
    """The module of a file that has `needed`.

    A path is the user's word, and its code runs. A record is not, since a stranger may have written
    it: it stands for a file that the user gave to this process, and is never opened to be run.

    Raises:
        ConfigError: for a file that is not there, that fails, or that the user did not give.
    """
    if match := _RECORD.fullmatch(name):
        if match[2] not in _given:
            raise ConfigError(_missing(kind, *match.groups()))
        return _given[match[2]]
    path, content = _read(name)
    digest = hashlib.sha256(content).hexdigest()
    if digest not in _given:
        made = ModuleType(f"dynadapt_file_{digest[:16]}")
        made.__file__ = path
        sys.modules[made.__name__] = made  # data classes look their module up
        try:
            exec(compile(content, path, "exec"), vars(made))
        except BaseException as error:  # also of a file that ends the process
            del sys.modules[made.__name__]
            if isinstance(error, KeyboardInterrupt):
                raise
            raise ConfigError(fault(path, error)) from error
        if not hasattr(made, needed):
            raise ConfigError(f"the file {path} is no {kind}: it has no {needed!r}")
        _given[digest] = made
    return _given[digest]


def _read(name: str) -> tuple[str, bytes]:
    """Path and content of a file of code."""
    path = os.path.abspath(os.path.expanduser(name))
    try:
        files.regular(path, _MOST)
        return path, Path(path).read_bytes()
    except FileNotFoundError:
        beside = sorted(map(str, Path(name).parent.glob("*.py")))
        raise ConfigError(f"there is no file {name!r}; {suggest(name, beside)}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {name!r}: {error.strerror or error}") from error


def _missing(kind: str, path: str, digest: str) -> str:
    """What to say of a file that a record names and that the user did not give."""
    try:
        files.regular(path, _MOST)
        same = files.sha256(path) == digest
        state = "is still there" if same else "was changed since"
    except (OSError, ValueError):
        state = "is not there"
    what = f"the {kind} is code in the file {path!r} (SHA-256 {digest[:12]}…), which {state}"
    if _given:
        return f"{what}; no file that was given has this hash"
    return f"{what}; code of an adapter runs only if you give its file: --{kind}=FILE"


def fault(path: str, error: BaseException) -> str:
    """What is wrong with a file whose code raised an error, with the line."""
    if isinstance(error, SyntaxError):
        line = f", line {error.lineno}" if error.lineno else ""
        return f"{error.filename or path}{line}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    line = next((f", line {f.lineno}" for f in reversed(frames) if f.filename == path), "")
    return f"{path}{line}: {said(error)}"


def said(error: BaseException) -> str:
    """The kind of an error, and the first line of what it says."""
    lines = traceback.format_exception_only(error)[-1].splitlines()
    return lines[0].removeprefix("builtins.")


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
