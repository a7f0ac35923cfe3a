"""VTAB-1K: 19 classification tasks with 800 + 200 images to train on, and their whole test sets.

Zhai et al., "A Large-scale Study of Representation Learning with the Visual Task Adaptation
Benchmark", arXiv:1910.04867. Splits and labels follow the benchmark's own code, task_adaptation
(github.com/google-research/task_adaptation, commit d7630d3).

Splits are `train800`, `val200`, `train800val200` (the first followed by the second) and `test`.
There are two forms, which are not the same data, since the folder was saved as JPEG of quality 75:

| form | what |
| --- | --- |
| `tfds` | TFDS builders in ArrayRecord; splits are computed from the builder's own sizes |
| `folder` | the folder `vtab-1k/` that NOAH and papers after it share |

TFDS orders examples by version and can no longer build all that the benchmark pins: pets are 4.0.0
instead of 3.*, kitti is 3.3.0 unless 3.1.0 lies there already. So the 1,000 images may differ from
those of published results; a source's `info.name` tells the version.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dynadapt.data import (
    SPLITS,
    Benchmark,
    Rows,
    check_split,
    decode,
    find_task,
    folder,
    labelled,
    lists,
    parse,
    reading,
    tfds,
)
from dynadapt.errors import DataError, UnknownName

TITLE = "VTAB-1K"
FORMS = ("tfds", "folder")
OBTAIN = "build it once with: dynadapt data prepare vtab --tasks={task}{path}"
ELSEWHERE = "build it again in another folder: dynadapt data prepare vtab --tasks={task} --path=DIR"
MANUAL = {  # what TFDS can't download, and where it looks for it below its data folder
    "resisc45": "put the unpacked NWPU-RESISC45 (its authors' OneDrive) into downloads/manual",
    "diabetic_retinopathy": "put train/, test/, sample/ and the CSV files of Kaggle's "
    "diabetic-retinopathy-detection into downloads/manual",
}
OBTAIN_FOLDER = (
    "download the folder vtab-1k that NOAH (github.com/ZhangYuanhan-AI/NOAH) links to, and give "
    "the place where it lies as path"
)

Rule = Callable[[Mapping[str, int]], tuple[str, str]]


@dataclass(frozen=True)
class VtabTask(Benchmark):
    """A task of VTAB-1K.

    Attributes:
        builder: TFDS builder with its version.
        rule: from the sizes of the builder's splits to what `val200` and `test` are.
        label: the label of an example as TFDS stores it.
        names: what the classes are called; empty where the builder names them.
        folder: what the shared folder calls the task; empty if that is its name.
        feature: the stored feature that is the label and names the classes, if there is one.
        scale: factor to pixels; 255 for images that are stored as 0 and 1.
    """

    builder: str
    rule: Rule
    label: Callable[[dict], int]
    names: tuple[str, ...] = ()
    folder: str = ""
    feature: str = "label"
    scale: int = 1


def _own(counts: Mapping[str, int]) -> tuple[str, str]:
    """The builder has a validation split."""
    return "validation[:200]", "test"


def _held(percent: int, test: str = "test") -> Rule:
    """Validation begins after `percent` of train."""

    def rule(counts):
        start = counts["train"] * percent // 100
        return f"train[{start}:{start + 200}]", test

    return rule


def _single(train: int, validation: int) -> Rule:
    """One split for all: `train` percent, `validation` percent, and the rest is the test split."""

    def rule(counts):
        start = counts["train"] * train // 100
        end = start + counts["train"] * validation // 100
        return f"train[{start}:{start + 200}]", f"train[{end}:]"

    return rule


def _norb(counts: Mapping[str, int]) -> tuple[str, str]:
    """Validation and test are the two halves of the builder's test split."""
    return "test[:200]", f"test[{round(counts['test'] / 2)}:]"


def _stored(feature: str) -> Callable[[dict], int]:
    return lambda example: int(example[feature])


def _binned(feature: str, values: int, bins: int) -> Callable[[dict], int]:
    """`values` values in `bins` bins; with 40 in 16 these hold 3, 2, 3, 2, …"""
    return lambda example: int(example[feature]) * bins // values


def _interval(thresholds: Sequence[float], value: float) -> int:
    """The last index whose threshold is below the value; -1 where none is."""
    return int(np.searchsorted(np.asarray(thresholds, np.float32), np.float32(value))) - 1


CLEVR_DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)
NO_VEHICLE = 1000.0  # a distance beyond all


def clevr_count(example: dict) -> int:
    """3 to 10 objects as 0 to 7."""
    return len(example["objects"]["size"]) - 3


def clevr_distance(example: dict) -> int:
    """Depth of the closest object, in 6 intervals."""
    points = np.asarray(example["objects"]["pixel_coords"], np.float32)
    return _interval(CLEVR_DISTANCES, points[:, 2].min())


def kitti_distance(example: dict) -> int:
    """Depth of the closest car, van or truck (types 0 to 2), in 3 intervals; 3 without one."""
    objects = example["objects"]
    points = np.asarray(objects["location"], np.float32).reshape(-1, 3)
    depths = points[np.asarray(objects["type"], int) < 3, 2]
    return _interval(KITTI_DISTANCES, depths.min(initial=NO_VEHICLE))


COUNTS = tuple(f"{n} objects" for n in range(3, 11))
CLEVR_INTERVALS = ("0-8", "8-8.5", "8.5-9", "9-9.5", "9.5-10", "10-100")
KITTI_INTERVALS = ("below 8 m", "8-20 m", "beyond 20 m", "no vehicle")
BINS = tuple(f"bin {n}" for n in range(16))


def _plain(name: str, title: str, group: str, classes: int, test: int, builder: str, rule: Rule):
    shared = "cifar" if name == "cifar100" else ""
    return VtabTask(name, title, group, classes, test, builder, rule, _stored("label"), (), shared)


def _derived(name: str, title: str, test: int, builder: str, rule: Rule, label, names, **other):
    return VtabTask(
        *(name, title, "structured", len(names), test),
        *(builder, rule, label, names),
        feature="",
        **other,
    )


def _norb_task(name: str, title: str, classes: int, feature: str):
    return VtabTask(
        *(name, title, "structured", classes, 12150, "smallnorb:2.*.*", _norb, _stored(feature)),
        feature=feature,
    )


NATURAL, SPECIALIZED, STRUCTURED = "natural", "specialized", "structured"
RETINOPATHY = "diabetic_retinopathy_detection/btgraham-300:3.*.*"
CLEVR = (15000, "clevr:3.*.*", _held(90, "validation"))
SPRITES = (73728, "dsprites:2.*.*", _single(80, 10))
_X = _binned("label_x_position", 32, 16)
_ORIENTATION = _binned("label_orientation", 40, 16)

TASKS: dict[str, VtabTask] = {  # in the order of published tables
    task.name: task
    for task in (
        _plain("cifar100", "CIFAR-100", NATURAL, 100, 10000, "cifar100:3.*.*", _held(90)),
        _plain("caltech101", "Caltech101", NATURAL, 102, 6084, "caltech101:3.*.*", _held(90)),
        _plain("dtd", "DTD", NATURAL, 47, 1880, "dtd:3.*.*", _own),
        _plain(
            *("oxford_flowers102", "Flowers102", NATURAL, 102, 6149),
            *("oxford_flowers102:2.*.*", _own),
        ),
        _plain(
            *("oxford_iiit_pet", "Pets", NATURAL, 37, 3669),
            *("oxford_iiit_pet:4.*.*", _held(80)),
        ),
        _plain("svhn", "SVHN", NATURAL, 10, 26032, "svhn_cropped:3.*.*", _held(90)),
        _plain("sun397", "Sun397", NATURAL, 397, 21750, "sun397/tfds:4.*.*", _own),
        _plain("patch_camelyon", "Camelyon", SPECIALIZED, 2, 32768, "patch_camelyon:2.*.*", _own),
        _plain("eurosat", "EuroSAT", SPECIALIZED, 10, 5400, "eurosat/rgb:2.*.*", _single(60, 20)),
        _plain("resisc45", "Resisc45", SPECIALIZED, 45, 6300, "resisc45:3.*.*", _single(60, 20)),
        _plain("diabetic_retinopathy", "Retinopathy", SPECIALIZED, 5, 42670, RETINOPATHY, _own),
        _derived("clevr_count", "Clevr-Count", *CLEVR, clevr_count, COUNTS),
        _derived("clevr_dist", "Clevr-Dist", *CLEVR, clevr_distance, CLEVR_INTERVALS),
        _plain("dmlab", "DMLab", STRUCTURED, 6, 22735, "dmlab:2.0.1", _own),
        _derived("kitti", "KITTI-Dist", 711, "kitti:3.*.*", _own, kitti_distance, KITTI_INTERVALS),
        _derived("dsprites_loc", "dSpr-Loc", *SPRITES, _X, BINS, scale=255),
        _derived("dsprites_ori", "dSpr-Ori", *SPRITES, _ORIENTATION, BINS, scale=255),
        _norb_task("smallnorb_azi", "sNORB-Azim", 18, "label_azimuth"),
        _norb_task("smallnorb_ele", "sNORB-Ele", 9, "label_elevation"),
    )
}


def source(split: str, task: str = "", form: str = "tfds", path: str = "") -> Any:
    """Reads a split of a task; images stay encoded, except those of dSprites.

    `path` is TFDS's data folder (empty: its own, `~/tensorflow_datasets` or `$TFDS_DATA_DIR`), or
    the folder `vtab-1k` or the one it lies in. Examples of the test split are read by its own
    source only.

    Raises:
        DataError: for a set that isn't there or is too small, and for a label out of range.
        UnknownName: for a task or a form that isn't there.
    """
    chosen = find_task(TASKS, task)
    check_split(split)
    if form not in FORMS:
        raise UnknownName("form of vtab", form, FORMS)
    with reading(task):
        return (_from_tfds if form == "tfds" else _from_folder)(split, chosen, path)


def splits(task: VtabTask, counts: Mapping[str, int]) -> dict[str, str]:
    """What each split of the task is, in splits of the builder, whose sizes are `counts`.

    Raises:
        DataError: where the builder has too few examples for splits that don't overlap.
    """
    validation, test = task.rule(counts)
    parts = {"train800": "train[:800]", "val200": validation, "test": test}
    taken: list[tuple[str, int, int]] = []
    for split, text in parts.items():
        rows = Rows(text, counts)
        (base, low), (_, high) = rows[0], rows[-1]
        if any(b == base and low <= last and first <= high for b, first, last in taken):
            raise DataError(
                f"{task.builder} has too few examples for VTAB-1K: {split}, which is {text} of "
                f"{counts[base]}, overlaps another split"
            )
        taken.append((base, low, high))
    both = "+".join((parts["train800"], parts["val200"]))
    return {**parts, "train800val200": both}


def obtain(task: str, form: str = "tfds", path: str = "") -> str:
    """How to obtain the set of a task, in a sentence."""
    if form == "folder":
        return OBTAIN_FOLDER
    by_hand = MANUAL.get(find_task(TASKS, task).name)
    where = f" --path={path}" if path else ""
    return (f"{by_hand} and " if by_hand else "") + OBTAIN.format(task=task, path=where)


def _from_tfds(split: str, task: VtabTask, path: str) -> tfds.Tfds:
    how = obtain(task.name, "tfds", path)
    made = tfds.prepared(task.builder, path, how, ELSEWHERE.format(task=task.name))
    counts = tfds.counts(made)
    texts = splits(task, counts)
    names = task.names or tfds.classes_of(made, task.feature)
    if len(names) != task.classes:
        raise DataError(
            f"{made.info.full_name} has {len(names)} classes where VTAB-1K has {task.classes}; "
            f"{ELSEWHERE.format(task=task.name)}"
        )
    sizes = {name: len(Rows(text, counts)) for name, text in texts.items()}
    digest = hashlib.sha256(f"{task.name} {tfds.fingerprint(made)}".encode()).hexdigest()
    info = labelled(made.info.full_name, names, sizes, how, digest)

    def read(example):
        image = example["image"]
        if task.scale != 1:
            image = decode.decode(image) * np.uint8(task.scale)
        return {"image": image, "label": int(task.label(example))}

    return tfds.Tfds(tfds.tables(made, texts[split]), Rows(texts[split], counts), info, read)


def faults(task: VtabTask, path: str) -> list[str]:
    """What is wrong with a task's folder, in a sentence each.

    Its lists hold as many images as they should, no image lies in two of train800, val200 and test,
    and train800val200 holds those of the first two, in any order. An image is its file's bytes.
    """
    try:
        root = _find(task, path)
    except DataError as error:
        return [str(error)]
    found, tables = [], {}
    for part in SPLITS:
        try:
            tables[part] = _rows(root, part, task)
        except DataError as error:
            found.append(str(error))
        else:
            found += filter(None, [_wrong_count(root, part, tables[part])])
    try:
        return found + (_overlaps(root, tables) if len(tables) == len(SPLITS) else [])
    except DataError as error:
        return [*found, str(error)]


def _overlaps(root: Path, tables: Mapping[str, list[lists.Row]]) -> list[str]:
    """What the parts have in common and should not, or should and have not."""
    found = []
    train, val, both = (
        Counter((_digest(root / file), labels) for file, labels in tables[part])
        for part in ("train800", "val200", "train800val200")
    )
    if both != train + val:
        more, less = (both - train - val).total(), (train + val - both).total()
        found.append(
            f"{root / 'train800val200.txt'} is not train800.txt and val200.txt together: "
            f"{more:,} of its images are not theirs and {less:,} of theirs are missing"
        )
    digests = {digest for digest, _ in train}
    if shared := sum(count for (digest, _), count in val.items() if digest in digests):
        found.append(f"{root / 'val200.txt'} has {shared:,} images of train800.txt")
    digests |= {digest for digest, _ in val}
    if shared := _count_known(root, tables["test"], tables["train800"] + tables["val200"], digests):
        found.append(f"{root / 'test.txt'} has {shared:,} images of train800.txt and val200.txt")
    return found


def _digest(file: Path) -> bytes:
    try:
        return hashlib.sha256(file.read_bytes()).digest()
    except OSError as error:
        raise DataError(f"cannot read the image {file}: {error.strerror}") from None


def _count_known(
    root: Path, rows: list[lists.Row], known: list[lists.Row], digests: set[bytes]
) -> int:
    """How many of the images are among the known; only those of a size that occurs are read."""
    sizes = {(root / file).stat().st_size for file, _ in known}
    files = (root / file for file, _ in rows)
    return sum(file.stat().st_size in sizes and _digest(file) in digests for file in files)


def _from_folder(split: str, task: VtabTask, path: str) -> folder.Folder:
    root = _find(task, path)
    # not the list train800val200, so that the first 800 are always those of train800
    text = "train800+val200" if split == "train800val200" else split
    files = {part: _rows(root, part, task) for part, _ in parse(text)}
    for part, rows in files.items():
        if fault := _wrong_count(root, part, rows):
            raise DataError(f"{fault}; {OBTAIN_FOLDER}")
    counts = {part: len(rows) for part, rows in files.items()}
    name, classes = f"vtab-1k/{root.name}", _numbers(task)
    info = labelled(name, classes, counts, OBTAIN_FOLDER, folder.fingerprint(files))
    return folder.Folder(text, root, files, info)


def _find(task: VtabTask, path: str) -> Path:
    given, name = Path(os.path.expanduser(path)), task.folder or task.name
    places = [place for place in (given / name, given / "vtab-1k" / name) if place.is_dir()]
    if not path or not places:
        raise DataError(f"there is no folder {name} of VTAB-1K in {path!r}; {OBTAIN_FOLDER}")
    return places[0]


def _numbers(task: VtabTask) -> tuple[str, ...]:
    return tuple(map(str, range(task.classes)))


def _rows(root: Path, part: str, task: VtabTask) -> list[lists.Row]:
    """The rows of a part's list, one label each."""
    file = root / f"{part}.txt"
    if not file.is_file():
        raise DataError(f"there is no list {file}; {OBTAIN_FOLDER}")
    lines = lists.parse(file)
    for line, _, labels in lines:
        if len(labels) > 1:
            raise DataError(f"line {line} of {file} has {len(labels)} labels where VTAB-1K has one")
    return lists.located(root, file, lists.numbered(file, lines, _numbers(task)))


def _wrong_count(root: Path, part: str, rows: Sequence) -> str:
    """What is wrong with the size of a part whose size is the same in all tasks."""
    right = {"train800": 800, "val200": 200, "train800val200": 1000}.get(part, len(rows))
    if len(rows) == right:
        return ""
    return f"{root / part}.txt has {len(rows):,} images where VTAB-1K has {right:,}"
