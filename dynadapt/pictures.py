"""Drawing: answers as pictures, for people who would rather look than read."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dynadapt import files

SIDE = 128  # pixels, to which smaller pictures are enlarged, so that text fits below
TEXT, MARGIN = 12, 6


def captioned(image: np.ndarray, text: str) -> np.ndarray:
    """A picture `h w 3`, uint8, on white with a line of text below; small ones are enlarged."""
    picture, _ = _enlarged(image, SIDE)
    font = ImageFont.load_default(TEXT)
    shown = text
    while font.getlength(shown) > picture.width - 4 and len(shown) > 1:
        shown = shown[:-2] + "…"
    canvas = Image.new("RGB", (picture.width, picture.height + TEXT + 6), "white")
    canvas.paste(picture)
    ImageDraw.Draw(canvas).text((2, picture.height + 1), shown, fill="black", font=font)
    return np.asarray(canvas)


def _enlarged(image: np.ndarray, least: int) -> tuple[Image.Image, int]:
    """A picture whose longer side has at least so many pixels, and by how much it grew."""
    h, w = image.shape[:2]
    factor = max(1, -(-least // max(h, w)))
    size = max(1, w * factor), max(1, h * factor)
    return Image.fromarray(image).resize(size, Image.Resampling.NEAREST), factor


def sheet(pictures: Sequence[np.ndarray], columns: int = 4, side: int = 2 * SIDE) -> np.ndarray:
    """Pictures in rows, none of them higher than `side` pixels or wider than its column.

    Columns are `side` wide; where all pictures are more than twice as wide as high there is one,
    as wide as all.
    """
    if min(picture.shape[1] / picture.shape[0] for picture in pictures) > 2:
        columns, bound = 1, (columns * side, side)
    else:
        bound = side, side
    small = [Image.fromarray(picture) for picture in pictures]
    for picture in small:
        picture.thumbnail(bound)
    wide, high = (max(p.size[i] for p in small) + MARGIN for i in (0, 1))
    size = wide * min(columns, len(small)), high * -(-len(small) // columns)
    canvas = Image.new("RGB", size, "white")
    for number, picture in enumerate(small):
        canvas.paste(picture, (number % columns * wide, number // columns * high))
    return np.asarray(canvas)


def beside(panels: Mapping[str, np.ndarray]) -> np.ndarray:
    """Pictures of one size `h w 3` next to each other, each with its name below."""
    named = [captioned(picture, name) for name, picture in panels.items()]
    gap = np.full((len(named[0]), MARGIN, 3), 255, np.uint8)
    return np.concatenate([x for picture in named for x in (picture, gap)][:-1], axis=1)


def palette(count: int) -> np.ndarray:
    """Colours `count 3`, uint8, that neighbours in the list differ by; the first ones the most."""
    # Turns by the golden ratio spread hues evenly, however many there are.
    hues = (np.arange(count) * 0.618034) % 1
    values = [255, 180, 110]
    rows = [
        (int(255 * hue), (200, 230, 150)[n // 8 % 3], values[n // 5 % 3])
        for n, hue in enumerate(hues)
    ]
    picture = Image.fromarray(np.array(rows, np.uint8).reshape(1, -1, 3), "HSV")
    return np.asarray(picture.convert("RGB")).reshape(-1, 3)


def label_png(labels: np.ndarray, classes: int) -> bytes:
    """A label map `h w` as a PNG file whose values are the classes.

    It has a palette up to 255 classes, and 16 bits above. What is not in [0, classes) becomes 255,
    or 65,535.
    """
    known = (labels >= 0) & (labels < classes)
    if classes > 255:
        return png(np.where(known, labels, 65535).astype(np.uint16))
    picture = Image.fromarray(np.where(known, labels, 255).astype(np.uint8), "P")
    colours = np.zeros((256, 3), np.uint8)
    colours[:classes] = palette(classes)
    picture.putpalette(colours.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def grey(values: np.ndarray) -> np.ndarray:
    """Values `h w` from 0 to 1 as a picture `h w 3`, black to white."""
    return np.repeat(np.rint(255 * values).astype(np.uint8)[..., None], 3, axis=-1)


def directions(vectors: np.ndarray) -> np.ndarray:
    """Vectors `h w 3` as colours, -1 black and 1 full; grey where there are none."""
    return np.rint(127.5 * (vectors + 1)).clip(0, 255).astype(np.uint8)


def blended(image: np.ndarray, colours: np.ndarray, share: float = 0.5) -> np.ndarray:
    """Colours `h w 3` over an image, of which `1 - share` is left."""
    mixed = (1 - share) * image.astype(np.float32) + share * colours
    return np.rint(mixed).astype(np.uint8)


def with_boxes(
    image: np.ndarray, boxes: np.ndarray, names: Sequence[str], colours: np.ndarray
) -> np.ndarray:
    """An image with boxes and their names; small ones are enlarged. The first box is on top.

    Args:
        image: `h w 3`.
        boxes: `n 4`, left, top, right, bottom in pixels of the image, edges not centres.
        names: of each box; "" for none.
        colours: of each box, `n 3`.
    """
    picture, factor = _enlarged(image, 2 * SIDE)
    draw, longest = ImageDraw.Draw(picture), max(picture.size)
    # Lines and text of a photograph still show where it is made smaller.
    wide, font = max(2, longest // 256), ImageFont.load_default(max(TEXT, longest // 45))
    most = np.array([*picture.size, *picture.size])
    edges = np.rint(factor * np.asarray(boxes, np.float64)).reshape(-1, 4).clip(0, most).astype(int)
    fills = [tuple(int(v) for v in colour) for colour in colours]
    order = range(len(edges))[::-1]
    for n in order:
        left, top, right, bottom = edges[n].tolist()
        right, bottom = max(right - 1, left), max(bottom - 1, top)
        around = left - 1, top - 1, right + 1, bottom + 1
        # A colour between lines of its contrary: one of the two shows on any ground.
        draw.rectangle(around, outline=_contrary(fills[n]), width=wide + 2)
        draw.rectangle((left, top, right, bottom), outline=fills[n], width=wide)
    for n in order:
        if names[n]:
            _tag(draw, picture.size, edges[n].tolist(), names[n], fills[n], font)
    return np.asarray(picture)


def _contrary(colour: tuple[int, ...]) -> str:
    """Black on light colours, white on dark ones."""
    red, green, blue = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 127 else "white"


def _tag(draw: Any, size: tuple[int, int], box: list[int], name: str, fill: Any, font: Any) -> None:
    """Writes a name above a box, or below its upper edge where there is no room, in the picture."""
    high = sum(font.getmetrics())
    wide = min(int(font.getlength(name)) + 4, size[0])
    left = max(0, min(box[0], size[0] - wide))
    top = box[1] - high if box[1] >= high else max(0, min(box[1], size[1] - high))
    draw.rectangle((left, top, left + wide - 1, top + high - 1), fill=fill)
    draw.text((left + 2, top), name, fill=_contrary(fill), font=font)


def with_masks(image: np.ndarray, masks: Sequence[np.ndarray], colours: np.ndarray) -> np.ndarray:
    """An image with each mask in its colour and a line around it. The first mask is on top.

    Args:
        image: `h w 3`.
        masks: n of them, `h w` bool.
        colours: of each mask, `n 3`.
    """
    owner = np.full(image.shape[:2], len(masks))
    for n in range(len(masks))[::-1]:
        owner[masks[n]] = n
    inside = owner < len(masks)
    painted = np.vstack([np.reshape(colours, (-1, 3)), [[0, 0, 0]]]).astype(np.uint8)[owner]
    mixed = np.where(inside[..., None], blended(image, painted), image)
    near = np.pad(owner, 1, mode="edge")
    others = (near[:-2, 1:-1], near[2:, 1:-1], near[1:-1, :-2], near[1:-1, 2:])
    edge = inside & np.any([other != owner for other in others], axis=0)
    return np.where(edge[..., None], painted, mixed)


def with_legend(picture: np.ndarray, names: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """A picture above names, each beside its colour, in as many lines as it takes."""
    font, left, top, places = ImageFont.load_default(TEXT), 2, 0, []
    for name, colour in names:
        wide = TEXT + 4 + int(font.getlength(name)) + 2 * MARGIN
        if left + wide > picture.shape[1] and left > 2:
            left, top = 2, top + TEXT + MARGIN
        places.append((left, top, name, colour))
        left += wide
    below = Image.new("RGB", (picture.shape[1], top + TEXT + MARGIN), "white")
    draw = ImageDraw.Draw(below)
    for left, top, name, colour in places:
        box = (left, top + 2, left + TEXT - 2, top + TEXT)
        draw.rectangle(box, fill=tuple(int(v) for v in colour), outline="black")
        draw.text((left + TEXT + 2, top), name, fill="black", font=font)
    return np.concatenate([picture, np.asarray(below)])


# From near to far, evenly spaced; lightness falls all the way, so that it prints in grey.
_NEAR_TO_FAR = np.array(
    [[255, 250, 200], [252, 190, 80], [240, 120, 60], [200, 50, 90], [120, 25, 120], [45, 15, 90],
     [8, 5, 30]], np.float32
)  # fmt: skip


def heat(values: np.ndarray, low: float, high: float, valid: np.ndarray) -> np.ndarray:
    """Values `h w` as colours, light at `low` and dark at `high`; grey where they are not valid."""
    share = np.clip((values - low) / max(high - low, 1e-9), 0, 1) * (len(_NEAR_TO_FAR) - 1)
    at = np.arange(len(_NEAR_TO_FAR))
    colours = np.stack([np.interp(share, at, _NEAR_TO_FAR[:, i]) for i in range(3)], axis=-1)
    return np.where(valid[..., None], np.rint(colours), 128).astype(np.uint8)


def with_bar(picture: np.ndarray, low: float, high: float, unit: str) -> np.ndarray:
    """A picture above a bar of the colours of `heat`, with its ends and its middle in numbers."""
    wide, high_px = picture.shape[1], TEXT
    ramp = np.broadcast_to(np.linspace(low, high, wide)[None], (high_px, wide))
    bar = Image.fromarray(heat(ramp, low, high, np.ones(ramp.shape, bool)))
    below = Image.new("RGB", (wide, high_px + TEXT + MARGIN), "white")
    below.paste(bar)
    draw, font = ImageDraw.Draw(below), ImageFont.load_default(TEXT)
    for share, anchor in ((0.0, "la"), (0.5, "ma"), (1.0, "ra")):
        text = f"{low + share * (high - low):.2f} {unit}"
        draw.text((share * (wide - 1), high_px + 2), text, fill="black", font=font, anchor=anchor)
    return np.concatenate([picture, np.asarray(below)])


def png(image: np.ndarray) -> bytes:
    """A picture `h w 3` or `h w`, uint8, or `h w` uint16, as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def write(path: Path, image: np.ndarray) -> None:
    """Writes a PNG file, whole."""
    files.write_bytes(path, png(image))


# Axes of a cloud that are to the right, up and towards the viewer; the signs turn them.
_VIEWS = {"front": ((0, 1), (1, 1), (2, 1)), "side": ((2, -1), (1, 1), (0, 1)),
          "top": ((0, 1), (2, -1), (1, 1))}  # fmt: skip


def views(cloud: np.ndarray, colours: np.ndarray | None = None) -> np.ndarray:
    """A cloud `n 3`, y upwards, from the front, from its right and from above, next to each other.

    Args:
        cloud: finite points.
        colours: `n 3`, uint8, of the points; without, those of `heat` by the distance to the
            viewer.
    """
    middle = (cloud.min(0) + cloud.max(0)) / 2
    unit = (cloud - middle) / max(float(np.abs(cloud - middle).max()), 1e-9)
    panels = {}
    for name, axes in _VIEWS.items():
        right, up, near = (sign * unit[:, axis] for axis, sign in axes)
        own = colours
        if own is None:
            own = heat(-near[None], -1.0, 1.0, np.ones((1, len(near)), bool))[0]
        panel = np.full((SIDE, SIDE, 3), 235, np.uint8)
        order = np.argsort(near, kind="stable")  # the nearest last, over all others
        column, row = (((v[order] + 1) / 2 * (SIDE - 5)).astype(int) + 1 for v in (right, -up))
        dot = np.indices((3, 3)).reshape(2, -1)
        panel[row[:, None] + dot[0], column[:, None] + dot[1]] = own[order][:, None]
        panels[name] = panel
    return beside(panels)
