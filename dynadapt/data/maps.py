"""Images with several maps each: classes, parts, depth, normals, what is salient.

A data set says which files belong to an image, and how they become fields; what is the same in all
of them is here.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynadapt.data import Info, Rows, depths, lists, pairs, parse
from dynadapt.data.decode import dimensions, heading, numbers
from dynadapt.data.fields import Field
from dynadapt.data.listing import order
from dynadapt.data.masks import VOID
from dynadapt.data.scenes import BINARY
from dynadapt.errors import DataError, UnknownName
from dynadapt.files import first_line

Files = Mapping[str, str]  # of an image, by what they hold, `image` among them; below a folder
Size = tuple[int, int]
Read = Callable[[Mapping[str, Path], Size], dict[str, np.ndarray]]
Reader = Callable[[bytes, str], np.ndarray]  # of a file's content and its name

FIELDS = {  # those that are the same in every data set
    "saliency": Field("labels", fill=VOID, classes=BINARY[0]),
    "edges": Field("labels", fill=VOID, classes=BINARY[1]),
    "normals": Field("vectors"),
    "depth": Field("values"),
    "instances": Field("masks"),
}


class Maps:
    """A source over image files, which it returns as encoded bytes, and the fields that `read`
    makes of the files of an image and its size (h, w).

    Maps lie over pixels as they are stored: no image is turned as its EXIF block says.
    """

    def __init__(
        self, split: str, root: Path, files: Mapping[str, Sequence[Files]], info: Info, read: Read
    ):
        self.info = info
        self._root, self._files, self._read = root, files, read
        self._rows = Rows(split, info.counts)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        split, position = self._rows[index]
        files = {what: self._root / path for what, path in self._files[split][position].items()}
        name = str(files["image"])
        image = pairs.read(files["image"])
        return {"image": image, **self._read(files, dimensions(image, name)), "name": name}


def opened(
    name: str,
    split: str,
    root: Path,
    files: Mapping[str, Sequence[Files]],
    fields: Mapping[str, Field],
    read: Read,
    obtain: str,
    said: str,
) -> Maps:
    """The source over these files, whose fingerprint covers what is `said` of how they are read."""
    counts = {part: len(rows) for part, rows in files.items()}
    both = {part: [(row["image"], row[what]) for row in rows for what in row if what != "image"]
            for part, rows in files.items()}  # fmt: skip
    digest = pairs.fingerprint(root, both, said)
    fields = {"image": Field("pixels"), **fields}
    return Maps(split, root, files, Info(name, fields, counts, obtain, digest), read)


def find(
    root: Path,
    patterns: Mapping[str, str],
    ends: Mapping[str, tuple[str, ...]],
    splits: Iterable[str],
    obtain: str,
) -> dict[str, list[Files]]:
    """The files of each split, of images that have all maps; as `pairs.match` finds them.

    Raises:
        DataError: where a folder is missing, or no image has all maps.
    """
    found = {}
    for split, files in pairs.match(root, patterns, ends, splits, obtain).items():
        images = files["image"]
        whole = [stem for stem in images if all(stem in maps for maps in files.values())]
        alone = []
        for what, maps in files.items():
            for stems, of in (
                (images.keys() - maps.keys(), f"images without {what}"),
                (maps.keys() - images.keys(), f"{what} without an image"),
            ):
                if stems:
                    alone.append(f"{len(stems)} {of}, such as {min(stems)}")
        if not whole:
            raise DataError(f"no image of {split} in {root} has all maps: {' and '.join(alone)}")
        if alone:
            message = "%s of %s has %d images with all maps; passed over %s"
            args = split, root, len(whole), " and ".join(alone)
            logging.getLogger(__name__).warning(message, *args)
        whole.sort(key=lambda stem: order(images[stem]))
        found[split] = [{what: files[what][stem] for what in files} for stem in whole]
    return found


def unpacked(
    name: str, path: str, fields: Iterable[str], known: Mapping[str, Field], obtain: str
) -> tuple[Path, dict[str, Field]]:
    """The folder that a published archive was unpacked to, `path` or one in it of the data set's
    `name` in capitals, and of the `known` fields those asked for.

    Raises:
        DataError: where there is no such folder.
        UnknownName: for a field that isn't there.
    """
    for field in fields:
        if field not in known:
            raise UnknownName(f"field of {name}", field, known)
    root = pairs.folder(path, obtain)
    inner = root / name.upper()
    chosen = {field: kind for field, kind in known.items() if field in fields}
    return inner if inner.is_dir() else root, chosen


def listed(
    root: Path,
    split: str,
    pattern: str,
    files_of: Callable[[str], Files],
    published: Mapping[str, int],
) -> dict[str, Sequence[Files]]:
    """The files of each split, of the images that its list names, one a line; all are `checked`.

    Args:
        root: below which they lie.
        split: whose lists are read.
        pattern: of the lists, as of `lists.find`.
        files_of: an image, by its name.
        published: how many images the lists have as published.
    """
    found = {}
    for name in dict.fromkeys(name for name, _ in parse(split)):
        file = lists.find(root, name, pattern)
        names = [line.strip() for line in lists.read_lines(file) if line.strip()]
        found[name] = checked(root, file, [files_of(n) for n in names], published.get(name, 0))
    return found


def checked(root: Path, file: Path, rows: Sequence[Files], published: int = 0) -> Sequence[Files]:
    """The files that a list `file` names, after a look at each of them.

    Args:
        root: below which they lie.
        file: the list.
        rows: what it names.
        published: how many images that list has as published; 0 where nothing is known of it.

    Raises:
        DataError: for a list of nothing, files that aren't there, and maps of another size than
            their image; the size of a file of MATLAB is seen when it is read.
    """
    if not rows:
        raise DataError(f"{file} lists no images")
    paths = [path for row in rows for path in row.values()]
    absent = [path for path in paths if not (root / path).is_file()]
    if absent:
        raise DataError(
            f"{file} asks for {len(absent)} of {len(paths)} files that are not under {root}, the "
            f"first of them {absent[0]}"
        )
    for row in rows:
        size = heading(root / row["image"])
        for path in row.values():
            if not path.endswith(".mat"):
                _same(root / path, _heading(root / path), size)
    if published not in (0, len(rows)):
        message = "%s lists %d images, where %d are published"
        logging.getLogger(__name__).warning(message, file, len(rows), published)
    return rows


def _heading(file: Path) -> Size:
    if file.suffix != ".npy":
        return heading(file)
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False).shape[:2]
    except Exception as error:  # over damaged files numpy raises anything
        raise DataError(f"cannot read {file}: {first_line(error)}") from None


def _same(file: Path, found: Size, size: Size) -> None:
    if found != size:
        raise DataError(
            f"{file} has the shape {found}, but its image has {size[0]} x {size[1]} pixels (h, w)"
        )


def load(
    readers: Mapping[str, Reader], files: Mapping[str, Path], size: Size
) -> dict[str, np.ndarray]:
    """What the readers make of their files; raises a DataError for maps of another size (h, w)."""
    found = {}
    for what, reader in readers.items():
        found[what] = reader(pairs.read(files[what]), str(files[what]))
        _same(files[what], found[what].shape[:2], size)
    return found


def read_binary(file: bytes, name: str) -> np.ndarray:
    """0 and 1, int32 `h w`, of a PNG or NPY file that holds these, or black, white and between.

    Raises:
        DataError: for a file of colours, and one whose values may mean either.
    """
    values = depths.array(file, name) if name.lower().endswith(".npy") else numbers(file, name)
    if values.ndim != 2 or values.dtype.kind not in "buif":
        raise DataError(
            f"{name} is {values.dtype} with shape {values.shape}, not one number a pixel"
        )
    top = values.max(initial=0)
    if top <= 1:
        return (values > 0.5).astype(np.int32)
    if (values == 1).any() and (values == 255).any() and np.isin(values, (0, 1, 255)).all():
        raise DataError(
            f"{name} holds 1 and 255, of which either may be void; save it as 0 and 1, or in black "
            "and white"
        )
    return (values > (65535 if top > 255 else 255) / 2).astype(np.int32)


def read_normals(file: bytes, name: str) -> np.ndarray:
    """Unit vectors float32 `h w 3` of a PNG file, whose 0 to 255 are -1 to 1, or of an NPY file.

    Black, and what is shorter than a tenth or not finite, is unknown: zero.

    Raises:
        DataError: for a file that hasn't three numbers a pixel.
    """
    npy = name.lower().endswith(".npy")
    values = depths.array(file, name) if npy else numbers(file, name)
    if values.ndim != 3 or values.shape[2] != 3 or npy and values.dtype.kind != "f":
        raise DataError(
            f"{name} is {values.dtype} with shape {values.shape}, not a vector a pixel in red, "
            "green and blue or three floats"
        )
    vectors = values.astype(np.float32)
    if not npy:
        vectors = np.where(values.any(axis=-1, keepdims=True), vectors * 2 / 255 - 1, 0)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    known = np.isfinite(length) & (length >= 0.1)
    return np.divide(vectors, length, where=known, out=np.zeros_like(vectors))
