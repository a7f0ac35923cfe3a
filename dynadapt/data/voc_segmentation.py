"""PASCAL VOC's segmentation: 20 classes and the background; 255, the border of objects, is void.

Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective", IJCV 2015.
"""

from dynadapt.data import lists, masks, pairs, parse
from dynadapt.data.pairs import Pairs

OBTAIN = (
    "unpack VOCtrainval_11-May-2012.tar, which holds VOCdevkit/VOC2012 with JPEGImages, "
    "SegmentationClass and ImageSets/Segmentation"
)
CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)


def source(split: str, path: str = "") -> Pairs:
    """Reads `train` (1,464 images of 2012), `val` (1,449) or `trainval`, as
    `ImageSets/Segmentation` lists them.

    `path` is the folder of a year, such as VOC2012, or one that holds VOCdevkit/VOC2012.
    """
    root = pairs.folder(path, OBTAIN)
    inner = root / "VOCdevkit" / "VOC2012"
    root = inner if inner.is_dir() else root
    files = {}
    for name in dict.fromkeys(name for name, _ in parse(split)):
        file = lists.find(root, name, "ImageSets/Segmentation/{split}.txt")
        ids = [line.strip() for line in lists.read_lines(file) if line.strip()]
        rows = [(f"JPEGImages/{i}.jpg", f"SegmentationClass/{i}.png") for i in ids]
        files[name] = pairs.named(root, file, rows)
    return masks.opened("voc_segmentation", split, root, files, masks.Encoding(CLASSES), OBTAIN)
