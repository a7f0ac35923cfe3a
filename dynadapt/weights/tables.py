"""How the tensors of published checkpoints correspond to ours: rows, read in either direction.

A family's layouts stand in `weights/<family>.py`. `{i}` and `{j}` in a name are numbers; `{i+1}` is
one more.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

Tensors = Mapping[str, np.ndarray]
# A part of a name below which training programs keep weights that are averaged over the steps.
_AVERAGED = re.compile(r"(.*_)?(ema|swa|avg|averaged?|teacher)(_.*)?", re.IGNORECASE)
Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class How:
    """A change of layout: the source's tensors to one of ours, and back.

    Back needs the number of heads, where a source keeps heads apart.
    """

    ours: Callable[[list[np.ndarray]], np.ndarray]
    source: Callable[[np.ndarray, int], list[np.ndarray]]


def _thirds(x: np.ndarray) -> list[np.ndarray]:
    return np.split(x, 3, axis=-1)


COPY = How(lambda x: x[0], lambda x, _: [x])
# `out in` to `in out`.
LINEAR = How(lambda x: x[0].T, lambda x, _: [x.T])
# `out in h w` to `h w in out`.
CONV = How(lambda x: x[0].transpose(2, 3, 1, 0), lambda x, _: [x.transpose(3, 2, 0, 1)])
# `out in 1 1` and `out in 1` to `in out`.
POINT = How(lambda x: x[0][:, :, 0, 0].T, lambda x, _: [x.T[:, :, None, None]])
POINT1D = How(lambda x: x[0][:, :, 0].T, lambda x, _: [x.T[:, :, None]])
# Three layers, for queries, keys and values, to one.
QKV = How(
    lambda x: np.concatenate([v.T for v in x], axis=1), lambda x, _: [v.T for v in _thirds(x)]
)
QKV_BIAS = How(np.concatenate, lambda x, _: _thirds(x))
# Two layers, for the gate and for what it lets through, to one.
GATED = How(
    lambda x: np.concatenate([v.T for v in x], axis=1),
    lambda x, _: [v.T for v in np.split(x, 2, axis=-1)],
)
GATED_BIAS = How(np.concatenate, lambda x, _: np.split(x, 2, axis=-1))
# The three of attention with heads apart, `d heads d/heads`.
HEADS_QKV = How(
    lambda x: np.concatenate([v.reshape(len(v), -1) for v in x], axis=1),
    lambda x, heads: [v.reshape(len(v), heads, -1) for v in _thirds(x)],
)
HEADS_QKV_BIAS = How(
    lambda x: np.concatenate([v.reshape(-1) for v in x]),
    lambda x, heads: [v.reshape(heads, -1) for v in _thirds(x)],
)
HEADS_OUT = How(
    lambda x: x[0].reshape(-1, x[0].shape[-1]),
    lambda x, heads: [x.reshape(heads, -1, x.shape[-1])],
)


@dataclasses.dataclass(frozen=True)
class TensorRow:
    """One of our leaves and where a source keeps it.

    Attributes:
        source: name in the source, or several names. One that starts with "^" stands outside the
            prefix that the backbone's other names have there.
        ours: path within the backbone, or below `head/`.
        how: the change of layout.
    """

    source: str | tuple[str, ...]
    ours: str
    how: How = COPY

    def names(self, path: str, prefix: str) -> list[str] | None:
        """The source's names of our `path`; None if this row is about another path."""
        found = _pattern(self.ours).fullmatch(path)
        if not found:
            return None
        numbers = {k: int(v) for k, v in found.groupdict().items()}
        return [_absolute(_filled(s, numbers), prefix) for s in self.sources]

    def path(self, name: str, prefix: str) -> str | None:
        """Our path of the source's `name`; None if this row is about other names."""
        for source in self.sources:
            found = _pattern(_absolute(source, prefix)).fullmatch(name)
            if found:
                numbers = {
                    k.removesuffix("_next"): int(v) - k.endswith("_next")
                    for k, v in found.groupdict().items()
                }
                return _filled(self.ours, numbers)
        return None

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,) if isinstance(self.source, str) else self.source


@dataclasses.dataclass(frozen=True)
class Layout:
    """The names that one publisher gives the tensors of one family.

    Attributes:
        name: the publisher: timm, hf, meta, microsoft, google, point_mae.
        family: module of `backbones`.
        anchor: a name that the layout always has; what stands before it is the prefix of all.
        rows: where each of our leaves is.
        config: the backbone's sizes and options from the shapes, by name without prefix, and from
            a `config.json` (empty where there is none). Options include what shapes can't tell
            and the publisher decides: epsilon, activation, resampling rule.
        serves: whether a backbone with this config can be written in the layout.
        marks: patterns of further names, of which each must be there for the layout to be meant.
        extras: patterns of names that a backbone does not need.
        before: prefix that the publisher's own files have, without and with a classifier.
        assumes: config fields that nothing but a `config.json` tells.
    """

    name: str
    family: str
    anchor: str
    rows: tuple[TensorRow, ...]
    config: Callable[[Shapes, Mapping[str, Any]], dict[str, Any]]
    serves: Callable[[Any], bool] = lambda config: True
    marks: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    before: tuple[str, str] = ("", "")
    assumes: tuple[str, ...] = ()

    def usual(self, head: bool) -> str:
        """The prefix that the publisher's own files have."""
        return self.before[head]

    def prefixes(self, names: Iterable[str]) -> list[str]:
        """What stands before the anchor, averaged weights first; [] for another layout's names."""
        names = list(names)
        found = {n.removesuffix(self.anchor) for n in names if _ends_with(n, self.anchor)}
        ordered = sorted(found, key=lambda p: (not averaged(p), len(p), p))
        return [p for p in ordered if self._marked(names, p)]

    def _marked(self, names: list[str], prefix: str) -> bool:
        inside = [n.removeprefix(prefix) for n in names if n.startswith(prefix)]
        return all(any(re.fullmatch(mark, n) for n in inside) for mark in self.marks)

    def to_ours(self, source: Tensors, prefix: str) -> tuple[dict, list[str]]:
        """Our values, and the source's names inside the prefix that nothing is known of."""
        values, strange = {}, []
        for name in source:
            paths = [row.path(name, prefix) for row in self.rows]
            found = [(row, p) for row, p in zip(self.rows, paths, strict=True) if p]
            if not found:
                inside = name.removeprefix(prefix)
                known = any(re.fullmatch(e, inside) for e in self.extras)
                if name.startswith(prefix) and not known:
                    strange.append(name)
                continue
            row, path = found[0]
            names = row.names(path, prefix)
            if path not in values and all(n in source for n in names):
                values[path] = row.how.ours([source[n] for n in names])
        return values, strange

    def to_source(self, values: Tensors, prefix: str, heads: int) -> dict[str, np.ndarray]:
        """The source's tensors of our values; KeyError for a path that the layout has no row of."""
        tensors = {}
        for path, value in values.items():
            found = [(row, row.names(path, prefix)) for row in self.rows]
            row, names = next(((r, n) for r, n in found if n), (None, None))
            if row is None:
                raise KeyError(path)
            tensors.update(zip(names, row.how.source(value, heads), strict=True))
        return tensors

    def source_names(self, path: str, prefix: str) -> list[str]:
        """The source's names of one of our paths."""
        return next((n for row in self.rows if (n := row.names(path, prefix))), [])


def averaged(name: str) -> bool:
    """Whether a name, or the part before one, says that its weights are averaged over steps."""
    return any(_AVERAGED.fullmatch(part) for part in re.split("[./]", name))


def count(shapes: Shapes, pattern: str) -> int:
    """How many numbers stand in the place of the group in names that match the pattern."""
    return len({m.group(1) for n in shapes if (m := re.match(pattern, n))})


def _pattern(name: str) -> re.Pattern[str]:
    if name not in _PATTERNS:
        parts = re.split(r"\{(\w)(\+1)?\}", name)
        text = re.escape(parts[0])
        for number, following, rest in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
            group = number + ("_next" if following else "")
            text += rf"(?P<{group}>\d+){re.escape(rest)}"
        _PATTERNS[name] = re.compile(text)
    return _PATTERNS[name]


_PATTERNS: dict[str, re.Pattern[str]] = {}


def _filled(name: str, numbers: Mapping[str, int]) -> str:
    return re.sub(r"\{(\w)(\+1)?\}", lambda m: str(numbers[m[1]] + bool(m[2])), name)


def _absolute(name: str, prefix: str) -> str:
    return name[1:] if name.startswith("^") else prefix + name


def _ends_with(name: str, anchor: str) -> bool:
    return name == anchor or name.endswith(("." + anchor, "/" + anchor))
