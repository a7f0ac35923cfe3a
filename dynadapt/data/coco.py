"""Objects in COCO's format: a JSON file for each split, and a folder of images.

Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014. The release has
`annotations/instances_train2017.json` and `train2017/`, so its splits are `train2017` and
`val2017`; exports of annotation tools often have `train/_annotations.coco.json` among the images.

An object is a target unless it is a crowd, marked as ignored, or nothing of it is to be seen. All
of them are told to an evaluation.
"""

import dataclasses
import glob
import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynadapt.data import MAX_CLASSES, outlines, pairs, parse
from dynadapt.data.annotated import Annotated, Picture, opened
from dynadapt.data.lists import nfc
from dynadapt.data.objects import MOST, Object, is_target
from dynadapt.errors import DataError, MissingSplit, suggest
from dynadapt.files import regular

OBTAIN = (
    "unpack train2017.zip, val2017.zip and annotations_trainval2017.zip of COCO into data.path, or "
    "say where your own files are in data.annotations and data.images"
)
# Where the annotations of a split are looked for, and its images.
PLACES = (
    ("annotations/instances_{split}.json", "{split}"),
    ("{split}/_annotations.coco.json", "{split}"),
    ("{split}/annotations.json", "{split}"),
)
MAX_BYTES = 1 << 32  # of a file of annotations
# What is said of annotations that are not as they should be.
TWICE = "annotations have the id of another; all of them count"
STRANGE = "annotations are of images that it does not list; they are passed over"
SMALL = "polygons have less than three corners; they are passed over"
BARE = "objects have no outline; they are neither targets nor judged"


def source(
    split: str,
    path: str = "",
    annotations: str = "",
    images: str = "",
    masks: bool = False,
    most: int = MOST,
    filled: tuple[str, ...] = (),
) -> Annotated:
    """Reads images and objects below `path`, in the order of the annotations' file.

    The classes are the file's categories in the order of their ids, which may have gaps. Where
    masks overlap in the map of instances, a smaller object lies over a larger one, and of equal
    ones the later over the earlier.

    Args:
        split: which.
        path: the folder.
        annotations: the file, in which `{split}` stands for the split; "" for the first of `PLACES`
            that is there.
        images: the folder below which the annotations' file names lie; "" for what belongs to
            `annotations` in `PLACES`, or `{split}`.
        masks: whether to read the outlines, too, which takes pycocotools.
        most: objects of an image that are targets; of more the smallest are none.
        filled: splits of which images without targets are left out, such as `("train2017",)`, as
            mmdetection trains.

    Raises:
        DataError: for what isn't there or can't be read, and, in reading, for images and outlines
            of another size than the annotations say.
        ConfigError: where pycocotools is asked for and isn't there.
    """
    root = pairs.folder(path, OBTAIN)
    draw = outlines.drawer() if masks else None
    found, digest, categories = {}, hashlib.sha256(), {}
    for name in dict.fromkeys(name for name, _ in parse(split)):
        file, place = _places(root, name, annotations, images)
        content = _content(file)
        digest.update(hashlib.sha256(content).digest())
        document = _document(file, content)
        own = _categories(file, document)
        if categories and own != categories:
            raise DataError(f"the categories of {file} are not those of the splits before it")
        categories, rows = own, _pictures(file, document, place, [*own], masks)
        if name in filled:
            rows = [p for p in rows if any(is_target(thing, p.size) for thing in p.objects)]
            if not rows:
                raise DataError(f"no image of {file} has a target, and data.filled wants one")
        found[name] = file, rows
    ids, classes = tuple(categories), tuple(categories.values())
    ids = () if ids == tuple(range(len(ids))) else ids
    return opened("coco", split, root, found, classes, most, OBTAIN, digest.digest(), ids, draw)


def _places(root: Path, split: str, annotations: str, images: str) -> tuple[Path, str]:
    """The file of annotations of a split, and the folder of its images, below `root`."""
    choices = ((annotations, "{split}"),) if annotations else PLACES
    if split != "train" and "{split}" not in choices[0][0]:
        raise MissingSplit(
            f"{root / annotations} has no split {split!r}; use slices of train, such as "
            "train[:800] and train[800:], or write {split} in data.annotations"
        )
    for file, place in choices:
        path = root / file.replace("{split}", split)
        if path.is_file():
            return path, (images or place).replace("{split}", split)
    known = set()
    for file, _ in choices:
        before, _, after = str(root / file).partition("{split}")
        there = glob.glob(f"{glob.escape(before)}*{glob.escape(after)}")
        known |= {found[len(before) : len(found) - len(after)] for found in there}
    if not known:
        raise DataError(
            f"there is no file {root / choices[0][0].replace('{split}', split)}; {OBTAIN}"
        )
    raise MissingSplit(f"{root} has no split {split!r}; {suggest(split, known)}")


def _content(file: Path) -> bytes:
    try:
        regular(file, MAX_BYTES)
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None


def _document(file: Path, content: bytes) -> dict[str, list[dict]]:
    """The three lists of a file."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{file} is no JSON file: {error}") from None
    for name in ("images", "annotations", "categories"):
        rows = document.get(name) if isinstance(document, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(
                f"{file} has no list of {name}; a COCO file has images, annotations and categories"
            )
    return document


def _whole(row: Mapping[str, Any], key: str, where: str) -> int:
    """A whole number of a row of a file."""
    value = row.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{where} has {key} {value!r:.80}, which is no whole number")
    return value


def _categories(file: Path, document: Mapping[str, list[dict]]) -> dict[int, str]:
    """The names of categories by their ids, in the order of these."""
    found: dict[int, str] = {}
    for row in document["categories"]:
        number, name = _whole(row, "id", f"a category of {file}"), row.get("name")
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"the category {number} of {file} has no name")
        if number in found:
            raise DataError(f"{file} has two categories with the id {number}")
        found[number] = nfc(name.strip())
    if not 0 < len(found) <= MAX_CLASSES:
        raise DataError(f"{file} has {len(found):,} categories, not 1 to {MAX_CLASSES:,}")
    often = Counter(found.values())
    return {k: v if often[v] == 1 else f"{v} {k}" for k, v in sorted(found.items())}


def _pictures(
    file: Path, document: Mapping[str, list[dict]], place: str, ids: list[int], masks: bool
) -> list[Picture]:
    """The images of a file and their objects, in its order; says what is passed over."""
    found: dict[int, Picture] = {}
    for row in document["images"]:
        number = _whole(row, "id", f"an image of {file}")
        name, where = row.get("file_name"), f"the image {number} of {file}"
        if number in found:
            raise DataError(f"{file} has two images with the id {number}")
        if not isinstance(name, str) or not name:
            raise DataError(f"{where} has no file_name")
        size = _whole(row, "height", where), _whole(row, "width", where)
        if min(size) < 1:
            raise DataError(f"{where} has {size[0]} x {size[1]} pixels")
        found[number] = Picture(str(Path(place) / name), size, [], number, [])
    classes = {number: category for category, number in enumerate(ids)}
    said, known = Counter(), set()
    for position, row in enumerate(document["annotations"]):
        number = row.get("id", f"number {position}")
        where = f"the annotation {number!r:.40} of {file}"
        picture = found.get(_whole(row, "image_id", where))
        if isinstance(number, int):
            said[TWICE] += number in known
            known.add(number)
        if picture is None:
            said[STRANGE] += 1
            continue
        category = _whole(row, "category_id", where)
        if category not in classes:
            raise DataError(f"{where} has the category {category}, which {file.name} does not list")
        thing = _object(row, classes[category], where)
        if masks:
            shape, small = outlines.cleaned(row.get("segmentation"), picture.size, where)
            said[SMALL] += small
            if shape is None:
                said[BARE] += 1
                thing = dataclasses.replace(thing, difficult=True)
            picture.shapes.append(shape)
        picture.objects.append(thing)
    for what, count in said.items():
        if count:
            logging.getLogger(__name__).warning("%s: %d %s", file, count, what)
    return list(found.values())


def _object(row: Mapping[str, Any], category: int, where: str) -> Object:
    try:
        left, top, w, h = map(float, row.get("bbox"))
        area = float(row.get("area", w * h))
    except (TypeError, ValueError, OverflowError):
        left = top = w = h = area = math.nan
    if not all(map(math.isfinite, (left, top, w, h, area))):
        raise DataError(f"{where} has no bbox [left, top, width, height] and area in numbers")
    crowd, ignored = bool(row.get("iscrowd")), bool(row.get("ignore"))
    return Object(category, (left, top, left + w, top + h), area, crowd, ignored)
