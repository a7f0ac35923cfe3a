"""Outlines of objects as COCO's files have them: polygons, or run lengths down the columns, as
numbers or packed in a text. With pycocotools they become masks.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dynadapt.data.annotated import Picture
from dynadapt.data.objects import Object, is_target
from dynadapt.errors import ConfigError, DataError

CORNERS = 3  # that a polygon has at least
FAR = 100_000  # pixels; a polygon that reaches further takes gigabytes to fill


def cleaned(shape: Any, size: tuple[int, int], where: str) -> tuple[Any, int]:
    """An outline without polygons of less than three corners, None where nothing is left, and how
    many of these there were.

    Raises:
        DataError: for what is no outline, or one of another size (h, w) than its image.
    """
    if not shape:
        return None, 0
    if isinstance(shape, dict) and isinstance(shape.get("counts"), list | str):
        if shape.get("size") != [*size]:
            raise DataError(
                f"{where} has a mask of size {shape.get('size')!r:.80} in an image of {[*size]} "
                "pixels (h, w)"
            )
        return shape, 0
    if not isinstance(shape, list) or not all(isinstance(polygon, list) for polygon in shape):
        raise DataError(f"{where} has a segmentation that is neither polygons nor run lengths")
    kept = [p for p in shape if len(p) >= 2 * CORNERS and len(p) % 2 == 0]
    return kept or None, len(shape) - len(kept)


def drawer() -> Callable[[Picture, str], tuple[list[Object], np.ndarray]]:
    """What gives the objects of a picture their masks and numbers, and the map int32 `h w` of them.

    Targets are in the map; a smaller one lies over a larger one, and of equal ones the later over
    the earlier.

    Raises:
        ConfigError: where pycocotools is missing.
    """
    try:
        from pycocotools import mask as library
    except ImportError as error:
        message = 'masks of COCO files take pycocotools: pip install "dynadapt[coco]"'
        raise ConfigError(message) from error

    def draw(picture: Picture, name: str) -> tuple[list[Object], np.ndarray]:
        packed = [s and _packed(library, s, picture.size, name) for s in picture.shapes]
        pairs = zip(picture.objects, packed, strict=True)
        things = [dataclasses.replace(thing, segmentation=p) for thing, p in pairs]
        drawn = [i for i, thing in enumerate(things) if is_target(thing, picture.size)]
        for number, i in enumerate(drawn, 1):
            things[i] = dataclasses.replace(things[i], number=number)
        instances = np.zeros(picture.size, np.int32)
        for i in sorted(drawn, key=lambda i: -things[i].area):
            instances[unpacked(things[i].segmentation)] = things[i].number
        return things, instances

    return draw


def unpacked(segmentation: Mapping[str, Any]) -> np.ndarray:
    """The mask bool `h w` of packed run lengths; pycocotools' own warns with each of them."""
    h, w = segmentation["size"]
    runs = _runs(segmentation["counts"].decode())
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(w, h).T


def _packed(library: Any, shape: Any, size: tuple[int, int], name: str) -> dict[str, Any]:
    """A cleaned outline as packed run lengths; raises a DataError for what can't be drawn."""
    if isinstance(shape, list):
        try:
            corners = [np.array(polygon, np.float64) for polygon in shape]
        except (TypeError, ValueError, OverflowError):
            corners = []
        if not corners or not all(c.ndim == 1 and (np.abs(c) < FAR).all() for c in corners):
            raise DataError(f"{name} has a polygon with corners that are no pixels of it")
        parts = library.frPyObjects([c.tolist() for c in corners], *size)
        return library.merge(parts)
    packed = isinstance(shape["counts"], str)
    runs = _runs(shape["counts"]) if packed else shape["counts"]
    # pycocotools would read past the end of runs that don't fill the picture
    whole = all(isinstance(run, int) and run >= 0 for run in runs)
    if not whole or sum(runs) != size[0] * size[1]:
        raise DataError(f"{name} has a mask whose run lengths don't fill its {[*size]} pixels")
    if packed:
        return {"size": [*size], "counts": shape["counts"].encode()}
    return library.frPyObjects({"size": [*size], "counts": runs}, *size)


def _runs(text: str) -> list[int]:
    """The run lengths that a text packs: numbers of 5 bits a letter, the lowest first, and from the
    fourth on the difference to the one before the last."""
    runs, value, shift = [], 0, 0
    for letter in text:
        bits = ord(letter) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs
