"""NYU Depth v2 for several tasks: 40 classes, depth, normals, edges.

Silberman et al., "Indoor Segmentation and Support Inference from RGBD Images", ECCV 2012; the
classes are those of Gupta et al., CVPR 2013, and the layout is that of Maninis et al.,
arXiv:1904.08918 (NYUD_MT).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dynadapt.data import depths, maps, masks
from dynadapt.data.fields import Field
from dynadapt.data.maps import Files, Maps, Size
from dynadapt.data.masks import VOID

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
    root, chosen = maps.unpacked("nyud_mt", path, fields, FIELDS, OBTAIN)

    def files_of(name: str) -> Files:
        places = {what: _PLACES[what].format(name) for what in fields}
        return {"image": f"images/{name}.jpg", **places}

    files = maps.listed(root, split, "gt_sets/{split}.txt", files_of, COUNTS)
    known = {
        "labels": masks.Reader(masks.Encoding(CLASSES, ignore=(), reduce_zero=True)),
        "depth": depths.reader(1.0),
        "normals": maps.read_normals,
        "edges": maps.read_binary,
    }
    readers = {name: known[name] for name in fields}

    def read(files: Mapping[str, Path], size: Size) -> dict[str, np.ndarray]:
        return maps.load(readers, files, size)

    said = repr(sorted(fields))
    return maps.opened("nyud_mt", split, root, files, chosen, read, OBTAIN, said)
