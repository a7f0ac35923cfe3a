"""Lists of images: text files with a path and its labels on each line.

| line | how path and label are told apart |
| --- | --- |
| `cats/1.png tabby cat` | the path ends like an image; else the label is the longest known class |
| | that ends the line, else the last word |
| `cats/1.png<TAB>tabby cat` | by the tab |
| `cats/1.png,tabby cat` | by the comma, with the quotes of CSV |

A comma between labels says that the image has several: `1.png cat,black`, in CSV
`1.png,"cat,black"`. A first line such as `path,label` is a heading. Texts are UTF-8, or UTF-16 with
a byte order mark; labels compare in Unicode's normal form C.
"""

import codecs
import csv
import functools
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from dynadapt import files
from dynadapt.data.decode import is_image, suffixes
from dynadapt.errors import DataError, suggest

Line = tuple[int, str, tuple[str, ...]]  # its number in the file, the path, the labels
Row = tuple[str, tuple[int, ...]]  # the path, the numbers of its classes

MAX_BYTES = 1 << 30  # of a text; a line of an image has less than 100
MAX_WORDS = 100  # of a class whose name is told from the path by blanks alone
ENDS = (".txt", ".csv", ".tsv")
_HEADING = re.compile(
    r'"?(path|file|image|img|name|filename|file_name|filepath|file_path|image_path)s?"?'
    r'(?P<between>[ \t,]+)"?(label|class|category|class_name|target|tag)(s|es)?"?',
    re.IGNORECASE,
)
_SPLIT = re.compile("train|val|test|dev", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d{1,18}")


def nfc(text: str) -> str:
    """Unicode's normal form C, in which names compare; macOS names files in form D."""
    return unicodedata.normalize("NFC", text)


def read_lines(file: Path) -> list[str]:
    """The lines of a text file; raises DataError for one that cannot be read as UTF-8."""
    try:
        files.regular(file, MAX_BYTES)
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"line {line} of {file} is not UTF-8; save the file as UTF-8") from None
    if "\0" in text:
        raise DataError(f"{file} is no text in UTF-8; save the file as UTF-8")
    return re.split("\r\n|\r|\n", text)


def find(root: Path, split: str, given: str = "") -> Path | None:
    """The list of a split below `root`: `<split>.txt`, None where there is none; or `given`, which
    may hold `{split}` and leave its ending out.

    Raises:
        DataError: for a given list that isn't there.
    """
    name = (given or "{split}").replace("{split}", split)
    ends = ("",) if name.endswith(ENDS) else ENDS if given else ENDS[:1]
    for end in ends:
        if (root / (name + end)).is_file():
            return root / (name + end)
    if given:
        raise missing(root / (name + ends[0]))
    return None


def missing(file: Path) -> DataError:
    """The error for a list that isn't there, which names the nearest that is."""
    return DataError(
        f"there is no list {file}; {suggest(file.stem, (p.stem for p in _near(file)))}"
    )


def beside(files: Iterable[Path], known: Collection[str] = ()) -> dict[Path, list[Line]]:
    """The lists of other splits in the folders of these; any other text is passed over."""
    files, found = set(files), {}
    for file in sorted({near for given in files for near in _near(given)} - files):
        if not _SPLIT.search(file.stem):
            continue
        try:
            lines = parse(file, known)
        except DataError:
            continue
        if all(is_image(path) for _, path, _ in lines):
            found[file] = lines
    return found


def _near(file: Path) -> list[Path]:
    if not file.parent.is_dir():
        return []
    ends = {".txt", file.suffix}
    return [p for p in file.parent.iterdir() if p.suffix in ends and p.name != "classes.txt"]


def parse(file: Path, known: Collection[str] = ()) -> list[Line]:
    """The lines of a list that aren't blank; `known` are names of classes, which may hold blanks.

    Raises:
        DataError: for a line that has no path and label, by its number.
    """
    lines = [(n, text.strip()) for n, text in enumerate(read_lines(file), 1) if text.strip()]
    heading = _HEADING.fullmatch(lines[0][1]) if lines else None
    lines = lines[1:] if heading else lines
    if not lines:
        raise DataError(f"{file} lists no images")
    known, commas = {nfc(name) for name in known}, bool(heading) and "," in heading["between"]
    return [_line(f"line {n} of {file}", n, text, commas, known) for n, text in lines]


def _line(where: str, number: int, text: str, commas: bool, known: Collection[str]) -> Line:
    columns = _columns(text, commas, known)
    if len(columns) > 2:
        raise DataError(
            f"{where} has {len(columns)} columns; write path and label alone, several labels as in "
            '1.png,"cat,black"'
        )
    if len(columns) < 2 or not all(columns):
        raise DataError(f"{where} is not `relative/path label`: {text}")
    path, label = columns[0], nfc(columns[1])
    if label in known or "," not in label:
        labels = (label,)
    else:
        labels = tuple(dict.fromkeys(part.strip() for part in label.split(",")))
    if "" in labels:
        raise DataError(f"{where} has an empty label between commas: {text}")
    if label not in known and re.fullmatch(r"-?\d+(\s+-?\d+)+", label):
        raise DataError(
            f"{where} has several labels; put commas between: {','.join(label.split())}"
        )
    return number, path, labels


def _columns(text: str, commas: bool, known: Collection[str]) -> list[str]:
    """Path and label, or as many columns as there are."""
    if "\t" in text:
        return [column.strip() for column in text.split("\t") if column.strip()]
    if commas or "," in text:
        try:
            [columns] = csv.reader([text], skipinitialspace=True)
        except csv.Error:
            return [text]
        columns = [column.strip() for column in columns]
        if commas or len(columns) > 1 and is_image(columns[0]):
            return columns
    words = text.split()
    if len(words) < 3:
        return words
    if found := _ends_like_an_image().fullmatch(text):
        return [found[1], found[2]]
    for count in range(min(len(words) - 1, MAX_WORDS), 0, -1):
        if nfc(" ".join(words[-count:])) in known:
            return [text.rsplit(None, count)[0], " ".join(words[-count:])]
    return text.rsplit(None, 1)


@functools.cache
def _ends_like_an_image() -> re.Pattern:
    """A path up to the last word that ends like an image, and what follows."""
    ends = "|".join(map(re.escape, sorted(suffixes())))
    return re.compile(rf"(.*(?:{ends}))\s+(\S.*)", re.IGNORECASE)


def name_classes(
    wanted: Mapping[Path, Sequence[Line]], others: Mapping[Path, Sequence[Line]]
) -> tuple[str, ...]:
    """The classes of lists that nothing else names: the sorted labels, or, where all of them are
    numbers, 0 to the greatest. `others` count where they have the same kind of labels, so that
    splits agree.

    Raises:
        DataError: for a number that would make more classes than there are images.
    """
    numeric = all(map(_is_numeric, wanted.values()))
    tables = [*wanted.values(), *(t for t in others.values() if _is_numeric(t) == numeric)]
    labels = {label for table in tables for *_, found in table for label in found}
    if not numeric:
        return tuple(sorted(labels))
    images = sum(map(len, tables))
    for file, table in wanted.items():
        for line, _, found in table:
            top = max(map(int, found))
            if top >= images:
                raise DataError(
                    f"line {line} of {file} has label {top}, which would make {top + 1:,} classes "
                    f"of {images:,} images; count classes from 0, or name them in classes.txt"
                )
    top = max((int(label) for label in labels if int(label) < images), default=0)
    return tuple(str(i) for i in range(max(top, 0) + 1))


def _is_numeric(lines: Sequence[Line]) -> bool:
    return all(_NUMBER.fullmatch(label) for *_, labels in lines for label in labels)


def numbered(
    file: Path, lines: Iterable[Line], classes: Sequence[str], own: Sequence[str] = ()
) -> list[Row]:
    """The lines of a list with their labels as positions in `classes`.

    A label is the name of a class; else a number that counts the names of `own` (those of
    classes.txt) where there are any, else those of `classes`. Raises DataError for any other.
    """
    numbers = {nfc(name): i for i, name in enumerate(classes)}
    named = not any(map(_NUMBER.fullmatch, classes))
    counted = own or (classes if named or list(classes) == [*map(str, range(len(classes)))] else ())
    rows = []
    for line, path, labels in lines:
        where = f"line {line} of {file}"
        found = dict.fromkeys(_number(label, numbers, counted, where) for label in labels)
        rows.append((path, tuple(found)))
    return rows


def located(root: Path, file: Path, rows: Sequence[Row]) -> list[Row]:
    """The rows of a list with their paths as the file system spells them.

    Raises:
        DataError: where images aren't there.
    """
    places = [(_place(root, path), labels) for path, labels in rows]
    absent = [row[0] for row, place in zip(rows, places, strict=True) if place[0] is None]
    if absent:
        raise DataError(
            f"{file} names {len(absent)} files that are not under {root}, the first of them "
            f"{absent[0]}"
        )
    return places


def _number(label: str, numbers: Mapping[str, int], counted: Sequence[str], where: str) -> int:
    # a class may itself be called by a number, so names go first
    if label not in numbers and counted and _NUMBER.fullmatch(label):
        if not 0 <= int(label) < len(counted):
            raise DataError(f"{where} has label {label}, out of the range 0 to {len(counted) - 1}")
        label = nfc(counted[int(label)])
    if label not in numbers:
        raise DataError(f"{where} has the unknown class {label!r}; {suggest(label, numbers)}")
    return numbers[label]


def _place(root: Path, path: str) -> str | None:
    """The path as the file system spells it, in either normal form."""
    for spelled in (path, nfc(path), unicodedata.normalize("NFD", path)):
        if os.path.isfile(os.path.join(root, spelled)):
            return spelled
    return None
