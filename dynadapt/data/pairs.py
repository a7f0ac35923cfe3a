"""Images and the map that belongs to each: a mask, a depth map.

Where they lie is said by two patterns below a folder. A pattern names a folder, whose files count
at any depth, or, with one `*`, files: `{split}/*_rgb.jpg`. `{split}` stands for the split. An image
and a map belong together where what `*` stands for, or the path in the folder without its ending,
is the same.
"""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynadapt.data import Info, Rows
from dynadapt.data.decode import MAX_BYTES
from dynadapt.data.listing import list_folder, order, walk
from dynadapt.data.lists import nfc
from dynadapt.errors import DataError, MissingSplit, suggest
from dynadapt.files import regular

Pair = tuple[str, str]  # an image and its map, as paths below a folder
_SPLIT = "/{split}"


class Pairs:
    """A source over image files, which it returns as encoded bytes, and `read` of the map's bytes
    and name, under the name `field`.

    Maps lie over pixels as they are stored: no image is turned as its EXIF block says.
    """

    def __init__(
        self,
        split: str,
        root: Path,
        files: Mapping[str, list[Pair]],
        info: Info,
        field: str,
        read: Callable[[bytes, str], np.ndarray],
    ):
        self.info = info
        self._root, self._files, self._field, self._read = root, files, field, read
        self._rows = Rows(split, info.counts)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        split, position = self._rows[index]
        image, below = (self._root / path for path in self._files[split][position])
        value = self._read(read(below), str(below))
        return {"image": read(image), self._field: value, "name": str(image)}


def read(file: Path) -> bytes:
    """The content of a file; raises a DataError for what can't be read, or is too large."""
    try:
        regular(file, MAX_BYTES)
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None


def folder(path: str, obtain: str) -> Path:
    """The folder of that path; raises a DataError where there is none."""
    root = Path(os.path.expanduser(path))
    if not path or not root.is_dir():
        raise DataError(f"there is no folder {path!r}; {obtain}")
    return root


def find(
    root: Path, images: str, maps: str, splits: Iterable[str], ends: tuple[str, ...], obtain: str
) -> dict[str, list[Pair]]:
    """The pairs of each split, in an order made of hashes of their paths.

    A pattern without `{split}` is of the one split `train`; so is one that ends in `/{split}` where
    images lie in the folder before it.

    Args:
        root: below which they lie.
        images: pattern of the images.
        maps: pattern of the maps.
        splits: to be found.
        ends: how files of maps end.
        obtain: what an error says to do.

    Raises:
        DataError: where a folder or all pairs are missing.
    """
    found = match(root, {"image": images, "map": maps}, {"map": ends}, splits, obtain)
    return {
        split: _paired(root, split, files["image"], files["map"]) for split, files in found.items()
    }


def match(
    root: Path,
    patterns: Mapping[str, str],
    ends: Mapping[str, tuple[str, ...]],
    splits: Iterable[str],
    obtain: str,
) -> dict[str, dict[str, dict[str, str]]]:
    """The files of each split and pattern, by what pairs them, as paths below `root`.

    Args:
        root: below which they lie.
        patterns: by name; that of the images is called `image`.
        ends: how files of the other ones end.
        splits: to be found.
        obtain: what an error says to do.

    Raises:
        DataError: where a folder or all files of a pattern are missing.
    """
    if patterns["image"].endswith(_SPLIT):
        above = root / patterns["image"].removesuffix(_SPLIT)
        if above.is_dir() and list_folder(above)[1]:
            patterns = {name: pattern.removesuffix(_SPLIT) for name, pattern in patterns.items()}
    images, found = patterns["image"], {}
    for split in splits:
        if "{split}" not in images and split != "train":
            raise MissingSplit(
                f"{root / images} has no split {split!r}; use slices of train, such as "
                "train[:800] and train[800:]"
            )
        _check_split(root, images, split, obtain)
        found[split] = {
            name: _match(root, pattern.replace("{split}", split), ends.get(name), obtain)
            for name, pattern in patterns.items()
        }
    return found


def _check_split(root: Path, pattern: str, split: str, obtain: str) -> None:
    """Raises a DataError, which names the nearest split, where the folder of one isn't there."""
    place = root / _cut(pattern.replace("{split}", split))[0]
    if place.is_dir():
        return
    parts = pattern.split("/")
    number = next((i for i, part in enumerate(parts) if "{split}" in part), len(parts) - 1)
    above = root.joinpath(*parts[:number])
    form = re.compile(re.escape(parts[number]).replace(re.escape("{split}"), "(.+)"))
    names = list_folder(above)[0] if above.is_dir() else []
    known = [match[1] for match in map(form.fullmatch, names) if match and match.groups()]
    if not known:
        raise DataError(f"there is no folder {place}; {obtain}")
    raise MissingSplit(f"{root} has no split {split!r}; {suggest(split, known)}")


def _cut(pattern: str) -> tuple[str, str, str]:
    """The folder of a pattern, and how paths in it begin and end around the `*`."""
    before, star, after = pattern.partition("*")
    if not star:
        return pattern, "", ""
    place, _, start = before.rpartition("/")
    return place, start, after


def _match(root: Path, pattern: str, ends: tuple[str, ...] | None, obtain: str) -> dict[str, str]:
    """Files that match a pattern by what pairs them; those of `ends`, or images for None."""
    if pattern.count("*") > 1:
        raise DataError(f"the pattern {pattern!r} has more than one *; write {{split}}/*_rgb.jpg")
    place, start, after = _cut(pattern)
    if not (root / place).is_dir():
        raise DataError(f"there is no folder {root / place}; {obtain}")
    found: dict[str, str] = {}
    for file, image in walk(str(root / place)):
        fits = image if ends is None else file.lower().endswith(ends)
        if not fits or "*" in pattern and not (file.startswith(start) and file.endswith(after)):
            continue
        stem = file[len(start) : len(file) - len(after)] if "*" in pattern else _stem(file)
        path = f"{place}/{file}" if place else file
        if found.setdefault(nfc(stem), path) != path:
            raise DataError(
                f"{root / found[nfc(stem)]} and {path} have one name; say which counts by a "
                f"pattern such as {place or '.'}/*{os.path.splitext(file)[1]}"
            )
    if not found:
        what = "images" if ends is None else f"files that end in {' or '.join(ends)}"
        raise DataError(f"{root / pattern} holds no {what}; {obtain}")
    return found


def _stem(file: str) -> str:
    return os.path.splitext(file)[0]


def _paired(
    root: Path, split: str, images: Mapping[str, str], maps: Mapping[str, str]
) -> list[Pair]:
    both = sorted(images.keys() & maps.keys(), key=lambda stem: order(images[stem]))
    if not both:
        raise DataError(
            f"no image of {split} in {root} has a map of its name: images are such as "
            f"{min(images.values())}, maps such as {min(maps.values())}"
        )
    alone = [f"{len(files)} {what}, such as {min(files)}" for files, what in (
        ([images[stem] for stem in images.keys() - maps.keys()], "images without a map"),
        ([maps[stem] for stem in maps.keys() - images.keys()], "maps without an image"),
    ) if files]  # fmt: skip
    if alone:
        message = "%s of %s has %d pairs; passed over %s"
        logging.getLogger(__name__).warning(message, split, root, len(both), " and ".join(alone))
    return [(images[stem], maps[stem]) for stem in both]


def fingerprint(root: Path, files: Mapping[str, list[Pair]], said: str) -> str:
    """SHA-256 over the paths of each split, the sizes of the maps' files, and what else is `said`
    of how they are read."""
    digest = hashlib.sha256(said.encode())
    for name in sorted(files):
        for image, below in files[name]:
            line = f"{name}\t{nfc(image)}\t{nfc(below)}\t{os.stat(root / below).st_size}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def named(
    root: Path, file: Path, rows: Iterable[Pair], folders: Iterable[str] = ("",)
) -> list[Pair]:
    """The pairs that a list `file` names, below the first of `folders` that holds them all.

    Raises:
        DataError: for a list of nothing, and where files aren't there.
    """
    rows = list(rows)
    if not rows:
        raise DataError(f"{file} lists no images")
    lacking = {}
    for place in folders:
        paths = [(os.path.join(place, a), os.path.join(place, b)) for a, b in rows]
        absent = [p for pair in paths for p in pair if not (root / p).is_file()]
        if not absent:
            return paths
        lacking[len(absent)] = absent[0]
    count = min(lacking)
    raise DataError(
        f"{file} names {count} files that are not under {root}, the first of them {lacking[count]}"
    )
