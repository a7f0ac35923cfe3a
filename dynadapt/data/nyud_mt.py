"""NYU Depth v2 for several tasks: 40 classes, depth, normals, edges.

Silberman et al., "Indoor Segmentation and Support Inference from RGBD Images", ECCV 2012; the
classes are those of Gupta et al., CVPR 2013, and the layout is that of Maninis et al.,
arXiv:1904.08918 (NYUD_MT).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dynadapt.data import depths, lists, maps, masks, pairs, parse
from dynadapt.data.fields import Field
from dynadapt.data.maps import Maps, Size
from dynadapt.data.masks import VOID
from dynadapt.errors import UnknownName

OBTAIN = "unpack NYUD_MT.tgz, which holds images, segmentation, depth, normals, edge and gt_sets"
COUNTS = {"train": 795, "val": 654}  # as published
CLASSES = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf"),
    *("picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror"),
    *("floor mat", "clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel"),
    *("shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp"),
    *("bathtub", "bag", "other structure", "other furniture", "other prop"),
)
FIELDS = {
    "labels": Field("labels", fill=VOID, classes=CLASSES),
    **{name: maps.FIELDS[name] for name in ("depth", "normals", "edges")},
}
_PLACES = {"labels": "segmentation/{}.png", "depth": "depth/{}.npy", "normals": "normals/{}.npy",
           "edges": "edge/{}.npy"}  # fmt: skip


def source(
    split: str, path: str = "", fields: tuple[str, ...] = ("labels", "depth", "normals", "edges")
) -> Maps:
    """Reads `train` (795 images) or `val` (654), as `gt_sets` lists them.

    Args:
        split: which.
        path: the folder NYUD_MT, or the one that holds it.
        fields: those beside `image` that examples have; files of others aren't needed.

    Raises:
        DataError: for files that aren't there, are broken, or have another size than their image.
        UnknownName: for a field that isn't there.
    """
    for name in fields:
        if name not in FIELDS:
            raise UnknownName("field of nyud_mt", name, FIELDS)
    root = pairs.folder(path, OBTAIN)
    inner = root / "NYUD_MT"
    root = inner if inner.is_dir() else root
    files = {}
    for name in dict.fromkeys(name for name, _ in parse(split)):
        file = lists.find(root, name, "gt_sets/{split}.txt")
        ids = [line.strip() for line in lists.read_lines(file) if line.strip()]
        rows = [
            {"image": f"images/{i}.jpg", **{what: _PLACES[what].format(i) for what in fields}}
            for i in ids
        ]
        files[name] = maps.checked(root, file, rows, COUNTS.get(name, 0))
    known = {
        "labels": masks.Reader(masks.Encoding(CLASSES, ignore=(), reduce_zero=True)),
        "depth": depths.reader(1.0),
        "normals": maps.read_normals,
        "edges": maps.read_binary,
    }
    readers = {name: known[name] for name in fields}

    def read(files: Mapping[str, Path], size: Size) -> dict[str, np.ndarray]:
        return maps.load(readers, files, size)

    chosen = {name: field for name, field in FIELDS.items() if name in fields}
    said = repr(sorted(fields))
    return maps.opened("nyud_mt", split, root, files, chosen, read, OBTAIN, said)
