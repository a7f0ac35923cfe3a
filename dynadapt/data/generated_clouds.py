"""Point clouds of shapes that are nothing: surfaces joined at random, to learn form without names.

A shape has one to six pieces (boxes, ellipsoids, tubes, discs, parts of rings) of any proportions
and directions; each starts where another one has a point, and some are repeated in a mirror. Some
stand on a floor, and some are cut by a plane. No shape follows a plan, such as those of `clouds`,
and no draw is shared with them.
"""

import functools
import math
from typing import Any

import numpy as np

from dynadapt.data import Info, Rows
from dynadapt.data.fields import Field
from dynadapt.data.surfaces import Surface, ball, box, disc, draw, placed, ring, tube, turned
from dynadapt.errors import DataError

PIECES = 6
TESTED = 512
POINTS, MOST = (16, 1 << 16), 1 << 24
STREAM = 0x5A9E  # what leads all seeds here, and none elsewhere
OBTAIN = "nothing to obtain: the shapes are drawn when they are asked for"


class Shapes:
    """A source over shapes, each drawn whenever it is asked for."""

    in_memory = True

    def __init__(self, split: str, count: int, seed: int, info: Info):
        self.info, self._rows = info, Rows(split, info.counts)
        self._draw = functools.partial(shape, count=count, seed=seed)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        split, position = self._rows[index]
        return {"points": self._draw(split, position), "name": f"{split}[{position}]"}


def source(split: str, size: int = 65536, count: int = 512, seed: int = 0) -> Shapes:
    """Shapes of the splits `train` (`size`) and `test` (512).

    Args:
        split: which.
        size: shapes of the split `train`.
        count: points of a shape.
        seed: of all shapes.

    Raises:
        DataError: for numbers that can't be served.
    """
    limits = {
        "size": (size, (1, MOST)),
        "count": (count, POINTS),
        "seed": (seed, (0, (1 << 32) - 1)),
    }
    for name, (value, (least, most)) in limits.items():
        if not least <= value <= most:
            raise DataError(f"data.{name} must be from {least} to {most:,}, not {value}")
    fields = {"points": Field("cloud", size=(count, 3))}
    return Shapes(
        split,
        count,
        seed,
        Info("generated_clouds", fields, {"train": size, "test": TESTED}, OBTAIN),
    )


def shape(split: str, position: int, count: int, seed: int) -> np.ndarray:
    """Points `count 3` of a shape in the unit sphere, float32."""
    rng = np.random.default_rng([STREAM, seed, ("train", "test").index(split), position])
    pieces, floor = _pieces(rng), rng.random() < 0.3
    cut = rng.random() < 0.4
    own = count - (round(count * rng.uniform(0.1, 0.3)) if floor else 0)
    drawn = math.ceil(own / 0.7) if cut else own
    points, _ = draw([(0, piece) for piece in pieces], drawn, rng)
    if cut:
        points = points[np.argsort(points @ rng.normal(size=3))[-own:]]
    if floor:
        low, wide = points[:, 1].min(), np.ptp(points[:, [0, 2]], 0).max() + 0.1
        on = rng.uniform(-wide, wide, (count - own, 3)) + points.mean(0)
        on[:, 1] = low
        points = np.concatenate([points, on])
    points = points - points.mean(0)
    points /= np.linalg.norm(points, axis=1).max()
    points += rng.normal(0, rng.uniform(0, 0.015), points.shape)
    return rng.permutation(points).astype(np.float32)


def _pieces(rng: np.random.Generator) -> list[Surface]:
    found: list[Surface] = []
    for _ in range(rng.integers(1, PIECES + 1)):
        piece = placed(_piece(rng), turn=_direction(rng))
        here = piece.at(rng.random((1, 2)))[0]
        there = found[rng.integers(len(found))].at(rng.random((1, 2)))[0] if found else np.zeros(3)
        piece = placed(piece, *(there - here))
        found.append(piece)
        if rng.random() < 0.3:
            found.append(_mirrored(piece, rng.integers(3)))
    return found


def _piece(rng: np.random.Generator) -> Surface:
    a, b, c = np.exp(rng.uniform(math.log(0.03), 0.0, 3))
    kind = rng.integers(5)
    if kind == 0:
        return box(a, b, c)
    if kind == 1:
        return ball(*np.sqrt([a, b, c]))
    if kind == 2:
        return tube(a / 2, a / 2 * rng.choice([0.0, 1.0, rng.uniform(0, 2)]), 2 * b)
    if kind == 3:
        return disc(a)
    return ring(a, a * rng.uniform(0.1, 0.5), 0.0, rng.uniform(math.pi / 2, 2 * math.pi))


def _direction(rng: np.random.Generator) -> np.ndarray:
    """Upright, on one of its sides, or any."""
    if rng.random() < 0.6:
        return turned(rng.integers(2) * math.pi / 2, rng.choice([0, 2]))
    angles = rng.uniform(0, 2 * math.pi, 3)
    return turned(angles[0], 1) @ turned(angles[1], 0) @ turned(angles[2], 1)


def _mirrored(piece: Surface, axis: int) -> Surface:
    sign = np.ones(3)
    sign[axis] = -1
    return Surface(piece.area, lambda u: piece.at(u) * sign)
