"""Parts of a split that have its mix of classes, written behind it: `train|rest(0, 5)`.

| part | what it takes |
| --- | --- |
| `fold(i, k)` | the i-th of k equal parts, i from 0 |
| `rest(i, k)` | all but that one |
| `shots(n, seed)` | n examples of each class that is there |

Parts are taken from left to right: `train|rest(0, 5)|fold(1, 4)` is a quarter of what is left.
Which examples they are follows from the labels and these numbers alone. Where examples have no
class of their own that is known before they are read (several labels, masks, boxes), folds are
drawn without regard to classes, and there are no shots.
"""

import re
from typing import Any

import numpy as np

from dynadapt.errors import DataError

_PART = re.compile(r"(fold|rest|shots)\(\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\)")


class Part:
    """The examples of a source at some positions, in this order."""

    def __init__(self, source: Any, positions: np.ndarray):
        self.info, self._source, self._positions = source.info, source, positions
        self.in_memory = getattr(source, "in_memory", False)

    @property
    def labels(self) -> np.ndarray | None:
        """The class of each example, or None where they have none of their own."""
        labels = getattr(self._source, "labels", None)
        return None if labels is None else labels[self._positions]

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[int(self._positions[index])]


def cut(split: str) -> tuple[str, list[str]]:
    """The split that parts are taken of, and the parts."""
    whole, *parts = split.split("|")
    return whole, [part.strip() for part in parts]


def take(source: Any, parts: list[str]) -> Any:
    """The source of parts of a source; raises a DataError for one that can't be taken."""
    for part in parts:
        found = _PART.fullmatch(part)
        if not found:
            raise DataError(
                f"cannot read the part {part!r} of a split; write fold(0, 5), rest(0, 5) or "
                "shots(4, 0)"
            )
        kind, first, second = found[1], int(found[2]), int(found[3])
        source = Part(source, positions(source, kind, first, second))
    return source


def positions(source: Any, kind: str, first: int, second: int) -> np.ndarray:
    """Which examples of a source a part takes, in their order."""
    labels = getattr(source, "labels", None)
    if kind == "shots":
        return _shots(source, labels, first, second)
    if not (2 <= second <= len(source) and first < second):
        raise DataError(
            f"{kind}({first}, {second}) of {len(source)} examples is none: there are 2 to "
            f"{len(source)} folds, counted from 0"
        )
    # Class by class, at random within each, and dealt one by one.
    drawn = np.random.default_rng([0, second]).permutation(len(source))
    if labels is not None:
        drawn = drawn[np.argsort(np.asarray(labels)[drawn], kind="stable")]
    chosen = np.arange(len(source)) % second == first
    return np.sort(drawn[chosen if kind == "fold" else ~chosen])


def _shots(source: Any, labels: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    if labels is None:
        raise DataError(
            f"shots({count}, {seed}) are examples of a class each, which those of "
            f"{source.info.name!r} do not have or do not tell before they are read"
        )
    if not count:
        raise DataError("shots(0, …) would be no examples; write shots(1, 0) or more")
    rng, taken = np.random.default_rng([1, seed]), []
    for number in np.unique(labels):
        there = np.flatnonzero(labels == number)
        if len(there) < count:
            name = source.info.classes[number]
            raise DataError(f"{name!r} has {len(there)} examples, fewer than {count} shots")
        taken.append(rng.permutation(there)[:count])
    return np.sort(np.concatenate(taken))
