"""Files of MATLAB, version 5 to 7: numbers, texts, cells and structures.

The format is that of MathWorks, "MAT-File Level 5 File Format". scipy's reader trusts what a file
says of itself and takes the process down over a damaged one; this one looks before each step.
"""

import math
import struct
import zlib
from typing import Any

import numpy as np

from dynadapt.errors import DataError
from dynadapt.files import first_line

MAX_BYTES = 1 << 28  # that a packed variable may have
_HEADING = 128  # bytes; the last four are the version and the order of bytes
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8",
            13: "u8", 16: "u1", 17: "u2", 18: "u4"}  # fmt: skip
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8",
            15: "u8"}  # fmt: skip
_MATRIX, _PACKED = 14, 15
_CELL, _STRUCTURE, _TEXT = 1, 2, 4
_COMPLEX = 0x800
_DEPTH = 16  # of structures in each other


def read(file: bytes, name: str, wanted: str) -> Any:
    """The variable of that name: an array, a text, or, in MATLAB's order, the list of a cell's
    values or of a structure's elements, dicts.

    Raises:
        DataError: for a file of another kind, a damaged one, and one without that variable.
    """
    try:
        return _find(file, wanted)
    except Exception as error:  # whatever a damaged file leads to
        raise DataError(f"cannot read {wanted} of {name}: {first_line(error)}") from None


def _find(file: bytes, wanted: str) -> Any:
    order = {b"IM": "<", b"MI": ">"}.get(file[_HEADING - 2 : _HEADING])
    if order is None or struct.unpack_from(order + "H", file, _HEADING - 4)[0] != 0x100:
        raise ValueError("it is no file of MATLAB up to version 7")
    elements = _Elements(memoryview(file)[_HEADING:], order)
    while elements.left():
        kind, data = elements.take()
        if kind == _PACKED:
            kind, data = _Elements(memoryview(_unpacked(data)), order).take()
        if kind == _MATRIX:
            variable = _Elements(data, order)
            heading = variable.heading()
            if heading[-1] == wanted:
                return variable.value(*heading[:-1], 0)
    raise ValueError("it has no variable of this name")


def _unpacked(data: memoryview) -> bytes:
    stream = zlib.decompressobj()
    out = stream.decompress(data, MAX_BYTES)
    if not stream.eof:
        raise ValueError(f"it is cut short, or would unpack to more than {MAX_BYTES:,} bytes")
    return out


class _Elements:
    """The elements of a stretch of a file, one after another."""

    def __init__(self, data: memoryview, order: str):
        self._data, self._order, self._at = data, order, 0

    def left(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self._at

    def take(self) -> tuple[int, memoryview]:
        """The kind and the content of the next element."""
        kind, size = struct.unpack_from(self._order + "2I", self._data, self._at)
        start, step = self._at + 8, size if kind == _PACKED else -(-size // 8) * 8
        if kind >> 16:  # a small one: its size is in the upper half, its content in the tag
            kind, size, start, step = kind & 0xFFFF, kind >> 16, self._at + 4, 0
            if size > 4:
                raise ValueError(f"it has a small element of {size} bytes")
        if size > len(self._data) - start:
            raise ValueError("it is cut short")
        self._at = min(max(start + step, self._at + 8), len(self._data))
        return kind, self._data[start : start + size]

    def numbers(self) -> np.ndarray:
        """The next element, which holds numbers `n`."""
        kind, data = self.take()
        if kind not in _NUMBERS:
            raise ValueError(f"it has an element of kind {kind} where numbers belong")
        return np.frombuffer(data, self._order + _NUMBERS[kind])

    def heading(self) -> tuple[int, tuple[int, ...], str]:
        """Flags, shape and name of the matrix whose elements these are."""
        if not self.left():
            return 6, (0, 0), ""
        flags, shape, name = self.numbers(), tuple(self.numbers().tolist()), self.numbers()
        if not len(flags) or len(shape) < 2 or min(shape) < 0:
            raise ValueError(f"it has a matrix of shape {shape}")
        return int(flags[0]), shape, name.tobytes().decode("latin-1")

    def value(self, flags: int, shape: tuple[int, ...], depth: int) -> Any:
        """What the matrix holds."""
        kind, count = flags & 0xFF, math.prod(shape)
        if kind in (_CELL, _STRUCTURE):
            names = self._names() if kind == _STRUCTURE else [""]
            if depth == _DEPTH or not names:
                raise ValueError(f"it has structures without fields, or more than {_DEPTH} deep")
            rows = [{name: self._inner(depth + 1) for name in names} for _ in range(count)]
            return rows if kind == _STRUCTURE else [row[""] for row in rows]
        if not self.left():
            return np.zeros((0, 0))
        values = self.numbers()
        if kind == _TEXT:
            return "".join(map(chr, values.tolist()))
        if kind not in _CLASSES or flags & _COMPLEX or len(values) != count:
            raise ValueError(f"it has a matrix of kind {kind} and shape {shape}, which is not read")
        return values.astype(_CLASSES[kind]).reshape(shape, order="F")

    def _names(self) -> list[str]:
        """Names of a structure's fields."""
        length, text = int(self.numbers()[0]), self.numbers().tobytes()
        if length < 1:
            raise ValueError("it has a structure whose fields have no names")
        parts = [text[i : i + length] for i in range(0, len(text), length)]
        return [part.split(b"\0")[0].decode("latin-1") for part in parts]

    def _inner(self, depth: int) -> Any:
        """The next element, which is a matrix."""
        kind, data = self.take()
        if kind != _MATRIX:
            raise ValueError(f"it has an element of kind {kind} where a matrix belongs")
        inner = _Elements(data, self._order)
        flags, shape, _ = inner.heading()
        return inner.value(flags, shape, depth)
