"""Point clouds on disk in the forms in which they are published."""

import struct
from pathlib import Path

import numpy as np

PLY_TYPES = {"<f4": "float", ">f4": "float", "<f8": "double", ">f8": "double", "u1": "uchar"}


def points(seed: int = 0, count: int = 60) -> np.ndarray:
    """Points float32 `count 3` whose digits survive a text."""
    drawn = np.random.default_rng(seed).normal(size=(count, 3))
    return drawn.round(4).astype(np.float32)


def text(file: Path, values: np.ndarray, between: str = " ") -> Path:
    """Saves lines of numbers."""
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(file, values, fmt="%.6f", delimiter=between)
    return file


def ply(file: Path, values: np.ndarray, form: str = "ascii", kind: str = "f4", count=None) -> Path:
    """Saves points `n 3` with a colour before z, an element before them and faces behind."""
    order = ">" if form == "binary_big_endian" else "<"
    name = PLY_TYPES[order + kind]
    head = f"""ply
format {form} 1.0
comment made in a test, für Punkte
element camera 1
property float focus
property uchar on
element vertex {len(values) if count is None else count}
property {name} x
property {name} y
property uchar red
property {name} z
element face 1
property list uchar int vertex_indices
end_header
"""
    if form == "ascii":
        rows = [f"{x!r} {y!r} 7 {z!r}" for x, y, z in values.tolist()]
        body = "\n".join(["35.5 1", *rows, "3 0 1 2", ""]).encode()
    else:
        record = np.dtype(
            [("x", order + kind), ("y", order + kind), ("r", "u1"), ("z", order + kind)]
        )
        made = np.zeros(len(values), record)
        made["x"], made["y"], made["z"] = values.T
        body = struct.pack(f"{order}fB", 35.5, 1) + made.tobytes()
        body += struct.pack(f"{order}B3i", 3, 0, 1, 2)
    file.write_bytes(head.encode() + body)
    return file


def pcd(file: Path, values: np.ndarray, form: str = "ascii", count=None, packed=None) -> Path:
    """Saves points `n 3` with a histogram of two before z and a colour behind."""
    count = len(values) if count is None else count
    head = f"""# .PCD v0.7 - Point Cloud Data file format
VERSION 0.7
FIELDS x y histogram z _
SIZE 4 4 2 8 1
TYPE F F U F U
COUNT 1 1 2 1 3
WIDTH {count}
HEIGHT 1
VIEWPOINT 0 0 0 1 0 0 0
POINTS {count}
DATA {form}
"""
    record = np.dtype([("x", "<f4"), ("y", "<f4"), ("h", "<u2", 2), ("z", "<f8"), ("_", "u1", 3)])
    made = np.zeros(len(values), record)
    made["x"], made["y"], made["z"] = values.T
    made["h"], made["_"] = 7, 1
    if form == "ascii":
        rows = [f"{x!r} {y!r} 7 7 {z!r} 1 1 1" for x, y, z in values.tolist()]
        body = "\n".join([*rows, ""]).encode()
    elif form == "binary":
        body = made.tobytes()
    else:
        columns = b"".join(made[name].tobytes() for name in record.names)
        small = lzf(columns) if packed is None else packed
        body = struct.pack("<II", len(small), len(columns)) + small
    file.write_bytes(head.encode() + body)
    return file


def lzf(data: bytes) -> bytes:
    """Packs by LZF: runs of up to 32 bytes as they are, and what stood before."""
    out, plain, seen, at = bytearray(), bytearray(), {}, 0

    def flush():
        for start in range(0, len(plain), 32):
            run = plain[start : start + 32]
            out.append(len(run) - 1)
            out.extend(run)
        plain.clear()

    while at < len(data):
        key = data[at : at + 3]
        back = at - seen.get(key, -1 << 20)
        seen[key] = at
        if len(key) < 3 or back > 8192:
            plain.append(data[at])
            at += 1
            continue
        length = 3
        while (
            length < 264
            and at + length < len(data)
            and data[at + length - back] == data[at + length]
        ):
            length += 1
        flush()
        back -= 1
        if length < 9:
            out.append((length - 2) << 5 | back >> 8)
        else:
            out.extend((7 << 5 | back >> 8, length - 9))
        out.append(back & 255)
        at += length
    flush()
    return bytes(out)
