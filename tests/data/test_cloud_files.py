"""Every form of a cloud gives the same points; what is broken is told in a sentence, and no header
is believed before the file has what it says."""

import struct
import tracemalloc

import numpy as np
import pytest

from dynadapt.data import cloud_files
from dynadapt.errors import DataError
from tests.data import cloud_layouts as layouts

POINTS = layouts.points()
FORMS = {
    "blanks.txt": layouts.text,
    "commas.txt": lambda file, x: layouts.text(file, np.hstack([x, x]), ","),
    "a.xyz": layouts.text,
    "A.XYZ": layouts.text,
    "a.npy": lambda file, x: np.save(file, x),
    "columns.npy": lambda file, x: np.save(file, np.asfortranarray(np.hstack([x, x]))),
    "a.npz": lambda file, x: np.savez(file, points=x, faces=np.zeros(4)),
    "only.npz": lambda file, x: np.savez_compressed(file, cloud=x),
    "a.ply": layouts.ply,
    "little.ply": lambda file, x: layouts.ply(file, x, "binary_little_endian"),
    "big.ply": lambda file, x: layouts.ply(file, x, "binary_big_endian", "f8"),
    "a.pcd": layouts.pcd,
    "binary.pcd": lambda file, x: layouts.pcd(file, x, "binary"),
    "packed.pcd": lambda file, x: layouts.pcd(file, x, "binary_compressed"),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_points(tmp_path, name):
    FORMS[name](tmp_path / name, POINTS)
    found = cloud_files.read(tmp_path / name)
    assert found.dtype == np.float64 and found.shape == POINTS.shape
    assert np.allclose(found, POINTS, atol=1e-6)
    assert cloud_files.is_cloud(name)


def test_what_is_packed_is_smaller_and_comes_back():
    data = b"abcabcabcabcabcabcabcd" + bytes(500) + np.arange(300, dtype="<f4").tobytes()
    packed = layouts.lzf(data)
    assert len(packed) < 0.8 * len(data)
    assert cloud_files._unpacked(packed, len(data)) == data


def test_large_coordinates_keep_their_digits(tmp_path):
    far = POINTS.astype(np.float64) + [500000.125, 5400000.25, 0]
    layouts.ply(tmp_path / "a.ply", far, "binary_little_endian", "f8")
    found = cloud_files.in_sphere(cloud_files.read(tmp_path / "a.ply"))
    assert np.allclose(found, cloud_files.in_sphere(POINTS.astype(np.float64)), atol=1e-6)
    assert np.abs(found.mean(0)).max() < 1e-8
    assert np.linalg.norm(found, axis=1).max() == pytest.approx(1)
    assert not cloud_files.in_sphere(np.ones((1, 3))).any()


def spoilt(row, value):
    values = POINTS.copy()
    values[row] = value
    return values


BROKEN = {
    "nan.ply": (lambda f: layouts.ply(f, spoilt(3, np.nan), "binary_little_endian"),
                "nan.ply has 1 of 60 points that are not finite"),
    "inf.txt": (lambda f: layouts.text(f, spoilt(slice(2), np.inf)), "has 2 of 60 points"),
    "far.npy": (lambda f: np.save(f, spoilt(0, 1e20)), "coordinates beyond 1e"),
    "same.npy": (lambda f: np.save(f, np.ones((9, 3))), "all 9 points of .* are in one place"),
    "none.npy": (lambda f: np.save(f, np.zeros((0, 3))), "holds no points"),
    "none.ply": (lambda f: layouts.ply(f, POINTS[:0], "binary_little_endian"), "holds no points"),
    "none.pcd": (lambda f: layouts.pcd(f, POINTS[:0], "binary"), "holds no points"),
    "empty.txt": (lambda f: f.write_text("# nothing\n\n"), "it is empty"),
    "empty.ply": (lambda f: f.write_bytes(b""), "no header that ends in end_header"),
    "empty.pcd": (lambda f: f.write_bytes(b""), "no header that ends in DATA"),
    "empty.npy": (lambda f: f.write_bytes(b""), "cannot read"),
    "empty.npz": (lambda f: f.write_bytes(b""), "cut short, or no zip file"),
    "flat.npy": (lambda f: np.save(f, np.ones(9)), r"float64 of shape \(9,\), not points"),
    "two.txt": (lambda f: layouts.text(f, POINTS[:, :2]), r"shape \(60, 2\), not points"),
    "ragged.txt": (lambda f: f.write_text("1 2 3\n4 5\n"), "number of columns changed from 3 to 2"),
    "word.xyz": (lambda f: f.write_text("1 2 3\n4 five 6\n"), "could not convert string 'five'"),
    "bytes.txt": (lambda f: f.write_bytes(b"1 2 3\n\xff"), "line 2 of .* is not UTF-8"),
    "objects.npy": (lambda f: np.save(f, np.array([{}]), allow_pickle=True), "array of objects"),
    "objects.npz": (lambda f: np.savez(f, points=np.array([{}])), "array of objects"),
    "two.npz": (lambda f: np.savez(f, a=POINTS, b=POINTS), "no array points, and 2 others"),
    "other.ply": (lambda f: f.write_bytes(b"solid\nend_header\n"), "does not begin with ply"),
    "a.pts": (lambda f: f.write_text("1 2 3"), "is no cloud; files end in .txt, .xyz"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_told_with_the_files_name(tmp_path, name):
    write, message = BROKEN[name]
    write(tmp_path / name)
    with pytest.raises(DataError, match=message) as caught:
        cloud_files.read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


PLY = "ply\nformat {form} 1.0\nelement vertex {count}\n{properties}\nend_header\n"
XYZ = "property float x\nproperty float y\nproperty float z"
PCD = "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH {n}\nHEIGHT {h}\nPOINTS {n}\n"
HUGE = 10**15


def a_ply(form="binary_little_endian", count=1, properties=XYZ):
    return PLY.format(form=form, count=count, properties=properties).encode() + bytes(12)


LIARS = {
    "huge.ply": (a_ply(count=HUGE), "announces 1,000,000,000,000,000 points of 12 bytes"),
    "huge_text.ply": (a_ply("ascii", HUGE), "announces 1,000,000,000,000,000 points and has"),
    "digits.ply": (a_ply(count="9" * 400), "for a number"),
    "negative.ply": (a_ply(count=-1), "'-1' for a number"),
    "format.ply": (a_ply("binary"), "its header has the line 'format binary 1.0'"),
    "no_format.ply": (b"ply\nelement vertex 0\nend_header\n", "its format is none of ascii"),
    "no_z.ply": (a_ply(properties="property float x\nproperty float y"), "have not one z"),
    "two_x.ply": (a_ply(properties=XYZ + "\nproperty float x"), "have not one x"),
    "kind.ply": (a_ply(properties="property half x"), "the line 'property half x'"),
    "list.ply": (a_ply(properties=XYZ + "\nproperty list uchar int i"), "its points have lists"),
    "faces.ply": (b"ply\nformat binary_little_endian 1.0\nelement face 1\n"
                  b"property list uchar int i\nelement vertex 0\nend_header\n", "stands before"),
    "no_points.ply": (b"ply\nformat ascii 1.0\nelement face 0\nend_header\n", "no element vertex"),
    "cut.ply": (a_ply(count=2), "announces 2 points of 12 bytes and has 12 bytes"),
    "long.ply": (b"ply\n" + b"comment \n" * 10000 + b"end_header\n", "no header that ends in"),
    "wide.ply": (PLY.format(form="ascii", count=1, properties=XYZ).encode() + b"1 2 3 4\n",
                 "lines have 4 numbers, not 3"),
    "huge.pcd": (PCD.format(n=HUGE, h=1).encode() + b"DATA binary\n" + bytes(12), "has 12 bytes"),
    "shape.pcd": (PCD.format(n=4, h=2).encode() + b"DATA ascii\n", "its 4 x 2 points are not 4"),
    "data.pcd": (PCD.format(n=1, h=1).encode() + b"DATA zip\n", "its DATA is 'zip', not ascii"),
    "fields.pcd": (PCD.replace("TYPE F", "TYPE").format(n=1, h=1).encode() + b"DATA ascii\n",
                   "3 FIELDS and not as many of TYPE"),
    "type.pcd": (PCD.format(n=1, h=1).replace("SIZE 4", "SIZE 3").encode() + b"DATA ascii\n",
                 "values F of 3 bytes"),
    "count.pcd": (PCD.format(n=1, h=1).replace("COUNT 1", "COUNT 99999999").encode()
                  + b"DATA ascii\n", "has a COUNT that is none"),
    "lines.pcd": (b"FIELDS x y z\nDATA ascii\n", "its header has no line SIZE"),
    "unpacked.pcd": (PCD.format(n=1 << 28, h=1).encode() + b"DATA binary_compressed\n"
                     + struct.pack("<II", 1, 3221225472 % 2**32) + b"\0", "announces"),
    "packed.pcd": (PCD.format(n=1, h=1).encode() + b"DATA binary_compressed\n"
                   + struct.pack("<II", 99, 12) + b"\0", "99 packed, and has"),
    "short.pcd": (PCD.format(n=1, h=1).encode() + b"DATA binary_compressed\n\0", "cannot read"),
    "back.pcd": (PCD.format(n=1, h=1).encode() + b"DATA binary_compressed\n"
                 + struct.pack("<II", 3, 12) + b"\xe0\xff\xff", "damaged"),
    "end.pcd": (PCD.format(n=1, h=1).encode() + b"DATA binary_compressed\n"
                + struct.pack("<II", 1, 12) + b"\xe0", "cut short"),
    "bomb.pcd": (PCD.format(n=1, h=1).encode() + b"DATA binary_compressed\n"
                 + struct.pack("<II", 90002, 12) + b"\0a" + b"\xe0\xff\0" * 30000, "another size"),
    "huge.npy": (b"\x93NUMPY\1\0v\0" + (b"{'descr': '<f4', 'fortran_order': False, 'shape': "
                 b"(1000000000000, 3), }").ljust(117) + b"\n" + bytes(12), "does not fit"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIARS)
def test_headers_that_lie_cost_nothing(tmp_path, name):
    content, message = LIARS[name]
    (tmp_path / name).write_bytes(content)
    tracemalloc.start()
    with pytest.raises(DataError, match=message) as caught:
        cloud_files.read(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20 and str(tmp_path / name) in str(caught.value)


def test_rows_of_text_have_their_columns(tmp_path):
    layouts.text(tmp_path / "a.txt", np.hstack([POINTS, POINTS]), ",")
    assert cloud_files.rows(tmp_path / "a.txt", 6).shape == (60, 6)
    assert np.allclose(cloud_files.rows(tmp_path / "a.txt", 3, 7)[:, :3], POINTS[:7])
    with pytest.raises(DataError, match="a.txt has 6 columns, where 7 are needed"):
        cloud_files.rows(tmp_path / "a.txt", 7)
    with pytest.raises(DataError, match="cannot read .*b.txt: No such file"):
        cloud_files.rows(tmp_path / "b.txt", 3)
    assert not cloud_files.is_cloud("classes.txt") and not cloud_files.is_cloud("a.jpg")
