"""Files that are whole or not there: atomic writes, hashes, JSON and safetensors."""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import platform
import re
import shutil
import stat
import struct
import time
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

from dynadapt.errors import CheckpointError, MachineError

# What a process that was killed leaves: our own half-written files, and orbax's folders.
STRAY = (".*.dynadapt-part", "*.orbax-checkpoint-tmp*")


def partial_name(path: Path) -> Path:
    """A name of its own beside a path, for what is not whole yet."""
    # Threads, and processes of several machines, may write one file of a shared folder. Host names
    # have 64 bytes at most, and all together must stay below 255.
    own = f"{platform.node()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    return path.with_name(f".{path.name[:30]}.{own}.dynadapt-part")


def sweep(folder: Path, age: float = 0.0) -> None:
    """Removes what killed processes left in a folder, where it is older than `age` seconds.

    Folders in it may be of others, who live, and are left alone.
    """
    for path in [p for pattern in STRAY for p in folder.glob(pattern)]:
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime >= age:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


# What a full disk asks for: nothing that is whole is written over.
GO_ON = "what is whole is kept, and the same command goes on from it"


@contextlib.contextmanager
def writing(place: str | Path, then: str = GO_ON) -> Iterator[None]:
    """Raises a MachineError that names the place, and what to do then, where it can't be written.

    Args:
        place: the file or folder that is written.
        then: what to do.
    """
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise MachineError(f"cannot write {place}: {reason}; {then}") from error


def first_line(error: BaseException) -> str:
    """What an error says, in 200 printable characters at most; its kind where it says nothing."""
    text = re.sub(r"\s+", " ", str(error)).strip()[:200] or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)


MAX_JSON = 64 << 20  # bytes; an index of a thousand parts has fewer


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A path to write to; it gets the final name at the end, if nothing was raised."""
    path = Path(path)
    partial = partial_name(path)
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def regular(path: str | Path, most: float = math.inf) -> None:
    """Raises an OSError for what can't be read to its end: a pipe, a device, a folder; or for a
    file of more than so many bytes."""
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    if found.st_size > most:
        reason = f"it has {found.st_size:,} bytes, more than the {most:,} that are read"
        raise OSError(errno.EFBIG, reason, str(path))


def write_json(path: Path, values: Any) -> None:
    """Writes JSON values; raises a ValueError for a number that is not finite."""
    with whole(path) as partial:
        partial.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file of bytes."""
    with whole(path) as partial:
        partial.write_bytes(content)


def read_json(path: Path, kind: type = dict) -> Any:
    """Reads a JSON value of a kind; raises a CheckpointError for a missing or damaged file."""
    try:
        regular(path, MAX_JSON)
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(values, kind):
        what = "JSON object" if kind is dict else kind.__name__
        raise CheckpointError(f"cannot read {path}: it holds no {what}")
    return values


def write_tensors(
    path: str | Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file, with metadata in its header."""
    with whole(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # as the umask has it; the library makes files of its own
        save_file({k: np.asarray(v, order="C") for k, v in tensors.items()}, partial, metadata)
        partial.chmod(mode)


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file.

    Raises:
        CheckpointError: if the file is missing, truncated or not of that format.
    """
    try:
        regular(path)
        return load_file(path)
    except Exception as error:  # of a dtype that numpy lacks, the library raises anything
        reason = first_line(error)
        if not isinstance(error, safetensors.SafetensorError | OSError):
            reason = f"it has values of a dtype that is not read ({reason})"
        raise CheckpointError(f"cannot read weights {str(path)!r}: {reason}") from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file that `read_tensors` can read."""
    with safetensors.safe_open(path, "numpy") as file:
        return dict(file.metadata() or {})


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, which may be compressed; objects are never unpickled.

    Raises:
        CheckpointError: if the file is missing, damaged, holds objects or unpacks to far more
            than it says.
    """
    try:
        regular(path)
        with open(path, "rb") as file:
            entries, arrays = zip_entries(file), {}
            packed, size = os.fstat(file.fileno()).st_size, 0
            for entry in entries.values():
                size += entry.file_size
            if size > max(64 << 20, 100 * packed):
                raise ValueError(f"it would unpack {packed:,} bytes to {size:,}")
            with zipfile.ZipFile(file) as archive:
                for name, entry in entries.items():
                    with archive.open(name) as stream:
                        arrays[name.removesuffix(".npy")] = read_npy(stream, entry.file_size)
            return arrays
    except Exception as error:  # whatever a damaged file leads to
        raise CheckpointError(f"cannot read weights {str(path)!r}: {first_line(error)}") from error


def read_npy(stream: BinaryIO, size: int) -> np.ndarray:
    """Reads an array of an entry of `size` bytes, to the end, where its checksum is verified."""
    content = bytearray()
    # In pieces: asked for everything at once, zipfile unpacks more than the entry says.
    while chunk := stream.read(1 << 20):
        content += chunk
    head = io.BytesIO(content[:_HEAD])
    version = np.lib.format.read_magic(head)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it has an array in version {version} of the format")
    header = np.lib.format.read_array_header_1_0 if version[0] == 1 else _HEADER_2
    shape, fortran, dtype = header(head)
    if dtype.hasobject:
        raise ValueError("it has an array of objects")
    if dtype.names or dtype.kind not in "biufcV":
        raise ValueError(f"it has an array of {dtype}, which are no numbers")
    start = head.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - start:
        raise ValueError(f"an array of shape {shape} does not fit its {size} bytes")
    array = np.require(np.frombuffer(content, dtype, offset=start), requirements="A")
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


_HEAD = 1 << 16  # bytes in which an array's header lies
_HEADER_2 = np.lib.format.read_array_header_2_0


def zip_entries(file: BinaryIO) -> dict[str, zipfile.ZipInfo]:
    """The entries of a zip file by name.

    Raises:
        ValueError: for a name that leads out of the archive or stands twice, a link, an entry
            that is encrypted or packed in an unusual way, or a list of entries of more than 4 MiB.
    """
    file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 16) - 200))
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0 or end + 22 > len(tail):
        raise ValueError("it is cut short, or no zip file")
    listed = struct.unpack_from("<I", tail, end + 12)[0]
    if tail[max(0, end - 20) : end].startswith(b"PK\6\7"):  # large files say it with 64 bits
        listed = struct.unpack_from("<Q", tail, end - 36)[0]
    if listed > 4 << 20:
        raise ValueError("it lists too many entries")
    with zipfile.ZipFile(file) as archive:
        found = archive.infolist()
    entries = {}
    for entry in found:
        name = entry.orig_filename
        parts = re.split(r"[/\\]", name)
        if name != entry.filename or "\\" in name or re.match("/|[A-Za-z]:", name) or ".." in parts:
            raise ValueError(f"its entry {name[:80]!r} leads out of the archive")
        if name in entries:
            raise ValueError(f"its entry {name[:80]!r} is there twice")
        if entry.external_attr >> 28 == 0o12 or entry.flag_bits & 1:
            raise ValueError(f"its entry {name[:80]!r} is a link or encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"its entry {name[:80]!r} is packed in an unusual way")
        entries[name] = entry
    return entries
