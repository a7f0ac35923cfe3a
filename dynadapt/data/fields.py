"""What the arrays of an example are: the one language in which sources, transforms, tasks and
products speak of data.

An example is a dict of arrays by field name, with `name` (a file path or `split[position]`) beside
them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dynadapt.errors import DataError, suggest

# What a field may be, and the dtype that it has unless it says otherwise.
KINDS = {
    "pixels": "uint8",  # `h w 3`
    "labels": "int32",  # a class for each pixel, `h w`; `fill` is void
    "values": "float32",  # a measure for each pixel such as depth, `h w`; `fill` is invalid
    "vectors": "float32",  # unit vectors that turn with the picture, `h w 3`; zero is invalid
    "masks": "int32",  # instance numbers from 1, `h w`; 0 is none
    "boxes": "float32",  # `n 4`: left, top, right, bottom in pixels, edges not centres
    "rows": "int32",  # one entry a box, `n` or `n k`: class, crowd
    "cloud": "float32",  # points `n 3`, never cast
    "point_labels": "int32",  # a class for each point, `n`; `fill` is none
    "features": "float32",  # what a frozen prefix answers, of any shape
    "number": "int32",  # of the whole example
    "extent": "int32",  # (h, w) that the picture fills of its canvas; made by the transforms
}
DENSE = ("pixels", "labels", "values", "vectors", "masks")


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of the examples of a data set.

    Attributes:
        kind: one of `KINDS`.
        dtype: of the array; "" is that of the kind.
        fill: what stands where nothing is known: void, invalid, outside of the picture.
        classes: names of the classes that its numbers count, in order.
        most: length to which ragged rows are padded, beside a mask `<name>_mask`; 0 for none.
        size: `(h, w)` of a dense field, or the shape of another one, where all examples share it;
            () where they don't.
        ids: what the data's own files number the classes, in order; () for 0, 1, 2, and so on.
        owners: of each class the number of the category that it is a part of; () where classes are
            no parts.
    """

    kind: str
    dtype: str = ""
    fill: float = 0
    classes: tuple[str, ...] = ()
    most: int = 0
    size: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()
    owners: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"there is no kind of field {self.kind!r}; {suggest(self.kind, KINDS)}")
        if not self.dtype:
            object.__setattr__(self, "dtype", KINDS[self.kind])


def to_plain(fields: Mapping[str, Field]) -> dict[str, Any]:
    """Fields as JSON values."""
    return {name: dataclasses.asdict(field) for name, field in fields.items()}


def from_plain(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Field]:
    """Undoes `to_plain`; values of a later version are passed over."""
    known = [f.name for f in dataclasses.fields(Field)]
    return {
        name: Field(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()
                       if k in known})
        for name, given in values.items()
    }  # fmt: skip
