"""Surfaces that points are drawn from: what every drawn cloud is made of.

x is to the right, y up and z towards the eye. Surfaces are made about the origin or upon it, and
put in their place by `placed`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Surface:
    """A surface, as a map from the unit square.

    Attributes:
        area: of the surface.
        at: from coordinates `n 2`, uniform in [0, 1), to points `n 3`, uniform on the surface.
    """

    area: float
    at: Callable[[np.ndarray], np.ndarray]


def box(x: float, y: float, z: float) -> Surface:
    """The faces of a box of half the lengths `x`, `y` and `z` about the origin."""
    half = np.array([x, y, z])
    areas = 4 * np.array([y * z, z * x, x * y])  # of one of the two faces across each axis
    ends = np.cumsum(np.repeat(areas, 2)) / (2 * areas.sum())

    def at(u: np.ndarray) -> np.ndarray:
        face = np.searchsorted(ends, u[:, 0], side="right").clip(0, 5)
        first = np.concatenate([[0], ends])[face]
        rest = (u[:, 0] - first) / (ends[face] - first)
        axis, rows = face // 2, np.arange(len(u))
        out = np.empty((len(u), 3))
        out[rows, axis] = 2 * (face % 2) - 1
        out[rows, (axis + 1) % 3] = 2 * rest - 1
        out[rows, (axis + 2) % 3] = 2 * u[:, 1] - 1
        return out * half

    return Surface(2 * areas.sum(), at)


def tube(bottom: float, top: float, height: float) -> Surface:
    """The side of an upright cone that stands on the origin, of the radii `bottom` and `top`."""
    slant = math.hypot(height, top - bottom)

    def at(u: np.ndarray) -> np.ndarray:
        radius = np.sqrt(bottom**2 + u[:, 0] * (top**2 - bottom**2))
        up = u[:, 0] if top == bottom else (radius - bottom) / (top - bottom)
        angle = 2 * math.pi * u[:, 1]
        return np.stack([radius * np.cos(angle), height * up, radius * np.sin(angle)], 1)

    return Surface(math.pi * (bottom + top) * slant, at)


def disc(radius: float) -> Surface:
    """A flat disc about the origin."""
    return tube(radius, 0.0, 0.0)


def ball(x: float, y: float, z: float) -> Surface:
    """An ellipsoid of half the axes `x`, `y` and `z` about the origin; points are denser where it
    is more curved."""
    half = np.array([x, y, z])

    def at(u: np.ndarray) -> np.ndarray:
        up, angle = 2 * u[:, 0] - 1, 2 * math.pi * u[:, 1]
        around = np.sqrt(1 - up**2)
        return np.stack([around * np.cos(angle), up, around * np.sin(angle)], 1) * half

    power = 1.6075  # Thomsen's formula, within 1.1 %
    means = ((x * y) ** power + (y * z) ** power + (z * x) ** power) / 3
    return Surface(4 * math.pi * means ** (1 / power), at)


def ring(radius: float, thick: float, start: float = 0.0, stop: float = 2 * math.pi) -> Surface:
    """A torus in the plane of x and y, or its part between two angles; denser inside than out.

    Args:
        radius: from the origin to the middle of its tube.
        thick: radius of the tube.
        start: angle from the first axis where it begins.
        stop: where it ends.
    """

    def at(u: np.ndarray) -> np.ndarray:
        along, across = start + (stop - start) * u[:, 0], 2 * math.pi * u[:, 1]
        away = radius + thick * np.cos(across)
        return np.stack([away * np.cos(along), away * np.sin(along), thick * np.sin(across)], 1)

    return Surface(2 * math.pi * thick * radius * (stop - start), at)


def placed(
    surface: Surface, x: float = 0.0, y: float = 0.0, z: float = 0.0, turn: np.ndarray | None = None
) -> Surface:
    """The surface turned by a matrix `3 3`, then moved."""
    offset = np.array([x, y, z])

    def at(u: np.ndarray) -> np.ndarray:
        points = surface.at(u)
        return (points if turn is None else points @ turn.T) + offset

    return Surface(surface.area, at)


def turned(angle: float, axis: int = 1) -> np.ndarray:
    """The matrix `3 3` that turns by `angle` about an axis; 1 is the vertical."""
    sine, cosine = math.sin(angle), math.cos(angle)
    first, then = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[[first, then], [first, then]] = cosine
    matrix[first, then], matrix[then, first] = -sine, sine
    return matrix


def draw(
    pieces: Sequence[tuple[int, Surface]], count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Points `count 3` uniform over all the pieces, and the number of each one's piece `count`.

    Args:
        pieces: numbers, which several may share, and surfaces.
        count: of points.
        rng: to draw from.
    """
    areas = np.array([surface.area for _, surface in pieces])
    shares = rng.multinomial(count, areas / areas.sum())
    ends = np.cumsum(shares)[:-1]
    drawn = np.split(rng.random((count, 2)), ends)
    points = [surface.at(u) for (_, surface), u in zip(pieces, drawn, strict=True)]
    numbers = np.array([number for number, _ in pieces], np.int32)
    return np.concatenate(points), np.repeat(numbers, shares)
