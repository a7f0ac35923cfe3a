"""Images with several maps each, in folders of one's own: classes, human parts, what is salient,
edges, normals, depth, instances.

One of them may follow from another: normals from depth, edges from regions, saliency from
instances.
"""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dynadapt.data import depths, derived, maps, masks, pairs, parse
from dynadapt.data.decode import numbers
from dynadapt.data.fields import Field
from dynadapt.data.maps import Maps, Size
from dynadapt.data.masks import VOID
from dynadapt.errors import DataError

OBTAIN = (
    "put images in path/images/<split>/ and maps of the same names beside them, and say where in "
    "data.labels, data.depth and so on"
)
# What a field may be made of instead of files of its own.
SOURCES = {"normals": ("depth",), "edges": ("labels", "instances"), "saliency": ("instances",)}
ENDS = {"normals": (".png", ".npy"), "depth": (".png", ".npy")}  # of files; all others are PNG


def source(
    split: str,
    path: str = "",
    images: str = "images/{split}",
    labels: str = "",
    human_parts: str = "",
    saliency: str = "",
    edges: str = "",
    normals: str = "",
    depth: str = "",
    instances: str = "",
    ignore: tuple[int, ...] = (255,),
    reduce_zero: bool = False,
    remap: str = "",
    class_count: int = 0,
    part_count: int = 0,
    merge: int = 1,
    scale: float = 1000.0,
    focal: float = 0.0,
    centre: tuple[float, ...] = (),
) -> Maps:
    """Reads images and the maps that are named, paired by name; an image that lacks one is passed
    over. `dynadapt.data.pairs` says what a pattern is.

    Args:
        split: which.
        path: the folder.
        images: where the images lie.
        labels: where their masks of classes lie; "" for none, as of all that follow. They are read
            as `masks` reads them: `path/classes.txt` names the classes.
        human_parts: masks of parts, whose names are in `path/human_parts.txt`.
        saliency: 0 and 1, or black and white, whose lighter half is salient; `instances` for the
            nearest one.
        edges: as `saliency`; `labels` or `instances` for where these change.
        normals: PNG files whose 0 to 255 are -1 to 1, or NPY files of unit vectors; `depth` for
            those of the surfaces that the depth shows.
        depth: PNG files of 16 bits, or NPY files of metres; 0 is unknown.
        instances: numbers of objects, 0 for none.
        ignore: values of masks that are void.
        reduce_zero: whether 0 is void in `labels` and classes count from 1.
        remap: what values of `labels` become, before all else.
        class_count: how many classes there are, where `classes.txt` does not say so.
        part_count: how many parts, where `human_parts.txt` does not say so.
        merge: values of which one instance has several: with 10, 20 to 29 are one, and 1 to 9 none.
        scale: units a metre of whole numbers of depth.
        focal: length of the camera in pixels, for `normals=depth`.
        centre: (x, y) of its axis in pixels; () for the middle of the picture.

    Raises:
        DataError: for what isn't there, settings that do not fit, and, in reading, for maps that
            hold something else or have another size than their image.
    """
    given = dict(labels=labels, human_parts=human_parts, saliency=saliency, edges=edges,
                 normals=normals, depth=depth, instances=instances)  # fmt: skip
    given = {name: pattern for name, pattern in given.items() if pattern}
    made = {name: of for name, of in given.items() if of in SOURCES.get(name, ())}
    _check(given, made, focal, centre, merge)
    root = pairs.folder(path, OBTAIN)
    patterns = {name: pattern for name, pattern in given.items() if name not in made}
    ends = {name: ENDS.get(name, (".png",)) for name in patterns}
    names = [*dict.fromkeys(name for name, _ in parse(split))]
    files = maps.find(root, {"image": images, **patterns}, ends, names, OBTAIN)
    encodings = {}
    if labels:
        classes, colours = masks.coloured(root, class_count)
        encodings["labels"] = masks.Encoding(classes, tuple(ignore), reduce_zero, remap, colours)
    if human_parts:
        parts = masks.named(root, part_count, "human_parts.txt", "part_count")
        encodings["human_parts"] = masks.Encoding(parts, tuple(ignore))
    kinds = maps.FIELDS | {
        name: Field("labels", fill=VOID, classes=encoding.classes)
        for name, encoding in encodings.items()
    }
    known = {
        **{name: masks.Reader(encoding) for name, encoding in encodings.items()},
        "saliency": maps.read_binary,
        "edges": maps.read_binary,
        "normals": maps.read_normals,
        "depth": depths.reader(scale),
        "instances": functools.partial(_instances, merge=merge),
    }
    readers = {name: known[name] for name in patterns}

    def read(files: Mapping[str, Path], size: Size) -> dict[str, np.ndarray]:
        found = maps.load(readers, files, size)
        if "normals" in made:
            found["normals"] = derived.normals(found["depth"], focal, centre)
        if "edges" in made:
            found["edges"] = derived.edges(found[edges], VOID if edges == "labels" else None)
        if "saliency" in made:
            found["saliency"] = derived.nearest(found["instances"], found["depth"])
        return found

    said = repr((sorted(made.items()), encodings, merge, scale, focal, centre))
    fields = {name: kinds[name] for name in given}
    return maps.opened("folders", split, root, files, fields, read, OBTAIN, said)


def _check(
    given: Mapping[str, str],
    made: Mapping[str, str],
    focal: float,
    centre: tuple[float, ...],
    merge: int,
) -> None:
    """Raises a DataError for settings that don't fit each other."""
    if not given:
        raise DataError(f"nothing says which maps to read; {OBTAIN}")
    needed = [(name, of) for name, of in made.items()]
    needed += [("saliency", "depth")] if "saliency" in made else []  # which one is the nearest
    for name, of in needed:
        if of not in given:
            raise DataError(
                f"data.{name}={given[name]} is made of data.{of}, which is empty; say where its "
                "files lie"
            )
    if "normals" in made and not 0 < focal < np.inf:
        raise DataError(
            f"data.normals=depth needs the camera's focal length in pixels, and data.focal={focal}"
        )
    if len(centre) not in (0, 2) or not all(isinstance(c, int | float) for c in centre):
        raise DataError(f"data.centre is {centre}, not (x, y) in pixels")
    if not 1 <= merge < 1 << 16:
        raise DataError(f"data.merge is {merge}, not a number from 1 to 65535")


def _instances(png: bytes, name: str, merge: int) -> np.ndarray:
    values = numbers(png, name)
    if values.ndim == 3:
        raise DataError(f"{name} holds colours; save the numbers of objects in grey")
    return values.astype(np.int32) // merge
