"""Drawing: answers as pictures, for people who would rather look than read."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dynadapt import files

SIDE = 128  # pixels, to which smaller pictures are enlarged, so that text fits below
TEXT, MARGIN = 12, 6


def captioned(image: np.ndarray, text: str) -> np.ndarray:
    """A picture `h w 3`, uint8, on white with a line of text below; small ones are enlarged."""
    h, w = image.shape[:2]
    factor = max(1, -(-SIDE // max(h, w)))
    size = max(1, w * factor), max(1, h * factor)
    picture = Image.fromarray(image).resize(size, Image.Resampling.NEAREST)
    font = ImageFont.load_default(TEXT)
    shown = text
    while font.getlength(shown) > picture.width - 4 and len(shown) > 1:
        shown = shown[:-2] + "…"
    canvas = Image.new("RGB", (picture.width, picture.height + TEXT + 6), "white")
    canvas.paste(picture)
    ImageDraw.Draw(canvas).text((2, picture.height + 1), shown, fill="black", font=font)
    return np.asarray(canvas)


def sheet(pictures: Sequence[np.ndarray], columns: int = 4, side: int = 2 * SIDE) -> np.ndarray:
    """Pictures in rows, none of them larger than a square of `side` pixels."""
    small = [Image.fromarray(picture) for picture in pictures]
    for picture in small:
        picture.thumbnail((side, side))
    wide, high = (max(p.size[i] for p in small) + MARGIN for i in (0, 1))
    size = wide * min(columns, len(small)), high * -(-len(small) // columns)
    canvas = Image.new("RGB", size, "white")
    for number, picture in enumerate(small):
        canvas.paste(picture, (number % columns * wide, number // columns * high))
    return np.asarray(canvas)


def png(image: np.ndarray) -> bytes:
    """A picture `h w 3` or `h w`, uint8, as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def write(path: Path, image: np.ndarray) -> None:
    """Writes a PNG file, whole."""
    files.write_bytes(path, png(image))
