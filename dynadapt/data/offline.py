"""Nine small tasks in the manner of VTAB-1K that need no download, or a small one.

Splits are `train800`, `val200`, `train800val200` (the first followed by the second) and `test`. The
examples of a task come in an order made of hashes: the first 800, the next 200, and the rest, at
most 1,000 of them, are the splits. Crops of one microscope image stay together, so that only an
image at a border lies in two splits.

| task | what | images that there are | test |
| --- | --- | --- | --- |
| digits | scikit-learn's digits | 1,797 | 797 |
| clothing10 | photographs of clothes | 1,313 | 313 |
| omniglot | alphabet of a drawn character | 4,840 in 8 alphabets | 1,000 |
| bccd | type of a blood cell | 1,431 crops; at most 2 red cells an image | 431 |
| nuclei | ground, a lone nucleus, a touching one | 1,444 crops; at most 2 of each an image | 444 |
| count, distance, orientation, azimuth | scenes drawn by formula | any number | 1,000 |

Omniglot's two small sets hold 5,840 drawings, but their Latin and Greek are the same files, which
count once. None of the sets had to be cut below 800 + 200. Left out are the sets of dense labels
and depth, which have fewer than 400 images.
"""

import contextlib
import functools
import hashlib
import itertools
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from dynadapt.data import (
    Benchmark,
    Info,
    check_split,
    decode,
    digits,
    find_task,
    labelled,
    reading,
    structured,
)
from dynadapt.errors import DataError, DynadaptError

TITLE = "offline suite"
FORMS = ("offline",)
NATURAL, SPECIALIZED, STRUCTURED = "natural", "specialized", "structured"
TASKS: dict[str, Benchmark] = {
    task.name: task
    for task in (
        Benchmark("digits", "Digits", NATURAL, 10, 797),
        Benchmark("clothing10", "Clothing", NATURAL, 10, 313),
        Benchmark("omniglot", "Omniglot", NATURAL, 8, 1000),
        Benchmark("bccd", "BCCD", SPECIALIZED, 3, 431),
        Benchmark("nuclei", "Nuclei", SPECIALIZED, 3, 444),
        Benchmark("count", "Count", STRUCTURED, 6, 1000),
        Benchmark("distance", "Distance", STRUCTURED, 5, 1000),
        Benchmark("orientation", "Orientation", STRUCTURED, 8, 1000),
        Benchmark("azimuth", "Azimuth", STRUCTURED, 8, 1000),
    )
}
ROWS = {"train800": (0, 800), "val200": (800, 1000), "train800val200": (0, 1000)}
OBTAIN = {
    "digits": digits.OBTAIN,
    "clothing10": "photographs of github.com/alexeygrigorev/clothing-dataset-small as "
    "clothing10/<split>/<class>/*.jpg",
    "omniglot": "images_background_small1.zip and images_background_small2.zip of "
    "github.com/brendenlake/omniglot (MIT) in omniglot/",
    "bccd": "the folder BCCD of github.com/Shenggan/BCCD_Dataset (MIT) as bccd/",
    "nuclei": "images of the Data Science Bowl 2018 (CC0) as nuclei/<split>/images/ID.jpg, with "
    "their instances numbered in nuclei/<split>/instances/ID.png",
}
DRAWN = "nothing to obtain: the images are drawn when they are asked for"

CLOTHES = "dress hat longsleeve outwear pants shirt shoes shorts skirt t-shirt"
ALPHABETS = "Balinese Early_Aramaic Greek Japanese_(katakana) Korean Latin Sanskrit Tagalog"
CLASSES: dict[str, tuple[str, ...]] = {
    "digits": digits.CLASSES,
    "clothing10": tuple(CLOTHES.split()),
    "omniglot": tuple(ALPHABETS.split()),
    "bccd": ("Platelets", "RBC", "WBC"),
    "nuclei": ("ground", "alone", "touching"),
    **{name: names for name, (_, names) in structured.TASKS.items()},
}

Example = tuple[str, int, Callable[[], Any]]  # its name, its label, and what reads its image


class Crops:
    """A source over examples whose images were read into memory, encoded or uint8 `h w 3`."""

    in_memory = True

    def __init__(self, rows: list[Example], info: Info, images: list[Any]):
        self.info = info
        self._rows, self._images = rows, images

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, label, _ = self._rows[index]
        return {"image": self._images[index], "label": label, "name": name}


def source(split: str, task: str = "", path: str = "") -> Crops:
    """Reads or draws a split of a task; nothing of later splits is opened.

    `path` is the folder that holds the sets; empty, it is `$DYNADAPT_DATA`, or `shared/data` beside
    the repository. The fingerprint covers images and labels of the split.
    """
    chosen = find_task(TASKS, task)
    check_split(split)
    start, stop = ROWS.get(split, (1000, 1000 + chosen.test))
    with _reading(task, path):
        rows = list(itertools.islice(_examples(task, path), start, stop))
    if not rows or split in ROWS and len(rows) < stop - start:
        raise DataError(f"{task} has only {len(rows)} examples of the {stop - start} of {split}")
    images, digest = [], hashlib.sha256()
    for _, label, read in rows:
        with _reading(task, path):
            images.append(read())
        data = images[-1] if isinstance(images[-1], bytes) else np.asarray(images[-1]).tobytes()
        digest.update(b"%d %d " % (label, len(data)) + data)
    info = labelled(task, CLASSES[task], {split: len(rows)}, obtain(task), digest.hexdigest())
    return Crops(rows, info, images)


def count_test(task: str, path: str = "") -> int:
    """Images of the test split, which are counted without being read."""
    chosen = find_task(TASKS, task)
    with _reading(task, path):
        return len(list(itertools.islice(_examples(task, path), 1000, 1000 + chosen.test)))


def obtain(task: str) -> str:
    """How to obtain the set of a task."""
    return OBTAIN.get(find_task(TASKS, task).name, DRAWN)


def folder(path: str = "") -> Path:
    """The folder that holds the sets."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    return Path(os.path.expanduser(path or os.environ.get("DYNADAPT_DATA") or beside))


@contextlib.contextmanager
def _reading(task: str, path: str) -> Iterator[None]:
    """Turns what damaged files lead to, which is anything, into a DataError."""
    try:
        with reading(task):
            yield
    except DynadaptError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise DataError(
            f"the files of {task} in {folder(path) / task} are damaged: {what}"
        ) from error


def _examples(task: str, path: str) -> Iterator[Example]:
    """All examples of a task in their order."""
    if task in structured.TASKS:
        return _scenes(task)
    if task == "digits":
        return _digits()
    root = folder(path) / task
    if not root.is_dir():
        raise DataError(
            f"there is no folder {root} for the task {task}; put there {OBTAIN[task]}, or set "
            "DYNADAPT_DATA to the folder that holds it"
        )
    readers = {"clothing10": _clothing, "omniglot": _omniglot, "bccd": _bccd, "nuclei": _nuclei}
    return readers[task](root)


def _order(names: Iterable[str]) -> list[str]:
    """The names in an order made of hashes, which nothing but the names decides."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def _scenes(task: str) -> Iterator[Example]:
    for i in itertools.count():
        yield f"{task}[{i}]", structured.label(task, i), functools.partial(structured.draw, task, i)


def _digits() -> Iterator[Example]:
    for split in ("train", "test"):
        read = digits.source(split)
        for i in range(len(read)):
            example = read[i]
            yield example["name"], example["label"], lambda image=example["image"]: image


def _clothing(root: Path) -> Iterator[Example]:
    labels = {name: i for i, name in enumerate(CLASSES["clothing10"])}
    files = (p.relative_to(root).as_posix() for p in root.glob("*/*/*.jpg"))
    for file in _order(file for file in files if file.split("/")[1] in labels):
        yield file, labels[file.split("/")[1]], (root / file).read_bytes


def _omniglot(root: Path) -> Iterator[Example]:
    labels = {name: i for i, name in enumerate(CLASSES["omniglot"])}
    archives = {}
    for number in (1, 2):
        file = root / f"images_background_small{number}.zip"
        if not file.is_file():
            raise DataError(f"there is no file {file}; put there {OBTAIN['omniglot']}")
        archive = zipfile.ZipFile(file)
        for name in archive.namelist():
            _, _, drawing = name.partition("/")
            if name.endswith(".png") and drawing.split("/")[0] in labels:
                archives[drawing] = functools.partial(archive.read, name)
    for drawing in _order(archives):
        yield drawing, labels[drawing.split("/")[0]], archives[drawing]


@functools.lru_cache(maxsize=4)
def _pixels(file: Path) -> np.ndarray:
    return decode.decode(file.read_bytes(), str(file))


def _square(file: Path, y: float, x: float, side: int) -> np.ndarray:
    """The square of that side around (y, x), moved inside the image, uint8 `h w 3`."""
    pixels = _pixels(file)
    side = min(side, *pixels.shape[:2])
    top = int(np.clip(round(y - side / 2), 0, pixels.shape[0] - side))
    left = int(np.clip(round(x - side / 2), 0, pixels.shape[1] - side))
    return pixels[top : top + side, left : left + side].copy()


RED_CELLS, NUCLEI = 2, 2  # crops of one class and image


def _bccd(root: Path) -> Iterator[Example]:
    """Crops a quarter wider than the marked box of a cell; boxes below 8 pixels are left out."""
    labels = {name: i for i, name in enumerate(CLASSES["bccd"])}
    for name in _order(file.stem for file in (root / "Annotations").glob("*.xml")):
        boxes, red = {}, 0
        marks = ElementTree.parse(root / "Annotations" / f"{name}.xml").iter("object")
        for number, cell in enumerate(marks):
            sides = ("xmin", "ymin", "xmax", "ymax")
            box = [int(cell.findtext(f"bndbox/{side}")) for side in sides]
            boxes[f"{name} {number}"] = cell.findtext("name"), box
        for cell in _order(boxes):
            kind, (left, top, right, bottom) = boxes[cell]
            red += kind == "RBC"
            if kind not in labels or kind == "RBC" and red > RED_CELLS:
                continue
            if min(right - left, bottom - top) < 8:
                continue
            side = round(1.25 * max(right - left, bottom - top))
            file = root / "JPEGImages" / f"{name}.jpg"
            middle = (top + bottom) / 2, (left + right) / 2
            yield cell, labels[kind], functools.partial(_square, file, *middle, side)


def _nuclei(root: Path) -> Iterator[Example]:
    """Crops around a point, as wide as three nuclei of the image."""
    files = {file.stem: file for file in root.glob("*/images/*.jpg")}
    for name in _order(files):
        file = files[name].parents[1] / "instances" / f"{name}.png"
        decode.decode(file.read_bytes(), str(file))  # raises where it is damaged
        with Image.open(file) as image:
            instances = np.asarray(image).astype(int)
        for point, (label, y, x, side) in _points(name, instances).items():
            yield point, label, functools.partial(_square, files[name], y, x, side)


def _points(name: str, instances: np.ndarray) -> dict[str, tuple[int, float, float, int]]:
    """At most `NUCLEI` points of each class in an image: label, place and side of the crop."""
    areas = np.bincount(instances.ravel())[1:]
    side = int(np.clip(3 * np.sqrt(np.median(areas[areas > 0])), 24, 128))
    touching = _touching(instances)
    margin, found = side // 2, {}
    height, width = instances.shape
    ys, xs = np.indices(instances.shape)
    for nucleus in np.flatnonzero(areas > 30) + 1:
        inside = instances == nucleus
        y, x = float(ys[inside].mean()), float(xs[inside].mean())
        found[f"{name} {nucleus}"] = (2 if nucleus in touching else 1, y, x, side)
    empty = max(4, side // 6)
    rng = np.random.default_rng([*name.encode()])
    for number in range(20):
        y, x = int(rng.integers(height)), int(rng.integers(width))
        near = instances[max(0, y - empty) : y + empty, max(0, x - empty) : x + empty]
        if not near.any():
            found[f"{name} ground {number}"] = (0, y, x, side)
    kept, taken = {}, [0, 0, 0]
    for point in _order(found):
        label, y, x, _ = found[point]
        fits = margin <= y < height - margin and margin <= x < width - margin
        if fits and taken[label] < NUCLEI:
            taken[label] += 1
            kept[point] = found[point]
    return kept


def _touching(instances: np.ndarray) -> set[int]:
    """The instances that lie at most 2 pixels from another one."""
    found: set[int] = set()
    for down, right in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0)):
        here = instances[: instances.shape[0] - down, : instances.shape[1] - right]
        there = instances[down:, right:]
        meet = (here != there) & (here > 0) & (there > 0)
        found |= {*here[meet].tolist(), *there[meet].tolist()}
    return found
