"""Image files of one's own: a folder for each class, or text files that list paths and labels."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynadapt.data import Info, Rows, class_folders, labelled, lists, parse, read_classes
from dynadapt.data.class_folders import Sought, warn_of_classes
from dynadapt.data.decode import MAX_BYTES, is_image
from dynadapt.data.fields import Field
from dynadapt.data.lists import Row, nfc
from dynadapt.errors import DataError
from dynadapt.files import regular

OBTAIN = (
    "put images in path/<split>/<class>/, or in path/<class>/ for the one split train, or list "
    "them in path/<split>.txt with lines `relative/path label`"
)
IMAGES = Sought(is_image, "image", OBTAIN)


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

    Without a list the images lie in `path/<split>/<class>/` or in `path/<class>/`, as
    `dynadapt.data.class_folders` says.

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
    if any(tables.values()):
        files, classes, most = _read_lists(root, tables, classes)
    else:
        (files, classes), most = class_folders.read(root, splits, classes, IMAGES), 1
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
    names = [file.stem for file in wanted]
    warn_of_classes(classes, held, names, IMAGES.noun, subset=bool(given))
    tables_read = (*wanted.values(), *others.values())
    most = max(len(labels) for lines in tables_read for *_, labels in lines)
    files = {split: lists.located(root, file, rows[file]) for split, file in tables.items()}
    return files, classes, most


def _classes_of(rows: Iterable[Row]) -> set[int]:
    return {number for _, labels in rows for number in labels}
