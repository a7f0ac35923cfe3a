"""Paths of leaves, ordered pattern lists, counts: the one language in which policies speak.

A path is the `/`-joined way from the model to a leaf: `backbone/blocks/3/attn/qkv/kernel`. Every
policy
(what trains, learning rates, decay, sharding) is an ordered list of `(pattern, value)`; a pattern
is a
regular expression that must match the whole path, and the first match wins.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from dynadapt.errors import ConfigError, suggest

Rules = Sequence[tuple[str, Any]]


def path_string(path: Iterable[Any]) -> str:
    """Joins a JAX key path, or names, to `a/b/c`; the `value` of a Param is no segment."""
    names = []
    for key in path:
        if isinstance(key, jax.tree_util.GetAttrKey):
            if key.name != "value":
                names.append(key.name)
        else:
            names.append(str(getattr(key, "key", getattr(key, "idx", key))))
    return "/".join(names)


def leaves(tree: Any) -> dict[str, Any]:
    """All leaves of a tree by path, in the order of the tree."""
    return {path_string(p): x for p, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


def map_leaves(fn: Callable[[str, Any], Any], tree: Any) -> Any:
    """The tree with every leaf replaced by `fn(path, leaf)`."""
    return jax.tree_util.tree_map_with_path(lambda p, x: fn(path_string(p), x), tree)


def replace(tree: Any, values: dict[str, Any]) -> Any:
    """The tree with the leaves taken from `values` by path; every path must be there."""
    return map_leaves(lambda path, _: values[path], tree)


def matches(pattern: str, path: str) -> bool:
    """Whether the pattern matches the whole path."""
    return re.fullmatch(pattern, path) is not None


def matches_any(patterns: Iterable[str], path: str) -> bool:
    """Whether one of the patterns matches the whole path."""
    return any(matches(p, path) for p in patterns)


def within(patterns: Iterable[str], path: str) -> bool:
    """Whether one of the patterns matches the path, or that of a module in which it lies."""
    return any(matches(rf"(?:{p})(?:/.*)?", path) for p in patterns)


def assign(rules: Rules, paths: Iterable[str], *, what: str = "rule") -> dict[str, Any]:
    """The value of the first matching rule for each path.

    Raises:
        ConfigError: for paths that no rule matches (total cover), or rules that match no path.
    """
    paths = list(paths)
    chosen = {}
    for path in paths:
        for pattern, value in rules:
            if matches(pattern, path):
                chosen[path] = value
                break
    missing = [p for p in paths if p not in chosen]
    if missing:
        raise ConfigError(f"no {what} covers {missing[0]!r} ({len(missing)} paths in all)")
    check_used([pattern for pattern, _ in rules if pattern != ".*"], paths, what=what)
    return chosen


def pattern_problems(name: str, patterns: Iterable[Any]) -> list[str]:
    """Patterns that are no regular expression."""
    problems = []
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            problems.append(f"{name} has {pattern!r}, which is no regular expression: {error}")
    return problems


def check_used(patterns: Iterable[str], paths: Iterable[str], *, what: str) -> None:
    """Raises a ConfigError that names the nearest paths for each pattern that matches none."""
    paths = list(paths)
    unused = [p for p in patterns if not any(matches(p, path) for path in paths)]
    if unused:
        raise ConfigError(
            *(f"the {what} {p!r} matches nothing; {suggest(p, groups(paths))}" for p in unused)
        )


def group(path: str) -> str:
    """The path with layer numbers replaced by `*`: `blocks/3/mlp` becomes `blocks/*/mlp`."""
    return re.sub(r"(^|/)\d+(?=/|$)", r"\1*", path)


def groups(paths: Iterable[str]) -> list[str]:
    """The groups of the paths, each once, in order."""
    return list(dict.fromkeys(map(group, paths)))


def size(tree: Any) -> int:
    """Number of parameters; works on arrays and on abstract shapes."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def nbytes(tree: Any) -> int:
    """Number of bytes of all leaves."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def table(tree: Any) -> list[tuple[str, int, str, int, int]]:
    """Rows `(group, leaves, shape, parameters, bytes)`, one for equal groups and shapes."""
    rows: dict[tuple[str, str], list[int]] = {}
    for path, x in leaves(tree).items():
        row = rows.setdefault((group(path), "x".join(map(str, x.shape))), [0, 0, 0])
        count = math.prod(x.shape)
        row[0] += 1
        row[1] += count
        row[2] += count * x.dtype.itemsize
    return [(name, n, shape, count, size) for (name, shape), (n, count, size) in rows.items()]
