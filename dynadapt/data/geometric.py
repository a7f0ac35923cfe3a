"""Transforms that move pixels: `f((h, w), settings..., rng) -> Frame`.

One that takes no `rng` is not random; one that takes `labels` sees the classes `h w` of the
picture's pixels, -1 where they are void, or None where there are none.
"""

import math

import numpy as np

from dynadapt.data import frames
from dynadapt.data.arguments import (
    Angle,
    Canvas,
    Factors,
    Interval,
    Length,
    Margin,
    Method,
    RotateMethod,
    Share,
)
from dynadapt.data.frames import Frame
from dynadapt.errors import ConfigError

Size = tuple[int, int]


def resize(given: Size, size: Length, width: Margin = 0, method: Method = "bicubic") -> Frame:
    """Stretches to `size` square, or to height `size` and `width`; antialiased.

    The method "plain_bilinear" is not: it is TensorFlow's default resize, on pixels of 8 bits.
    """
    return frames.window(0, 0, *given, (size, width or size), method)


def resize_short(given: Size, size: Length, method: Method = "bicubic") -> Frame:
    """Brings the shorter side to `size` and keeps the aspect."""
    h, w = given
    scale = size / min(h, w)
    result = max(size, round(h * scale)), max(size, round(w * scale))
    return frames.window(0, 0, h, w, result, method)


def resize_within(given: Size, short: Length, long: Length, method: Method = "bicubic") -> Frame:
    """Makes the picture as large as `short` and `long` sides allow and keeps the aspect."""
    return _within(given, short, long, method)


def resize_random(
    given: Size,
    short: Length,
    long: Length,
    ratio: Interval = (0.5, 2.0),
    method: Method = "bicubic",
    *,
    rng: np.random.Generator,
) -> Frame:
    """As `resize_within`, both sides times one random factor within `ratio`."""
    factor = rng.uniform(*ratio)
    return _within(given, short * factor, long * factor, method)


def _within(given: Size, short: float, long: float, method: str) -> Frame:
    h, w = given
    scale = min(short / min(h, w), long / max(h, w))
    result = max(1, round(h * scale)), max(1, round(w * scale))
    return frames.window(0, 0, h, w, result, method)


def center_crop(given: Size, size: Length) -> Frame:
    """Cuts the middle `size` square out."""
    h, w = _room(given, size, "center_crop")
    return frames.window(h // 2, w // 2, size, size, (size, size))


def random_crop(
    given: Size, size: Length, padding: Margin = 0, *, rng: np.random.Generator
) -> Frame:
    """Cuts a `size` square at a random place, after `padding` black pixels on each side."""
    padded = given[0] + 2 * padding, given[1] + 2 * padding
    h, w = _room(padded, size, "random_crop")
    top, left = rng.integers(h + 1), rng.integers(w + 1)
    return frames.window(top - padding, left - padding, size, size, (size, size))


def crop(
    given: Size,
    size: Canvas,
    category: Share = 1.0,
    *,
    labels: np.ndarray | None = None,
    rng: np.random.Generator,
) -> Frame:
    """Cuts `size` square, or (h, w), out at a random place; what a smaller picture lacks is black
    at the bottom and on the right.

    Where a class has more than the share `category` of the pixels that have one, another place is
    drawn, up to 10 in all (cat_max_ratio of MMSegmentation).
    """
    h, w = size if isinstance(size, tuple) else (size, size)
    for _ in range(10):
        top = int(rng.integers(max(given[0] - h, 0) + 1))
        left = int(rng.integers(max(given[1] - w, 0) + 1))
        if labels is None or category == 1:
            break
        seen = labels[top : top + h, left : left + w]
        counts = np.bincount(seen[seen >= 0], minlength=1)
        if 0 < counts.max() <= category * counts.sum():
            break
    return frames.window(top, left, h, w, (h, w))


def random_resized_crop(
    given: Size,
    size: Length,
    scale: Interval = (0.08, 1.0),
    ratio: Interval = (0.75, 4 / 3),
    method: Method = "bicubic",
    *,
    rng: np.random.Generator,
) -> Frame:
    """Cuts a part of random area (share `scale`) and aspect (`ratio`, width to height), stretched
    to `size` square (Szegedy et al., arXiv:1409.4842, section 6)."""
    h, w = given
    for _ in range(10):
        area = h * w * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        high, wide = round(np.sqrt(area / aspect)), round(np.sqrt(area * aspect))
        if 0 < high <= h and 0 < wide <= w:
            top, left = rng.integers(h - high + 1), rng.integers(w - wide + 1)
            break
    else:  # an extreme shape: the largest middle part whose aspect is allowed
        aspect = np.clip(w / h, *ratio)
        high, wide = min(h, max(1, round(w / aspect))), min(w, max(1, round(h * aspect)))
        top, left = (h - high) // 2, (w - wide) // 2
    return frames.window(top, left, high, wide, (size, size), method)


def flip(given: Size, p: Share = 0.5, *, rng: np.random.Generator) -> Frame:
    """Mirrors left to right with probability `p`."""
    if rng.random() >= p:
        return frames.identity(given)
    return Frame(np.array([[-1.0, 0, given[1]], [0, 1, 0]]), given)


def rotate(
    given: Size,
    degrees: Angle,
    method: RotateMethod = "bicubic",
    scale: Interval = (1.0, 1.0),
    *,
    rng: np.random.Generator,
) -> Frame:
    """Turns about the centre by a random angle, counter-clockwise, magnifies by a random factor
    within `scale`, and keeps the size.

    The angle is between -`degrees` and `degrees`, or within (low, high). Depths are divided by the
    factor.
    """
    low, high = degrees if isinstance(degrees, tuple) else (-abs(degrees), abs(degrees))
    angle = math.radians(rng.uniform(low, high))
    cosine, sine = round(math.cos(angle), 12), round(math.sin(angle), 12)  # exact quarter turns
    factor = rng.uniform(*scale) if scale != (1, 1) else 1.0
    return _about_centre(given, np.array([[cosine, -sine], [sine, cosine]]), factor, method)


def zoom(
    given: Size,
    factors: Factors = (1.0, 1.2, 1.5),
    method: RotateMethod = "bicubic",
    *,
    rng: np.random.Generator,
) -> Frame:
    """Magnifies about the centre by one of `factors`, by chance, and keeps the size; depths are
    divided by the factor."""
    return _about_centre(given, np.eye(2), factors[rng.integers(len(factors))], method)


def _about_centre(given: Size, linear: np.ndarray, factor: float, method: str) -> Frame:
    centre, linear = np.array([given[1], given[0]]) / 2, linear / factor
    return Frame(np.column_stack([linear, centre - linear @ centre]), given, method, factor)


def pad(given: Size, size: Canvas) -> Frame:
    """Adds black pixels at the bottom and on the right up to `size` square, or (h, w)."""
    h, w = size if isinstance(size, tuple) else (size, size)
    if given[0] > h or given[1] > w:
        raise ConfigError(
            f"pad({size}) met an image of {given[0]} x {given[1]} pixels; "
            "put a resize before it after which all images fit"
        )
    return frames.window(0, 0, h, w, (h, w))


def _room(given: Size, size: int, name: str) -> Size:
    """How much larger than `size` the image is, in height and width."""
    h, w = given
    if min(h, w) < size:
        # not a DataError: skipping such images would hide a transform that cannot work
        raise ConfigError(
            f"{name}({size}) met an image of {h} x {w} pixels; put resize_short({size}) before it"
        )
    return h - size, w - size


GEOMETRIC = (
    *(resize, resize_short, resize_within, resize_random, center_crop, random_crop, crop),
    *(random_resized_crop, flip, rotate, zoom, pad),
)
