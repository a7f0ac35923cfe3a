"""Point clouds on disk in the forms in which they are published."""

import json
import struct
from pathlib import Path

import h5py
import numpy as np

from dynadapt.data import modelnet40 as models
from dynadapt.data import shapenetpart as parted

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


def hdf5(file: Path, clouds: np.ndarray, labels: np.ndarray, **more) -> Path:
    """Saves `data` and `label`, and whatever more is given."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as opened:
        opened["data"], opened["label"] = clouds, labels
        for name, value in more.items():
            opened[name] = value
    return file


def many(count: int, wide: int = 2048, seed: int = 0) -> np.ndarray:
    """Clouds float32 `count wide 3` away from the origin."""
    drawn = np.random.default_rng(seed).normal(size=(count, wide, 3)) * [1, 2, 1] + 0.5
    return drawn.astype(np.float32)


def scanobjectnn(root: Path) -> Path:
    """h5_files with all three variants, of which each has other points."""
    names = ("main_split/{}_objectdataset", "main_split_nobg/{}_objectdataset")
    names = (*names, "main_split/{}_objectdataset_augmentedrot_scale75")
    for seed, name in enumerate(names):
        for split, count in (("training", 3), ("test", 2)):
            file = root / "h5_files" / f"{name.format(split)}.h5"
            labels = np.arange(count, dtype=np.int32) * 7
            mask = np.zeros((count, 2048), np.int32)
            hdf5(file, many(count, seed=seed), labels, mask=mask)
    return root


def modelnet40(root: Path, wide: int = 64, each: int = 2, tested: int = 2) -> Path:
    """modelnet40_normal_resampled with clouds of its first, second and 24th class."""
    root = root / "modelnet40_normal_resampled"
    root.mkdir(parents=True)
    (root / "modelnet40_shape_names.txt").write_text("\n".join(models.CLASSES) + "\n")
    for split, start, count in (("train", 1, each), ("test", 101, tested)):
        names = [f"{name}_{start + i:04d}" for name in ("airplane", "bathtub", "night_stand")
                 for i in range(count)]  # fmt: skip
        for seed, name in enumerate(names):
            values = points(seed + start, wide) + 3
            folder = root / name.rsplit("_", 1)[0]
            text(folder / f"{name}.txt", np.hstack([values, values]), ",")
        (root / f"modelnet40_{split}.txt").write_text("\n".join(names) + "\n")
    return root


def modelnet40_hdf5(root: Path) -> Path:
    """modelnet40_ply_hdf5_2048 with three files of training and one of testing."""
    root = root / "modelnet40_ply_hdf5_2048"
    files = ("train0", [3, 39]), ("train2", [0]), ("train10", [7]), ("test0", [5])
    for name, labels in files:
        given = np.array(labels, np.uint8)[:, None]
        clouds = many(len(labels), seed=labels[0])
        hdf5(root / f"ply_data_{name}.h5", clouds, given, faceId=np.zeros(3, np.int32))
    paths = [f"data/modelnet40_ply_hdf5_2048/ply_data_train{n}.h5" for n in (0, 2, 10)]
    (root / "train_files.txt").write_text("\n".join(paths) + "\n")
    return root


def shapenetpart(root: Path, wide: int = 90, form: str = "json") -> Path:
    """The folder of ShapeNetPart with a cloud of some categories in each split."""
    root = root / "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    synsets = {name: f"{2691156 + i:08d}" for i, name in enumerate(parted.CATEGORIES)}
    lists = root / "train_test_split"
    lists.mkdir(parents=True)
    lines = [f"{name}\t{synset}" for name, synset in synsets.items()]
    (root / "synsetoffset2category.txt").write_text("\n".join(lines) + "\n")
    for seed, split in enumerate(("train", "val", "test")):
        entries = []
        for name in ("Airplane", "Motorbike", "Table"):
            own = np.flatnonzero(np.array(parted.OWNERS) == parted.CLASSES.index(name))
            values = points(seed, wide)
            parts = own[np.arange(wide) % len(own)]
            table = np.hstack([values + parts[:, None], values, parts[:, None]])
            token = f"{seed}a{synsets[name]}"
            text(root / synsets[name] / f"{token}.txt", table)
            entries.append(f"shape_data/{synsets[name]}/{token}")
        file = lists / f"shuffled_{split}_file_list.{form}"
        file.write_text(json.dumps(entries) if form == "json" else "\n".join(entries))
    return root
