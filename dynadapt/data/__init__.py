"""Data sets: one module each, with `source(split, **settings)`, found by its module name.

A split is written `name`, `name[a:b]` or a sum of these: `train[:800]+validation[:200]`. Positions
count from 0, negative ones from the end; a slice that runs past the end is an error. Behind it may
stand parts that have its mix of classes, such as `train|rest(0, 5)`: see `dynadapt.data.parts`.
"""

import contextlib
import inspect
import re
import sys
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from dynadapt import choices
from dynadapt.data import parts
from dynadapt.data.fields import Field
from dynadapt.data.lists import nfc, read_lines
from dynadapt.errors import DataError, MissingSplit, UnknownName, suggest

# Modules of this package that are not data sets.
_PIPELINE = (
    *("annotated", "arguments", "class_folders", "cloud_files", "cloud_sources", "colours"),
    *("decode", "derived", "fields", "frames", "geometric", "hdf5", "images", "listing", "lists"),
    *("loader", "maps", "matlab", "objects", "outlines", "pairs", "parts", "solids"),
    *("structured", "surfaces", "transforms"),
)
MAX_CLASSES = 1_000_000  # of a set; each has a name, and a row in a head
_PART = re.compile(r"([\w.\-]+)(?:\[(-?\d{1,18})?:(-?\d{1,18})?\])?")


@dataclass(frozen=True)
class Info:
    """What a data set is: its fields, the size of each split that is there, how to obtain it, and a
    SHA-256 that changes when the data does ("" where there is none)."""

    name: str
    fields: Mapping[str, Field]
    counts: Mapping[str, int]
    obtain: str
    fingerprint: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their numbers; () where no field has any."""
        return next((f.classes for f in self.fields.values() if f.classes), ())


def labelled(
    name: str,
    classes: Sequence[str],
    counts: Mapping[str, int] | None = None,
    obtain: str = "",
    fingerprint: str = "",
    size: tuple[int, ...] = (),
) -> Info:
    """What a data set of images with one class each is.

    Args:
        name: of the set.
        classes: their names, in the order of their numbers.
        counts: size of each split.
        obtain: how to.
        fingerprint: a SHA-256 of the data.
        size: `(h, w)` of the images where all are of one size.
    """
    fields = {"image": Field("pixels", size=size), "label": Field("number", classes=tuple(classes))}
    return Info(name, fields, counts or {}, obtain, fingerprint)


def numbered(classes: int, side: int = 0) -> Info:
    """What a data set of images of `side` pixels and so many classes without names is."""
    return labelled("numbered", tuple(map(str, range(classes))), size=(side, side))


@dataclass(frozen=True)
class Benchmark:
    """A task of a suite such as VTAB-1K, whose data sets have the splits `SPLITS`.

    Attributes:
        title: how tables call it.
        group: "natural", "specialized" or "structured".
        classes: how many there are.
        test: images of the test split as published.
    """

    name: str
    title: str
    group: str
    classes: int
    test: int


SPLITS = ("train800", "val200", "train800val200", "test")  # of every task of a suite


class Source(Protocol):
    """Random access to the examples of a split.

    An example is `dict(image=<encoded bytes or uint8 h w 3>, label=int, name=str)`, where `name` is
    a file path or `split[position]`. Reading must be safe from several threads; `in_memory = True`
    says that it needs none. `labels`, where it has them, are the classes of all examples.
    """

    info: Info

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def names() -> list[str]:
    """The data sets that `module` knows."""
    return choices.names(sys.modules[__name__], skip=_PIPELINE)


def module(name: str) -> ModuleType:
    """The module of the data set `name`; raises UnknownName."""
    return choices.module(sys.modules[__name__], name, "data set", skip=_PIPELINE)


def parse(split: str) -> list[tuple[str, slice]]:
    """Splits `"train[:8]+test"` into its names and slices; raises DataError."""
    parts = [_PART.fullmatch(part.strip()) for part in split.split("+")]
    if None in parts:
        raise DataError(
            f"cannot read the split {split!r}; write a name such as train, a slice such as "
            "train[:800], or a sum of these with +"
        )
    bounds = [(p[1], *(None if b is None else int(b) for b in p.groups()[1:])) for p in parts]
    return [(name, slice(start, stop)) for name, start, stop in bounds]


class Rows(Sequence):
    """The examples that a split selects, as (base split, position) pairs in order."""

    def __init__(self, split: str, counts: Mapping[str, int]):
        self._parts = [(name, _positions(name, rows, counts)) for name, rows in parse(split)]
        self._ends = list(accumulate(len(positions) for _, positions in self._parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> tuple[str, int]:
        index = range(len(self))[index]
        part = bisect_right(self._ends, index)
        name, positions = self._parts[part]
        return name, positions[index - self._ends[part]]  # negative: counts from the part's end


def _positions(name: str, rows: slice, counts: Mapping[str, int]) -> range:
    if name not in counts:
        raise MissingSplit(f"there is no split {name!r}; {suggest(name, counts)}")
    count = counts[name]
    positions = range(count)[rows]
    written = f"{name}[{'' if rows.start is None else rows.start}:"
    written += f"{'' if rows.stop is None else rows.stop}]"
    if any(bound is not None and abs(bound) > count for bound in (rows.start, rows.stop)):
        raise DataError(f"{written} runs past the {count} examples of {name}")
    if not positions:
        raise DataError(f"{written} of {count} examples is empty")
    return positions


class Arrays:
    """A source over values of a field, such as images `n h w 3` (or grey `n h w`), uint8, and their
    labels `n`, held in memory."""

    in_memory = True

    def __init__(
        self,
        split: str,
        values: Mapping[str, np.ndarray],
        labels: Mapping[str, np.ndarray],
        info: Info,
        field: str = "image",
    ):
        self.info = info
        self._values, self._labels, self._field = values, labels, field
        self._rows = Rows(split, info.counts)

    @property
    def labels(self) -> np.ndarray:
        """The class of each example."""
        return np.array([self._labels[name][position] for name, position in self._rows], int)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, position = self._rows[index]
        return {
            self._field: self._values[name][position],
            "label": int(self._labels[name][position]),
            "name": f"{name}[{position}]",
        }


def read_classes(folder: Path, file: str = "classes.txt") -> tuple[str, ...]:
    """Class names from a file in `folder`, one a line in label order; () without it."""
    path = folder / file
    if not path.is_file():
        return ()
    classes = tuple(nfc(line.strip()) for line in read_lines(path) if line.strip())
    if not classes or len(set(classes)) < len(classes):
        raise DataError(f"{path} must hold one class name a line, each of them once")
    return classes


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns what the file system refuses, such as a closed folder, into a DataError."""
    try:
        yield
    except OSError as error:
        where = error.filename or name
        raise DataError(f"cannot read {str(where)[:300]}: {error.strerror or error}") from error


def find_task(tasks: Mapping[str, Benchmark], name: str) -> Benchmark:
    """The suite's task of that name; raises UnknownName, naming the nearest."""
    if name not in tasks:
        raise UnknownName("task", name, tasks)
    return tasks[name]


def check_split(split: str) -> None:
    """Raises DataError unless a suite's data sets have that split."""
    if split not in SPLITS:
        raise DataError(f"there is no split {split!r}; {suggest(split, SPLITS)}")


def settings(name: str) -> dict[str, Any]:
    """The settings of the data set `name` and their defaults; all of them know `balance`."""
    return {**choices.settings(module(name).source, skip=("split", "classes")), "balance": ""}


def from_config(section: Any, split: str, classes: tuple[str, ...] = ()) -> Source:
    """The source of a config's `data` section.

    Args:
        section: of a config.
        split: to be read, with its parts.
        classes: names of the classes that the labels are to count, in their order, where they are
            known: from the training split, or from a product.

    Raises:
        DataError: for data that are not there, or whose classes are others.
    """
    given = dict(section)
    name = given.pop("name")
    choices.check_settings(f"data set {name!r}", given, settings(name))
    given.pop("balance", "")  # of the training batches
    read = module(name).source
    if classes and "classes" in inspect.signature(read).parameters:
        given["classes"] = classes
    whole, taken = parts.cut(split)
    with reading(name):
        source = parts.take(read(whole, **given), taken)
    if classes and source.info.classes != classes:
        strange = [c for c in source.info.classes if c not in classes] or source.info.classes
        raise DataError(
            f"{split} of {source.info.name!r} has the classes {', '.join(strange[:5])}, where "
            f"{', '.join(classes[:5])} are known, in this order"
        )
    return source
