"""Files of point clouds: text, NPY, NPZ, PLY and PCD.

| ending | what is read |
| --- | --- |
| `.txt`, `.xyz` | lines of numbers between blanks or commas, of which the first three count |
| `.npy` | an array `n k`, of which the first three columns count |
| `.npz` | its array `points`, or the only one |
| `.ply` | x, y and z of `vertex`; ascii and binary, in either order of bytes |
| `.pcd` | x, y and z; ascii, binary and binary_compressed |

What a header says is held against what the file has before anything is made room for.
"""

import math
import re
import struct
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from dynadapt import files
from dynadapt.data.lists import read_lines
from dynadapt.errors import CheckpointError, DataError

MAX_BYTES = 1 << 28  # of a file; a million points of text have less
LARGEST = 1e15  # of a coordinate; its square must be a float32
_HEADER = 1 << 16  # bytes in which a header lies
_PLY = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2"},
    **{"int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8"},
}
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_PCD_TYPES = {"F": (4, 8), "I": (1, 2, 4, 8), "U": (1, 2, 4, 8)}  # and their sizes in bytes


def is_cloud(name: str) -> bool:
    """Whether a file is called like one of a cloud."""
    return name.lower().endswith(tuple(_READERS)) and name != "classes.txt"


def read(file: Path) -> np.ndarray:
    """Points float64 `n 3` of a file, as they are stored.

    Raises:
        DataError: for a file that can't be read, holds no points or has some that are not finite.
    """
    end = file.suffix.lower()
    if end not in _READERS:
        raise DataError(f"{file} is no cloud; files end in {', '.join(_READERS)}")
    return checked(_read(file, _READERS[end]), str(file))


def _read(file: Path, reader: Callable[[Path], np.ndarray]) -> np.ndarray:
    try:
        files.regular(file, MAX_BYTES)
        return reader(file)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None
    except Exception as error:  # over damaged files numpy raises anything
        raise DataError(f"cannot read {file}: {files.first_line(error)}") from None


def checked(points: np.ndarray, name: str) -> np.ndarray:
    """The first three columns of points `n k` of a file of that name.

    Raises:
        DataError: unless there are points, they are finite, and not all in one place.
    """
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
        raise DataError(
            f"{name} holds {points.dtype} of shape {points.shape}, not points with x, y and z"
        )
    points = points[:, :3]
    if not len(points):
        raise DataError(f"{name} holds no points")
    bad = np.count_nonzero(~np.isfinite(points).all(1))
    if bad:
        raise DataError(f"{name} has {bad} of {len(points)} points that are not finite")
    if np.abs(points).max() > LARGEST:
        raise DataError(f"{name} has coordinates beyond {LARGEST:g}")
    if len(points) > 1 and (points == points[:1]).all():
        raise DataError(f"all {len(points)} points of {name} are in one place")
    return points.astype(np.float64, copy=False)


def in_sphere(points: np.ndarray) -> np.ndarray:
    """Points `n 3` moved so that their mean is the origin, and the farthest is 1 away from it."""
    points = points - points.mean(0)
    return points / max(np.linalg.norm(points, axis=1).max(), np.finfo(np.float64).tiny)


def rows(file: Path, least: int, most: int | None = None) -> np.ndarray:
    """Numbers float64 `n k` of a text with `least` columns or more; the first `most` lines.

    Raises:
        DataError: for a file that holds something else.
    """
    values = _read(file, lambda file: _text(file, most))
    if values.shape[1] < least:
        raise DataError(f"{file} has {values.shape[1]} columns, where {least} are needed")
    return values


def _text(file: Path, most: int | None = None) -> np.ndarray:
    return _numbers(read_lines(file), most)


def _numbers(lines: Sequence[str], most: int | None = None) -> np.ndarray:
    """Numbers `n k` of lines that have as many each; raises ValueError for anything else."""
    kept = list(islice((line for line in map(str.strip, lines) if line and line[0] != "#"), most))
    if not kept:
        raise ValueError("it is empty")
    try:
        return np.loadtxt(kept, delimiter="," if "," in kept[0] else None, ndmin=2)
    except ValueError as error:
        raise ValueError(str(error).partition("; use")[0]) from None  # how to call numpy


def _npy(file: Path) -> np.ndarray:
    with open(file, "rb") as stream:
        return files.read_npy(stream, file.stat().st_size)


def _npz(file: Path) -> np.ndarray:
    try:
        arrays = files.read_npz(file)
    except CheckpointError as error:
        raise error.__cause__ or error from None  # it speaks of weights
    if "points" not in arrays and len(arrays) != 1:
        raise ValueError(f"it has no array points, and {len(arrays)} others")
    return arrays["points"] if "points" in arrays else next(iter(arrays.values()))


def _ply(file: Path) -> np.ndarray:
    data = file.read_bytes()
    lines, start = _header(data, "end_header")
    if lines[0] != "ply":
        raise ValueError("it does not begin with ply")
    order, elements = _ply_header(lines)
    body: bytes | list[str] = data[start:]
    if order == "":
        body = [text for text in body.decode("ascii").splitlines() if text.strip()]
    for name, count, properties in elements:
        if name == "vertex":
            return _ply_points(body, order, count, properties)
        body = _ply_behind(body, order, name, count, properties)
    raise ValueError("it has no element vertex")


def _header(data: bytes, last: str) -> tuple[list[str], int]:
    """Lines of a header up to the one that begins with `last`, and where it ends."""
    lines = []
    for line in re.finditer(rb"[^\r\n]*(?:\r\n|\r|\n)", data[:_HEADER]):
        lines.append(line[0].decode("utf-8", "replace").strip())
        if lines[-1].split()[:1] == [last]:
            return lines, line.end()
    raise ValueError(f"it has no header that ends in {last}")


Property = tuple[str, str]  # its dtype, "" for a list, and its name


def _ply_header(lines: list[str]) -> tuple[str, list[tuple[str, int, list[Property]]]]:
    """The order of bytes, "" for text, and of each element name, count and properties."""
    order, elements = None, []
    for line in lines[1:-1]:
        match line.split():
            case ["format", form, _] if form in _ORDERS:
                order = _ORDERS[form]
            case ["element", name, count]:
                elements.append((name, _count(count), []))
            case ["property", "list", _, _, name] if elements:
                elements[-1][2].append(("", name))
            case ["property", kind, name] if elements and kind in _PLY:
                elements[-1][2].append((_PLY[kind], name))
            case [] | ["comment" | "obj_info", *_]:
                pass
            case _:
                raise ValueError(f"its header has the line {line[:80]!r}")
    if order is None:
        raise ValueError(f"its format is none of {', '.join(_ORDERS)}")
    return order, elements


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise ValueError(f"its header has {text[:40]!r} for a number")
    return int(text)


def _ply_points(
    body: bytes | list[str], order: str, count: int, properties: list[Property]
) -> np.ndarray:
    kinds, names = [kind for kind, _ in properties], [name for _, name in properties]
    if "" in kinds:
        raise ValueError("its points have lists")
    where = _columns(names)
    if isinstance(body, list):
        return _lines(body, count, len(names))[:, where]
    kind = np.dtype([(str(i), order + kind) for i, kind in enumerate(kinds)])
    return _records(body, kind, count, where)


def _ply_behind(
    body: bytes | list[str], order: str, name: str, count: int, properties: list[Property]
) -> bytes | list[str]:
    """What follows an element that is no points."""
    if isinstance(body, list):
        return body[count:]
    kinds = [kind for kind, _ in properties]
    if "" in kinds:
        raise ValueError(f"its element {name} has lists and stands before the points")
    return body[count * sum(np.dtype(order + kind).itemsize for kind in kinds) :]


def _columns(names: Sequence[str]) -> list[int]:
    for name in "xyz":
        if list(names).count(name) != 1:
            raise ValueError(f"its points have not one {name}")
    return [list(names).index(name) for name in "xyz"]


def _lines(lines: list[str], count: int, wide: int) -> np.ndarray:
    """The first `count` lines of `wide` numbers each."""
    if len(lines) < count:
        raise ValueError(f"it announces {count:,} points and has {len(lines):,} lines")
    if not count:
        return np.zeros((0, wide))
    values = _numbers(lines[:count])
    if values.shape != (count, wide):
        raise ValueError(f"its lines have {values.shape[1]} numbers, not {wide}")
    return values


def _records(body: bytes, kind: np.dtype, count: int, where: list[int]) -> np.ndarray:
    """x, y and z of the first `count` records."""
    if count * kind.itemsize > len(body):
        raise ValueError(
            f"it announces {count:,} points of {kind.itemsize} bytes and has {len(body):,} bytes"
        )
    records = np.frombuffer(body, kind, count)
    return np.stack([records[str(i)].astype(np.float64) for i in where], 1)


def _pcd(file: Path) -> np.ndarray:
    data = file.read_bytes()
    lines, start = _header(data, "DATA")
    head = {words[0]: words[1:] for words in map(str.split, lines) if words}
    lacking = [key for key in ("FIELDS", "SIZE", "TYPE", "POINTS") if key not in head]
    if lacking:
        raise ValueError(f"its header has no line {lacking[0]}")
    names, count = head["FIELDS"], _count(" ".join(head["POINTS"]))
    shape = [_count(" ".join(head.get(key, ["1"]))) for key in ("WIDTH", "HEIGHT")]
    if "WIDTH" in head and math.prod(shape) != count:
        raise ValueError(f"its {shape[0]} x {shape[1]} points are not {count:,}")
    kinds, repeats = _pcd_kinds(head, names)
    where = _columns(names)
    body, form = data[start:], " ".join(head["DATA"])
    if form == "ascii":
        firsts = np.concatenate([[0], np.cumsum(repeats)])
        text = [line for line in body.decode("ascii").splitlines() if line.strip()]
        return _lines(text, count, int(firsts[-1]))[:, firsts[where]]
    if form not in ("binary", "binary_compressed"):
        raise ValueError(f"its DATA is {form[:40]!r}, not ascii, binary or binary_compressed")
    if any(repeats[i] != 1 for i in where):
        raise ValueError("its points have several x, y or z")
    several = [(n,) if n > 1 else () for n in repeats]
    kind = np.dtype([(str(i), *of) for i, of in enumerate(zip(kinds, several, strict=True))])
    if form == "binary":
        return _records(body, kind, count, where)
    return _pcd_columns(body, kind, count, where)


def _pcd_kinds(head: dict[str, list[str]], names: list[str]) -> tuple[list[str], list[int]]:
    """The dtype of each field, and how many values of it a point has."""
    given = (head["TYPE"], head["SIZE"], head.get("COUNT", ["1"] * len(names)))
    if any(len(values) != len(names) for values in given):
        raise ValueError(f"its header has {len(names)} FIELDS and not as many of TYPE, SIZE, COUNT")
    kinds, repeats = [], [_count(n) for n in given[2]]
    for letter, size in zip(given[0], map(_count, given[1]), strict=True):
        if size not in _PCD_TYPES.get(letter, ()):
            raise ValueError(f"its points have values {letter[:20]} of {size} bytes")
        kinds.append(f"<{letter.lower()}{size}")
    if not all(1 <= n <= 1 << 16 for n in repeats):
        raise ValueError("its header has a COUNT that is none")
    return kinds, repeats


def _pcd_columns(body: bytes, kind: np.dtype, count: int, where: list[int]) -> np.ndarray:
    """x, y and z of what is packed field by field."""
    packed, full = struct.unpack_from("<II", body)
    if full != count * kind.itemsize or full > MAX_BYTES or 8 + packed > len(body):
        raise ValueError(
            f"it announces {count:,} points of {kind.itemsize} bytes, {full:,} bytes in all and "
            f"{packed:,} packed, and has {len(body):,}"
        )
    values = _unpacked(body[8 : 8 + packed], full)
    firsts = [kind.fields[name][1] * count for name in kind.names]
    return np.stack(
        [np.frombuffer(values, kind[i], count, firsts[i]).astype(np.float64) for i in where], 1
    )


def _unpacked(data: bytes, size: int) -> bytes:
    """Unpacks LZF, of which `size` bytes must come."""
    out, at = bytearray(), 0
    while at < len(data):
        control, at = data[at], at + 1
        if control < 32:  # so many bytes and one follow as they are
            out += data[at : at + control + 1]
            at += control + 1
        else:  # what stood so far back is repeated
            length = (control >> 5) + 2
            if length == 9:
                length, at = length + _byte(data, at), at + 1
            back, at = ((control & 31) << 8) + _byte(data, at) + 1, at + 1
            if back > len(out):
                raise ValueError("what is packed in it is damaged")
            start = len(out) - back
            piece = bytes(out[start : start + length])
            out += (piece * -(-length // len(piece)))[:length]
        if len(out) > size:
            break
    if len(out) != size:
        raise ValueError(f"it unpacks to another size than {size:,} bytes")
    return bytes(out)


def _byte(data: bytes, at: int) -> int:
    if at >= len(data):
        raise ValueError("what is packed in it is cut short")
    return data[at]


_READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".txt": _text,
    ".xyz": _text,
    ".npy": _npy,
    ".npz": _npz,
    ".ply": _ply,
    ".pcd": _pcd,
}
