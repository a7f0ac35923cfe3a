"""PASCAL VOC's average precision at an intersection over union of one half.

`matched` turns one image into rows of a fixed shape, `summary` makes the metrics of the rows of all
images. A difficult object is neither found nor missed: who finds it is not counted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynadapt.data.objects import Object

WRONG, RIGHT, IGNORED = 0, 1, -1
LEAST = 0.5  # intersection over union of a found object


def blank(most: int, classes: int) -> dict[str, np.ndarray]:
    """The rows of an image without objects and answers.

    Args:
        most: k, answers an image.
        classes: c.

    Returns:
        `scores` float32 `k`, `classes` int32 `k` (-1 for none), `right` int32 `k` (`WRONG`,
        `RIGHT` or `IGNORED`), and `truths` int32 `c`, how many objects are to be found.
    """
    return {
        "scores": np.zeros(most, np.float32),
        "classes": np.full(most, -1, np.int32),
        "right": np.full(most, WRONG, np.int32),
        "truths": np.zeros(classes, np.int32),
    }


def matched(
    answers: Mapping[str, Any], objects: Sequence[Object], classes: int
) -> dict[str, np.ndarray]:
    """How the answers to one image meet its objects.

    The best answers choose first. Each stands for the object of its class that it overlaps most:
    it is right where the two share enough and no better answer stands for that object.

    Args:
        answers: `boxes` `k 4`, `scores` `k` and `classes` `k` (-1 for none), in the pixels of the
            image as stored.
        objects: all that the image has, in the same pixels; a crowd counts as difficult.
        classes: c.

    Returns:
        Rows as of `blank`.
    """
    order = np.argsort(-np.asarray(answers["scores"]), kind="stable")
    boxes, scores, numbers = (
        np.asarray(answers[k], np.float64)[order] for k in ("boxes", "scores", "classes")
    )
    rows = blank(len(order), classes)
    rows["scores"][:], rows["classes"][:] = scores, numbers
    for number in {thing.category for thing in objects}:
        things = [thing for thing in objects if thing.category == number]
        free = np.array([not (thing.crowd or thing.difficult) for thing in things])
        rows["truths"][number] = free.sum()
        (places,) = np.nonzero(numbers == number)
        shared = overlaps(boxes[places], np.array([thing.box for thing in things]))
        taken = np.zeros(len(things), bool)
        for place, row in zip(places, shared, strict=True):
            best = row.argmax()
            if row[best] < LEAST:
                continue
            if not free[best]:
                rows["right"][place] = IGNORED
            elif not taken[best]:
                rows["right"][place], taken[best] = RIGHT, True
    return rows


def overlaps(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Intersection over union `k n` of boxes `k 4` and `n 4` by their edges."""
    low = np.maximum(ours[:, None, :2], theirs[None, :, :2])
    high = np.minimum(ours[:, None, 2:], theirs[None, :, 2:])
    both = (high - low).clip(0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (ours, theirs)]
    either = areas[0][:, None] + areas[1][None] - both
    return both / np.where(either > 0, either, 1)


def summary(rows: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, Any]:
    """Means over the classes in percent, and `classes`: the same of each one.

    `voc_ap50` is the area under the curve of precision (VOC from 2010 on), `voc_ap50_11` the mean
    precision at eleven recalls (VOC 2007). A class without objects has neither; without any
    objects both means are 0.

    Args:
        rows: `n …`, as of `matched`.
        classes: their names.
    """
    table = {name: _average(rows, n) for n, name in enumerate(classes)}
    some = [found for found in table.values() if found]
    means = {
        name: 100 * float(np.mean([found[name] for found in some])) if some else 0.0
        for name in ("voc_ap50", "voc_ap50_11")
    }
    percent = {n: {k: round(100 * v, 4) for k, v in found.items()} for n, found in table.items()}
    return means | {"classes": percent}


def _average(rows: Mapping[str, np.ndarray], number: int) -> dict[str, float]:
    """Both averages of one class; none where there are no objects of it."""
    total = int(rows["truths"][:, number].sum(dtype=np.int64))
    if not total:
        return {}
    counted = (rows["classes"] == number) & (rows["right"] != IGNORED)
    order = np.argsort(-rows["scores"][counted], kind="stable")
    found = np.cumsum(rows["right"][counted][order] == RIGHT)
    precision = found / np.arange(1, len(found) + 1)
    # the best precision at this recall or a higher one; none beyond the last
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    steps = np.searchsorted(found, np.arange(1, found[-1] + 1 if len(found) else 1))
    # Floats as all evaluations in Python have them: 3 of 5 objects do not reach the recall 6 * 0.1.
    tenths = np.searchsorted(found / total, np.arange(11) * 0.1)
    return {
        "voc_ap50": float(best[steps].sum()) / total,
        "voc_ap50_11": float(best[tenths].mean()),
    }
