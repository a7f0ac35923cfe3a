"""Squares on a noisy ground: a label for each pixel, some of them void, and a box for each square.

Every example is a pure function of its split and position.
"""

from typing import Any

import numpy as np

from dynadapt.data import Info, Rows
from dynadapt.data.fields import Field
from dynadapt.errors import DataError

SIDE, MOST, VOID = 16, 3, 255
CLASSES = ("ground", "red", "blue")
COUNTS = {"train": 64, "test": 21}
INFO = Info(
    "toy",
    {
        "image": Field("pixels", size=(SIDE, SIDE)),
        "labels": Field("labels", fill=VOID, classes=CLASSES, size=(SIDE, SIDE)),
        "boxes": Field("boxes", most=MOST),
        "kinds": Field("rows", fill=-1, most=MOST),
    },
    COUNTS,
    "nothing to obtain",
    "toy",
)


class Squares:
    """Random access to the examples of a split; every `broken`-th one can't be read."""

    in_memory, info = True, INFO

    def __init__(self, split: str, broken: int):
        self._rows, self._broken = Rows(split, COUNTS), broken

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        split, position = self._rows[index]
        name = f"{split}[{position}]"
        if self._broken and position % self._broken == self._broken - 1:
            raise DataError(f"{name} is broken")
        rng = np.random.default_rng([list(COUNTS).index(split), position])
        image = rng.integers(100, size=(SIDE, SIDE, 3)).astype(np.uint8)
        labels = np.zeros((SIDE, SIDE), np.int32)
        kinds = rng.integers(1, len(CLASSES), size=rng.integers(MOST + 1))
        boxes = np.zeros((len(kinds), 4), np.float32)
        for box, kind in zip(boxes, kinds, strict=True):
            left, top = rng.integers(SIDE - 4, size=2)
            right, bottom = (left, top) + rng.integers(4, 9, size=2)
            box[:] = left, top, min(right, SIDE), min(bottom, SIDE)
            image[top:bottom, left:right, 0 if kind == 1 else 2] += 150
            labels[top:bottom, left:right] = kind
        # Examples differ much in how many pixels are valid.
        labels[: rng.integers(SIDE - 2)] = VOID
        return {"image": image, "labels": labels, "boxes": boxes, "kinds": kinds, "name": name}


def source(split: str, broken: int = 0) -> Squares:
    """Reads `train` or `test`."""
    return Squares(split, broken)
