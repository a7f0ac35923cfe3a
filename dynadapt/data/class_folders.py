"""Files in a folder for each class, of which each split may have some.

They lie in `<split>/<class>/` or in `<class>/`, at any depth, and come in an order made of hashes
of their paths, so that a slice mixes the classes. There are splits if a folder holds folders of
such files, no fewer than lie beside these, and is called like the split asked for, or like a split
at all (train, val, test). Else each folder that holds files is a class, and there is the one split
`train`.
"""

import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dynadapt.data import read_classes
from dynadapt.data.listing import list_folder, order, walk
from dynadapt.data.lists import Row, nfc
from dynadapt.errors import DataError, MissingSplit, suggest

_SPLIT = re.compile(r"(train(ing)?|val(id(ation)?)?|dev|test(ing)?|eval)\d*", re.IGNORECASE)


@dataclass(frozen=True)
class Sought:
    """What is looked for in folders.

    Attributes:
        fits: whether a file of that name is such a one.
        noun: what errors call one.
        obtain: what errors say to do.
    """

    fits: Callable[[str], bool]
    noun: str
    obtain: str


def read(
    root: Path, splits: Sequence[str], given: tuple[str, ...], sought: Sought
) -> tuple[dict[str, list[Row]], tuple[str, ...]]:
    """The rows of each split, and the classes: those given, or named in classes.txt, or found.

    Raises:
        DataError: for what isn't there, and for a class that is none of the known ones.
    """
    bases = _layout(root, splits, sought)
    held = {split: _class_folders(base, sought) for split, base in bases.items()}
    classes = given or read_classes(root) or tuple(sorted(set().union(*held.values())))
    numbers = {nfc(name): i for i, name in enumerate(classes)}
    files = {}
    for split in splits:
        unknown = [name for name in held[split] if name not in numbers]
        if unknown:
            raise DataError(
                f"the folder {bases[split] / unknown[0]} is none of the {len(classes)} classes; "
                f"{suggest(unknown[0], numbers)}"
            )
        rows = _read_split(root, bases[split], numbers, sought)
        if not rows:
            raise DataError(f"{bases[split]} holds no {sought.noun}s; {sought.obtain}")
        files[split] = sorted(rows, key=lambda row: order(row[0]))
    found = {split: {numbers[name] for name in names if name in numbers}
             for split, names in held.items()}  # fmt: skip
    warn_of_classes(classes, found, splits, sought.noun, subset=bool(given))
    return files, classes


def _layout(root: Path, splits: Sequence[str], sought: Sought) -> dict[str, Path]:
    """Where the class folders of each split lie, by the rule above."""
    folders = list_folder(root)[0]
    inside = {name: root / name for name in folders if _is_split(root / name, sought)}
    if not any(name in splits or _SPLIT.fullmatch(name) for name in inside):
        if not any(_holds(root / name, sought) for name in folders):
            raise DataError(f"{root} holds no folders of {sought.noun}s; {sought.obtain}")
        for split in splits:
            if split != "train":
                raise MissingSplit(
                    f"{root} has a folder for each class and no split {split!r}; use slices of "
                    "train, such as train[:800] and train[800:]"
                )
        return {"train": root}
    for split in splits:
        if split not in inside and split in folders:
            raise DataError(
                f"{root / split} holds no {sought.noun}s in folders of classes; {sought.obtain}"
            )
        if split not in inside:
            raise MissingSplit(f"{root} has no split {split!r}; {suggest(split, inside)}")
    return inside


def _is_split(path: Path, sought: Sought) -> bool:
    """Whether folders in it hold what is sought, and no fewer than lie beside them."""
    folders, beside, _ = list_folder(path, sought.fits)
    deeper = (
        file for name in folders for file, fits in walk(f"{path}/{name}", sought.fits) if fits
    )
    wanted = max(1, len(beside))
    return sum(1 for _ in islice(deeper, wanted)) == wanted


def _holds(path: Path, sought: Sought) -> bool:
    return any(fits for _, fits in walk(str(path), sought.fits))


def _class_folders(base: Path, sought: Sought) -> Collection[str]:
    """The classes whose folders in `base` hold what is sought."""
    return sorted({nfc(name) for name in list_folder(base)[0] if _holds(base / name, sought)})


def _read_split(root: Path, base: Path, numbers: Mapping[str, int], sought: Sought) -> list[Row]:
    """The files below the class folders in `base`; says what it passes over."""
    folders, stray, _ = list_folder(base, sought.fits)
    rows, others = [], []
    start = "" if base == root else f"{base.name}/"
    for name in folders:
        labels = (numbers.get(nfc(name), -1),)  # -1 in folders that hold nothing
        for file, fits in walk(f"{base}/{name}", sought.fits):
            if fits:
                rows.append((f"{start}{name}/{file}", labels))
            else:
                others.append(f"{name}/{file}")
    passed = (others, f"that are no {sought.noun}s"), (stray, "that lie in no class folder")
    for files, what in passed:
        if files:
            _warn("passed over %d files %s in %s, such as %s", len(files), what, base, min(files))
    return rows


def warn_of_classes(
    classes: tuple[str, ...],
    held: Mapping[str, set[int]],
    splits: Iterable[str],
    noun: str,
    subset: bool,
) -> None:
    """Says which classes have no example in training, or none at all.

    Args:
        classes: their names.
        held: the numbers of the classes that each split has examples of.
        splits: those that are read.
        noun: what an example is called.
        subset: whether it is no wonder that classes have no examples here.
    """
    trained = set().union(*(found for name, found in held.items() if name.startswith("train")))
    for name in splits:
        new = held[name] - trained
        if new and trained:
            _warn("%s has %ss of %d classes that train has none of: %s",
                  name, noun, len(new), _some(classes, new))  # fmt: skip
    empty = set(range(len(classes))).difference(*held.values())
    if empty and not subset:
        _warn("%d of the %d classes have no %s at all: %s",
              len(empty), len(classes), noun, _some(classes, empty))  # fmt: skip


def _some(classes: tuple[str, ...], numbers: set[int]) -> str:
    names = [classes[number] for number in sorted(numbers)]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _warn(message: str, *values: Any) -> None:
    logging.getLogger(__name__).warning(message, *values)
