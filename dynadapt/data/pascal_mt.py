"""PASCAL-Context for several tasks: classes, human parts, what is salient, normals, edges.

Mottaghi et al., "The Role of Context for Object Detection and Semantic Segmentation in the Wild",
CVPR 2014; parts are those of Chen et al., arXiv:1406.2031. The layout, and saliency and normals,
which networks have answered, are those of Maninis et al., arXiv:1904.08918 (PASCAL_MT).
"""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dynadapt.data import derived, lists, maps, masks, matlab, pairs, voc_segmentation
from dynadapt.data.fields import Field
from dynadapt.data.maps import Files, Maps, Size
from dynadapt.data.masks import VOID
from dynadapt.errors import DataError
from dynadapt.files import first_line

OBTAIN = (
    "unpack PASCAL_MT.tgz, which holds JPEGImages, ImageSets/Context, semseg, human_parts, "
    "normals_distill, sal_distill and pascal-context"
)
COUNTS = {"train": 4998, "val": 5105}  # as published
PARTS = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")
_PERSON = 15  # among the categories of the annotations of parts
_GROUPS = {  # the published names of a person's parts, l for left and r for right
    1: "head hair nose mouth leye reye lear rear lebrow rebrow",
    2: "torso neck",
    3: "luarm ruarm",
    4: "llarm rlarm lhand rhand",
    5: "luleg ruleg",
    6: "llleg rlleg lfoot rfoot",
}
_NUMBERS = {name: number for number, names in _GROUPS.items() for name in names.split()}
FIELDS = {
    "labels": Field("labels", fill=VOID, classes=voc_segmentation.CLASSES),
    "human_parts": Field("labels", fill=VOID, classes=PARTS),
    **{name: maps.FIELDS[name] for name in ("saliency", "normals", "edges")},
}


def source(
    split: str,
    path: str = "",
    fields: tuple[str, ...] = ("labels", "human_parts", "saliency", "normals"),
    surfaces: str = "",
) -> Maps:
    """Reads `train` (4,998 images) or `val` (5,105), as `ImageSets/Context` lists them.

    Where no part of a person is annotated `human_parts` is void throughout. Edges are where the 459
    classes of PASCAL-Context change. Nothing is written into the folder.

    Args:
        split: which.
        path: the folder PASCAL_MT, or the one that holds it.
        fields: those beside `image` that examples have; files of others aren't needed.
        surfaces: a file with numbers of the 459 classes on which normals count, below `path` or
            anywhere, a number a line; "" for all.

    Raises:
        DataError: for files that aren't there, are broken, or have another size than their image.
        UnknownName: for a field that isn't there.
    """
    root, chosen = maps.unpacked("pascal_mt", path, fields, FIELDS, OBTAIN)
    allowed = _allowed(root / surfaces) if surfaces and "normals" in fields else None
    context = "edges" in fields or allowed is not None
    files_of = functools.partial(_files, root, fields=fields, context=context)
    files = maps.listed(root, split, "ImageSets/Context/{split}.txt", files_of, COUNTS)
    known = {
        "labels": masks.Reader(masks.Encoding(voc_segmentation.CLASSES)),
        "saliency": maps.read_binary,
        "normals": maps.read_normals,
        "context": _read_context,
    }
    readers = {name: known[name] for name in (*fields, *["context"] * context) if name in known}

    def read(files: Mapping[str, Path], size: Size) -> dict[str, np.ndarray]:
        found = maps.load(readers, files, size)
        regions = found.pop("context", None)
        if "human_parts" in fields:
            file = files["human_parts"]
            found["human_parts"] = _read_parts(pairs.read(file), str(file), size)
        if "edges" in fields:
            found["edges"] = derived.edges(regions)
        if allowed is not None:
            found["normals"][~np.isin(regions, allowed)] = 0
        return found

    said = repr((sorted(fields), allowed))
    return maps.opened("pascal_mt", split, root, files, chosen, read, OBTAIN, said)


def _files(root: Path, name: str, fields: tuple[str, ...], context: bool) -> Files:
    found = {"image": f"JPEGImages/{name}.jpg"}
    if "labels" in fields:
        own = f"semseg/VOC12/{name}.png"
        found["labels"] = own if (root / own).is_file() else f"semseg/pascal-context/{name}.png"
    if "human_parts" in fields:
        found["human_parts"] = f"human_parts/{name}.mat"
    if "saliency" in fields:
        found["saliency"] = f"sal_distill/{name}.png"
    if "normals" in fields:
        found["normals"] = f"normals_distill/{name}.png"
    if context:
        found["context"] = f"pascal-context/trainval/{name}.mat"
    return found


def _allowed(file: Path) -> list[int]:
    """The classes on which normals count."""
    found = []
    for number, line in enumerate(lists.read_lines(file), 1):
        if line.strip() and not line.strip().isdecimal():
            raise DataError(f"line {number} of {file} is not the number of a class: {line:.80}")
        found += [int(line)] if line.strip() else []
    if not found:
        raise DataError(f"{file} names no class on which normals count")
    return found


def _read_context(data: bytes, name: str) -> np.ndarray:
    regions = matlab.read(data, name, "LabelMap")
    if not isinstance(regions, np.ndarray) or regions.ndim != 2 or regions.dtype.kind not in "ui":
        raise DataError(f"{name} has a LabelMap that is not one class a pixel in whole numbers")
    return regions.astype(np.int32)


def _read_parts(data: bytes, name: str, size: Size) -> np.ndarray:
    """The parts of all persons, int32 `h w`; a later one lies over an earlier one."""
    found = np.zeros(size, np.int32)
    try:
        [(_, things)] = [anno.values() for anno in matlab.read(data, name, "anno")]
        for _, category, _, parts in (thing.values() for thing in things):
            if category.item() != _PERSON:
                continue
            for part, mask in (part.values() for part in parts):
                found[mask.astype(bool)] = _NUMBERS[part]
    except DataError:
        raise
    except Exception as error:  # whatever a file of another structure leads to
        raise DataError(
            f"{name} has no parts of objects as in PASCAL_MT: {first_line(error)}"
        ) from None
    return found if found.any() else np.full(size, VOID, np.int32)
