"""Objects in PASCAL VOC's format: an XML file for each image, and lists of the splits.

Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective", IJCV 2015. Files
count pixels from 1 and a box holds its last column and row, so (xmin, ymin, xmax, ymax) spans from
xmin - 1 to xmax. What is marked as difficult is no target.
"""

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from dynadapt.data import lists, pairs, parse, read_classes
from dynadapt.data.annotated import Annotated, Picture, opened
from dynadapt.data.decode import dimensions
from dynadapt.data.lists import nfc
from dynadapt.data.objects import LEAST, MOST, Object
from dynadapt.errors import DataError, suggest

OBTAIN = (
    "unpack VOCtrainval_11-May-2012.tar, which holds VOCdevkit/VOC2012 with JPEGImages, "
    "Annotations and ImageSets/Main"
)
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def source(
    split: str, path: str = "", most: int = MOST, classes: tuple[str, ...] = ()
) -> Annotated:
    """Reads the images that `ImageSets/Main/<split>.txt` lists, in its order.

    `path` is the folder of a year, such as VOC2012, one that holds VOCdevkit/VOC2012, or one's own
    of that layout. The classes are those of `path/classes.txt`, one a line; without it the names in
    all of its annotations, sorted: VOC's 20 come in their order, and
    `--config.data.path=../shared/data/bccd` needs nothing else.

    Args:
        split: which.
        path: the folder.
        most: objects of an image that are targets; of more the smallest are none.
        classes: names of the classes, where they are known.

    Raises:
        DataError: for what isn't there or can't be read, and for a class that is none of the known
            ones.
    """
    root = pairs.folder(path, OBTAIN)
    inner = root / "VOCdevkit" / "VOC2012"
    root = inner if inner.is_dir() else root
    files, ids = {}, {}
    for name in dict.fromkeys(name for name, _ in parse(split)):
        files[name] = lists.find(root, name, "ImageSets/Main/{split}.txt")
        # a line of one class's own list has a second word: whether the class is there
        ids[name] = [line.split()[0] for line in lists.read_lines(files[name]) if line.strip()]
    known = classes or read_classes(root)
    wanted = list(dict.fromkeys(number for listed in ids.values() for number in listed))
    every = [] if known else sorted(p.stem for p in (root / "Annotations").glob("*.xml"))
    marks = {number: _read(root, number) for number in dict.fromkeys((*wanted, *every))}
    names = known or tuple(sorted({mark.name for m in marks.values() for mark in m.things}))
    if not names:
        raise DataError(f"no annotation in {root / 'Annotations'} has an object; {OBTAIN}")
    _say_small(root, [marks[number] for number in wanted])
    numbers = {nfc(name): number for number, name in enumerate(names)}
    pictures = {number: _picture(root, marks[number], numbers) for number in wanted}
    found = {name: (files[name], [pictures[n] for n in listed]) for name, listed in ids.items()}
    digest = hashlib.sha256(repr([(name, marks[n]) for name in ids for n in ids[name]]).encode())
    return opened("voc", split, root, found, names, most, OBTAIN, digest.digest())


class _Mark(NamedTuple):
    """One object of a file."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


class _Marks(NamedTuple):
    """What a file says of its image; a size of 0 x 0 is not known."""

    number: str
    size: tuple[int, int]
    called: str
    things: tuple[_Mark, ...]
    small: int


def _read(root: Path, number: str) -> _Marks:
    """The annotations of an image, without boxes of a side under a pixel, which are counted."""
    file = root / "Annotations" / f"{number}.xml"
    text = "\n".join(lists.read_lines(file))
    # entities can grow without end, or be the content of other files
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{file} declares a document type, which no annotation needs")
    try:
        found = ElementTree.fromstring(text)
    except (ElementTree.ParseError, RecursionError, ValueError) as error:
        raise DataError(f"{file} is no XML file: {error}") from None
    if found.tag != "annotation":
        raise DataError(f"{file} holds <{found.tag:.80}>, where VOC has <annotation>")
    every = [_mark(thing, file) for thing in found.iterfind("object")]
    large = [m for m in every if m.box[2] - m.box[0] >= LEAST and m.box[3] - m.box[1] >= LEAST]
    sides = [found.findtext(f"size/{side}", "0") for side in ("height", "width")]
    size = tuple(int(side) if side.strip().isdecimal() else 0 for side in sides)
    called = found.findtext("filename", "").strip()
    return _Marks(number, size, called, tuple(large), len(every) - len(large))


def _mark(thing: ElementTree.Element, file: Path) -> _Mark:
    name = nfc(thing.findtext("name", "").strip())
    try:
        corners = [float(thing.findtext(f"bndbox/{corner}")) for corner in CORNERS]
    except (TypeError, ValueError):
        corners = [math.nan]
    if not name or not all(map(math.isfinite, corners)):
        raise DataError(f"{file} has an object without a name or a bndbox of {', '.join(CORNERS)}")
    left, top, right, bottom = corners
    difficult = thing.findtext("difficult", "0").strip() not in ("0", "")
    return _Mark(name, (left - 1, top - 1, right, bottom), difficult)


def _picture(root: Path, marks: _Marks, numbers: Mapping[str, int]) -> Picture:
    own = f"JPEGImages/{marks.number}.jpg"
    path = next((p for p in (own, f"JPEGImages/{marks.called}") if (root / p).is_file()), own)
    size = marks.size
    if min(size) < 1 and (root / path).is_file():
        size = dimensions(pairs.read(root / path), path)
    things = []
    for name, box, difficult in marks.things:
        if name not in numbers:
            raise DataError(
                f"{root / 'Annotations' / marks.number}.xml has the unknown class {name!r:.80}; "
                f"{suggest(name, numbers)}"
            )
        area = (box[2] - box[0]) * (box[3] - box[1])
        things.append(Object(numbers[name], box, area, difficult=difficult))
    return Picture(path, size, things)


def _say_small(root: Path, marks: Sequence[_Marks]) -> None:
    """Says which boxes were dropped, by the first of them."""
    small = [m for m in marks if m.small]
    if small:
        logging.getLogger(__name__).warning(
            "%s: %d boxes have a side under a pixel and are passed over, the first in %s.xml",
            root, sum(m.small for m in small), small[0].number,
        )  # fmt: skip
