"""What lies in folders of a user's data, without what programs leave behind there."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from dynadapt.data.decode import is_image
from dynadapt.data.lists import nfc
from dynadapt.errors import DataError

# What operating systems and programs leave behind, beside everything whose name starts with a dot.
LEFTOVERS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "__pycache__")
MAX_DEPTH = 100  # folders in each other


def order(relative: str) -> bytes:
    """A hash of a path by which to sort, so that a slice mixes the classes; in normal form C."""
    return hashlib.sha256(nfc(relative).encode(errors="surrogateescape")).digest()


def list_folder(path: str | Path) -> tuple[list[str], list[str], list[str]]:
    """Names of the folders, images and other files in a folder; hidden ones are left out."""
    folders, images, others = [], [], []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in LEFTOVERS:
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif is_image(entry.name) and entry.is_file():  # no dead link
                    images.append(entry.name)
                else:
                    others.append(entry.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {path}: {error.strerror}") from None
    return sorted(folders), images, others


def walk(path: str, above: frozenset = frozenset()) -> Iterator[tuple[str, bool]]:
    """Each file below `path`, and whether it is an image; links back to a folder above end."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"cannot read the folder {path}: {error.strerror}") from None
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    if len(above) == MAX_DEPTH:
        raise DataError(f"{path[:300]}… is nested deeper than {MAX_DEPTH} folders")
    folders, images, others = list_folder(path)
    yield from ((name, True) for name in images)
    yield from ((name, False) for name in others)
    for name in folders:
        for file, image in walk(f"{path}/{name}", above | {here}):
            yield f"{name}/{file}", image
