"""Handwritten digits: 1,797 grey 8 x 8 images that come with scikit-learn, nothing to download.

Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
1998, doi:10.24432/C50P49 (its test part).
"""

import hashlib

import numpy as np

from dynadapt.data import Arrays, labelled
from dynadapt.errors import DataError

OBTAIN = "comes with scikit-learn: pip install scikit-learn"
CLASSES = tuple("0123456789")
TRAIN = (99, 101, 98, 102, 101, 101, 101, 100, 97, 100)  # of each class; 1,000 in all


def source(split: str) -> Arrays:
    """Reads `train` (1,000) or `test` (797), stratified by class; images uint8 `8 8 3`."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            "the digits data set comes with scikit-learn, which is not installed: "
            "pip install scikit-learn"
        ) from None
    bunch = load_digits()
    grey = (bunch.images.astype(np.int64) * 255 + 8) // 16  # 0..16 to 0..255, halves up
    images = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    labels = bunch.target.astype(np.int32)
    parts = _split(labels)
    digest = hashlib.sha256()
    for rows in parts.values():
        digest.update(images[rows].tobytes() + labels[rows].astype("<i4").tobytes())
    info = labelled(
        name="digits",
        classes=CLASSES,
        counts={name: len(rows) for name, rows in parts.items()},
        obtain=OBTAIN,
        fingerprint=digest.hexdigest(),
        size=(8, 8),
    )
    return Arrays(
        split,
        {name: images[rows] for name, rows in parts.items()},
        {name: labels[rows] for name, rows in parts.items()},
        info,
    )


def _split(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Positions of each split, in an order made of hashes, which no library version changes."""

    def key(position):
        return hashlib.sha256(b"digits %d" % position).digest()

    taken, parts = [0] * 10, {"train": [], "test": []}
    for position in sorted(range(len(labels)), key=key):
        label = labels[position]
        parts["train" if taken[label] < TRAIN[label] else "test"].append(position)
        taken[label] += 1
    return {name: np.array(rows) for name, rows in parts.items()}
