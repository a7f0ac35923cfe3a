"""Image files of one's own: a folder for each class, or text files that list paths and labels."""

import hashlib
import os
from pathlib import Path
from typing import Any

from dynadapt.data import Info, Rows, labelled, parse, read_classes
from dynadapt.errors import DataError, suggest

OBTAIN = (
    "put images in path/<split>/<class>/, or in path/<class>/ for the one split train, or list "
    "them in path/<split>.txt with lines `relative/path label`"
)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


class Folder:
    """A source over image files, which it returns as encoded bytes; `name` is the path."""

    def __init__(self, split: str, path: Path, files: dict[str, list[tuple[str, int]]], info: Info):
        self.info = info
        self._path, self._files = path, files
        self._rows = Rows(split, info.counts)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        split, position = self._rows[index]
        relative, label = self._files[split][position]
        file = self._path / relative
        try:
            image = file.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read the image {file}: {error.strerror}") from None
        return {"image": image, "label": label, "name": str(file)}


def source(split: str, path: str = "", list: str = "") -> Folder:
    """Reads image files under `path`.

    `path/<split>.txt`, where it exists, lists the images; `list` gives that file another name and
    may hold `{split}`, as in `lists/{split}`. Labels are numbers or class names; `path/classes.txt`
    names the classes in order, else they are what the lists beside it hold. Without a list the
    images lie in `path/<split>/<class>/`, or in `path/<class>/`, which has the one split `train`;
    these come in an order made of hashes of their paths, so that a slice mixes the classes.
    The fingerprint covers paths and labels, not pixels.
    """
    root = Path(path).expanduser()
    if not path or not root.is_dir():
        raise DataError(f"there is no folder {path!r}; {OBTAIN}")
    splits = dict.fromkeys(name for name, _ in parse(split))
    lists = {name: _list_file(root, name, list) for name in splits}
    if any(lists.values()):
        files, classes = read_lists(root, lists)
    else:
        files, classes = _read_folders(root, splits)
    info = labelled(
        name="folder",
        classes=classes,
        counts={name: len(rows) for name, rows in files.items()},
        obtain=OBTAIN,
        fingerprint=fingerprint(files),
    )
    return Folder(split, root, files, info)


def fingerprint(files: dict[str, list[tuple[str, int]]]) -> str:
    """SHA-256 over the paths and labels of each split."""
    digest = hashlib.sha256()
    for name in sorted(files):
        for relative, label in files[name]:
            digest.update(f"{name}\t{relative}\t{label}\n".encode())
    return digest.hexdigest()


def _list_file(root: Path, split: str, given: str) -> Path | None:
    file = root / ((given or "{split}").removesuffix(".txt").replace("{split}", split) + ".txt")
    if file.is_file():
        return file
    if given:
        raise DataError(f"there is no list {file}; {_nearest(file)}")
    return None


def _nearest(file: Path) -> str:
    beside = file.parent.glob("*.txt") if file.parent.is_dir() else ()
    return suggest(file.stem, (p.stem for p in beside if p.name != "classes.txt"))


def read_lists(
    root: Path, lists: dict[str, Path | None], classes: tuple[str, ...] = ()
) -> tuple[dict[str, list[tuple[str, int]]], tuple[str, ...]]:
    """(path, label) of each line of each split's list, and the classes.

    Given `classes`, no other list is opened; else they are what the folder and its lists name.
    Raises DataError for a list or an image that isn't there and for a label that is no class.
    """
    for split, file in lists.items():
        if file is None:
            missing = root / f"{split}.txt"
            raise DataError(f"there is no list {missing}; {_nearest(missing)}")
    rows = {split: _parse_list(file) for split, file in lists.items()}
    labels = {label for lines in rows.values() for _, _, label in lines}
    classes = classes or read_classes(root) or _count_classes(lists, labels)
    files, number = {}, {name: i for i, name in enumerate(classes)}
    for split, lines in rows.items():
        files[split] = []
        for line, relative, label in lines:
            where = f"line {line} of {lists[split]}"
            # a class may itself be called by a number, so names go first
            if label in number:
                index = number[label]
            elif label.lstrip("-").isdecimal():
                index = int(label)
            else:
                raise DataError(
                    f"{where} has the unknown class {label!r}; {suggest(label, number)}"
                )
            if not 0 <= index < len(classes):
                raise DataError(
                    f"{where} has label {index}, out of the range 0 to {len(classes) - 1}"
                )
            files[split].append((relative, index))
        absent = [relative for relative, _ in files[split] if not (root / relative).is_file()]
        if absent:
            raise DataError(
                f"{lists[split]} names {len(absent)} files that are not under {root}, the first "
                f"of them {absent[0]}"
            )
    return files, classes


def _parse_list(file: Path) -> list[tuple[int, str, str]]:
    """(line number, path, label) of each line; the label is the last word."""
    rows = []
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not text.strip():
            continue
        words = text.rsplit(None, 1)
        if len(words) < 2:
            raise DataError(f"line {number} of {file} is not `relative/path label`: {text.strip()}")
        rows.append((number, words[0].strip(), words[1]))
    if not rows:
        raise DataError(f"{file} lists no images")
    return rows


def _count_classes(lists: dict[str, Path], labels: set[str]) -> tuple[str, ...]:
    """The classes of all lists beside the given ones, so that splits agree on the numbers."""
    labels = set(labels)
    for file in sorted({f for given in lists.values() for f in given.parent.glob("*.txt")}):
        try:
            rows = _parse_list(file)
        except (DataError, UnicodeDecodeError):
            continue  # some other text file
        if all(relative.lower().endswith(SUFFIXES) for _, relative, _ in rows):
            labels |= {label for _, _, label in rows}
    if all(label.lstrip("-").isdecimal() for label in labels):
        return tuple(str(i) for i in range(max(map(int, labels)) + 1))
    return tuple(sorted(labels))


def _read_folders(root: Path, splits: dict[str, None]):
    children = _folders(root)
    if not children:
        raise DataError(f"{root} holds no folders of images; {OBTAIN}")
    flat = [child for child in children if _images(root / child)]
    if flat:
        for split in splits:
            if split != "train":
                raise DataError(
                    f"{root} has a folder for each class and no split {split!r}; use slices of "
                    "train, such as train[:800] and train[800:]"
                )
        classes, bases = tuple(children), {"train": root}
    else:
        # all splits together name the classes: a split may lack one
        classes = tuple(sorted({c for child in children for c in _folders(root / child)}))
        bases = {split: root / split for split in splits}
        for split in splits:
            if split not in children:
                raise DataError(f"{root} has no split {split!r}; {suggest(split, children)}")
    files = {}
    for split, base in bases.items():
        rows = [
            ((base / name / file).relative_to(root).as_posix(), label)
            for label, name in enumerate(classes)
            for file in _images(base / name)
        ]
        if not rows:
            raise DataError(f"{base} holds no images; {OBTAIN}")
        files[split] = sorted(rows, key=lambda row: hashlib.sha256(row[0].encode()).digest())
    return files, classes


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _images(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        found = (e.name for e in entries if e.name.lower().endswith(SUFFIXES))
        return sorted(name for name in found if not name.startswith("."))
