"""ModelNet40: sampled CAD models of 40 classes, in either of the forms in which they are given out.

Wu et al., "3D ShapeNets: A Deep Representation for Volumetric Shapes", CVPR 2015, arXiv 1406.5670.

| form | folder | points of a file |
| --- | --- | --- |
| `txt` | `modelnet40_normal_resampled`: lists, and `<class>/<class>_<number>.txt` | 10,000 |
| `h5` | `modelnet40_ply_hdf5_2048`: `ply_data_<split><number>.h5` | 2,048 |

Points stand in no order, so that the first of them are a sample of all. Each cloud is centred and
scaled into the unit sphere; y is up. Files of points are kept in memory once they are read.

With `ways` the set is a few-shot one: `fold` draws that many classes, and of each of them `shots`
clouds from `train` and 20 from `test`. The published folds are pickles, which can run programs and
are not read; folds drawn here follow the same rule, so that means over folds compare, and single
folds do not.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dynadapt.data import Arrays, Info, hdf5, parse
from dynadapt.data.cloud_files import checked, in_sphere, rows
from dynadapt.data.cloud_sources import (
    Files,
    Item,
    check_count,
    digest,
    fields,
    fingerprint,
    folder,
)
from dynadapt.data.lists import read_lines
from dynadapt.errors import DataError, MissingSplit, UnknownName, suggest

FORMS = {"txt": "modelnet40_normal_resampled", "h5": "modelnet40_ply_hdf5_2048"}
POINTS = {"txt": 8192, "h5": 2048}  # unless `count` says otherwise
SPLITS = ("train", "test")
QUERIES = 20  # test clouds of a class of a few-shot set
CLASSES = (
    *("airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone"),
    *("cup", "curtain", "desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard"),
    *("lamp", "laptop", "mantel", "monitor", "night_stand", "person", "piano", "plant", "radio"),
    *("range_hood", "sink", "sofa", "stairs", "stool", "table", "tent", "toilet", "tv_stand"),
    *("vase", "wardrobe", "xbox"),
)
OBTAIN = (
    "unpack modelnet40_normal_resampled.zip, or modelnet40_ply_hdf5_2048.zip for data.form=h5, of "
    "shapenet.cs.stanford.edu/media, and let data.path be the folder"
)


def source(
    split: str,
    path: str = "",
    form: str = "txt",
    count: int = 0,
    ways: int = 0,
    shots: int = 10,
    fold: int = 0,
) -> Files | Arrays:
    """The splits `train` (9,843 as text, 9,840 in HDF5) and `test` (2,468).

    Args:
        split: which.
        path: the folder, or one that holds it.
        form: one of `FORMS`.
        count: points of a cloud, the first of a file; 0 for 8,192 (txt) or 2,048 (h5).
        ways: classes of a few-shot set; 0 for all clouds of all classes.
        shots: training clouds of each of its classes.
        fold: which of such sets; results are means over the folds 0 to 9.

    Raises:
        UnknownName: for a form that isn't there.
        DataError: for files that are missing, damaged or not of 40 classes, and numbers that can't
            be served.
    """
    if form not in FORMS:
        raise UnknownName("form of ModelNet40", form, FORMS)
    count = count or POINTS[form]
    check_count(count)
    root = folder(path, OBTAIN)
    root = root / FORMS[form] if (root / FORMS[form]).is_dir() else root
    if folds := sorted(root.glob("*way_*shot")):
        raise DataError(
            f"{folds[0]} holds folds as pickles, which can run programs and are not read; let "
            "data.path be ModelNet40 itself, of which data.ways, shots and fold draw them"
        )
    wanted = sorted({name for name, _ in parse(split)})
    for name in wanted:
        if name not in SPLITS:
            raise MissingSplit(f"ModelNet40 has no split {name!r}; {suggest(name, SPLITS)}")
    said = f"{form} {count} {ways} {shots if ways else 0} {fold if ways else 0}"
    if form == "txt":
        return _texts(split, wanted, root, count, (ways, shots, fold), said)
    return _arrays(split, wanted, root, count, (ways, shots, fold), said)


def _texts(
    split: str, wanted: list[str], root: Path, count: int, few: tuple[int, int, int], said: str
) -> Files:
    classes = _classes(root / "modelnet40_shape_names.txt")
    items = {name: _listed(root, name, classes) for name in wanted}
    labels = {name: np.array([label for _, label in found]) for name, found in items.items()}
    classes, kept = drawn(labels, classes, *few)
    chosen = {
        name: [(items[name][position][0], label) for position, label in zip(*of, strict=True)]
        for name, of in kept.items()
    }

    def read(file: Path, _: str) -> dict[str, np.ndarray]:
        points = checked(rows(file, 3, count)[:, :3], str(file))
        if len(points) < count:
            raise DataError(f"{file} has {len(points):,} points, not {count:,}")
        return {"points": in_sphere(points).astype(np.float32)}

    counts = {name: len(found) for name, found in chosen.items()}
    found = fingerprint(said, chosen)
    info = Info("modelnet40", fields(count, classes), counts, OBTAIN, found)
    return Files(split, root, chosen, info, read)


def _classes(file: Path) -> tuple[str, ...]:
    if not file.is_file():
        return CLASSES
    names = tuple(line.strip() for line in read_lines(file) if line.strip())
    if len(set(names)) != len(CLASSES) or len(names) != len(CLASSES):
        raise DataError(f"{file} names {len(names)} classes, not {len(CLASSES)} different ones")
    return names


def _listed(root: Path, split: str, classes: Sequence[str]) -> list[Item]:
    """The files of a split and their classes, which are called like all before the last `_`."""
    file = root / f"modelnet40_{split}.txt"
    if not file.is_file():
        raise DataError(f"there is no list {file}; {OBTAIN}")
    numbers, items = {name: i for i, name in enumerate(classes)}, []
    for number, line in enumerate(read_lines(file), 1):
        if not line.strip():
            continue
        name, _, end = line.strip().rpartition("_")
        if name not in numbers or not end.isalnum():
            raise DataError(
                f"line {number} of {file} is {line.strip()[:80]!r}, of none of the classes"
            )
        items.append((f"{name}/{name}_{end}.txt", numbers[name]))
    absent = [relative for relative, _ in items if not (root / relative).is_file()]
    if absent or not items:
        pickles = "; .dat files are pickles, which can run programs and are not read"
        raise DataError(
            f"{file} names {len(items)} files, of which {len(absent)} are not there"
            f"{', such as ' + absent[0] if absent else ''}"
            f"{pickles if any(root.glob('*.dat')) else ''}; {OBTAIN}"
        )
    return items


def _arrays(
    split: str, wanted: list[str], root: Path, count: int, few: tuple[int, int, int], said: str
) -> Arrays:
    if count > POINTS["h5"]:
        raise DataError(f"{root} has clouds of {POINTS['h5']:,} points, fewer than {count:,}")
    classes = _classes(root / "shape_names.txt")
    clouds, labels = {}, {}
    for name in wanted:
        read = [hdf5.read(file, POINTS["h5"], len(classes)) for file in _numbered(root, name)]
        clouds[name], labels[name] = (np.concatenate(arrays) for arrays in zip(*read, strict=True))
    classes, kept = drawn(labels, classes, *few)
    for name, (positions, numbers) in kept.items():
        some = clouds[name][positions, :count]
        whole = (in_sphere(cloud.astype(np.float64)) for cloud in some)
        clouds[name] = np.stack([cloud.astype(np.float32) for cloud in whole])
        labels[name] = numbers
    counts = {name: len(found) for name, found in labels.items()}
    found = digest(said, clouds, labels)
    info = Info("modelnet40", fields(count, classes), counts, OBTAIN, found)
    return Arrays(split, clouds, labels, info, "points")


def _numbered(root: Path, split: str) -> list[Path]:
    """The files of a split by their numbers; those that `<split>_files.txt` names must be there."""
    files = {file.name: file for file in root.glob(f"ply_data_{split}*.h5")}
    listed = root / f"{split}_files.txt"
    names = [line.strip() for line in read_lines(listed)] if listed.is_file() else []
    for name in (name.rsplit("/", 1)[-1] for name in names if name):
        if name not in files:
            raise DataError(f"there is no file {root / name}, which {listed} names; {OBTAIN}")
    if not files:
        raise DataError(f"{root} holds no ply_data_{split}0.h5; {OBTAIN}")
    return sorted(files.values(), key=lambda file: (len(file.name), file.name))


def drawn(
    labels: Mapping[str, np.ndarray], classes: tuple[str, ...], ways: int, shots: int, fold: int
) -> tuple[tuple[str, ...], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The classes of a few-shot set, and positions and labels of its clouds in each split.

    Args:
        labels: of all clouds of the splits.
        classes: of all clouds.
        ways: how many classes; 0 for all, and all clouds.
        shots: clouds of each class in training.
        fold: number of the draw.

    Raises:
        DataError: for numbers that can't be served.
    """
    if not ways:
        return classes, {name: (np.arange(len(of)), of) for name, of in labels.items()}
    if not (2 <= ways <= len(classes) and shots >= 1 and 0 <= fold < 1 << 32):
        raise DataError(
            f"few-shot sets have 2 to {len(classes)} ways, 1 shot or more and a fold from 0 on, "
            f"not {ways}, {shots} and {fold}"
        )
    chosen = np.sort(np.random.default_rng([ways, shots, fold]).permutation(len(classes))[:ways])
    kept = {}
    for name, of in labels.items():
        most = shots if name == "train" else QUERIES
        positions = []
        for number in chosen.tolist():
            rng = np.random.default_rng([ways, shots, fold, SPLITS.index(name), number])
            there = np.flatnonzero(of == number)
            if len(there) < most:
                raise DataError(
                    f"{name} has {len(there)} clouds of {classes[number]!r}, fewer than {most}"
                )
            positions.append(np.sort(rng.permutation(there)[:most]))
        kept[name] = (np.concatenate(positions), np.repeat(np.arange(ways, dtype=np.int32), most))
    return tuple(classes[number] for number in chosen), kept
