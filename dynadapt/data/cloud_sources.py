"""Sources over clouds: held in memory, or read from a file each when they are first asked for."""

import functools
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynadapt.data import Info, Rows
from dynadapt.data.fields import Field
from dynadapt.data.lists import nfc
from dynadapt.errors import DataError

KEPT = 2 << 30  # bytes of clouds that are kept rather than read again
MAX_POINTS = 1 << 20  # of a cloud
Item = tuple[str, int]  # a file below a folder, and its class


def fields(count: int, classes: Sequence[str]) -> dict[str, Field]:
    """What clouds of so many points with a class each are."""
    points = Field("cloud", size=(count, 3))
    return {"points": points, "label": Field("number", classes=tuple(classes))}


def folder(path: str, obtain: str) -> Path:
    """The folder of that path; raises a DataError where there is none."""
    root = Path(os.path.expanduser(path))
    if not path or not root.is_dir():
        raise DataError(f"there is no folder {path!r}; {obtain}")
    return root


def check_count(count: int) -> None:
    """Raises a DataError for a number of points that clouds can't have."""
    if not 1 <= count <= MAX_POINTS:
        raise DataError(f"clouds have 1 to {MAX_POINTS:,} points, not {count}")


class Files:
    """A source over files of a cloud each; `read` makes fields of a file, which are kept."""

    def __init__(
        self,
        split: str,
        root: Path,
        items: Mapping[str, Sequence[Item]],
        info: Info,
        read: Callable[[Path, str], dict[str, np.ndarray]],
    ):
        self.info = info
        self._root, self._items = root, items
        self._rows = Rows(split, info.counts)
        room = sum(4 * int(np.prod(field.size)) for field in info.fields.values())
        self._read = functools.lru_cache(maxsize=max(1, KEPT // room))(
            lambda relative: read(root / relative, relative)
        )

    @property
    def labels(self) -> np.ndarray:
        """The class of each example."""
        return np.array([self._items[name][position][1] for name, position in self._rows], int)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        split, position = self._rows[index]
        relative, label = self._items[split][position]
        return {**self._read(relative), "label": label, "name": str(self._root / relative)}


class Sampler:
    """Brings clouds to `count` points by draws that depend on a name alone."""

    def __init__(self, count: int):
        self.count, self._said = count, False

    def __call__(self, there: int, name: str) -> np.ndarray:
        """Which of `there` points are taken, `count`, in no order; all of them, and some twice,
        where there are fewer."""
        seed = int.from_bytes(hashlib.sha256(nfc(name).encode(errors="replace")).digest()[:8])
        rng = np.random.default_rng(seed)
        lacking = self.count - there
        if lacking <= 0:
            return rng.permutation(there)[: self.count]
        if not self._said:
            self._said = True
            logging.getLogger(__name__).warning(
                "%s has %d points, fewer than %d: some stand twice in it and in others like it",
                *(name, there, self.count),
            )
        return rng.permutation(
            np.concatenate([np.arange(there), rng.integers(there, size=lacking)])
        )


def fingerprint(said: str, items: Mapping[str, Sequence[Item]]) -> str:
    """SHA-256 over what is `said` of how files are read, their paths, and classes."""
    digest = hashlib.sha256(said.encode())
    for name in sorted(items):
        for relative, label in items[name]:
            digest.update(f"{name}\t{nfc(relative)}\t{label}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def digest(said: str, clouds: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over what is `said` of how arrays are read, and the arrays."""
    found = hashlib.sha256(said.encode())
    for name in sorted(clouds):
        found.update(name.encode() + clouds[name].tobytes() + labels[name].tobytes())
    return found.hexdigest()
