"""Images with a number for each object in PNG files of one's own: 0 is none, every other value an
object. Boxes are those around its pixels.

Masks are grey of 1 to 16 bits, or a palette, whose indices count and not its colours.
"""

import logging
from typing import Any

import numpy as np

from dynadapt.data import Info, objects, pairs, parse, read_classes
from dynadapt.data.decode import numbers
from dynadapt.data.objects import MOST
from dynadapt.data.pairs import Pairs
from dynadapt.errors import DataError

OBTAIN = (
    "put images in path/images/<split>/ and maps of the same names in path/instances/<split>/, or "
    "set data.images and data.instances"
)
_VALUES = 1 << 16
_OUTSIDE, _NONE = -2, -1  # a value of a class that is not there, and one that is no object


class Instances:
    """A source over images and their maps; `classes` gives the class of each number in a map."""

    def __init__(self, maps: Pairs, classes: np.ndarray, most: int):
        self.info = maps.info
        self._maps, self._classes, self._most, self._said = maps, classes, most, False

    def __len__(self) -> int:
        return len(self._maps)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._maps[index]
        things = objects.of_map(example["instances"], lambda n: int(self._classes[n]))
        if len(things) > self._most and not self._said:
            self._said = True
            logging.getLogger(__name__).warning(
                "%s has %d objects; of images with more than data.most=%d the smallest are no "
                "targets", example["name"], len(things), self._most,
            )  # fmt: skip
        found = objects.targets(things, example["instances"].shape, self._most)
        return example | found | {"objects": things, "image_id": range(len(self))[index]}


def source(
    split: str,
    path: str = "",
    images: str = "images/{split}",
    instances: str = "instances/{split}",
    merge: int = 1,
    divisor: int = 0,
    ids: tuple[int, ...] = (),
    class_name: str = "",
    most: int = MOST,
) -> Instances:
    """Reads images and maps below `path`, paired by name.

    All objects are of one class, `class_name`, or that of `path/classes.txt`, else `object`; or,
    with a `divisor`, of those that `path/classes.txt` names, one a line.

    Args:
        split: which.
        path: the folder.
        images: where the images lie; `dynadapt.data.pairs` says what a pattern is.
        instances: where the maps lie.
        merge: values of which one object has several: with 10, 20 to 29 are one, and 1 to 9 none.
        divisor: a value divided by it is the class, counted from 1 as `classes.txt` does; 1000 for
            Cityscapes.
        ids: what such a class is instead, in the order of `classes.txt`; others are no objects.
        class_name: of all objects.
        most: objects of an image that are targets; of more the smallest are none.

    Raises:
        DataError: for what isn't there, settings that do not fit, and, in reading, for maps of
            colours, of a class that is not there, or of another size than their image.
    """
    root = pairs.folder(path, OBTAIN)
    names = [*dict.fromkeys(name for name, _ in parse(split))]
    files = pairs.find(root, images, instances, names, (".png",), OBTAIN)
    classes = read_classes(root)
    if class_name or not classes and not divisor:
        classes = (class_name or "object",)
    table = _table(len(classes), merge, divisor, ids, root)
    said = pairs.fingerprint(root, files, repr((classes, merge, divisor, ids)))
    own = ids or (tuple(range(1, len(classes) + 1)) if divisor else ())
    fields = objects.fields(classes, most, tuple(own), masks=True)
    counts = {part: len(rows) for part, rows in files.items()}
    info = Info("instances", fields, counts, OBTAIN, said)

    def read(png: bytes, name: str) -> np.ndarray:
        values = numbers(png, name)
        if values.ndim == 3:
            raise DataError(f"{name} holds colours; save the numbers of objects in grey")
        found = values.astype(np.int32) // merge
        strange = table[found] == _OUTSIDE
        if strange.any():
            value = values[strange].min()
            raise DataError(
                f"{name} holds the value {value}, whose class {value // merge // divisor} is none "
                f"of the {len(classes)} of {root / 'classes.txt'}"
            )
        return np.where(table[found] == _NONE, 0, found)

    maps = Pairs(split, root, files, info, "instances", read)
    return Instances(maps, table, most)


def _table(count: int, merge: int, divisor: int, ids: tuple[int, ...], root: Any) -> np.ndarray:
    """The class of each number of a map; raises a DataError for settings that don't fit."""
    if not 1 <= merge < _VALUES or not 0 <= divisor < _VALUES:
        raise DataError(
            f"data.merge={merge} and data.divisor={divisor} must be whole numbers of which maps of "
            "16 bits have values"
        )
    if not divisor:
        if count > 1 or ids:
            raise DataError(
                f"{root / 'classes.txt'} names {count} classes; say in data.divisor how values "
                "tell them, or name the one class in data.class_name"
            )
        table = np.zeros(_VALUES, np.int32)
        table[0] = _NONE
        return table
    if not count or ids and (len(ids) != count or len(set(ids)) < count):
        raise DataError(
            f"{root / 'classes.txt'} names {count} classes and data.ids {len(ids)}; with a divisor "
            "name each class once"
        )
    known = {number: place for place, number in enumerate(ids or range(1, count + 1))}
    of = np.arange(_VALUES) // divisor
    table = np.full(_VALUES, _NONE if ids else _OUTSIDE, np.int32)
    table[of == 0] = _NONE
    for number, place in known.items():
        table[of == number] = place
    return table
