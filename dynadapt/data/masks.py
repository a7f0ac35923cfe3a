"""Images with a class for each pixel in PNG files of one's own.

A mask is grey of 1 to 16 bits, a palette, whose indices count and not its colours, or colours that
`colours.txt` names.
"""

import dataclasses
import logging
import re
from pathlib import Path

import numpy as np

from dynadapt.data import MAX_CLASSES, Info, pairs, parse, read_classes
from dynadapt.data.decode import numbers
from dynadapt.data.fields import Field
from dynadapt.data.lists import nfc, read_lines
from dynadapt.data.pairs import Pairs
from dynadapt.errors import DataError

OBTAIN = (
    "put images in path/images/<split>/ and masks of the same names in path/masks/<split>/, or set "
    "data.images and data.masks"
)
VOID = -1  # of every data set
_OUTSIDE = -2  # a value that is neither a class nor void
_VALUES = 1 << 16
_CHANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?:(\d{1,5}|void)")


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What the values of masks mean.

    Attributes:
        classes: their names.
        ignore: values that are void.
        reduce_zero: whether 0 is void and the classes count from 1.
        remap: what other values become, such as `"0:void 1-9:0 10-255:1"`; it goes first.
        colours: red, green, blue, and the class or `VOID`, of masks that hold colours.
    """

    classes: tuple[str, ...]
    ignore: tuple[int, ...] = (255,)
    reduce_zero: bool = False
    remap: str = ""
    colours: tuple[tuple[int, int, int, int], ...] = ()

    def table(self) -> np.ndarray:
        """The class of each value `65536`; raises a DataError for settings that don't fit."""
        count, start = len(self.classes), int(self.reduce_zero)
        table = np.full(_VALUES, _OUTSIDE, np.int32)
        table[start : start + count] = np.arange(count)[: _VALUES - start]
        table[:start] = VOID
        changed = np.zeros(_VALUES, bool)
        for low, high, target in map(self._change, self.remap.split()):
            table[low : high + 1], changed[low : high + 1] = target, True
        for value in self.ignore:
            if not isinstance(value, int) or not 0 <= value < _VALUES:
                raise DataError(f"data.ignore holds {value!r}, not a number from 0 to 65535")
            if table[value] >= 0 and not changed[value]:
                raise DataError(
                    f"data.ignore holds {value}, which is the class {self.classes[table[value]]!r} "
                    f"of {count}; leave one of them out"
                )
            if not changed[value]:
                table[value] = VOID
        return table

    def _change(self, word: str) -> tuple[int, int, int]:
        """First and last value and what they become."""
        match = _CHANGE.fullmatch(word)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not match or not low <= high < _VALUES:
            raise DataError(
                f"cannot read {word!r} in data.remap; write values from 0 to 65535 and their class "
                "as in '0:void 1-9:0 10-255:1'"
            )
        target = VOID if match[3] == "void" else int(match[3])
        if target >= len(self.classes):
            raise DataError(
                f"data.remap has {word!r}, but there are {len(self.classes)} classes, from 0"
            )
        return low, high, target


class Reader:
    """Masks as labels: `reader(bytes of a PNG file, its name)` is int32 `h w`."""

    def __init__(self, encoding: Encoding):
        self._classes = len(encoding.classes)
        self._table = encoding.table()
        self._doubt = self._classes == 2 and self._table[255] == VOID and not encoding.remap
        colours = np.array(encoding.colours, np.int64).reshape(-1, 4)
        colours = colours[np.argsort(_code(colours))]
        self._codes, self._targets = _code(colours), colours[:, 3].astype(np.int32)

    def __call__(self, png: bytes, name: str) -> np.ndarray:
        values = numbers(png, name)
        if values.ndim == 3:
            return self._of_colours(values, name)
        labels = self._table[values]
        if (labels == _OUTSIDE).any():
            value = values[labels == _OUTSIDE].min()
            raise DataError(
                f"{name} holds the value {value}, which is neither one of the {self._classes} "
                "classes nor void; say in data.ignore or data.remap what it is"
            )
        if self._doubt and (values == 255).any() and not (values == 1).any():
            self._doubt = False
            message = (
                "%s holds 255, which is void, and no 1; if white is a class, set data.remap=%s"
            )
            logging.getLogger(__name__).warning(message, name, "255:1")
        return labels

    def _of_colours(self, values: np.ndarray, name: str) -> np.ndarray:
        if not len(self._codes):
            raise DataError(
                f"{name} holds colours; write a line `red green blue name` for each class in "
                "path/colours.txt, or save the mask in grey or with a palette"
            )
        codes = _code(values.astype(np.int64))
        at = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        strange = self._codes[at] != codes
        if strange.any():
            shown = " ".join(map(str, values[strange][0]))
            raise DataError(f"{name} holds the colour {shown}, which is none of colours.txt")
        return self._targets[at]


def _code(colours: np.ndarray) -> np.ndarray:
    return colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2]


def source(
    split: str,
    path: str = "",
    images: str = "images/{split}",
    masks: str = "masks/{split}",
    ignore: tuple[int, ...] = (255,),
    reduce_zero: bool = False,
    remap: str = "",
    class_count: int = 0,
) -> Pairs:
    """Reads images and masks below `path`, paired by name; void is `VOID`.

    `path/classes.txt` names the classes, one a line; without it they are numbers, as many as
    `class_count` says. Masks are not searched for classes: a split that lacks one would count
    others than the next. For masks of colours `path/colours.txt` has a line `red green blue name`
    for each class, in order; colours of one name are one class, and those called `void` are void.

    Args:
        split: which.
        path: the folder.
        images: where the images lie; `dynadapt.data.pairs` says what a pattern is.
        masks: where the masks lie.
        ignore: values that are void.
        reduce_zero: whether 0 is void and the classes count from 1.
        remap: what values become, before all else: `"255:1"` for masks in black and white,
            `"1-65535:1"` where instances are numbered.
        class_count: how many classes there are, where `classes.txt` does not say so.

    Raises:
        DataError: for what isn't there, settings that do not fit, and, in reading, for masks of
            other values or of another size than their image.
    """
    root = pairs.folder(path, OBTAIN)
    names = [*dict.fromkeys(name for name, _ in parse(split))]
    files = pairs.find(root, images, masks, names, (".png",), OBTAIN)
    classes, colours = coloured(root, class_count)
    encoding = Encoding(classes, tuple(ignore), reduce_zero, remap, colours)
    return opened("masks", split, root, files, encoding, OBTAIN)


def opened(
    name: str,
    split: str,
    root: Path,
    files: dict[str, list[pairs.Pair]],
    encoding: Encoding,
    obtain: str,
) -> Pairs:
    """The source over images and masks of these files."""
    fields = {
        "image": Field("pixels"),
        "labels": Field("labels", fill=VOID, classes=encoding.classes),
    }
    counts = {part: len(rows) for part, rows in files.items()}
    said = pairs.fingerprint(root, files, repr(encoding))
    info = Info(name, fields, counts, obtain, said)
    return Pairs(split, root, files, info, "labels", Reader(encoding))


def coloured(root: Path, count: int) -> tuple[tuple[str, ...], tuple]:
    """Names of the classes, and the colours that are theirs."""
    file = root / "colours.txt"
    found, colours = _colours(file) if file.is_file() else ((), ())
    return named(root, count, known=found), colours


def named(
    root: Path,
    count: int,
    file: str = "classes.txt",
    setting: str = "class_count",
    known: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """Names of classes: those known, or of a file in `root`, or numbers where a setting counts
    them; raises a DataError where nothing says which there are."""
    classes = known or read_classes(root, file)
    if not 0 <= count <= MAX_CLASSES:
        raise DataError(f"data.{setting} is {count}, not a number from 1 to {MAX_CLASSES:,}")
    if classes and count not in (0, len(classes)):
        raise DataError(f"data.{setting} is {count}, but {root} names {len(classes)} classes")
    if not classes and not count:
        raise DataError(
            f"nothing says which classes the masks in {root} have; name them in {root / file}, one "
            f"a line, or set data.{setting}"
        )
    return classes or tuple(map(str, range(count)))


def _colours(file: Path) -> tuple[tuple[str, ...], tuple]:
    numbers, found = {}, {}
    for line, text in enumerate(read_lines(file), 1):
        words = text.split(None, 3)
        if not words:
            continue
        if len(words) < 4 or not all(w.isdecimal() and int(w) < 256 for w in words[:3]):
            raise DataError(f"line {line} of {file} is not `red green blue name`: {text}")
        colour, name = tuple(map(int, words[:3])), nfc(words[3].strip())
        number = VOID if name == "void" else numbers.setdefault(name, len(numbers))
        if found.setdefault(colour, number) != number:
            raise DataError(f"line {line} of {file} gives the colour {words[:3]} a second class")
    if not numbers:
        raise DataError(f"{file} names no class")
    return tuple(numbers), tuple((*colour, number) for colour, number in found.items())
