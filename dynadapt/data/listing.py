"""What lies in folders of a user's data, without what programs leave behind there."""

import hashlib
import os
from collections.abc import Callable, Iterator
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


def list_folder(
    path: str | Path, wanted: Callable[[str], bool] = is_image
) -> tuple[list[str], list[str], list[str]]:
    """Names of the folders, the wanted and the other files in it; hidden ones are left out."""
    folders, found, others = [], [], []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in LEFTOVERS:
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif wanted(entry.name) and entry.is_file():  # no dead link
                    found.append(entry.name)
                else:
                    others.append(entry.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {path}: {error.strerror}") from None
    return sorted(folders), found, others


def walk(
    path: str, wanted: Callable[[str], bool] = is_image, above: frozenset = frozenset()
) -> Iterator[tuple[str, bool]]:
    """Each file below `path`, and whether it is wanted; links back to a folder above end."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"cannot read the folder {path}: {error.strerror}") from None
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    if len(above) == MAX_DEPTH:
        raise DataError(f"{path[:300]}… is nested deeper than {MAX_DEPTH} folders")
    folders, found, others = list_folder(path, wanted)
    yield from ((name, True) for name in found)
    yield from ((name, False) for name in others)
    for name in folders:
        for file, fits in walk(f"{path}/{name}", wanted, above | {here}):
            yield f"{name}/{file}", fits
