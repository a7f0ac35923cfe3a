"""Checkpoint files of PyTorch, read with no torch and with nothing in them ever run.

A zip file with one pickle and a file per storage, or the older stream of pickles with the
storages behind them. Every byte that a pickle refers to is checked against the file.
"""

import io
import mmap
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.array_utils import byte_bounds

from dynadapt import files
from dynadapt.errors import CheckpointError, UnsafeCheckpointError
from dynadapt.weights.unpickle import MAX_PICKLE, Damaged, Machine, require

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read(path: str | Path) -> Any:
    """The object of a checkpoint file, such as a dict of tensors, from either format of torch.

    Tensors are read-only arrays; those of a zip file are views of the mapped file, and tensors
    that share a storage share memory. Objects of other classes are `Inert`.

    Raises:
        UnsafeCheckpointError: if the file asks for a function or class that is not in the table.
        CheckpointError: if it is missing, damaged or of another format.
    """
    try:
        files.regular(path)
        with open(path, "rb") as file:
            head = file.read(512)
            if head.startswith(b"PK\x03\x04"):
                return _read_zip(file)
            if head.startswith(b"\x80\x02\x8a\x0a" + MAGIC.to_bytes(10, "little")):
                return _read_stream(file)
            raise Damaged(_looks(head))
    except UnsafeCheckpointError as error:
        name = _line(error)
        raise UnsafeCheckpointError(f"{path}: refuses {name}: not part of weights") from None
    except Exception as error:  # whatever a damaged file leads to
        reason = _line(error) or type(error).__name__
        if not isinstance(error, Damaged | ValueError | OSError | zipfile.BadZipFile):
            reason = f"it is damaged ({reason})"
        raise CheckpointError(f"cannot read weights {str(path)!r}: {reason}") from error


def release(value: np.ndarray) -> None:
    """Gives back the memory of a value that is a view of a mapped file; a later look reads again.

    Pages of a mapped file count as memory of the process once they were seen.
    """
    base = value
    while isinstance(base, np.ndarray):
        base = base.base
    mapped = getattr(base, "obj", None)
    if isinstance(mapped, mmap.mmap) and value.size:
        origin = np.frombuffer(mapped, np.uint8).ctypes.data
        first, last = (address - origin for address in byte_bounds(value))
        first -= first % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def _line(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip()
    text = "".join(c if c.isprintable() else "?" for c in text[:300])
    return text[:200] + "…" if len(text) > 200 else text


def _looks(head: bytes) -> str:
    """What a file is that is no checkpoint, from its first 512 bytes."""
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself"
    if head.lstrip().startswith(b"<"):
        return "it looks like a web page"
    if head[257:262] == b"ustar":
        return "it is in torch's old tar format, which is not read"
    if head[8:9] == b"{":
        return "it looks like a safetensors file; give it that suffix"
    if head.startswith(b"\x80"):
        return "it is a pickle that torch did not write"
    if all(32 <= c < 127 or c in b"\t\r\n" for c in head):
        return "it is a text file"
    return "it is in none of torch's formats"


def _read_zip(file: BinaryIO) -> Any:
    """Reads `<root>/data.pkl` and the storages `<root>/data/<key>`."""
    entries = files.zip_entries(file)
    starts = {name: _start(file, entry) for name, entry in entries.items()}
    end = 0
    for name in sorted(starts, key=starts.get):
        require(entries[name].header_offset >= end, f"its entry {name!r} overlaps another")
        end = starts[name] + entries[name].file_size
    roots = [name[: -len("data.pkl")] for name in entries if re.fullmatch("[^/]+/data.pkl", name)]
    require(len(roots) == 1, "it is a zip file without exactly one data.pkl, not a checkpoint")
    root = roots[0]

    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    require(end <= len(mapped), "it is cut short")

    def content(name: str) -> bytes:
        return mapped[starts[name] : starts[name] + entries[name].file_size]

    def storage(dtype: np.dtype, key: str, numel: int) -> np.ndarray:
        name = f"{root}data/{key}"
        require(name in entries, f"the storage {key!r} is missing")
        size = entries[name].file_size
        fits = size == numel * dtype.itemsize
        require(fits, f"the storage {key!r} has {size} bytes, not {numel} values of {dtype}")
        return np.frombuffer(mapped, np.uint8, size, starts[name]) if size else np.zeros(0, "u1")

    order = f"{root}byteorder"
    little = order not in entries or content(order) == b"little"
    require(little, "its values are big-endian, which is not read")
    size = entries[f"{root}data.pkl"].file_size
    require(size <= MAX_PICKLE, f"its pickle has {size:,} bytes, more than weights need")
    return Machine(storage).run(io.BytesIO(content(f"{root}data.pkl")))


def _start(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where the content of an entry starts, after its checksum was verified."""
    name = entry.filename
    plain = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
    require(plain, f"its entry {name!r} is compressed, which torch never does")
    file.seek(entry.header_offset)
    header = file.read(30)
    require(header[:4] == b"PK\x03\x04", f"its entry {name!r} has no header")
    name_size, extra_size = struct.unpack("<HH", header[26:])
    same = file.read(name_size) in (name.encode(), name.encode("cp437", "replace"))
    require(same, f"its entry {name!r} has another name in its header")
    start = file.seek(extra_size, io.SEEK_CUR)
    left, found = entry.file_size, 0
    while left and (chunk := file.read(min(left, 1 << 20))):  # not mapped: adds nothing to memory
        found, left = zlib.crc32(chunk, found), left - len(chunk)
    require(not left and found == entry.CRC, f"its entry {name!r} is damaged (wrong checksum)")
    return start


def _read_stream(file: BinaryIO) -> Any:
    """Reads the format before zip files: five pickles, then the storages one after another."""
    total = file.seek(0, io.SEEK_END)
    file.seek(0)
    window, storages = io.BytesIO(file.read(MAX_PICKLE)), {}

    def none(*_: Any) -> Any:
        raise Damaged("a storage is where none belongs")

    def storage(dtype: np.dtype, key: str, numel: int) -> np.ndarray:
        if key not in storages:
            used = sum(raw.nbytes for _, _, raw in storages.values()) + numel * dtype.itemsize
            require(used <= total, "its storages are larger than the file")
            storages[key] = dtype, numel, np.empty(numel * dtype.itemsize, np.uint8)
        found = storages[key]
        require(found[:2] == (dtype, numel), f"the storage {key!r} is described in two ways")
        return found[2]

    _, protocol, system = (Machine(none).run(window) for _ in range(3))
    require(protocol == PROTOCOL, f"it has version {protocol} of torch's format")
    little = type(system) is dict and system.get("little_endian")
    require(little is True, "its values are big-endian, which is not read")
    value = Machine(storage).run(window)
    keys = Machine(none).run(window)
    require(type(keys) is list and set(keys) == set(storages), "its list of storages is wrong")
    require(len(keys) == len(storages), "its list of storages is wrong")
    file.seek(window.tell())
    for key in keys:
        _, numel, raw = storages[key]
        require(file.read(8) == numel.to_bytes(8, "little"), f"the storage {key!r} is damaged")
        require(file.readinto(raw) == raw.nbytes, "it is cut short")
    return value
