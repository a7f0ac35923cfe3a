"""NYU Depth v2 and sets stored alike: lists with an image and a depth map on each line.

Silberman et al., "Indoor Segmentation and Support Inference from RGBD Images", ECCV 2012; the
layout is that of Lee et al., arXiv:1907.10326 (BTS), and Kim et al., arXiv:2201.07436 (GLPDepth).
"""

import logging
from pathlib import Path

from dynadapt.data import depths, lists, pairs, parse
from dynadapt.data.pairs import Pair, Pairs
from dynadapt.errors import DataError

OBTAIN = (
    "put the images and depth maps of NYU Depth v2 as BTS or GLPDepth prepare them into path, and "
    "their lists with lines `image depth` as path/train_list.txt and path/test_list.txt"
)
# Below the folder that is given; the two releases put training and test images apart.
FOLDERS = ("", "sync", "official_splits/test")


def source(
    split: str, path: str = "", list: str = "{split}_list.txt", scale: float = 1000.0
) -> Pairs:
    """Reads what `list`, which may hold `{split}`, names below `path`, in its order.

    A line is `image depth` or `image depth focal`, whose last is passed over, as are lines with
    `None` for a depth map. Paths are below `path`, `path/sync` or `path/official_splits/test`.
    Depth is in metres, 0 where it isn't known.

    Args:
        split: which.
        path: the folder.
        list: the list's name below `path`, or its whole path.
        scale: units a metre in PNG files of 16 bits; KITTI's have 256.

    Raises:
        DataError: for what isn't there, and lines that are none.
    """
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
