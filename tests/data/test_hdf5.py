"""Arrays of HDF5 files are read where they are what was announced, and lie in the file itself."""

import sys

import h5py
import numpy as np
import pytest

from dynadapt.data import hdf5
from dynadapt.errors import ConfigError, DataError
from tests.data import cloud_layouts as layouts


@pytest.fixture
def one(tmp_path):
    """one(write) -> what is read of a file that `write(opened)` filled, of 16 points, 5 classes."""

    def run(write):
        with h5py.File(tmp_path / "a.h5", "w") as opened:
            write(opened)
        return hdf5.read(tmp_path / "a.h5", 16, 5)

    return run


def fill(data=None, label=None):
    def write(opened):
        opened["data"] = layouts.many(3, 16) if data is None else data
        opened["label"] = np.arange(3) if label is None else label

    return write


@pytest.mark.parametrize("label", [np.arange(3, dtype=np.uint8)[:, None], np.arange(3.0)])
def test_clouds_and_labels(one, label):
    clouds, labels = one(fill(layouts.many(3, 16).astype(np.float64), label))
    assert clouds.dtype == np.float32 and np.array_equal(clouds, layouts.many(3, 16))
    assert labels.dtype == np.int32 and labels.tolist() == [0, 1, 2]


def spoilt(value, where=1):
    clouds = layouts.many(3, 16)
    clouds[where] = value
    return clouds


def linked(link):
    def write(opened):
        fill()(opened)
        del opened["data"]
        opened["data"] = link

    return write


def virtual(opened):
    fill()(opened)
    del opened["data"]
    layout = h5py.VirtualLayout((3, 16, 3), "f4")
    layout[:] = h5py.VirtualSource("b.h5", "data", (3, 16, 3))
    opened.create_virtual_dataset("data", layout)


def external(opened):
    fill()(opened)
    del opened["data"]
    opened.create_dataset("data", (3, 16, 3), "f4", external=[("b.bin", 0, 576)])


def huge(**options):
    def write(opened):
        opened["label"] = np.arange(3)
        opened.create_dataset("data", dtype="f4", **options)

    return write


BROKEN = {
    "points": (fill(layouts.many(3, 15)), r"clouds of shape \(3, 15, 3\), not of 16 points"),
    "columns": (fill(np.zeros((3, 16, 6))), r"shape \(3, 16, 6\)"),
    "none": (fill(layouts.many(0, 16), np.zeros(0)), "holds no clouds"),
    "nan": (fill(spoilt(np.nan)), "cloud 1 of .* has 16 points that are not finite"),
    "same": (fill(spoilt(1.5)), "all points of cloud 1 of .* are in one place"),
    "high": (fill(None, [0, 5, 1]), "has label 5, out of the range 0 to 4"),
    "low": (fill(None, [0, -1, 1]), "has label -1, out of the range 0 to 4"),
    "half": (fill(None, [0, 0.5, 1]), r"3 clouds and labels float64 of shape \(3,\)"),
    "nan_label": (fill(None, [0, np.nan, 1]), "3 clouds and labels float64"),
    "few": (fill(None, [0, 1]), r"3 clouds and labels int64 of shape \(2,\)"),
    "text": (fill(None, ["a", "b", "c"]), "'label' of .* is no array of numbers"),
    "group": (lambda opened: opened.create_group("data"), "'data' of .* is no array of numbers"),
    "lacking": (lambda opened: opened.create_group("points"), "no data set 'data' but points"),
    "soft": (linked(h5py.SoftLink("/label")), "'data' of .* is a link"),
    "link": (linked(h5py.ExternalLink("b.h5", "data")), "is a link|has no data set"),
    "virtual": (virtual, "lies in other files"),
    "external": (external, "lies in other files"),
    "huge": (huge(shape=(1 << 40, 16, 3), chunks=(1, 16, 3)), "would unpack to 211,106,"),
    "chunks": (huge(shape=(3, 16, 3), maxshape=(None, 16, 3), chunks=(1 << 20, 16, 3)),
               "would unpack to 201,326,592 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_told_with_the_files_name(one, name):
    write, message = BROKEN[name]
    with pytest.raises(DataError, match=message) as caught:
        one(write)
    assert "a.h5" in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataError, match="cannot read .*a.h5: "):
        hdf5.read(tmp_path / "a.h5", 16, 5)
    for content in (b"", b"\x89HDF\r\n\x1a\n" + bytes(100)):
        (tmp_path / "a.h5").write_bytes(content)
        with pytest.raises(DataError, match="cannot read .*a.h5: "):
            hdf5.read(tmp_path / "a.h5", 16, 5)
    layouts.hdf5(tmp_path / "a.h5", layouts.many(9, 16), np.zeros(9))
    content = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(content[:-500])
    with pytest.raises(DataError, match="cannot read .*a.h5: .*truncated"):
        hdf5.read(tmp_path / "a.h5", 16, 5)


def test_a_missing_h5py_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match=r'pip install "dynadapt\[clouds\]"'):
        hdf5.read(tmp_path / "a.h5", 16, 5)
