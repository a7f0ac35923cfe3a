"""IDX files, the format of MNIST, Fashion-MNIST and their kin (yann.lecun.com/exdb/mnist)."""

import gzip
import hashlib
import math
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dynadapt.data import Arrays, labelled, parse, read_classes
from dynadapt.errors import DataError, suggest

OBTAIN = (
    "put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
    "t10k-labels-idx1-ubyte.gz of MNIST or a set like it in the folder `path`; class names, where "
    "wanted, in its classes.txt"
)
PREFIXES = {"train": "train", "test": "t10k"}
_UBYTE = 8  # the format's code for unsigned bytes


def source(split: str, path: str = "") -> Arrays:
    """Reads `train` or `test` from the folder `path`; grey images uint8 `h w`.

    The files may be gzipped or plain; DataError for one that is missing, cut short or not IDX.
    """
    folder = Path(os.path.expanduser(path))
    if not path or not folder.is_dir():
        raise DataError(f"there is no folder {path!r} of IDX files; {OBTAIN}")
    wanted = {name for name, _ in parse(split)}
    for name in sorted(wanted - set(PREFIXES)):
        raise DataError(f"there is no split {name!r}; {suggest(name, PREFIXES)}")
    labels = {
        name: read(_find(folder, f"{prefix}-labels", 1), 1)
        for name, prefix in PREFIXES.items()
        if name in wanted or _find(folder, f"{prefix}-labels", 1, missing_ok=True)
    }
    images = {name: read(_find(folder, f"{PREFIXES[name]}-images", 3), 3) for name in wanted}
    for name in sorted(wanted):
        if len(images[name]) != len(labels[name]):
            raise DataError(
                f"{folder} holds {len(images[name])} images and {len(labels[name])} labels for "
                f"{name}; the two files do not belong together"
            )
    top = int(max(values.max() for values in labels.values()))
    classes = read_classes(folder) or tuple(str(c) for c in range(top + 1))
    if top >= len(classes):
        raise DataError(f"{folder} holds label {top}, but classes.txt names {len(classes)} classes")
    digest = hashlib.sha256()
    for name in sorted(labels):
        digest.update(name.encode() + labels[name].tobytes())
        digest.update(images[name].tobytes() if name in images else b"")
    info = labelled(
        name="idx",
        classes=classes,
        counts={name: len(values) for name, values in labels.items()},
        obtain=OBTAIN,
        fingerprint=digest.hexdigest(),
    )
    return Arrays(split, images, labels, info)


def read(path: Path, ndim: int) -> np.ndarray:
    """The uint8 array with `ndim` axes in an IDX file, gzipped or plain.

    No more is unpacked than the header says, and at most a hundred times what the file has.

    Raises:
        DataError: for a file that cannot be read, is damaged, or would unpack to more.
    """
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            most = max(64 << 20, 100 * os.fstat(file.fileno()).st_size)
            return _read(path, gzip.GzipFile(fileobj=file) if packed else file, ndim, most)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or cut short: {error}") from None


def _read(path: Path, file: BinaryIO, ndim: int, most: int) -> np.ndarray:
    head = file.read(4)
    if head != bytes([0, 0, _UBYTE, ndim]):
        raise DataError(
            f"{path} is not an IDX file of unsigned bytes with {ndim} axes: it starts with "
            f"{head.hex()} instead of {bytes([0, 0, _UBYTE, ndim]).hex()}"
        )
    sizes = file.read(4 * ndim)
    if len(sizes) < 4 * ndim:
        raise DataError(f"{path} is cut short: it ends within its header")
    shape = struct.unpack(f">{ndim}I", sizes)
    size = math.prod(shape)
    if size > most:
        raise DataError(
            f"{path} announces {size:,} bytes for shape {shape}, more than the {most:,} that a "
            "file of its size may unpack to"
        )
    data = file.read(size)
    if len(data) < size or file.read(1):
        held = f"{len(data)}" if len(data) < size else "more"
        raise DataError(
            f"{path} announces {size} bytes for shape {shape} and holds {held}: it is cut short "
            "or damaged"
        )
    if not size:
        raise DataError(f"{path} is empty: its shape is {shape}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _find(folder: Path, stem: str, ndim: int, missing_ok: bool = False) -> Path | None:
    for name in (f"{stem}-idx{ndim}-ubyte", f"{stem}.idx{ndim}-ubyte"):
        for end in (".gz", ""):
            if (folder / (name + end)).is_file():
                return folder / (name + end)
    if missing_ok:
        return None
    raise DataError(f"{folder} holds no {stem}-idx{ndim}-ubyte.gz; {OBTAIN}")
