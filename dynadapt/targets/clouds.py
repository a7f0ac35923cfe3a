"""Fewer points of a cloud, and clouds as training sees them: scaled, shifted, turned, shaken.

All of it is for clouds `b n 3` in float32 on the device, each cloud with draws of its own.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dynadapt.backbones.point_mae import farthest_points

Array = jax.Array

# Of so many points, the farthest from each other, training takes a part at random: 1,200 for 1,024
# (Point-MAE, arXiv 2203.06604).
POOL = 75 / 64
SCALES, SHIFT = (2 / 3, 3 / 2), 0.2
CLIPPED = 5.0  # standard deviations that jitter reaches


def size(info: Any) -> int:
    """Points of a cloud of a data set; 0 where it has no clouds of one size."""
    field = info.fields.get("points")
    return field.size[0] if field is not None and field.size else 0


def pool(points: int, there: int) -> int:
    """How many points of a cloud of `there` a random part of `points` is taken from."""
    return min(round(points * POOL), there)


def thinned(key: Array, clouds: Array, count: int) -> Array:
    """Numbers `b count` of what training takes of each cloud: of its farthest points a part."""
    found = farthest(clouds, pool(count, clouds.shape[1]))
    if count == found.shape[1]:
        return found
    return taken(found, drawn(key, found.shape, count))


def varied(key: Array, clouds: Array, *, turn: bool, jitter: float) -> Array:
    """Clouds as training sees them."""
    to_turn, to_move, to_shake = jax.random.split(key, 3)
    if turn:
        clouds = turned(to_turn, clouds)
    clouds = moved(to_move, clouds)
    return shaken(to_shake, clouds, jitter) if jitter else clouds


def farthest(clouds: Array, count: int) -> Array:
    """Numbers `b count` of points, each farthest from all before it; of all points, as they are."""
    b, n, _ = clouds.shape
    if count >= n:
        return jnp.broadcast_to(jnp.arange(n)[None], (b, n))
    return jax.vmap(lambda cloud: farthest_points(cloud, count))(clouds)


def drawn(key: Array, shape: tuple[int, int], count: int) -> Array:
    """Numbers `b count` of a random part of the points `b n`, another one for each cloud."""
    return jax.random.uniform(key, shape).argsort(-1)[:, :count]


def taken(values: Array, numbers: Array) -> Array:
    """The entries `b k …` of `b n …` at these numbers `b k`."""
    return jax.vmap(lambda row, which: row[which])(values, numbers)


def moved(key: Array, clouds: Array, count: int | None = None) -> Array:
    """Clouds scaled and shifted along each axis.

    Args:
        key: of the draws.
        clouds: `b n 3`.
        count: of draws: one for each cloud where none is given, or 1 for all of them.
    """
    to_scale, to_shift = jax.random.split(key)
    shape = (count or clouds.shape[0], 1, 3)
    scale = jax.random.uniform(to_scale, shape, minval=SCALES[0], maxval=SCALES[1])
    shift = jax.random.uniform(to_shift, shape, minval=-SHIFT, maxval=SHIFT)
    return clouds * scale + shift


def turned(key: Array, clouds: Array) -> Array:
    """Clouds turned about y, the vertical axis, by any angle."""
    angle = jax.random.uniform(key, (len(clouds),), maxval=2 * jnp.pi)
    cosine, sine, zero, one = jnp.cos(angle), jnp.sin(angle), 0 * angle, 0 * angle + 1
    rows = [[cosine, zero, sine], [zero, one, zero], [-sine, zero, cosine]]
    matrix = jnp.stack([jnp.stack(row, -1) for row in rows], 1)  # b 3 3
    return jnp.einsum("bij,bnj->bni", matrix, clouds, precision="highest")


def shaken(key: Array, clouds: Array, deviation: float) -> Array:
    """Clouds whose points each move a little, normally distributed and clipped."""
    noise = jnp.clip(jax.random.normal(key, clouds.shape), -CLIPPED, CLIPPED)
    return clouds + deviation * noise
