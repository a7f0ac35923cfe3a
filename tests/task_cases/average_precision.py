"""Average precision: of COCO, in the format of its files, and of PASCAL VOC, in arrays."""

import contextlib
import io
import json

import numpy as np

from dynadapt.data.objects import Object
from dynadapt.targets import coco, voc

# Names of the cases, in the order of ours.
NAMES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)


def knows(meta):
    """Whether a case is one of these."""
    return meta["source"].startswith("pycocotools") or meta["source"].endswith("eval_map")


def run(folder, meta, check):
    """Compares all that a case expects."""
    (voc_arrays if meta["source"].endswith("eval_map") else coco_files)(folder, meta, check)


def coco_files(folder, meta, check):
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
            Object(
                category=number(a["category_id"]),
                box=edges(a["bbox"]),
                area=a["area"],
                crowd=bool(a.get("iscrowd")),
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


def voc_arrays(folder, meta, check):
    inputs = dict(np.load(folder / "inputs.npz"))
    assert meta["config"]["iou"] == voc.LEAST
    for name, wanted in json.loads((folder / "expected.json").read_text()).items():
        classes = [str(n) for n in range(len(wanted["AP"]))]
        # A width of x2 - x1 + 1 is that of a box whose right edge is one pixel further.
        rows = voc_rows(inputs, len(classes), [0, 0, 1, 1] if name.endswith("_legacy") else [0] * 4)
        found = voc.summary(rows, classes)
        key = "voc_ap50_11" if name.startswith("11points") else "voc_ap50"
        check(f"{name}/mAP", found[key] / 100, wanted["mAP"], meta["atol"])
        by_class = [found["classes"][n].get(key, 0.0) / 100 for n in classes]
        check(f"{name}/AP", by_class, wanted["AP"], meta["atol"])
        check(f"{name}/num_gts", rows["truths"].sum(0), wanted["num_gts"], 0)


def voc_rows(inputs, classes, wider):
    images = [n for n in range(len(inputs)) if f"gt{n}_boxes" in inputs]
    most = max(len(inputs[f"det{n}_scores"]) for n in images)
    rows = []
    for n in images:
        truth = [inputs[f"gt{n}_{k}"] for k in ("boxes", "labels", "difficult")]
        objects = [
            Object(int(c), tuple(b + wider), area=0.0, difficult=bool(d))
            for b, c, d in zip(*truth, strict=True)
        ]
        boxes, scores, labels = (inputs[f"det{n}_{k}"] for k in ("boxes", "scores", "labels"))
        free = most - len(scores)
        answers = {
            "boxes": np.pad(boxes + wider, ((0, free), (0, 0))),
            "scores": np.pad(scores, (0, free)),
            "classes": np.pad(labels, (0, free), constant_values=-1),
        }
        rows.append(voc.matched(answers, objects, classes))
    return {k: np.stack([row[k] for row in rows]) for k in rows[0]}
