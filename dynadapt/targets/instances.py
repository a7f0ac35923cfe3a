"""From the cells of SOLO's head (Wang et al., arXiv 1912.04488) to the instances of an image, in
fixed shapes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dynadapt.heads.solo import Cells, mask_logits
from dynadapt.layers.resample import resize
from dynadapt.targets import nms

Array = jax.Array

THRESHOLD = 0.1  # score of a class from which a cell is looked at
INSIDE = 0.5  # probability from which a pixel is the mask's
LEAST = 0.05  # score that is left of an instance


class Found(NamedTuple):
    """The instances of an image, k, best first.

    Attributes:
        masks: probabilities `k h w`, at the resolution of the first level's masks.
        scores: `k`; 0 where there is none.
        classes: `k` int32; -1 where there is none.
        missed: how many classes of cells were above the threshold and not looked at, int32.
    """

    masks: Array
    scores: Array
    classes: Array
    missed: Array


def peaks(scores: Array) -> Array:
    """Scores `g g c` of cells that none of the left, upper and left upper neighbours exceeds; 0
    elsewhere."""
    padding = ((1, 0), (1, 0))
    return jnp.where(nnx.max_pool(scores, (2, 2), (1, 1), padding) == scores, scores, 0.0)


def drawn(cells: Cells, level: int, at: Array) -> Array:
    """Mask probabilities `p h w` of cells `p` of a level, as large as those of the first level.

    `cells` are those of one image.
    """
    given = cells.features[level], cells.kernels[level], cells.biases[level]
    masks = jax.nn.sigmoid(mask_logits(*given, at))
    h, w = cells.features[0].shape[:2]
    return resize(masks[..., None], (2 * h, 2 * w))[..., 0]


def instances(
    cells: Cells, strides: tuple[float, ...], *, candidates: int = 500, most: int = 100
) -> Found:
    """The instances of an image: the best classes of cells, suppressed by matrix NMS.

    Only masks of candidates are drawn. Those that are smaller than a level's stride, in pixels of
    the mask, are none.

    Args:
        cells: of one image.
        strides: of the levels that masks are drawn from.
        candidates: classes of cells that are looked at.
        most: instances that are answered.
    """
    scores = [peaks(jax.nn.sigmoid(logits)) for logits in cells.classes]
    classes = scores[0].shape[-1]
    every = jnp.concatenate([x.reshape(-1) for x in scores])
    every = jnp.where(every > THRESHOLD, every, 0.0)
    best, at = jax.lax.top_k(every, min(candidates, every.size))
    missed = jnp.maximum((every > 0).sum() - best.size, 0)
    cell, kind = at // classes, at % classes
    masks, least, start = 0.0, 0.0, 0
    for level, stride in enumerate(strides):
        count = scores[level].shape[0] ** 2
        here = (cell >= start) & (cell < start + count)
        own = drawn(cells, level, (cell - start).clip(0, count - 1))
        masks = jnp.where(here[:, None, None], own, masks)
        least = jnp.where(here, stride, least)
        start += count
    inside = masks > INSIDE
    area = inside.sum((1, 2))
    sure = (masks * inside).sum((1, 2)) / jnp.maximum(area, 1)
    left = nms.matrix(inside, jnp.where(area > least, best * sure, 0.0), kind)
    found, order = jax.lax.top_k(jnp.where(left >= LEAST, left, 0.0), min(most, left.size))
    kind = jnp.where(found > 0, kind[order], -1).astype(jnp.int32)
    return Found(masks[order], found, kind, missed)
