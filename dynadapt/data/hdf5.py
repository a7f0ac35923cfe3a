"""HDF5 files of clouds and labels, `data` and `label`, as ScanObjectNN and ModelNet40 have them."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from dynadapt import files
from dynadapt.errors import ConfigError, DataError

MAX_BYTES = 4 << 30  # of the clouds of a file; the largest that is published has a tenth


def read(file: Path, count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Clouds float32 `m count 3` and their labels int32 `m`.

    Nothing is read that the file links to elsewhere, nor far more than it has.

    Raises:
        ConfigError: where h5py is not installed.
        DataError: for a file that can't be read, clouds of another number of points, points that
            are not finite, and labels out of range.
    """
    try:
        import h5py
    except ImportError:
        raise ConfigError(
            'HDF5 files are read by h5py, which is not installed: pip install "dynadapt[clouds]"'
        ) from None
    try:
        files.regular(file)
        with h5py.File(file, "r") as opened:
            clouds, labels = (_array(h5py, opened, file, name) for name in ("data", "label"))
    except DataError:
        raise
    except Exception as error:  # over damaged files the library raises anything
        raise DataError(f"cannot read {file}: {files.first_line(error)}") from None
    return _clouds(clouds, file, count), _labels(labels, file, len(clouds), classes)


def _array(h5py: Any, opened: Any, file: Path, name: str) -> np.ndarray:
    if name not in opened:
        raise DataError(f"{file} has no data set {name!r} but {', '.join(sorted(opened)[:10])}")
    if not isinstance(opened.get(name, getlink=True), h5py.HardLink):
        raise DataError(f"{name!r} of {file} is a link, which is not followed")
    found = opened[name]
    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "fiu":
        raise DataError(f"{name!r} of {file} is no array of numbers")
    if found.external or found.is_virtual:
        raise DataError(f"{name!r} of {file} lies in other files, which are not read")
    most = min(MAX_BYTES, max(64 << 20, 100 * file.stat().st_size))
    room = max(found.nbytes, math.prod(found.chunks or ()) * found.dtype.itemsize)
    if room > most:
        raise DataError(f"{name!r} of {file} would unpack to {room:,} bytes")
    return found[()]


def _clouds(clouds: np.ndarray, file: Path, count: int) -> np.ndarray:
    if clouds.ndim != 3 or clouds.shape[1:] != (count, 3):
        raise DataError(f"{file} has clouds of shape {clouds.shape}, not of {count:,} points each")
    if not len(clouds):
        raise DataError(f"{file} holds no clouds")
    clouds = clouds.astype(np.float32, copy=False)
    for number, cloud in enumerate(clouds):
        bad = np.count_nonzero(~np.isfinite(cloud).all(1))
        if bad:
            raise DataError(f"cloud {number} of {file} has {bad} points that are not finite")
        if (cloud == cloud[:1]).all():
            raise DataError(f"all points of cloud {number} of {file} are in one place")
    return clouds


def _labels(labels: np.ndarray, file: Path, clouds: int, classes: int) -> np.ndarray:
    values = labels.reshape(-1)
    if len(values) != clouds or (values != np.floor(values)).any():
        raise DataError(
            f"{file} has {clouds} clouds and labels {labels.dtype} of shape {labels.shape}"
        )
    wrong = values[(values < 0) | (values >= classes)]
    if len(wrong):
        raise DataError(f"{file} has label {wrong[0]:g}, out of the range 0 to {classes - 1}")
    return values.astype(np.int32)
