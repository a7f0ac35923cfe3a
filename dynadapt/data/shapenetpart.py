"""ShapeNetPart: models of 16 categories whose points are labelled with 50 parts.

Yi et al., "A Scalable Active Framework for Region Annotation in 3D Shape Collections", SIGGRAPH
Asia 2016.

The folder is shapenetcore_partanno_segmentation_benchmark_v0_normal: `<synset>/<token>.txt` with
lines `x y z nx ny nz part`, or `x y z part`, `synsetoffset2category.txt`, and the splits `train`,
`val` and `test` in `train_test_split/shuffled_<split>_file_list.json`, or `.txt` with an entry on
each line. Published results train on `train+val`.

Each cloud is centred and scaled into the unit sphere as a whole, then brought to `count` points by
a draw that depends on its name alone; y is up. Files are kept in memory once they are read.
"""

import re
from pathlib import Path

import numpy as np

from dynadapt import files
from dynadapt.data import Info, parse
from dynadapt.data.cloud_files import checked, in_sphere, rows
from dynadapt.data.cloud_sources import Files, Item, Sampler, check_count, fingerprint, folder
from dynadapt.data.cloud_sources import fields as cloud_fields
from dynadapt.data.fields import Field
from dynadapt.data.lists import read_lines
from dynadapt.errors import CheckpointError, DataError, MissingSplit, suggest

FOLDER = "shapenetcore_partanno_segmentation_benchmark_v0_normal"
SPLITS = ("train", "val", "test")
CATEGORIES = {  # and how many parts each has, numbered one after another
    **{"Airplane": 4, "Bag": 2, "Cap": 2, "Car": 4, "Chair": 4, "Earphone": 3, "Guitar": 3},
    **{"Knife": 2, "Lamp": 4, "Laptop": 2, "Motorbike": 6, "Mug": 2, "Pistol": 3, "Rocket": 3},
    **{"Skateboard": 3, "Table": 3},
}
CLASSES = tuple(CATEGORIES)
PARTS = tuple(f"{name} {part}" for name, parts in CATEGORIES.items() for part in range(parts))
OWNERS = tuple(CLASSES.index(part.split()[0]) for part in PARTS)
OBTAIN = f"unpack {FOLDER}.zip of shapenet.cs.stanford.edu/media and let data.path be the folder"


def source(split: str, path: str = "", count: int = 2048) -> Files:
    """The splits `train` (12,137), `val` (1,870) and `test` (2,874).

    Args:
        split: which.
        path: the folder, or one that holds it.
        count: points of a cloud; where a file has fewer, some stand twice.

    Raises:
        DataError: for files that are missing or damaged, and parts that are not of the category.
    """
    check_count(count)
    root = folder(path, OBTAIN)
    root = root / FOLDER if (root / FOLDER).is_dir() else root
    synsets = _synsets(root / "synsetoffset2category.txt")
    items = {}
    for name in sorted({name for name, _ in parse(split)}):
        if name not in SPLITS:
            raise MissingSplit(f"ShapeNetPart has no split {name!r}; {suggest(name, SPLITS)}")
        items[name] = _listed(root, name, synsets)
    owners, sample = np.array(OWNERS), Sampler(count)
    numbers = {relative: number for found in items.values() for relative, number in found}

    def read(file: Path, relative: str) -> dict[str, np.ndarray]:
        values = rows(file, 4)
        points, given = checked(values[:, :3], str(file)), values[:, -1]
        own = np.flatnonzero(owners == numbers[relative])
        wrong = given[~np.isin(given, own)]
        if len(wrong):
            raise DataError(
                f"{file} has part {wrong[0]:g}, where those of {CLASSES[numbers[relative]]} are "
                f"{own[0]} to {own[-1]}"
            )
        taken = sample(len(points), relative)
        return {
            "points": in_sphere(points)[taken].astype(np.float32),
            "parts": given[taken].astype(np.int32),
        }

    fields = cloud_fields(count, CLASSES)
    fields["parts"] = Field("point_labels", fill=-1, classes=PARTS, size=(count,), owners=OWNERS)
    counts = {name: len(found) for name, found in items.items()}
    info = Info("shapenetpart", fields, counts, OBTAIN, fingerprint(f"{count}", items))
    return Files(split, root, items, info, read)


def _synsets(file: Path) -> dict[str, int]:
    """The folder of each category and its number."""
    if not file.is_file():
        raise DataError(f"there is no file {file}; {OBTAIN}")
    lines = [line.split() for line in read_lines(file) if line.strip()]
    if {line[0] for line in lines} != set(CLASSES) or not all(len(line) == 2 for line in lines):
        raise DataError(f"{file} must name the {len(CLASSES)} categories and their folders")
    return {synset: CLASSES.index(name) for name, synset in lines}


def _listed(root: Path, split: str, synsets: dict[str, int]) -> list[Item]:
    """The files that the list of a split names by entries `shape_data/<synset>/<token>`."""
    stem = root / "train_test_split" / f"shuffled_{split}_file_list"
    file = next((f for end in (".json", ".txt") if (f := Path(f"{stem}{end}")).is_file()), None)
    if file is None:
        raise DataError(f"there is no list {stem}.json; {OBTAIN}")
    items = []
    for entry in _entries(file):
        found = re.fullmatch(r"(?:.*/)?(\w+)/([\w\-.]+?)(?:\.txt)?", str(entry))
        if not found or found[1] not in synsets:
            raise DataError(f"{file} has the entry {str(entry)[:80]!r}, of none of the categories")
        items.append((f"{found[1]}/{found[2]}.txt", synsets[found[1]]))
    absent = [relative for relative, _ in items if not (root / relative).is_file()]
    if absent:
        raise DataError(
            f"{file} names {len(absent)} files that are not under {root}, the first of them "
            f"{absent[0]}"
        )
    if not items:
        raise DataError(f"{file} lists no clouds")
    return items


def _entries(file: Path) -> list[str]:
    if file.suffix == ".txt":
        return [line.strip() for line in read_lines(file) if line.strip()]
    try:
        return files.read_json(file, list)
    except CheckpointError as error:
        raise DataError(str(error)) from None
