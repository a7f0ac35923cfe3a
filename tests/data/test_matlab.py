"""Files of MATLAB are read as scipy reads them, and damaged ones are refused."""

import io
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from scipy.io import loadmat, savemat

from dynadapt.data import matlab
from dynadapt.errors import DataError

MATLABS = Path(scipy.io.matlab.__file__).parent / "tests" / "data"  # files that MATLAB wrote
RNG = np.random.default_rng(0)
VALUES = {
    **{kind: np.arange(6, dtype=kind).reshape(2, 3) for kind in "bBhHiIqQfd"},
    "logical": RNG.random((3, 4)) < 0.5,
    "cube": RNG.normal(size=(2, 3, 4)),
    "empty": np.zeros((0, 0)),
}


def saved(compressed=False, **values):
    buffer = io.BytesIO()
    savemat(buffer, values, do_compression=compressed)
    return buffer.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
def test_what_scipy_writes(compressed):
    inner = np.zeros((1, 2), [("part_name", "O"), ("mask", "O")])
    inner[0, 0], inner[0, 1] = ("head", VALUES["B"]), ("foot", VALUES["empty"])
    cell = np.array([["a text", 7.5]], object)
    tree = {"one": 3.0, "inner": inner, "cell": cell}
    file = saved(compressed, **{f"v_{name}": value for name, value in VALUES.items()}, tree=tree)
    for name, value in VALUES.items():
        found = matlab.read(file, "1.mat", f"v_{name}")
        assert np.array_equal(found, value), name
        assert found.dtype == (np.uint8 if name == "logical" else value.dtype)
    [found] = matlab.read(file, "1.mat", "tree")
    assert found["one"].item() == 3 and [part["part_name"] for part in found["inner"]] == [
        *("head", "foot")
    ]
    assert np.array_equal(found["inner"][0]["mask"], VALUES["B"])
    assert found["inner"][1]["mask"].size == 0
    assert found["cell"][0] == "a text" and found["cell"][1].item() == 7.5


@pytest.mark.parametrize("version", ["6.1_SOL2", "6.5.1_GLNX86", "7.1_GLNX86", "7.4_GLNX86"])
def test_what_matlab_writes_in_either_order_of_bytes(version):
    if not MATLABS.is_dir():
        pytest.skip("scipy is installed without its tests' files")
    for name in ("test3dmatrix", "testmatrix", "testminus", "testdouble"):
        file = MATLABS / f"{name}_{version}.mat"
        found = matlab.read(file.read_bytes(), file.name, name)
        wanted = loadmat(file, mat_dtype=True)[name]
        assert np.array_equal(found, wanted) and found.dtype == wanted.dtype.newbyteorder("=")
        assert not np.array_equal(found, 0 * found)
    file = MATLABS / f"testcellnest_{version}.mat"
    one, [two, three, four] = matlab.read(file.read_bytes(), file.name, "testcellnest")
    assert [one.item(), two.item(), three.item(), [x.item() for x in four]] == [1, 2, 3, [4, 5]]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"", "it is no file of MATLAB up to version 7"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM", "it is no file of MATLAB"),
        (saved(other=1), "it has no variable of this name"),
        (saved(x=1)[:-9], "it is cut short"),
        (saved(True, x=VALUES["cube"])[:-20], "it is cut short"),
        (saved(x=1j), "which is not read"),
    ],
)
def test_what_is_refused(file, message):
    with pytest.raises(DataError, match=f"cannot read x of 1.mat: .*{message}") as raised:
        matlab.read(file, "1.mat", "x")
    assert "\n" not in str(raised.value)


def test_no_more_is_unpacked_than_memory_has(monkeypatch):
    file = saved(True, x=np.zeros(9000))
    assert matlab.read(file, "1.mat", "x").size == 9000
    monkeypatch.setattr(matlab, "MAX_BYTES", 8000)
    with pytest.raises(DataError, match="would unpack to more than 8,000 bytes"):
        matlab.read(file, "1.mat", "x")


def test_a_damaged_file_raises_nothing_else():
    whole = saved(x={"a": VALUES["B"], "b": [{"c": 1.0}, {"c": "text"}]}, y=VALUES["H"])
    nested = {"x": 1.0}
    for _ in range(20):
        nested = {"x": nested}
    with pytest.raises(DataError, match="more than 16 deep"):
        matlab.read(saved(**nested), "1.mat", "x")
    refused = 0
    for seed in range(2000):
        rng, file = np.random.default_rng(seed), bytearray(whole)
        for place in rng.integers(128, len(whole), 2):
            file[place] = rng.integers(256)
        try:
            matlab.read(bytes(file), "1.mat", "x")
        except DataError:
            refused += 1
    assert 500 < refused < 2000
