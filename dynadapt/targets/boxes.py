"""Boxes against each other and against anchors; all are left, top, right, bottom in pixels."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

TINY = 1e-6  # square pixels below which an area is no divisor
# A unit of (dx, dy, dw, dh): parts of an anchor's side, and of the logarithm of its growth.
SPREADS = (0.1, 0.1, 0.2, 0.2)
GROWTH = math.log(1000 / 16)  # the most that a side grows or shrinks by, as a logarithm


def area(boxes: Array) -> Array:
    """Square pixels of boxes `... 4`."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _shared(one: Array, other: Array) -> tuple[Array, Array]:
    """Areas of the intersection and of the union of boxes `... 4`."""
    both = _spanned(jnp.maximum(one, other)[..., :2], jnp.minimum(one, other)[..., 2:])
    return both, jnp.maximum(area(one) + area(other) - both, TINY)


def _spanned(low: Array, high: Array) -> Array:
    """Areas between two corners `... 2`; 0 where they span none."""
    sides = jnp.maximum(high - low, 0.0)
    return sides[..., 0] * sides[..., 1]


def iou(one: Array, other: Array) -> Array:
    """Intersection over union `...` of boxes `... 4`, of the same leading shape or of length 1."""
    both, union = _shared(one, other)
    return both / union


def giou(one: Array, other: Array) -> Array:
    """Generalised IoU (Rezatofighi et al., arXiv 1902.09630), in (-1, 1]; shapes as of `iou`.

    It takes off the part of the box around both that neither covers, so boxes apart have a slope.
    """
    both, union = _shared(one, other)
    around = _spanned(jnp.minimum(one, other)[..., :2], jnp.maximum(one, other)[..., 2:])
    around = jnp.maximum(around, TINY)
    return both / union - (around - union) / around


def centres(boxes: Array) -> Array:
    """Centres (x, y) `... 2` of boxes `... 4`."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def anchors(
    sizes: Sequence[tuple[int, int]], strides: Sequence[float], scale: float
) -> tuple[np.ndarray, ...]:
    """One square a cell, `scale` strides wide, centred at (x, y) times the stride: `hw 4` a level.

    Args:
        sizes: (h, w) of each level.
        strides: pixels between cells, of each level.
        scale: side of an anchor in strides.
    """
    found = []
    for (h, w), stride in zip(sizes, strides, strict=True):
        y, x = (stride * at.ravel() for at in np.mgrid[:h, :w])
        half = scale * stride / 2
        found.append(np.stack([x - half, y - half, x + half, y + half], -1).astype(np.float32))
    return tuple(found)


def decode(anchors: Array, deltas: Array) -> Array:
    """The boxes `... 4` that deltas (dx, dy, dw, dh), in `SPREADS`, make of anchors `... 4`."""
    deltas = deltas * jnp.asarray(SPREADS).reshape((1,) * (deltas.ndim - 1) + (4,))
    sides = anchors[..., 2:] - anchors[..., :2]
    middle = centres(anchors) + deltas[..., :2] * sides
    half = sides * jnp.exp(jnp.clip(deltas[..., 2:], -GROWTH, GROWTH)) / 2
    return jnp.concatenate([middle - half, middle + half], -1)
