"""Image files, whatever they hold, as uint8 `h w 3`."""

import contextlib
import functools
import io
import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from dynadapt.errors import DataError

# Pillow's names of the formats that hold pictures; others, such as EPS, would run programs.
FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "JPEG2000"),
    *("PPM", "TGA", "SGI", "PCX", "SUN", "QOI", "XBM", "XPM", "ICO", "DDS", "PSD"),
)
MAX_PIXELS = 64_000_000  # of a picture; a small file may say that it has any number
MAX_BYTES = 1 << 30  # of its file
_TURNS = {  # by the orientation of EXIF (CIPA DC-008, tag 274)
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@functools.cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@functools.cache
def suffixes() -> frozenset[str]:
    """How files of these formats end, in lower case, such as `.jpg`."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if name in formats())


def is_image(path: str) -> bool:
    """Whether a file is called like an image."""
    return os.path.splitext(path)[1].lower() in suffixes()


def decode(
    image: bytes | Image.Image | np.ndarray, name: str = "an image", orient: bool = False
) -> np.ndarray:
    """An image file or picture of any kind, or an array `h w`, `h w 1`, `h w 3` or `h w 4`, as
    uint8 `h w 3`.

    Transparency is dropped, of an animation the first picture stays, and grey of more than 8 bits
    is scaled to 8: whole numbers that fit 16 bits as such, real ones of 0 to 1 by 255, all others
    from their least to their greatest. What is not finite is 0.

    Args:
        image: the file, a picture of Pillow's or the array.
        name: what an error calls it.
        orient: whether to turn the picture as the file's EXIF block says that it was held; a
            malformed block turns nothing.

    Raises:
        DataError: for what cannot be decoded, ends early, or has more than `MAX_PIXELS`.
    """
    if isinstance(image, bytes):
        with _opened(image, name, formats()) as opened:
            opened.load()
            return _rgb(_turned(opened) if orient else opened)
    if isinstance(image, Image.Image):
        try:
            image.load()
        except Exception as error:  # what it was opened from may be broken
            raise DataError(f"cannot decode {name}: {_reason(error)}") from error
        return _rgb(_turned(image) if orient else image)
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    channels = image.shape[-1] if image.ndim == 3 else None
    if image.dtype != np.uint8 or channels not in (1, 3, 4) or 0 in image.shape:
        raise DataError(
            f"{name} is {image.dtype} with shape {image.shape} and must be uint8 `h w 3`"
        )
    return np.repeat(image, 3, axis=-1) if channels == 1 else image[..., :3]


def dimensions(image: bytes, name: str = "an image") -> tuple[int, int]:
    """(h, w) of an image file as it is stored; raises a DataError for what is none."""
    with _opened(image, name, formats()) as opened:
        w, h = opened.size
        return h, w


def heading(file: Path) -> tuple[int, int]:
    """(h, w) that the first bytes of an image file say; raises a DataError for what is none."""
    try:
        with Image.open(file, formats=formats()) as opened:
            w, h = opened.size
            return h, w
    except Exception as error:  # Pillow's readers raise a dozen different classes
        raise DataError(f"cannot decode {file}: {_reason(error)}") from error


def numbers(png: bytes, name: str = "a map") -> np.ndarray:
    """What the pixels of a PNG file are stored as, which is not what they look like.

    Returns:
        Grey values or indices of a palette `h w`, uint8, or uint16 where they have 16 bits; colours
        uint8 `h w 3` for a file that holds these. Transparency is dropped.

    Raises:
        DataError: for what is no whole PNG file, or has more than `MAX_PIXELS`.
    """
    with _opened(png, name, ("PNG",)) as opened:
        # Pillow spreads grey of 2 or 4 bits over 0 to 255
        spread = {"L;2": 85, "L;4": 17}.get(opened.tile[0][3], 1)
        opened.load()
        values = np.asarray(opened)
        if opened.mode in ("LA", "RGBA"):
            values = values[..., 0] if opened.mode == "LA" else values[..., :3]
        wide = opened.mode == "I" or opened.mode.startswith("I;16")
        return values.astype(np.uint16 if wide else np.uint8) // spread


@contextlib.contextmanager
def _opened(image: bytes, name: str, allowed: tuple[str, ...]) -> Iterator[Image.Image]:
    """The picture of a file, not loaded yet; raises a DataError for what is wrong with it."""
    try:
        _check_sizes(_png_sizes(image))
        with Image.open(io.BytesIO(image), formats=allowed) as opened:
            _check_sizes([opened.size])
            if opened.format == "PNG" and not _ends(image):
                raise ValueError("the file is cut short: it has no end")
            yield opened
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"cannot decode {name}: {_TOO_LARGE}") from error
    except Exception as error:  # Pillow's readers raise a dozen different classes
        raise DataError(f"cannot decode {name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    reason = re.sub(r" ?<_io\.BytesIO[^>]*>", "", str(error)) or type(error).__name__
    return " ".join(reason.split())[:300]


_TOO_LARGE = f"it has more than {MAX_PIXELS:,} pixels"
_PNG = b"\x89PNG\r\n\x1a\n"


def _check_sizes(sizes: Iterable[tuple[int, int]]) -> None:
    if any(w * h > MAX_PIXELS for w, h in sizes):
        raise ValueError(_TOO_LARGE)


def _png_sizes(data: bytes) -> list[tuple[int, int]]:
    """(w, h) of a PNG file, or of those in an ICO file, which Pillow decodes when it opens it."""
    if not data.startswith((_PNG, b"\0\0\1\0")):
        return []
    found = re.finditer(re.escape(_PNG) + b"....IHDR(.{8})", data, re.DOTALL)
    return [struct.unpack(">II", png[1]) for png in found]


def _ends(data: bytes) -> bool:
    """Whether the chunks of a PNG file lead to a whole last one."""
    place = len(_PNG)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        place += 12 + length
        if kind == b"IEND":
            return place <= len(data)
    return False


def _turned(image: Image.Image) -> Image.Image:
    """The loaded picture upright; a TIFF is so already, and has its orientation no more."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # a malformed block, at which Pillow raises anything
        return image
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow's own conversion would cut everything above 255 to white
        return np.repeat(_eight_bits(image)[..., None], 3, axis=-1)
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Grey of more than 8 bits as uint8 `h w`."""
    values = np.nan_to_num(np.asarray(image, np.float64), nan=0, posinf=0, neginf=0)
    low, high = values.min(), values.max()
    # Files of 16 bits are said to be so, but for PGM, whose values Pillow stretches to 16 bits;
    # whole numbers of 32 bits that fit 8 are what was read right without any scaling.
    if image.mode.startswith("I;16") or image.mode == "I" and image.format == "PPM":
        tops = (65535,)
    else:
        tops = (255, 65535) if image.mode == "I" else (1,)
    top = next((top for top in tops if 0 <= low and high <= top), None)
    if top:
        low, high = 0, top
    return np.round((values - low) * (255 / max(high - low, 1e-300))).astype(np.uint8)
