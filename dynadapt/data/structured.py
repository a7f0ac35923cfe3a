"""Rendered scenes for structured tasks: boxes and ellipsoids on a floor, cast ray by ray.

Every picture is a pure function of a task and an index. Colours, floors, light, proportions and the
camera vary at random and tell nothing about the label.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

from dynadapt.data.solids import FAR, Camera, Solid, cast, meet

SIZE = 64
SEED = 20


def label(task: str, index: int) -> int:
    """The label of a picture."""
    return int(_rng(task, index).integers(len(TASKS[task][1])))


@functools.lru_cache(maxsize=2048)  # 25 MB: splits of a task share pictures
def draw(task: str, index: int) -> np.ndarray:
    """A picture uint8 `64 64 3`, which can't be written to."""
    make, classes = TASKS[task]
    rng = _rng(task, index)
    camera, solids = make(int(rng.integers(len(classes))), rng)
    image = render(camera, solids, rng)
    image.flags.writeable = False
    return image


def _rng(task: str, index: int) -> np.random.Generator:
    return np.random.default_rng([SEED, *task.encode(), index])


def render(camera: Camera, solids: list[Solid], rng: np.random.Generator) -> np.ndarray:
    """uint8 `64 64 3`; the light, the floor and the sky are drawn from `rng`."""
    eye, rays = cast(camera, SIZE)
    colour, depth, normal = _ground(eye, rays, rng)
    for solid in solids:
        at, out = meet(solid, eye, rays)
        nearer = at < depth
        depth = np.where(nearer, at, depth)
        normal = np.where(nearer[:, None], out, normal)
        colour = np.where(nearer[:, None], solid.colour.astype(np.float32), colour)
    light = np.array([rng.uniform(-1, 1), rng.uniform(-1, 0.3), rng.uniform(0.7, 1.5)])
    light = (light / np.linalg.norm(light)).astype(np.float32)
    shade = np.where(depth < FAR, 0.45 + 0.55 * np.clip(normal @ light, 0, 1), 1.0)
    image = colour * shade[:, None] * rng.uniform(0.8, 1.15) * 255
    image = image + rng.normal(0, rng.uniform(0, 8), image.shape)
    return np.clip(image, 0, 255).astype(np.uint8).reshape(SIZE, SIZE, 3)


def _ground(eye: np.ndarray, rays: np.ndarray, rng: np.random.Generator):
    """Colour `p 3`, depth `p` and normal `p 3` of a floor and the sky above it."""
    down = rays[:, 2] < -1e-3
    depth = np.where(down, -eye[2] / np.where(down, rays[:, 2], -1), FAR).astype(np.float32)
    x, y = (depth[:, None] * rays)[:, :2].T
    turn, wide = rng.uniform(0, math.pi), rng.uniform(0.5, 2.5)
    u = (x * math.cos(turn) + y * math.sin(turn)) * wide
    v = (y * math.cos(turn) - x * math.sin(turn)) * wide
    stripes = np.sin(math.pi * u)
    kind = rng.integers(3)  # plain, striped or chequered
    texture = (0 * u, stripes, np.sign(stripes * np.sin(math.pi * v)))[kind]
    texture = texture * np.exp(-depth / 8) * rng.uniform(0.05, 0.2)
    floor = rng.uniform(0.15, 0.85, 3) + texture[:, None]
    sky = rng.uniform(0.2, 0.9, 3) + np.clip(rays[:, 2:], 0, 1) * rng.uniform(-0.4, 0.4)
    colour = np.where(down[:, None], floor, sky).astype(np.float32)
    return colour, depth, np.broadcast_to(np.float32([0, 0, 1]), rays.shape)


def _solid(rng: np.random.Generator, x: float, y: float, half: np.ndarray, yaw: float) -> Solid:
    """A solid of a random kind and colour that stands on the floor at (x, y)."""
    kind = ("box", "ellipsoid")[rng.integers(2)]
    return Solid(kind, np.array([x, y, half[2]]), half, yaw, rng.uniform(0.05, 1, 3))


def _count(label: int, rng: np.random.Generator) -> tuple[Camera, list[Solid]]:
    """`label` + 1 solids that stand apart."""
    places: list[np.ndarray] = []
    while len(places) <= label:
        y = rng.uniform(1.6, 4.4)
        place = np.array([rng.uniform(-0.42, 0.42) * math.hypot(y, 2.6), y])
        if all(np.linalg.norm(place - other) > 0.85 for other in places):
            places.append(place)
    turns = rng.uniform(0, math.pi, len(places))
    solids = [
        _solid(rng, *place, rng.uniform(0.2, 0.4, 3), yaw)
        for place, yaw in zip(places, turns, strict=True)
    ]
    return Camera(rng.uniform(2.4, 2.8), math.radians(42)), solids


def _distance(label: int, rng: np.random.Generator) -> tuple[Camera, list[Solid]]:
    """The nearest of one to four solids is `label` + 2 to `label` + 3 away."""
    nearest = 2 + label + rng.uniform(0, 1)
    others = nearest + rng.uniform(0.3, 4, rng.integers(4))
    solids = []
    for y in (nearest, *others):
        half = rng.uniform(0.2, 0.5) * rng.uniform(0.7, 1.3, 3)
        solids.append(_solid(rng, rng.uniform(-0.4, 0.4) * y, y, half, rng.uniform(0, math.pi)))
    return Camera(rng.uniform(1.3, 1.5), math.radians(16)), solids


def _orientation(label: int, rng: np.random.Generator) -> tuple[Camera, list[Solid]]:
    """One long solid seen from above, turned by the label's eighth of half a turn."""
    yaw = (label + rng.uniform()) * math.pi / 8
    long = rng.uniform(0.5, 0.9)
    half = np.array([long, long * rng.uniform(0.2, 0.5), rng.uniform(0.1, 0.3)])
    x, y = rng.uniform(-0.5, 0.5, 2)
    return Camera(rng.uniform(2.3, 3.2), math.pi / 2), [_solid(rng, x, y, half, yaw)]


def _azimuth(label: int, rng: np.random.Generator) -> tuple[Camera, list[Solid]]:
    """A car, a body with a cabin behind its middle, turned by the label's eighth of a turn."""
    yaw = (label + rng.uniform()) * math.pi / 4
    body = np.array([0.8, 0.36, 0.18]) * rng.uniform(0.85, 1.15, 3)
    cabin = body * [0.5, 0.9, 1.0] * rng.uniform(0.9, 1.1, 3)
    along = np.array([math.cos(yaw), math.sin(yaw)])
    place = np.array([rng.uniform(-0.3, 0.3), rng.uniform(1.9, 2.5)])
    behind = place - along * (body[0] - cabin[0]) * rng.uniform(0.6, 0.95)
    solids = [
        Solid("box", np.array([*place, body[2]]), body, yaw, rng.uniform(0.05, 1, 3)),
        Solid(
            *("box", np.array([*behind, 2 * body[2] + cabin[2]]), cabin, yaw),
            rng.uniform(0.05, 1, 3),
        ),
    ]
    return Camera(rng.uniform(1.5, 2.1), math.radians(rng.uniform(34, 42))), solids


Maker = Callable[[int, np.random.Generator], tuple[Camera, list[Solid]]]
TASKS: dict[str, tuple[Maker, tuple[str, ...]]] = {  # how to make a scene, and the classes
    "count": (_count, tuple("123456")),
    "distance": (_distance, ("2-3", "3-4", "4-5", "5-6", "6-7")),
    "orientation": (_orientation, tuple(f"{22.5 * n:g}-{22.5 * n + 22.5:g}" for n in range(8))),
    "azimuth": (_azimuth, tuple(f"{45 * n}-{45 * n + 45}" for n in range(8))),
}
