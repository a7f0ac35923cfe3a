"""Examples that hold nothing: what a run would cost is planned before its data is there.

launch/local.sh plan --config=configs/segment.py:recipe=ade20k,data=blank

With the field `points` examples are clouds and have no image.
"""

from typing import Any

import numpy as np

from dynadapt import choices
from dynadapt.data import MAX_CLASSES, Info, Rows, objects
from dynadapt.data.fields import DENSE, Field
from dynadapt.errors import DataError, UnknownName

MAX_COUNT, MAX_SIDE, MAX_POINTS = 1 << 30, 8000, 1 << 20
OBTAIN = "nothing is to be obtained"
# Fields by the names that tasks know them by, and their kinds.
KINDS = {
    "label": "number",
    "labels": "labels",
    "human_parts": "labels",
    "saliency": "labels",
    "edges": "labels",
    "depth": "values",
    "normals": "vectors",
    "instances": "masks",
    "boxes": "boxes",
    "box_classes": "rows",
    "box_ids": "rows",
    "points": "cloud",
    "parts": "point_labels",
}
# How many classes those fields have whose number is always the same.
OWN = {"human_parts": 7, "saliency": 2, "edges": 2}


class Blank:
    """Grey pictures without objects, or points all at the origin; of class 0 everywhere."""

    in_memory = True

    def __init__(self, split: str, info: Info):
        self.info, self._rows = info, Rows(split, info.counts)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, position = self._rows[index]
        example: dict[str, Any] = {"name": f"{name}[{position}]"}
        for key, field in self.info.fields.items():
            deep = {"pixels": (3,), "vectors": (3,), "boxes": (4,)}.get(field.kind, ())
            shape = (0,) if field.most else field.size
            example[key] = np.full((*shape, *deep), 128 if key == "image" else 0, field.dtype)
        if "boxes" in example:
            example |= {"objects": [], "image_id": range(len(self))[index]}
        return example


def source(
    split: str,
    fields: tuple[str, ...] = ("labels",),
    class_count: int = 150,
    size: tuple[int, int] = (512, 683),
    count: int = 20210,
    points: int = 1024,
    part_count: int = 50,
) -> Blank:
    """Splits `train` and `test` of `count` examples each.

    Args:
        split: which.
        fields: those beside `image`, of `KINDS`; boxes have classes, and of `instances` numbers.
        class_count: classes of labels or boxes; human parts, saliency and edges have their own.
        size: (h, w) of the pictures.
        count: of examples.
        points: of a cloud.
        part_count: classes of points, which the classes of clouds share among them.

    Raises:
        UnknownName: for a field that is not there.
        DataError: for numbers out of range, and for fields of clouds beside those of pictures.
    """
    for name in fields:
        if name not in KINDS:
            raise UnknownName("field of blank examples", name, KINDS)
    bounds = {"class_count": (class_count, MAX_CLASSES), "count": (count, MAX_COUNT)}
    bounds |= {"points": (points, MAX_POINTS), "part_count": (part_count, MAX_CLASSES)}
    bounds |= {f"size[{i}]": (side, MAX_SIDE) for i, side in enumerate(size)}
    for name, (value, most) in bounds.items():
        if not isinstance(value, int) or not choices.inside(value, f"[1, {most}]"):
            raise DataError(f"data.{name} must be a whole number from 1 to {most:,}, not {value!r}")
    if len(size) != 2:
        raise DataError(f"data.size must be (h, w), not {tuple(size)}")
    names = tuple(map(str, range(class_count)))
    if "points" in fields:
        made = _clouds(fields, names, points, part_count)
    else:
        made = _pictures(fields, names, tuple(size))
    return Blank(split, Info("blank", made, {"train": count, "test": count}, OBTAIN))


def _pictures(
    fields: tuple[str, ...], classes: tuple[str, ...], size: tuple[int, ...]
) -> dict[str, Field]:
    if "parts" in fields:
        raise DataError("the field parts is of clouds; name points among data.fields, too")
    known = objects.fields(classes, objects.MOST, size=size, masks=True)
    for name, kind in KINDS.items():
        own = tuple(map(str, range(OWN[name]))) if name in OWN else classes
        counted = dict(classes=own) if kind in ("labels", "number") else {}
        known.setdefault(name, Field(kind, size=size if kind in DENSE else (), **counted))
    wanted = ["image", *fields, *sorted(objects.completed(fields) - {*fields})]
    made = {name: known[name] for name in wanted}
    return made | objects.EXTENT if "boxes" in made else made


def _clouds(
    fields: tuple[str, ...], classes: tuple[str, ...], points: int, part_count: int
) -> dict[str, Field]:
    owners = tuple(part * len(classes) // part_count for part in range(part_count))
    known = {
        "points": Field("cloud", size=(points, 3)),
        "label": Field("number", classes=classes),
        "parts": Field(
            "point_labels",
            fill=-1,
            classes=tuple(map(str, range(part_count))),
            size=(points,),
            owners=owners,
        ),
    }
    for name in fields:
        if name not in known:
            raise DataError(f"the field {name} is of pictures, which clouds of points are not")
    return {name: field for name, field in known.items() if name in fields}
