"""Image files of one's own: a folder for each class, or text files that list paths and labels."""

import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dynadapt.data import Info, Rows, labelled, lists, parse, read_classes
from dynadapt.data.decode import MAX_BYTES
from dynadapt.data.fields import Field
from dynadapt.data.listing import list_folder, order, walk
from dynadapt.data.lists import Row, nfc
from dynadapt.errors import DataError, MissingSplit, suggest
from dynadapt.files import regular

OBTAIN = (
    "put images in path/<split>/<class>/, or in path/<class>/ for the one split train, or list "
    "them in path/<split>.txt with lines `relative/path label`"
)
_SPLIT = re.compile(r"(train(ing)?|val(id(ation)?)?|dev|test(ing)?|eval)\d*", re.IGNORECASE)


class Folder:
    """A source over image files, which it returns as encoded bytes; `name` is the path.

    A label is the number of a class, or int32 `k` where the field `label` has `most`.
    """

    def __init__(self, split: str, path: Path, files: Mapping[str, list[Row]], info: Info):
        self.info = info
        self._path, self._files = path, files
        self._rows = Rows(split, info.counts)

    @property
    def labels(self) -> np.ndarray | None:
        """The class of each example, or None where they may have several."""
        if self.info.fields["label"].most:
            return None
        return np.array([self._files[name][position][1][0] for name, position in self._rows], int)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        split, position = self._rows[index]
        relative, labels = self._files[split][position]
        file = self._path / relative
        try:
            regular(file, MAX_BYTES)
            image = file.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read the image {file}: {error.strerror}") from None
        several = self.info.fields["label"].most
        label = np.array(labels, np.int32) if several else labels[0]
        return {"image": image, "label": label, "name": str(file), "orient": True}


def source(split: str, path: str = "", list: str = "", classes: tuple[str, ...] = ()) -> Folder:
    """Reads image files under `path`.

    `path/<split>.txt`, where it exists, lists the images; `list` gives that file another name and
    may hold `{split}`, as in `lists/{split}` or `{split}.csv`. `dynadapt.data.lists` says what a
    line may be. Labels are class names or numbers.

    Without a list the images lie in `path/<split>/<class>/` or in `path/<class>/`, at any depth,
    and come in an order made of hashes of their paths, so that a slice mixes the classes. `path`
    has splits if a folder in it holds folders of images, no fewer images than lie beside these, and
    is called like the split asked for, or like a split at all (train, val, test). Else each folder
    that holds images is a class, and there is the one split `train`.

    `classes` are the classes, in order; else those of `path/classes.txt`, else what the folders or
    the lists of all splits hold. Names are compared in Unicode's normal form C. The fingerprint
    covers paths and labels, not pixels.

    Raises:
        DataError: for what isn't there, and for a class that is none of the known ones.
    """
    root = Path(os.path.expanduser(path))
    if not path or not root.is_dir():
        raise DataError(f"there is no folder {path!r}; {OBTAIN}")
    splits = [*dict.fromkeys(name for name, _ in parse(split))]
    tables = {name: lists.find(root, name, list) for name in splits}
    read = _read_lists(root, tables, classes) if any(tables.values()) else None
    files, classes, most = read or _read_folders(root, splits, classes)
    info = labelled(
        name="folder",
        classes=classes,
        counts={name: len(rows) for name, rows in files.items()},
        obtain=OBTAIN,
        fingerprint=fingerprint(files),
    )
    label = Field("number", classes=info.classes, most=most if most > 1 else 0)
    info = dataclasses.replace(info, fields={**info.fields, "label": label})
    return Folder(split, root, files, info)


def fingerprint(files: Mapping[str, list[Row]]) -> str:
    """SHA-256 over the paths and labels of each split."""
    digest = hashlib.sha256()
    for name in sorted(files):
        for relative, labels in files[name]:
            line = f"{name}\t{nfc(relative)}\t{','.join(map(str, labels))}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _read_lists(root: Path, tables: Mapping[str, Path | None], given: tuple[str, ...]):
    """The rows of each split's list, the classes, and the most labels of any line."""
    for split, file in tables.items():
        if file is None:
            raise lists.missing(root / f"{split}.txt")
    own = read_classes(root)
    known = (*given, *own)
    wanted = {file: lists.parse(file, known) for file in tables.values()}
    others = lists.beside(wanted, known)
    classes = given or own or lists.name_classes(wanted, others)
    rows = {file: lists.numbered(file, lines, classes, own) for file, lines in wanted.items()}
    held = {file.stem: _classes_of(found) for file, found in rows.items()}
    for file, lines in others.items():
        try:
            held[file.stem] = _classes_of(lists.numbered(file, lines, classes, own))
        except DataError:
            continue  # it is said when that split is read
    _warn_of_classes(classes, held, [file.stem for file in wanted], subset=bool(given))
    tables_read = (*wanted.values(), *others.values())
    most = max(len(labels) for lines in tables_read for *_, labels in lines)
    files = {split: lists.located(root, file, rows[file]) for split, file in tables.items()}
    return files, classes, most


def _classes_of(rows: Iterable[Row]) -> set[int]:
    return {number for _, labels in rows for number in labels}


def _read_folders(root: Path, splits: Iterable[str], given: tuple[str, ...]):
    """The rows of each split, the classes, and the one label that each image has."""
    bases = _layout(root, splits)
    held = {split: _class_folders(base) for split, base in bases.items()}
    classes = given or read_classes(root) or tuple(sorted(set().union(*held.values())))
    numbers = {nfc(name): i for i, name in enumerate(classes)}
    files = {}
    for split in splits:
        unknown = [name for name in held[split] if name not in numbers]
        if unknown:
            raise DataError(
                f"the folder {bases[split] / unknown[0]} is none of the {len(classes)} classes; "
                f"{suggest(unknown[0], numbers)}"
            )
        rows = _read_split(root, bases[split], numbers)
        if not rows:
            raise DataError(f"{bases[split]} holds no images; {OBTAIN}")
        files[split] = sorted(rows, key=lambda row: order(row[0]))
    found = {split: {numbers[name] for name in names if name in numbers}
             for split, names in held.items()}  # fmt: skip
    _warn_of_classes(classes, found, splits, subset=bool(given))
    return files, classes, 1


def _layout(root: Path, splits: Iterable[str]) -> dict[str, Path]:
    """Where the class folders of each split lie, by the rule that `source` states."""
    folders = list_folder(root)[0]
    inside = {name: root / name for name in folders if _is_split(root / name)}
    if not any(name in splits or _SPLIT.fullmatch(name) for name in inside):
        if not any(_holds_images(root / name) for name in folders):
            raise DataError(f"{root} holds no folders of images; {OBTAIN}")
        for split in splits:
            if split != "train":
                raise MissingSplit(
                    f"{root} has a folder for each class and no split {split!r}; use slices of "
                    "train, such as train[:800] and train[800:]"
                )
        return {"train": root}
    for split in splits:
        if split not in inside and split in folders:
            raise DataError(f"{root / split} holds no images in folders of classes; {OBTAIN}")
        if split not in inside:
            raise MissingSplit(f"{root} has no split {split!r}; {suggest(split, inside)}")
    return inside


def _is_split(path: Path) -> bool:
    """Whether folders in it hold images, and no fewer than lie beside them."""
    folders, images, _ = list_folder(path)
    deeper = (file for name in folders for file, image in walk(f"{path}/{name}") if image)
    wanted = max(1, len(images))
    return sum(1 for _ in islice(deeper, wanted)) == wanted


def _holds_images(path: Path) -> bool:
    return any(image for _, image in walk(str(path)))


def _class_folders(base: Path) -> Collection[str]:
    """The classes whose folders in `base` hold images."""
    return sorted({nfc(name) for name in list_folder(base)[0] if _holds_images(base / name)})


def _read_split(root: Path, base: Path, numbers: Mapping[str, int]) -> list[Row]:
    """The images below the class folders in `base`; says what it passes over."""
    folders, stray, _ = list_folder(base)
    rows, others = [], []
    start = "" if base == root else f"{base.name}/"
    for name in folders:
        labels = (numbers.get(nfc(name), -1),)  # -1 in folders that hold no images
        for file, image in walk(f"{base}/{name}"):
            if image:
                rows.append((f"{start}{name}/{file}", labels))
            else:
                others.append(f"{name}/{file}")
    for files, what in ((others, "that are no images"), (stray, "that lie in no class folder")):
        if files:
            _warn("passed over %d files %s in %s, such as %s", len(files), what, base, min(files))
    return rows


def _warn_of_classes(
    classes: tuple[str, ...],
    held: Mapping[str, set[int]],
    splits: Iterable[str],
    subset: bool,
) -> None:
    """Says which classes have no image in training, or none at all.

    Args:
        classes: their names.
        held: the numbers of the classes that each split has images of.
        splits: those that are read.
        subset: whether it is no wonder that classes have no images here.
    """
    trained = set().union(*(found for name, found in held.items() if name.startswith("train")))
    for name in splits:
        new = held[name] - trained
        if new and trained:
            _warn("%s has images of %d classes that train has none of: %s",
                  name, len(new), _some(classes, new))  # fmt: skip
    empty = set(range(len(classes))).difference(*held.values())
    if empty and not subset:
        _warn("%d of the %d classes have no image at all: %s",
              len(empty), len(classes), _some(classes, empty))  # fmt: skip


def _some(classes: tuple[str, ...], numbers: set[int]) -> str:
    names = [classes[number] for number in sorted(numbers)]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _warn(message: str, *values: Any) -> None:
    logging.getLogger(__name__).warning(message, *values)
