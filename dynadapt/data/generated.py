"""Images drawn by formula: joined strokes, filled shapes and gratings; nothing photographed or
scanned.

Every image is a pure function of a seed. A picture has up to `STROKES` curves (Bezier curves,
straight lines, elliptic arcs and closed loops; many start where another ends), perhaps a filled
shape behind them, on a plain, shaded or striped ground; some are drawn at a low resolution and
enlarged.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dynadapt.data import Arrays, labelled, parse
from dynadapt.errors import DataError

Array = jax.Array

STROKES, POINTS = 5, 9
CHUNK = 512
MAX_BYTES = 4 << 30
OBTAIN = "nothing to obtain: the images are drawn when they are asked for"


def source(split: str, size: int = 16384, image_size: int = 32, seed: int = 0) -> Arrays:
    """`size` images uint8 `image_size image_size 3` of one class, drawn into memory; split "train".

    The split "test" holds `CHUNK` other images of the same kind. Raises DataError for images of no
    size, or of more than `MAX_BYTES` together.
    """
    if min(size, image_size) < 1 or 3 * size * image_size**2 > MAX_BYTES:
        raise DataError(
            f"{size:,} generated images of {image_size} x {image_size} can't be held; size and "
            f"image_size must be at least 1, and all together have at most {MAX_BYTES:,} bytes"
        )
    if not 0 <= seed < 1 << 32:
        raise DataError(
            f"the seed of generated images is {seed}, not one from 0 to {(1 << 32) - 1}"
        )
    counts = {"train": size, "test": CHUNK}
    info = labelled("generated", ("generated",), counts, OBTAIN, size=(image_size, image_size))
    images, labels = {}, {}
    for number, name in enumerate(counts):
        if name in {part for part, _ in parse(split)}:
            key = jax.random.fold_in(jax.random.key(seed), number)
            images[name] = _draw(key, counts[name], image_size)
            labels[name] = np.zeros(counts[name], np.int32)
    return Arrays(split, images, labels, info)


def _draw(key: Array, count: int, image_size: int) -> np.ndarray:
    chunks = range(-(-count // CHUNK))
    drawn = [np.asarray(render(jax.random.fold_in(key, i), CHUNK, image_size)) for i in chunks]
    return np.concatenate(drawn)[:count]


def _between(key: Array, shape: tuple[int, ...], low: float, high: float) -> Array:
    return jax.random.uniform(key, shape, minval=low, maxval=high)


def curves(key: Array, count: int) -> tuple[Array, Array]:
    """Poly-lines `count strokes points 2` in a unit square, and which are drawn `count strokes`."""
    k = jax.random.split(key, 12)
    s, t = (count, STROKES), jnp.linspace(0.0, 1.0, POINTS)[None, None, :, None]
    # Bezier: end points anywhere, the middle one pulled off the chord (by 0: a line).
    first, last = _between(k[0], (2, *s, 1, 2), 0.0, 1.0)
    bend = jax.random.normal(k[1], (*s, 1, 2)) * _between(k[2], (*s, 1, 1), 0.0, 0.7)
    middle = (first + last) / 2 + bend * jax.random.bernoulli(k[3], 0.7, (*s, 1, 1))
    bezier = (1 - t) ** 2 * first + 2 * t * (1 - t) * middle + t**2 * last
    # Arc of an ellipse, turned by `tilt`; a third of the arcs close into a loop.
    start, tilt = _between(k[4], (2, *s, 1, 1), 0.0, 2 * jnp.pi)
    extent = jnp.where(
        jax.random.bernoulli(k[5], 0.35, (*s, 1, 1)),
        2 * jnp.pi,
        _between(k[6], (*s, 1, 1), 1.5, 5.5),
    )
    radius = _between(k[7], (*s, 1, 2), 0.1, 0.42)
    angle = start + extent * t
    u, v = radius[..., :1] * jnp.cos(angle), radius[..., 1:] * jnp.sin(angle)
    arc = jnp.concatenate(
        [u * jnp.cos(tilt) - v * jnp.sin(tilt), u * jnp.sin(tilt) + v * jnp.cos(tilt)], -1
    )
    arc = arc + first
    lines = jnp.where(jax.random.bernoulli(k[8], 0.4, (*s, 1, 1)), arc, bezier)
    # Chain: a joined curve is moved so that it starts where the one before it ended.
    joined = jax.random.bernoulli(k[9], 0.7, (*s, 1, 1))
    chain = [lines[:, 0]]
    for i in range(1, STROKES):
        moved = lines[:, i] - lines[:, i, :1] + chain[-1][:, -1:]
        chain.append(jnp.where(joined[:, i], moved, lines[:, i]))
    lines = jnp.stack(chain, 1)
    drawn = jnp.arange(STROKES)[None] < jax.random.randint(k[10], (count, 1), 1, STROKES + 1)
    # Fit what is drawn into a box of a random size and place.
    hold = drawn[:, :, None, None]
    low = jnp.where(hold, lines, jnp.inf).min((1, 2), keepdims=True)
    high = jnp.where(hold, lines, -jnp.inf).max((1, 2), keepdims=True)
    box = _between(k[11], (2, count, 1, 1, 2), 0.0, 1.0)
    size = (0.35 + 0.65 * jnp.sqrt(box[0])) * 0.9
    stretch = jnp.minimum(size / jnp.maximum(high - low, 0.05), 3.0)
    span = (high - low) * stretch
    return (lines - low) * stretch + 0.05 + (0.9 - span) * box[1], drawn


def distance(lines: Array, drawn: Array, grid: Array) -> Array:
    """From every point of `grid` (n 2) to the nearest drawn segment: `count n`."""
    a, b = lines[:, :, :-1], lines[:, :, 1:]
    a, step = (z.reshape(len(lines), 1, -1, 2) for z in (a, b - a))
    far = jnp.where(drawn, 0.0, 9.0).repeat(POINTS - 1, axis=1)[:, None]
    py, px = grid[None, :, 0, None] - a[..., 0], grid[None, :, 1, None] - a[..., 1]
    sy, sx = step[..., 0], step[..., 1]
    along = jnp.clip((py * sy + px * sx) / (sy**2 + sx**2 + 1e-6), 0.0, 1.0)
    return jnp.sqrt(((py - along * sy) ** 2 + (px - along * sx) ** 2 + far).min(-1) + 1e-9)


def ground(key: Array, count: int, grid: Array) -> Array:
    """Stripes and slow shading in [-1, 1]: `count n`, plain for two in five."""
    k = jax.random.split(key, 4)
    slow = jax.random.bernoulli(k[0], 0.5, (count, 1))
    wave = jax.random.normal(k[1], (count, 2)) * jnp.where(slow, 3.0, 22.0)
    phase = _between(k[2], (count, 1), 0.0, 2 * jnp.pi)
    return jnp.sin(wave @ grid.T + phase) * jax.random.bernoulli(k[3], 0.6, (count, 1))


def blob(key: Array, count: int, grid: Array) -> Array:
    """A filled super-ellipse, soft at the edge, in [0, 1]: `count n`; none for three in five."""
    k = jax.random.split(key, 5)
    centre, radius = (
        _between(k[0], (count, 1, 2), 0.2, 0.8),
        _between(k[1], (count, 1, 2), 0.1, 0.5),
    )
    power, tilt = _between(k[2], (count, 1, 1), 1.0, 6.0), _between(k[3], (count, 1), 0.0, jnp.pi)
    y, x = jnp.moveaxis(grid[None] - centre, -1, 0)
    turned = jnp.stack(
        [y * jnp.cos(tilt) - x * jnp.sin(tilt), y * jnp.sin(tilt) + x * jnp.cos(tilt)], -1
    )
    level = ((jnp.abs(turned) / radius + 1e-4) ** power).sum(-1)
    return jax.nn.sigmoid((1 - level) * 6) * jax.random.bernoulli(k[4], 0.4, (count, 1))


@functools.partial(jax.jit, static_argnums=(1, 2))
def render(key: Array, count: int, size: int = 32) -> Array:
    """uint8 `count size size 3`."""
    k = jax.random.split(key, 14)
    axis = (jnp.arange(size) + 0.5) / size
    grid = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    one = (count, 1)
    lines, drawn = curves(k[0], count)
    width, soft = _between(k[1], one, 0.015, 0.09), _between(k[2], one, 0.008, 0.04)
    ink = jax.nn.sigmoid((width - distance(lines, drawn, grid)) / soft)[..., None]
    filled = blob(k[3], count, grid)[..., None]
    paper = ground(k[4], count, grid)[..., None] * _between(k[5], (count, 1, 1), 0.0, 0.2)
    back, front, patch = (_between(key, (count, 1, 3), 0.0, 1.0) for key in k[6:9])
    # Strokes that cannot be seen teach nothing: push ink away from a ground too like it.
    gap = front.mean(-1, keepdims=True) - back.mean(-1, keepdims=True)
    front = jnp.where(
        jnp.abs(gap) < 0.25, back + jnp.where(back.mean(-1, keepdims=True) < 0.5, 0.4, -0.4), front
    )
    # Half the grounds are nearly black or nearly white, as on a screen or on paper.
    plain = jnp.where(jax.random.bernoulli(k[9], 0.7, (count, 1, 1)), 0.04, 0.96)
    stark = jax.random.bernoulli(k[10], 0.5, (count, 1, 1))
    back, front = (
        jnp.where(stark, plain, back),
        jnp.where(stark, jnp.abs(front * 0.6 + 0.4 - plain.round()), front),
    )
    image = back + paper * jnp.where(stark, 0.3, 1.0)
    image = image + (patch - image) * filled * jnp.where(stark, 0.4, 1.0)
    image = (image + (front - image) * ink).reshape(count, size, size, 3)
    grey = jax.random.bernoulli(k[11], 0.5, (count, 1, 1, 1))
    image = jnp.where(grey, image.mean(-1, keepdims=True), image)
    # A third is seen through few pixels: averaged down and enlarged again.
    choice = jax.random.randint(k[12], (count, 1, 1, 1), 0, 6)
    for option, factor in ((0, 4), (1, 2)):
        coarse = image.reshape(count, size // factor, factor, size // factor, factor, 3).mean(
            (2, 4)
        )
        image = jnp.where(choice == option, jax.image.resize(coarse, image.shape, "cubic"), image)
    return (jnp.clip(image, 0.0, 1.0) * 255 + 0.5).astype(jnp.uint8)
