"""Image files and the objects that annotations say they hold.

A reader of a format makes `Picture`s of it; what is the same in all of them is here.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynadapt.data import Info, Rows, objects, pairs
from dynadapt.data.decode import dimensions
from dynadapt.data.objects import Object
from dynadapt.errors import DataError


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image and what is annotated of it.

    Attributes:
        path: of the file, below the set's folder.
        size: (h, w) that the annotations say it has.
        objects: all of them.
        id: by which results name the image; None for its position.
        shapes: the outlines of the objects as the file has them; () where they aren't asked for.
    """

    path: str
    size: tuple[int, int]
    objects: Sequence[Object]
    id: int | None = None
    shapes: Sequence[Any] = ()


Masks = Callable[[Picture, str], tuple[list[Object], np.ndarray]]


class Annotated:
    """A source over image files, which it returns as encoded bytes, and their objects.

    Boxes and masks lie over pixels as they are stored: no image is turned as its EXIF block says.
    """

    def __init__(
        self,
        split: str,
        root: Path,
        pictures: Mapping[str, Sequence[Picture]],
        info: Info,
        masks: Masks | None = None,
    ):
        self.info = info
        self._root, self._pictures, self._masks = root, pictures, masks
        self._most = info.fields["boxes"].most
        self._rows = Rows(split, info.counts)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        split, position = self._rows[index]
        picture = self._pictures[split][position]
        file = self._root / picture.path
        image = pairs.read(file)
        size = dimensions(image, str(file))
        if size != picture.size:
            raise DataError(
                f"{file} has {size[0]} x {size[1]} pixels (h, w), but its annotations are of "
                f"{picture.size[0]} x {picture.size[1]}"
            )
        number = range(len(self))[index] if picture.id is None else picture.id
        example = {"image": image, "name": str(file), "image_id": number}
        things = list(picture.objects)
        if self._masks:
            things, example["instances"] = self._masks(picture, str(file))
        found = objects.targets(things, size, self._most)
        if not self._masks:
            del found["box_ids"]
        return example | found | {"objects": things}


def opened(
    name: str,
    split: str,
    root: Path,
    found: Mapping[str, tuple[Path, Sequence[Picture]]],
    classes: tuple[str, ...],
    most: int,
    obtain: str,
    said: bytes,
    ids: tuple[int, ...] = (),
    masks: Masks | None = None,
) -> Annotated:
    """The source over these pictures.

    Args:
        name: of the data set.
        split: to be read.
        root: below which the files lie.
        found: of each split the file that lists its pictures, and these.
        classes: names of the objects' classes.
        most: objects of an image that are targets.
        obtain: how to.
        said: what tells these data from others.
        ids: what the files number the classes.
        masks: makes objects with masks and the map of instances of a picture.

    Raises:
        DataError: where images are missing, or a split has none.
    """
    fields = objects.fields(classes, most, ids, masks=masks is not None)
    pictures = {part: rows for part, (_, rows) in found.items()}
    for part, (file, rows) in found.items():
        absent = [p.path for p in rows if not (root / p.path).is_file()]
        if absent:
            raise DataError(
                f"{file} names {len(absent)} of {len(rows)} images that are not under {root}, the "
                f"first of them {absent[0]}"
            )
        if not rows:
            raise DataError(f"{file} lists no images")
        objects.survey(f"{part} of {root}", ((p.objects, p.size) for p in rows), most)
    counts = {part: len(rows) for part, rows in pictures.items()}
    digest = hashlib.sha256(repr(classes).encode() + said)
    info = Info(name, fields, counts, obtain, digest.hexdigest())
    return Annotated(split, root, pictures, info, masks)
