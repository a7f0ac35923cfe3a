"""ADE20K's scene parsing benchmark: 150 classes of things and stuff.

Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017. Masks count the classes from 1; 0,
all else, is void.
"""

from pathlib import Path

from dynadapt.data import masks, pairs, parse
from dynadapt.data.lists import nfc, read_lines
from dynadapt.data.pairs import Pairs
from dynadapt.errors import DataError, MissingSplit, suggest

OBTAIN = (
    "unpack ADEChallengeData2016.zip of the MIT scene parsing benchmark, which holds "
    "images/{training,validation} and annotations/{training,validation}"
)
FOLDERS = {"train": "training", "val": "validation"}
CLASSES = 150
NAMES = "objectInfo150.txt"  # of the release: a heading, then columns, the last the names


def source(split: str, path: str = "") -> Pairs:
    """Reads `train` (20,210 images) or `val` (2,000).

    `path` is the folder ADEChallengeData2016 or the one that holds it. Classes are called as its
    `objectInfo150.txt` does, without it by their numbers from 1.
    """
    root = pairs.folder(path, OBTAIN)
    inner = root / "ADEChallengeData2016"
    root = inner if inner.is_dir() else root
    names = [*dict.fromkeys(name for name, _ in parse(split))]
    for name in names:
        if name not in FOLDERS:
            raise MissingSplit(f"ADE20K has no split {name!r}; {suggest(name, FOLDERS)}")
    places = [FOLDERS[name] for name in names]
    found = pairs.find(root, "images/{split}", "annotations/{split}", places, (".png",), OBTAIN)
    files = {name: found[FOLDERS[name]] for name in names}
    encoding = masks.Encoding(_classes(root / NAMES), ignore=(), reduce_zero=True)
    return masks.opened("ade20k", split, root, files, encoding, OBTAIN)


def _classes(file: Path) -> tuple[str, ...]:
    if not file.is_file():
        return tuple(str(number) for number in range(1, CLASSES + 1))
    lines = [line.split("\t") for line in read_lines(file)[1:] if line.strip()]
    names = tuple(nfc(columns[-1].strip()) for columns in lines)
    if len(names) != CLASSES or len(set(names)) < CLASSES or not all(names):
        raise DataError(f"{file} must name {CLASSES} classes after its heading, each of them once")
    return names
