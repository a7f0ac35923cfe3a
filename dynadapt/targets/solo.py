"""SOLO's targets and losses (Wang et al., arXiv 1912.04488), in fixed shapes.

A level's grid of g x g cells covers the picture. A cell that lies in the middle of an object, of a
scale that the level is for, is to name the object's class and to draw its mask; all others are
background. Targets are those of one image: use `jax.vmap` for a batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynadapt.targets.focal import focal

Array = jax.Array
Size = tuple[int, int]

MIDDLE = 0.2  # sides of the part of a box whose cells are the object's, over the box's own
PER_OBJECT = 9  # cells that an object has at most in a grid: its centre's and those around
_TINY = 1e-3


class Objects(NamedTuple):
    """The objects of an image, `n` each; later ones lie over earlier ones.

    Attributes:
        boxes: `n 4`, left, top, right and bottom in pixels.
        centres: `n 2`, x and y of the centre of mass in pixels.
        there: `n`, false for rows that are none, such as padding and masks without a pixel.
    """

    boxes: Array
    centres: Array
    there: Array


def objects(masks: Array, boxes: Array, there: Array) -> Objects:
    """Objects from masks `n h w`, bool, and boxes `n 4`, those that are `there`, `n`."""
    masks = masks & (there > 0)[:, None, None]
    rows, columns = (masks.sum(axis, dtype=jnp.float32) for axis in (2, 1))  # n h, n w
    count = rows.sum(1)
    middle = [(x * jnp.arange(x.shape[1])[None]).sum(1) for x in (columns, rows)]
    centres = jnp.stack(middle, axis=-1) / jnp.maximum(count, 1.0)[:, None]
    return Objects(boxes, centres, count > 0)


def owners(given: Objects, cells: int, scales: tuple[float, float], size: Size) -> Array:
    """The object that each cell of a grid belongs to, `cells cells` int32; -1 for none.

    Args:
        given: the objects.
        cells: on a side of the grid.
        scales: least and greatest root of an object's area, w times h.
        size: (h, w) in pixels that the grid covers.
    """
    sides = given.boxes[:, 2:] - given.boxes[:, :2]
    scale = jnp.sqrt(sides[:, 0] * sides[:, 1])
    fits = given.there & (scale >= scales[0]) & (scale <= scales[1])
    covered = jnp.asarray(size[::-1], jnp.float32)[None]

    def cell(point: Array) -> Array:
        # Divided and cut off in float32, as published: points on an edge fall as they do there.
        return jnp.trunc((point / covered) / np.float32(1 / cells)).astype(jnp.int32)

    middle, reach = cell(given.centres), 0.5 * MIDDLE * sides
    first = jnp.maximum(jnp.maximum(cell(given.centres - reach), 0), middle - 1)  # n 2
    last = jnp.minimum(jnp.minimum(cell(given.centres + reach), cells - 1), middle + 1)
    at = jnp.arange(cells)
    across, down = (
        (at[None] >= first[:, i, None]) & (at[None] <= last[:, i, None]) for i in (0, 1)
    )
    hit = fits[:, None, None] & down[:, :, None] & across[:, None]  # n cells cells
    number = jnp.arange(len(sides), dtype=jnp.int32)[:, None, None]
    return jnp.where(hit, number, -1).max(0, initial=-1)


def taps(size: Size, whole: Size) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The four pixels between which each pixel of a smaller map lies, and how near it is to each.

    Args:
        size: (h, w) of the map.
        whole: (H, W) of the picture.

    Returns:
        Rows and columns `4 h w`, and weights `4 h w` that add up to 1.
    """
    found = []
    for count, length in zip(size, whole, strict=True):
        at = ((np.arange(count) + 0.5) * length / count - 0.5).clip(0, length - 1)
        low = np.floor(at).astype(np.int32)
        near = np.stack([low, np.minimum(low + 1, length - 1)])
        found.append((near, np.stack([1 - (at - low), at - low])))
    (rows, down), (columns, across) = found
    shape = (2, 2, *size)
    rows = np.broadcast_to(rows[:, None, :, None], shape)
    columns = np.broadcast_to(columns[None, :, None, :], shape)
    weights = down[:, None, :, None] * across[None, :, None, :]
    return tuple(x.reshape(4, *size) for x in (rows, columns, weights))


def halves(inside: Array, weights: np.ndarray) -> Array:
    """Masks `… h w` of the pixels that at least half lie inside; `inside` is `… 4 h w` at taps.

    That is bilinear resampling of masks of 0 and 1, rounded half up.
    """
    shape = (1,) * (inside.ndim - 3)
    return (inside * weights.astype(np.float32).reshape(*shape, *weights.shape)).sum(-3) >= 0.5


class Targets(NamedTuple):
    """What one level is to answer for an image.

    Attributes:
        classes: of the cells, `g g` int32; -1 for background.
        cells: positions `p` int32 of the cells with an object, counted row by row.
        some: `p`, which of these positions are any; others are 0.
        masks: `p h w`, what those cells are to draw.
        left_out: how many cells with an object found no place among the p; float32.
    """

    classes: Array
    cells: Array
    some: Array
    masks: Array
    left_out: Array


def targets(
    given: Objects,
    classes: Array,
    small: Array,
    *,
    cells: int,
    scales: tuple[float, float],
    size: Size,
    most: int,
) -> Targets:
    """The targets of a level.

    Args:
        given: the objects, n.
        classes: theirs, `n`.
        small: their masks at the size of those that are drawn, `n h w`.
        cells: on a side of the grid, g.
        scales: least and greatest root of an object's area, w times h.
        size: (h, w) in pixels that the grid covers.
        most: cells that draw their mask, p.
    """
    owner = owners(given, cells, scales, size)
    own = owner.reshape(-1)
    (at,) = jnp.nonzero(own >= 0, size=most, fill_value=0)
    count = (own >= 0).sum()
    return Targets(
        jnp.where(owner >= 0, classes[owner], -1).astype(jnp.int32),
        at.astype(jnp.int32),
        jnp.arange(most) < count,
        small[own[at]],
        jnp.maximum(count - most, 0).astype(jnp.float32),
    )


def dice(logits: Array, masks: Array) -> Array:
    """Dice loss `…` of mask logits against masks, `… h w` both."""
    p = jax.nn.sigmoid(logits.astype(jnp.float32))
    t = masks.astype(jnp.float32)
    both, own, wanted = ((x * y).sum((-2, -1)) for x, y in ((p, t), (p, p), (t, t)))
    return 1 - 2 * both / (own + wanted + 2 * _TINY)


def losses(
    classes: Sequence[Array], masks: Sequence[Array], wanted: Sequence[Targets], mask: Array
) -> tuple[Array, Array]:
    """The losses of masks and of classes, each divided by its own count over the whole batch.

    Of masks the mean over the cells that draw one; of classes the sum over the cells with an object
    and one more.

    Args:
        classes: logits `b g g c` of each level.
        masks: logits `b p h w` of each level, of the cells that its targets name.
        wanted: targets of each level, `b …`.
        mask: `b`, 0 for padding, which counts nowhere.
    """
    there = mask > 0
    drawn = found = missed = positives = 0.0
    for logits, own, level in zip(classes, masks, wanted, strict=True):
        some = level.some & there[:, None]
        drawn += some.sum(dtype=jnp.float32)
        missed += jnp.where(some, dice(own, level.masks), 0.0).sum()
        each = focal(logits, level.classes).sum((1, 2, 3))
        found += jnp.where(there, each, 0.0).sum()
        positives += ((level.classes >= 0) & there[:, None, None]).sum(dtype=jnp.float32)
    return missed / jnp.maximum(drawn, 1.0), found / (positives + 1)
