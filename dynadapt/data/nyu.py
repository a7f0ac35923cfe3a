"""NYU Depth v2 and sets stored alike: lists with an image and a depth map on each line.

Silberman et al., "Indoor Segmentation and Support Inference from RGBD Images", ECCV 2012; the
layout is that of Lee et al., arXiv:1907.10326 (BTS), and Kim et al., arXiv:2201.07436 (GLPDepth).
TensorFlow Datasets has the set besides, other pictures of the same videos.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from dynadapt.data import Info, Rows, depths, lists, pairs, parse, tfds
from dynadapt.data.fields import Field
from dynadapt.data.pairs import Pair
from dynadapt.errors import DataError, UnknownName

OBTAIN = (
    "put the images and depth maps of NYU Depth v2 as BTS or GLPDepth prepare them into path, and "
    "their lists with lines `image depth` as path/train_list.txt and path/test_list.txt"
)
FORMS = ("lists", "tfds")
SIZE = (480, 640)  # of all pictures of TFDS
# Below the folder that is given; the two releases put training and test images apart.
FOLDERS = ("", "sync", "official_splits/test")


def source(
    split: str,
    path: str = "",
    list: str = "{split}_list.txt",
    scale: float = 1000.0,
    form: str = "lists",
) -> Any:
    """Reads what `list`, which may hold `{split}`, names below `path`, in its order.

    A line is `image depth` or `image depth focal`, whose last is passed over, as are lines with
    `None` for a depth map. Paths are below `path`, `path/sync` or `path/official_splits/test`.
    Depth is in metres, 0 where it isn't known.

    Args:
        split: which; TFDS has `train` and `validation`.
        path: the folder; of TFDS its data folder, empty for its own, `~/tensorflow_datasets` or
            `$TFDS_DATA_DIR`.
        list: the list's name below `path`, or its whole path.
        scale: units a metre in PNG files of 16 bits; KITTI's have 256.
        form: one of `FORMS`; `tfds` reads the builder `nyu_depth_v2`.

    Raises:
        DataError: for what isn't there, and lines that are none.
        UnknownName: for a form that isn't there.
    """
    if form not in FORMS:
        raise UnknownName("form of nyu", form, FORMS)
    if form == "tfds":
        return _prepared(split, path)
    root = pairs.folder(path, OBTAIN)
    files = {}
    for name in dict.fromkeys(name for name, _ in parse(split)):
        file = lists.find(root, name, list)
        files[name] = pairs.named(root, file, _rows(file), FOLDERS)
    return depths.opened("nyu", split, root, files, scale, False, OBTAIN)


def _rows(file: Path) -> list[Pair]:
    rows, without = [], 0
    for number, line in enumerate(lists.read_lines(file), 1):
        words = line.split()
        if not words:
            continue
        if len(words) not in (2, 3):
            raise DataError(f"line {number} of {file} is not `image depth [focal]`: {line}")
        if words[1] == "None":
            without += 1
            continue
        rows.append((words[0].lstrip("/"), words[1].lstrip("/")))
    if without:
        logging.getLogger(__name__).warning(
            "passed over %d lines of %s without a depth map", without, file
        )
    return rows


def _prepared(split: str, path: str) -> tfds.Tfds:
    """The set as TFDS prepares it, whose depths are float16 metres."""
    given = f"'nyu_depth_v2', data_dir={path!r}" if path else "'nyu_depth_v2'"
    elsewhere = "'nyu_depth_v2', data_dir='ANOTHER_FOLDER'"
    obtain = tfds.OBTAIN.format(given)
    made = tfds.prepared("nyu_depth_v2", path, obtain, tfds.OBTAIN.format(elsewhere))
    fields = {"image": Field("pixels", size=SIZE), "depth": Field("values", size=SIZE)}
    name, counts = made.info.full_name, tfds.counts(made)
    info = Info(name, fields, counts, obtain, tfds.fingerprint(made))

    def read(example: dict[str, Any]) -> dict[str, Any]:
        depth = depths.known(example["depth"].astype(np.float32))
        return {"image": example["image"], "depth": depth}

    rows = Rows(split, counts)
    return tfds.Tfds(tfds.tables(made, split), rows, info, read)
