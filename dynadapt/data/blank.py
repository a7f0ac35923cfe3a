"""Examples that hold nothing: what a run would cost is planned before its data is there.

launch/local.sh plan --config=configs/segment.py:recipe=ade20k,data=blank
"""

from typing import Any

import numpy as np

from dynadapt import choices
from dynadapt.data import MAX_CLASSES, Info, Rows, objects
from dynadapt.data.fields import DENSE, Field
from dynadapt.errors import DataError, UnknownName

MAX_COUNT, MAX_SIDE = 1 << 30, 8000
OBTAIN = "nothing is to be obtained"
# Fields by the names that tasks know them by, and their kinds.
KINDS = {
    "label": "number",
    "labels": "labels",
    "depth": "values",
    "normals": "vectors",
    "instances": "masks",
    "boxes": "boxes",
    "box_classes": "rows",
    "box_ids": "rows",
}


class Blank:
    """Grey pictures, of class 0 everywhere, without objects."""

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
) -> Blank:
    """Splits `train` and `test` of `count` pictures each.

    Args:
        split: which.
        fields: those beside `image`, of `KINDS`; boxes have classes, and of `instances` numbers.
        class_count: classes of labels or boxes.
        size: (h, w) of the pictures.
        count: of pictures.

    Raises:
        UnknownName: for a field that is not there.
        DataError: for numbers out of range.
    """
    for name in fields:
        if name not in KINDS:
            raise UnknownName("field of blank examples", name, KINDS)
    bounds = {"class_count": (class_count, MAX_CLASSES), "count": (count, MAX_COUNT)}
    bounds |= {f"size[{i}]": (side, MAX_SIDE) for i, side in enumerate(size)}
    for name, (value, most) in bounds.items():
        if not isinstance(value, int) or not choices.inside(value, f"[1, {most}]"):
            raise DataError(f"data.{name} must be a whole number from 1 to {most:,}, not {value!r}")
    if len(size) != 2:
        raise DataError(f"data.size must be (h, w), not {tuple(size)}")
    names = tuple(map(str, range(class_count)))
    known = objects.fields(names, objects.MOST, size=tuple(size), masks=True)
    for name, kind in KINDS.items():
        counted = dict(classes=names) if kind in ("labels", "number") else {}
        sized = dict(size=tuple(size)) if kind in DENSE else {}
        known.setdefault(name, Field(kind, **sized, **counted))
    wanted = ["image", *fields, *sorted(objects.completed(fields) - {*fields})]
    made = {name: known[name] for name in wanted}
    if "boxes" in made:
        made |= objects.EXTENT
    return Blank(split, Info("blank", made, {"train": count, "test": count}, OBTAIN))
