"""COCO's average precision: pycocotools matches each image alone, and sums up over all of them.

`matched` turns one image into rows of a fixed shape, which may be gathered from any number of
processes; `summary` rebuilds from them what pycocotools accumulates, so that its numbers are
pycocotools' own.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from dynadapt.data.objects import Object
from dynadapt.errors import ConfigError, DataError

# In the order of pycocotools' `stats`.
METRICS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)
SIZES = ("small", "medium", "large")
AREAS = 1 + len(SIZES)  # ranges of pycocotools: all, and the sizes


def required() -> None:
    """Raises a ConfigError where pycocotools is missing."""
    if find_spec("pycocotools") is None:
        raise ConfigError('COCO metrics need pycocotools: pip install "dynadapt[coco]"')


def blank(most: int, classes: int) -> dict[str, np.ndarray]:
    """The rows of an image without objects and answers.

    Args:
        most: k, answers an image.
        classes: c.

    Returns:
        `scores` float32 `k` and `classes` int32 `k` (-1 for none), best first; `matched` and
        `ignored` int32 `a k`, whose bit t tells of the answer at threshold t for objects of area
        range a; `truths` int32 `a c`, how many objects of a class are to be found.
    """
    return {
        "scores": np.zeros(most, np.float32),
        "classes": np.full(most, -1, np.int32),
        "matched": np.zeros((AREAS, most), np.int32),
        "ignored": np.zeros((AREAS, most), np.int32),
        "truths": np.zeros((AREAS, classes), np.int32),
    }


def matched(
    answers: Mapping[str, Any],
    objects: Sequence[Object],
    size: tuple[int, int],
    classes: int,
    kind: str = "bbox",
    instances: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """How the answers to one image meet its objects, as pycocotools matches them.

    Of each class the 100 best answers count. A crowd is neither to be found nor missed, and takes
    any number of answers, by the share of an answer that it covers. A difficult object is neither
    found nor missed either, but takes one answer, by intersection over union.

    Args:
        answers: `boxes` `k 4`, `scores` `k`, `classes` `k` (-1 for none), and for "segm" `masks`,
            k masks `h w` or RLEs, in the pixels of the image as stored.
        objects: all that the image has, in the same pixels.
        size: (h, w) of the image.
        classes: c.
        kind: what is compared, "bbox" or "segm".
        instances: `h w`, the numbers of objects whose masks are in no `segmentation`, as stored.

    Returns:
        Rows as of `blank`.

    Raises:
        DataError: for an object without a mask, or with one of another size, in "segm".
    """
    from pycocotools.cocoeval import COCOeval

    judge = COCOeval(iouType=kind)
    most, truths, given = judge.params.maxDets[-1], judge._gts, judge._dts
    for number, thing in enumerate(objects, 1):  # pycocotools takes the number 0 for no match
        code = _mask(thing, size, instances) if kind == "segm" else None
        truth = {"id": number, "bbox": _wide(thing.box), "segmentation": code, "area": thing.area}
        ignored = {"iscrowd": int(thing.crowd), "ignore": int(thing.crowd or thing.difficult)}
        truths[0, thing.category].append(truth | ignored)
    scores, numbers = np.asarray(answers["scores"]), np.asarray(answers["classes"])
    order = [i for i in np.argsort(-scores, kind="stable") if numbers[i] >= 0]
    for place, i in enumerate(order):
        found = {"id": place + 1, "score": scores[i], **_shape(answers, i, kind)}
        given[0, int(numbers[i])].append(found)

    rows = blank(len(scores), classes)
    bits = 1 << np.arange(len(judge.params.iouThrs))
    for key in {*truths, *given}:  # all other classes cost nothing
        judge.ious[key] = judge.computeIoU(*key)
        for a, area in enumerate(judge.params.areaRng):
            found = judge.evaluateImg(*key, area, most)
            places = np.array(found["dtIds"], int) - 1
            rows["matched"][a, places] = bits @ (found["dtMatches"] > 0)
            rows["ignored"][a, places] = bits @ found["dtIgnore"]
            rows["truths"][a, key[1]] = np.count_nonzero(found["gtIgnore"] == 0)
        rows["classes"][places], rows["scores"][places] = key[1], found["dtScores"]
    return rows


def _mask(thing: Object, size: tuple[int, int], instances: np.ndarray | None) -> dict[str, Any]:
    """The RLE of an object's mask."""
    if thing.segmentation is not None:
        found = encoded(thing.segmentation)
    elif instances is not None and thing.number:
        found = encoded(instances == thing.number)
    else:
        raise DataError("masks can't be judged: an object has none")
    (h, w), (high, wide) = found["size"], size
    if (h, w) != (high, wide):
        raise DataError(f"a mask has {h} x {w} pixels, and its image {high} x {wide}")
    return found


def _shape(answers: Mapping[str, Any], number: int, kind: str) -> dict[str, Any]:
    """Box or mask of an answer, and its area."""
    from pycocotools import mask

    if kind == "bbox":
        box = _wide(answers["boxes"][number])
        return {"bbox": box, "area": box[2] * box[3]}
    code = encoded(answers["masks"][number])
    return {"segmentation": code, "area": float(mask.area(code))}


def _wide(box: Sequence[float]) -> list[float]:
    """Left, top, width and height of a box by its edges."""
    left, top, right, bottom = (float(x) for x in box)
    return [left, top, right - left, bottom - top]


def encoded(mask: np.ndarray | Mapping[str, Any]) -> dict[str, Any]:
    """A mask `h w`, or an RLE, as COCO's RLE in values fit for JSON."""
    from pycocotools import mask as masks

    code = mask if isinstance(mask, Mapping) else masks.encode(np.array(mask, np.uint8, order="F"))
    counts = code["counts"]
    text = counts.decode() if isinstance(counts, bytes) else counts
    return {"size": [int(x) for x in code["size"]], "counts": text}


def results(answers: Mapping[str, Any], image: int | str, ids: Sequence[int]) -> list[dict]:
    """The answers to one image in COCO's format of results, best first.

    Args:
        answers: as of `matched`. Those with masks have no boxes in the file: pycocotools would
            take the areas of objects from these.
        image: the image's id.
        ids: of each class in the data's own files; () where they count from 0.
    """
    scores, classes = np.asarray(answers["scores"]), np.asarray(answers["classes"])
    found = []
    for i in np.argsort(-scores, kind="stable"):
        if classes[i] < 0:
            continue
        number = int(classes[i])
        if "masks" in answers:
            shape = {"segmentation": encoded(answers["masks"][i])}
        else:
            shape = {"bbox": [round(x, 2) for x in _wide(answers["boxes"][i])]}
        # In the digits that tell a float32 from its neighbours: rounded scores would be equal.
        score = float(str(scores[i]))
        number = ids[number] if ids else number
        found.append({"image_id": image, "category_id": number, **shape, "score": score})
    return found


def summary(rows: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, Any]:
    """COCO's twelve numbers over all images in percent, and `classes`: `ap` and `ap50` of each one.

    What has no object to be found is left out: a size, or the numbers of a class. The numbers over
    all sizes are always there, 0 where no image has any object.

    Args:
        rows: `n …`, as of `matched`.
        classes: their names.
    """
    from pycocotools.cocoeval import COCOeval

    judge = COCOeval(iouType="bbox")
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of each step
        parts = [_accumulated(rows, number) for number in range(len(classes))]
        precision = np.concatenate([p["precision"] for p in parts], axis=2)  # t r c a m
        recall = np.concatenate([p["recall"] for p in parts], axis=1)
        judge.eval = {"precision": precision, "recall": recall}
        judge.summarize()
    metrics = {
        name: 100 * max(float(value), 0.0)
        for name, value in zip(METRICS, judge.stats, strict=True)
        if value >= 0 or not name.endswith(SIZES)
    }
    whole = precision[:, :, :, 0, -1]  # t r c; of all sizes and the most answers
    table = {
        name: {
            k: round(100 * float(v.mean()), 4)
            for k, v in (("ap", whole[:, :, n]), ("ap50", whole[0, :, n]))
            if (v >= 0).all()
        }
        for n, name in enumerate(classes)
    }
    return metrics | {"classes": table}


def _accumulated(rows: Mapping[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    """pycocotools' `precision` `t r 1 a m` and `recall` `t 1 a m` of one class."""
    from pycocotools.cocoeval import COCOeval

    judge = COCOeval(iouType="bbox")
    thresholds = np.arange(len(judge.params.iouThrs))[:, None]
    images, places = np.nonzero(rows["classes"] == number)
    cuts = np.flatnonzero(np.diff(images)) + 1
    scores = np.split(rows["scores"][images, places], cuts)
    none, found = np.zeros(0), []
    for a in range(AREAS):
        right, passed = (
            np.split((rows[k][images, a, places] >> thresholds) & 1, cuts, axis=1)
            for k in ("matched", "ignored")
        )
        found += [
            {"dtScores": s, "dtMatches": m, "dtIgnore": i, "gtIgnore": none}
            for s, m, i in zip(scores, right, passed, strict=True)
        ]
        # Objects count together; which image they are of does not matter any more.
        count = int(rows["truths"][:, a, number].sum(dtype=np.int64))
        nothing = {"dtScores": none, "dtMatches": thresholds[:, :0], "dtIgnore": thresholds[:, :0]}
        found.append(nothing | {"gtIgnore": np.zeros(count)})
    judge.params.imgIds, judge.params.catIds = list(range(len(scores) + 1)), [number]
    judge.evalImgs, judge._paramsEval = found, judge.params
    judge.accumulate()
    return judge.eval
