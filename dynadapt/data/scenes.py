"""Drawn rooms with every dense label, exact and with nothing to download.

Two to six balls, boxes, cylinders and cones stand on a floor before a wall. All fields of a scene
come from one cast of rays, so they agree with each other to the pixel. A scene is a pure function
of seed, split, position and style; the style changes colours, textures and light alone, so that the
same scene in two styles has the same labels.

| field | what |
| --- | --- |
| `labels` | one of `CLASSES` for each pixel |
| `depth` | metres along the camera's axis |
| `normals` | unit vectors in the camera's axes: x to the right, y down, z away from it |
| `instances` | solids numbered from 1 in the order of their boxes; 0 for floor and wall |
| `boxes`, `box_classes` | around the pixels of each instance, and which of `SHAPES` it is |
| `box_ids` | the number of each box's instance |
| `saliency` | 1 for the nearest instance |
| `edges` | 1 where a pixel shows something else than the one above it or left of it |

A solid of which fewer than `LEAST` pixels of 64 x 64 are seen, or that share of another size, is in
`labels` but no instance.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dynadapt.data import Info, Rows, objects
from dynadapt.data.fields import Field
from dynadapt.data.objects import Object
from dynadapt.data.solids import VIEW, Camera, Solid, cast, meet
from dynadapt.errors import DataError, UnknownName

SHAPES = ("ball", "box", "cylinder", "cone")
CLASSES = ("floor", "wall", *SHAPES)
COUNTS = {"train": 600, "val": 200, "test": 200}
MOST = 6  # solids of a scene
LEAST = 12
KEPT = 512 << 20  # bytes of scenes that are kept rather than drawn again
SIZES = (16, 1024)
OBTAIN = "nothing to obtain: the scenes are drawn when they are asked for"
BINARY = ("rest", "salient"), ("inside", "edge")


@dataclasses.dataclass(frozen=True)
class Style:
    """How scenes look.

    Attributes:
        colours: least and greatest red, green and blue of surfaces.
        texture: share by which patterns change the colours.
        ambient: share of the light that comes from everywhere.
        light: red, green and blue of the lamp.
        reach: metres at which the lamp, held by the camera, is at half its strength; infinite for
            daylight from above.
        noise: standard deviation of a pixel, of 255.
    """

    colours: tuple[float, float]
    texture: float
    ambient: float
    light: tuple[float, float, float]
    reach: float
    noise: float


STYLES: dict[str, Style] = {
    "plain": Style((0.15, 0.95), 0.0, 0.4, (1.0, 1.0, 1.0), math.inf, 3.0),
    "textured": Style((0.25, 0.85), 0.45, 0.4, (1.0, 0.97, 0.9), math.inf, 6.0),
    "night": Style((0.2, 0.9), 0.15, 0.12, (0.75, 0.85, 1.0), 3.0, 8.0),
}


def fields_of(size: int) -> dict[str, Field]:
    """All fields that a scene of `size` pixels square has."""
    dense = functools.partial(Field, size=(size, size))
    return {
        "image": dense("pixels"),
        "labels": dense("labels", fill=-1, classes=CLASSES),
        "depth": dense("values"),
        "normals": dense("vectors"),
        "instances": dense("masks"),
        "boxes": Field("boxes", most=MOST),
        "box_classes": Field("rows", fill=-1, classes=SHAPES, most=MOST),
        "box_ids": Field("rows", most=MOST),
        "saliency": dense("labels", fill=-1, classes=BINARY[0]),
        "edges": dense("labels", fill=-1, classes=BINARY[1]),
    }


def intrinsics(size: int) -> np.ndarray:
    """The camera's matrix `3 3`, from points in metres in its axes to pixels (x, y), as edges."""
    focal, centre = size / (2 * VIEW), size / 2
    return np.array([[focal, 0, centre], [0, focal, centre], [0, 0, 1]])


class Scenes:
    """A source over scenes, which are drawn when they are first asked for."""

    in_memory = True

    def __init__(self, split: str, size: int, style: str, seed: int, info: Info):
        self.info = info
        self._rows = Rows(split, info.counts)
        self._size, self._style, self._seed = size, style, seed
        room = sum(value.nbytes for value in self._drawn(*self._rows[0])[0].values())
        self._draw = functools.lru_cache(maxsize=KEPT // room)(self._drawn)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        split, position = self._rows[index]
        drawn, things = self._draw(split, position)
        example = {**drawn, "name": f"{split}[{position}]"}
        if "boxes" in drawn:
            example |= {"objects": [*things], "image_id": range(len(self))[index]}
        return example

    def _drawn(self, split: str, position: int) -> tuple[dict[str, np.ndarray], list[Object]]:
        scene = draw(split, position, self._size, self._style, self._seed)
        kinds = scene["box_classes"]
        things = objects.of_map(scene["instances"], lambda number: int(kinds[number - 1]))
        return {name: scene[name] for name in self.info.fields if name in scene}, things


def source(
    split: str,
    size: int = 64,
    style: str = "plain",
    seed: int = 0,
    fields: tuple[str, ...] = ("labels", "depth"),
) -> Scenes:
    """Scenes of the splits `train` (600), `val` and `test` (200 each).

    Args:
        split: which.
        size: side of the pictures in pixels.
        style: one of `STYLES`.
        seed: of all scenes.
        fields: those beside `image` that examples have; `boxes` and `box_classes` come together,
            and of `instances` with boxes `box_ids`.

    Raises:
        DataError: for a size or seed that can't be served.
        UnknownName: for a style or field that isn't there.
    """
    if style not in STYLES:
        raise UnknownName("style of scenes", style, STYLES)
    if not SIZES[0] <= size <= SIZES[1]:
        raise DataError(f"scenes have {SIZES[0]} to {SIZES[1]} pixels a side, not {size}")
    if not 0 <= seed < 1 << 32:
        raise DataError(f"the seed of scenes is {seed}, not one from 0 to {(1 << 32) - 1}")
    known = fields_of(size)
    for name in fields:
        if name not in known:
            raise UnknownName("field of scenes", name, known)
    wanted = objects.completed({"image", *fields})
    chosen = {name: field for name, field in known.items() if name in wanted}
    if "boxes" in wanted:
        chosen |= objects.EXTENT
    first = draw("train", 0, size, style, seed)
    digest = hashlib.sha256(f"{style} {seed} {size}".encode())
    digest.update(first["image"].tobytes() + first["labels"].tobytes())
    return Scenes(
        split, size, style, seed, Info("scenes", chosen, COUNTS, OBTAIN, digest.hexdigest())
    )


def draw(split: str, position: int, size: int, style: str, seed: int) -> dict[str, np.ndarray]:
    """All fields of a scene, which can't be written to; `fields_of` says what they are."""
    where = [seed, list(COUNTS).index(split), position]
    camera, solids, wall = _make(np.random.default_rng([0, *where]))
    eye, rays = cast(camera, size)
    depth, normal, owner = _surfaces(eye, rays, wall, solids)
    kinds = np.array([0, 1, *(2 + SHAPES.index(_NAMES[solid.kind]) for solid in solids)], np.int32)
    look = np.random.default_rng([1, list(STYLES).index(style), *where])
    image = _shade(eye, rays, depth, normal, owner, STYLES[style], look)
    scene = {
        "image": image.reshape(size, size, 3),
        "labels": kinds[owner].reshape(size, size),
        "depth": depth.reshape(size, size),
        "normals": _in_camera(normal, camera).reshape(size, size, 3),
        **_objects(owner.reshape(size, size), depth.reshape(size, size), kinds),
    }
    for value in scene.values():
        value.flags.writeable = False
    return scene


_NAMES = {"ellipsoid": "ball", "box": "box", "cylinder": "cylinder", "cone": "cone"}


def _make(rng: np.random.Generator) -> tuple[Camera, list[Solid], float]:
    """The camera, solids that stand apart, and how far away the wall is."""
    camera = Camera(rng.uniform(1.1, 1.6), math.radians(rng.uniform(16, 34)))
    solids: list[Solid] = []
    for _ in range(rng.integers(2, MOST + 1)):
        kind, radius = (*_NAMES,)[rng.integers(len(_NAMES))], rng.uniform(0.2, 0.42)
        high = 1.0 if kind == "ellipsoid" else rng.uniform(0.7, 1.4)
        half = radius * np.array([1, rng.uniform(0.7, 1) if kind == "box" else 1, high])
        for _ in range(20):  # else it is left out
            y = rng.uniform(1.1, 3.0)
            place = np.array([rng.uniform(-0.5, 0.5) * (y + 0.6), y])
            gaps = [np.hypot(*(s.centre[:2] - place)) - s.half[:2].max() for s in solids]
            if all(gap > radius * 1.2 for gap in gaps):
                yaw = rng.uniform(0, math.pi)
                solids.append(Solid(kind, np.array([*place, half[2]]), half, yaw, np.zeros(3)))
                break
    return camera, solids, rng.uniform(4.0, 5.5)


def _surfaces(eye: np.ndarray, rays: np.ndarray, wall: float, solids: list[Solid]):
    """Depth `p`, world normal `p 3` and number `p` of what each ray meets: floor, wall, solids."""
    down, ahead = rays[:, 2], rays[:, 1]
    floor = np.where(down < -1e-6, -eye[2] / np.minimum(down, -1e-6), np.inf)
    back = np.where(ahead > 1e-6, wall / np.maximum(ahead, 1e-6), np.inf)
    depth = np.minimum(floor, back).astype(np.float32)
    owner = (back < floor).astype(np.int32)
    normal = np.float32([[0, 0, 1], [0, -1, 0]])[owner]
    for number, solid in enumerate(solids, 2):
        at, out = meet(solid, eye, rays)
        nearer = at < depth
        depth, owner = np.where(nearer, at, depth), np.where(nearer, np.int32(number), owner)
        normal = np.where(nearer[:, None], out, normal)
    return depth, normal, owner


def _in_camera(normal: np.ndarray, camera: Camera) -> np.ndarray:
    sine, cosine = math.sin(camera.pitch), math.cos(camera.pitch)
    axes = np.array([[1, 0, 0], [0, -sine, -cosine], [0, cosine, -sine]])  # right, down, ahead
    return (normal @ axes.T).astype(np.float32)


def _shade(
    eye: np.ndarray,
    rays: np.ndarray,
    depth: np.ndarray,
    normal: np.ndarray,
    owner: np.ndarray,
    style: Style,
    rng: np.random.Generator,
) -> np.ndarray:
    """uint8 `p 3`; colours, patterns, light and noise are drawn from `rng`."""
    surfaces = MOST + 2
    point = eye + depth[:, None] * rays
    colours = rng.uniform(*style.colours, (surfaces, 3))
    # a checkerboard of each surface's own direction, width and strength
    waves = rng.normal(size=(surfaces, 2, 3))
    waves *= rng.uniform(4, 16, (surfaces, 1, 1)) / np.linalg.norm(waves, axis=2, keepdims=True)
    strength = style.texture * rng.uniform(0.4, 1, surfaces)
    phases = point @ waves.astype(np.float32).reshape(-1, 3).T  # p, two of each surface
    pixels = np.arange(len(owner))
    pattern = np.sin(phases[pixels, 2 * owner]) * np.sin(phases[pixels, 2 * owner + 1])
    colour = colours[owner] * (1 + strength[owner] * np.sign(pattern))[:, None]
    above = np.array([rng.uniform(-1, 1), rng.uniform(-1, 0.2), rng.uniform(0.8, 1.5)])
    held = eye + np.array([rng.uniform(-1, 1), 0, rng.uniform(0.2, 0.8)])
    if math.isfinite(style.reach):
        towards = held - point
        fall = 1 / (1 + (towards**2).sum(1, keepdims=True) / style.reach**2)
    else:
        towards, fall = np.broadcast_to(above, point.shape), 1.0
    towards = towards / np.linalg.norm(towards, axis=1, keepdims=True)
    direct = np.clip((normal * towards).sum(1, keepdims=True), 0, 1) * fall * style.light
    shade = style.ambient + (1 - style.ambient) * direct
    image = 255 * colour * shade * rng.uniform(0.85, 1.1)
    image += style.noise * rng.standard_normal(image.shape, np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def _objects(owner: np.ndarray, depth: np.ndarray, kinds: np.ndarray) -> Mapping[str, np.ndarray]:
    """The fields that follow from who owns each pixel `h w`: instances, boxes, saliency, edges."""
    least = LEAST * owner.size / 64**2
    seen = np.bincount(owner.ravel(), minlength=len(kinds))
    found = [n for n in range(2, len(kinds)) if seen[n] >= least]
    numbers, boxes, nearest = np.zeros(len(kinds), np.int32), [], []
    for number, own in enumerate(found, 1):
        numbers[own] = number
        ys, xs = np.nonzero(owner == own)
        boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        nearest.append(depth[ys, xs].min())
    instances = numbers[owner]
    salient = instances == np.argmin(nearest) + 1 if found else np.zeros_like(owner)
    edges = np.zeros(owner.shape, bool)
    edges[1:] |= owner[1:] != owner[:-1]
    edges[:, 1:] |= owner[:, 1:] != owner[:, :-1]
    return {
        "instances": instances,
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "box_classes": kinds[found] - 2 if found else np.zeros(0, np.int32),
        "box_ids": np.arange(1, len(found) + 1, dtype=np.int32),
        "saliency": salient.astype(np.int32),
        "edges": edges.astype(np.int32),
    }
