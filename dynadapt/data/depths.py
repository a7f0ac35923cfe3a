"""Images with depth maps of one's own: PNG files of 16 bits, or arrays of metres."""

import functools
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dynadapt.data import Info, pairs, parse
from dynadapt.data.decode import MAX_PIXELS, numbers
from dynadapt.data.fields import Field
from dynadapt.data.pairs import Pairs
from dynadapt.errors import DataError
from dynadapt.files import first_line

OBTAIN = (
    "put images in path/images/<split>/ and depth maps of the same names in path/depths/<split>/, "
    "or set data.images and data.depths"
)


def source(
    split: str,
    path: str = "",
    images: str = "images/{split}",
    depths: str = "depths/{split}",
    scale: float = 1000.0,
    eight_bit: bool = False,
) -> Pairs:
    """Reads images and depth maps below `path`, paired by name; depth is in metres, 0 unknown.

    Args:
        split: which.
        path: the folder.
        images: where the images lie; `dynadapt.data.pairs` says what a pattern is.
        depths: where the depth maps lie, `.png` or `.npy`.
        scale: units a metre of whole numbers, as PNG files hold; arrays of floats are metres.
        eight_bit: whether PNG files of 8 bits are depths, which are mostly drawn for the eye.

    Raises:
        DataError: for what isn't there, and, in reading, for files that hold no depth.
    """
    root = pairs.folder(path, OBTAIN)
    names = [*dict.fromkeys(name for name, _ in parse(split))]
    files = pairs.find(root, images, depths, names, (".png", ".npy"), OBTAIN)
    return opened("depths", split, root, files, scale, eight_bit, OBTAIN)


def opened(
    name: str,
    split: str,
    root: Path,
    files: dict[str, list[pairs.Pair]],
    scale: float,
    eight_bit: bool,
    obtain: str,
) -> Pairs:
    """The source over images and depth maps of these files."""
    fields = {"image": Field("pixels"), "depth": Field("values", fill=0)}
    counts = {part: len(rows) for part, rows in files.items()}
    info = Info(name, fields, counts, obtain, pairs.fingerprint(root, files, f"{scale:g}"))
    return Pairs(split, root, files, info, "depth", reader(scale, eight_bit))


def reader(scale: float, eight_bit: bool = False) -> Callable[[bytes, str], np.ndarray]:
    """`read` with these settings; raises a DataError for a scale that is none."""
    if not 0 < scale < np.inf:
        raise DataError(f"data.scale is {scale} units a metre and must be above 0")
    return functools.partial(read, scale=scale, eight_bit=eight_bit)


def read(file: bytes, name: str, scale: float, eight_bit: bool = False) -> np.ndarray:
    """Metres float32 `h w` of a PNG or NPY file; 0 where the depth isn't known.

    Raises:
        DataError: for a file that holds no depth.
    """
    values = array(file, name) if name.lower().endswith(".npy") else numbers(file, name)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "uif":
        raise DataError(
            f"{name} is {values.dtype} with shape {values.shape}, not one depth a pixel"
        )
    if values.dtype == np.uint8 and not eight_bit:
        raise DataError(
            f"{name} has 8 bits a pixel, too few for depths; save it with 16, or set "
            "data.eight_bit and data.scale if it is no picture for the eye"
        )
    depth = values.astype(np.float32)
    if values.dtype.kind != "f":
        depth = depth / np.float32(scale)
    return known(depth)


def known(depth: np.ndarray) -> np.ndarray:
    """Depth float32 with 0 where it is negative or not finite."""
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def array(file: bytes, name: str) -> np.ndarray:
    """What an NPY file holds; raises a DataError for what is none, or has objects in it."""
    try:
        found = np.load(io.BytesIO(file), allow_pickle=False)
    except Exception as error:  # over damaged files numpy raises anything
        raise DataError(f"cannot read {name}: {first_line(error)}") from None
    if not isinstance(found, np.ndarray) or found.size > MAX_PIXELS:
        raise DataError(f"{name} is no array of at most {MAX_PIXELS:,} numbers")
    return found
