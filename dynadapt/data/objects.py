"""Objects of pictures: what annotations say of each, and the fields that a model learns from.

An example of detection has, beside its fields, `objects`, a list of all `Object`s of its picture in
the pixels as stored, and `image_id`, which results name it by. An evaluation judges by these, of
which some are crowds or difficult. The fields are the targets of training: `boxes`, `box_classes`,
and, where there are masks, `instances` with `box_ids`, the number in `instances` of each box. An
`extent` says how much of a canvas the picture fills.

The mask of an object is its `segmentation`; where that is None, it is the pixels of the stored
`instances` that hold its `number`.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dynadapt.data.fields import Field
from dynadapt.errors import DataError

Size = tuple[int, int]
MOST = 100  # objects of an image that are targets, unless a data set is told otherwise
LEAST = 1  # pixel of a target's sides
EXTENT = {"extent": Field("extent", size=(2,))}
TOP = 10_000  # of what `most` may be: a head meets each of them with every anchor


@dataclasses.dataclass(frozen=True)
class Object:
    """One annotated object.

    Attributes:
        category: its class, from 0.
        box: left, top, right, bottom in pixels of the stored picture, edges not centres.
        area: in pixels, of the mask where there is one.
        crowd: whether it is a group, in which answers are neither right nor wrong.
        difficult: whether it is passed over, in training and in an evaluation.
        segmentation: COCO's run lengths, {"size": [h, w], "counts": bytes}, or None.
        number: in the stored map of instances; 0 where it is not there.
    """

    category: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool = False
    difficult: bool = False
    segmentation: Mapping[str, Any] | None = None
    number: int = 0


def fields(
    classes: tuple[str, ...],
    most: int,
    ids: tuple[int, ...] = (),
    size: tuple[int, ...] = (),
    masks: bool = False,
) -> dict[str, Field]:
    """The fields of images with objects.

    Args:
        classes: names of the objects' classes.
        most: rows of boxes.
        ids: what the data's own files number the classes; () for 0, 1, 2, and so on.
        size: (h, w) of the images where all are of one size.
        masks: whether there is a map of instances.

    Raises:
        DataError: for a number of rows out of range.
    """
    if not 1 <= most <= TOP:
        raise DataError(f"data.most is {most}, not a number of objects from 1 to {TOP:,}")
    found = {
        "image": Field("pixels", size=size),
        "boxes": Field("boxes", most=most),
        "box_classes": Field("rows", fill=-1, classes=classes, most=most, ids=ids),
    }
    if masks:
        found |= {"instances": Field("masks", size=size), "box_ids": Field("rows", most=most)}
    return found | EXTENT


def completed(names: Iterable[str]) -> set[str]:
    """The names of fields and those that belong to them: boxes have classes, and the numbers of
    their instances where these are there."""
    found = set(names)
    if found & {"boxes", "box_classes", "box_ids"}:
        found |= {"boxes", "box_classes"}
        if found & {"instances", "box_ids"}:
            found |= {"instances", "box_ids"}
    return found


def is_target(thing: Object, size: Size) -> bool:
    """Whether a model is to learn an object of a picture of `size`: a single one of some area, no
    side of it under a pixel, which the picture shows."""
    left, top, right, bottom = thing.box
    inside = min(right, size[1]) > max(left, 0) and min(bottom, size[0]) > max(top, 0)
    large = right - left >= LEAST and bottom - top >= LEAST and thing.area > 0
    return inside and large and not (thing.crowd or thing.difficult)


def targets(objects: Sequence[Object], size: Size, most: int) -> dict[str, np.ndarray]:
    """`boxes` `n 4`, clipped to the picture of `size`, `box_classes` and `box_ids` `n`.

    They are in the order of the objects; of more than `most` targets the smallest are left out.
    """
    kept = [thing for thing in objects if is_target(thing, size)]
    if len(kept) > most:
        largest = sorted(range(len(kept)), key=lambda i: -kept[i].area)[:most]
        kept = [kept[i] for i in sorted(largest)]
    boxes = np.array([thing.box for thing in kept], np.float64).reshape(-1, 4)
    h, w = size
    return {
        "boxes": boxes.clip(0, [w, h, w, h]).astype(np.float32),
        "box_classes": np.array([thing.category for thing in kept], np.int32),
        "box_ids": np.array([thing.number for thing in kept], np.int32),
    }


def survey(where: str, images: Iterable[tuple[Sequence[Object], Size]], most: int) -> None:
    """Says, once for all images of a split, which objects `targets` leaves out without being told
    to: those that nothing can be learned from, and those beyond `most`."""
    empty = full = over = 0
    for objects, size in images:
        single = [thing for thing in objects if not (thing.crowd or thing.difficult)]
        fit = sum(is_target(thing, size) for thing in single)
        empty += len(single) - fit
        full, over = full + (fit > most), over + max(fit - most, 0)
    logger = logging.getLogger(__name__)
    if empty:
        message = "%s: %d objects have no area, a side under a pixel, or lie outside of their "
        logger.warning(message + "images; they are no targets", where, empty)
    if over:
        message = (
            "%s: %d images have more than data.most=%d objects; the %d smallest are no targets"
        )
        logger.warning(message, where, full, most, over)


def of_map(instances: np.ndarray, category: Callable[[int], int]) -> list[Object]:
    """The objects of a map `h w`, by their numbers; `category` gives the class of a number."""
    ys, xs = np.nonzero(instances)
    numbers, own, areas = np.unique(instances[ys, xs], return_inverse=True, return_counts=True)
    corners = np.empty((len(numbers), 4), np.int64)
    corners[:, :2], corners[:, 2:] = max(instances.shape), 0
    for column, at in enumerate((xs, ys)):
        np.minimum.at(corners[:, column], own, at)
        np.maximum.at(corners[:, column + 2], own, at + 1)
    rows = zip(numbers.tolist(), corners.tolist(), areas.tolist(), strict=True)
    return [
        Object(category(number), tuple(map(float, box)), float(area), number=number)
        for number, box, area in rows
    ]
