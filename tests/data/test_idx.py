import gzip
import struct

import numpy as np
import pytest

from dynadapt.data import idx
from dynadapt.errors import DataError


def pack(array):
    array = np.asarray(array, np.uint8)
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def made(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, count in (("train", 20), ("t10k", 7)):
        arrays[prefix] = rng.integers(0, 256, (count, 5, 4)), np.arange(count) % 10
        for kind, ndim, array in zip(("images", "labels"), (3, 1), arrays[prefix], strict=True):
            path = tmp_path / f"{prefix}-{kind}-idx{ndim}-ubyte.gz"
            path.write_bytes(gzip.compress(pack(array)))
    return tmp_path, arrays


def test_reads_both_splits(made):
    path, arrays = made
    train, test = idx.source("train", path=str(path)), idx.source("test", path=str(path))
    assert train.info.counts == {"train": 20, "test": 7}
    assert train.info.classes == tuple("0123456789") == test.info.classes
    for source, prefix in ((train, "train"), (test, "t10k")):
        pixels, labels = arrays[prefix]
        assert len(source) == len(labels)
        for i in range(len(source)):
            assert np.array_equal(source[i]["image"], pixels[i])
            assert source[i]["image"].dtype == np.uint8
            assert source[i]["label"] == labels[i]
    assert idx.source("train[5:]+test", path=str(path))[15]["name"] == "test[0]"


def test_plain_files_and_class_names(made):
    path, _ = made
    for file in path.glob("*.gz"):
        (path / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    (path / "classes.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    source = idx.source("train", path=str(path))
    assert source.info.classes[3] == "class 3"
    (path / "classes.txt").write_text("only\ntwo")
    with pytest.raises(DataError, match="holds label 9, but classes.txt names 2"):
        idx.source("train", path=str(path))


def test_the_fingerprint_follows_the_pixels(made):
    path, arrays = made
    before = idx.source("train", path=str(path)).info.fingerprint
    pixels = arrays["train"][0].copy()
    pixels[3, 1, 2] ^= 1
    (path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(pack(pixels)))
    assert idx.source("train", path=str(path)).info.fingerprint != before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: gzip.compress(raw)[:-20], "is damaged or cut short"),
        (lambda raw: gzip.compress(raw)[:30] + b"?" * 40, "is damaged or cut short"),
        (lambda raw: raw[:-1], r"announces 400 bytes for shape \(20, 5, 4\) and holds 399"),
        (lambda raw: raw + b"!", "announces 400 bytes .* and holds more"),
        (lambda raw: raw[:9], "ends within its header"),
        (lambda raw: b"\0\0\x0d\3" + raw[4:], "starts with 00000d03 instead of 00000803"),
        (lambda raw: b"\0\0\x08\1" + raw[4:], "3 axes"),
        (lambda raw: b"<html>", "is not an IDX file"),
        (lambda raw: b"", "is not an IDX file"),
        (lambda raw: pack(np.zeros((0, 5, 4))), "is empty"),
        (lambda raw: pack(np.zeros((19, 5, 4))), "holds 19 images and 20 labels for train"),
    ],
)
def test_damaged_files(made, damage, message):
    path, arrays = made
    file = path / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(pack(arrays["train"][0])))
    with pytest.raises(DataError, match=message):
        idx.source("train", path=str(path))


def test_missing_files(made):
    path, _ = made
    with pytest.raises(DataError, match="there is no folder"):
        idx.source("train", path=str(path / "absent"))
    with pytest.raises(DataError, match="no split 'validation'"):
        idx.source("validation", path=str(path))
    (path / "t10k-labels-idx1-ubyte.gz").unlink()
    assert idx.source("train", path=str(path)).info.counts == {"train": 20}
    with pytest.raises(DataError, match="holds no t10k-labels-idx1-ubyte.gz"):
        idx.source("test", path=str(path))
