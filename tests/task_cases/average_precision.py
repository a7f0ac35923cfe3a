"""Average precision of COCO: cases hold truths and results in the format of COCO's files."""

import contextlib
import io
import json
from types import SimpleNamespace

import numpy as np

from dynadapt.targets import coco

# Names of the cases, in the order of ours.
NAMES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)


def knows(meta):
    """Whether a case is one of these."""
    return meta["source"].startswith("pycocotools") and "expected.json" in meta["outputs"]


def run(folder, meta, check):
    """Compares all that a case expects."""
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        truths = COCO(folder / "gt.json")
    for name, wanted in json.loads((folder / "expected.json").read_text()).items():
        kind, by_class = name.split("_")[0], not name.endswith("class_agnostic")
        with contextlib.redirect_stdout(io.StringIO()):
            results = truths.loadRes(str(folder / f"dt_{kind}.json"))
        found = summary(truths, results, kind, by_class)
        for theirs, ours in zip(NAMES, coco.METRICS, strict=True):
            check(f"{name}/{theirs}", found.get(ours, -100.0) / 100, wanted[theirs], meta["atol"])
        for number, value in wanted.get("per_category_AP", {}).items():
            ours = found["classes"][number].get("ap", -100.0) / 100
            check(f"{name}/{number}", ours, value, meta["atol"])


def summary(truths, results, kind, by_class):
    """Our metrics, by the files' own numbers of the classes; or as if there were one class."""
    ids = sorted(truths.getCatIds())
    images = sorted(truths.getImgIds())
    # pycocotools puts the classes after each other where it takes them for one.
    annotations, answers = (
        {i: sorted(of.imgToAnns[i], key=lambda a: a["category_id"]) for i in images}
        for of in (truths, results)
    )
    most = max(map(len, answers.values()))
    number = ids.index if by_class else lambda _: 0
    rows = []
    for image in images:
        size = truths.imgs[image]["height"], truths.imgs[image]["width"]
        objects = [
            SimpleNamespace(
                category=number(a["category_id"]),
                box=edges(a["bbox"]),
                area=a["area"],
                crowd=bool(a.get("iscrowd")),
                difficult=False,
                segmentation=truths.annToRLE(a) if kind == "segm" else None,
            )
            for a in annotations[image]
        ]
        given = answers[image]
        free = most - len(given)
        found = {
            "boxes": np.array([*(edges(a["bbox"]) for a in given), *([[0.0] * 4] * free)]),
            "scores": np.array([a["score"] for a in given] + [0.0] * free),
            "classes": np.array([number(a["category_id"]) for a in given] + [-1] * free),
            "masks": [a.get("segmentation") for a in given],
        }
        rows.append(coco.matched(found, objects, size, len(ids) if by_class else 1, kind))
    rows = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
    return coco.summary(rows, [str(i) for i in ids] if by_class else ["object"])


def edges(box):
    """A box by its edges, of left, top, width and height."""
    left, top, wide, high = box
    return left, top, left + wide, top + high
